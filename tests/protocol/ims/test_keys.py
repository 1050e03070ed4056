# SPDX-License-Identifier: Apache-2.0
"""The key hierarchy (*ours*); its vectors are in tests/vectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError, ParseError, PushRefused
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, KeyId, parse_as_id
from keyferry.protocol.ims import keys

CK, IK, RAND = Secret(bytes(range(16))), Secret(bytes(range(16, 32))), bytes(range(32, 48))
IMPI, AS_ID, REALM = Impi("user1_private@home1.net"), AsId("xcap.home1.net"), "home1.net"
K_M = keys.application_master_key(CK, IK, RAND, IMPI)
K_AS = keys.as_key(K_M, AS_ID)
KEY = st.binary(min_size=32, max_size=32).map(Secret)


def test_every_input_changes_every_key() -> None:
    base = (keys.access_keys(CK, IK, RAND, IMPI).ck, K_M)
    for changed in ((IK, CK, RAND, IMPI), (CK, IK, bytes(16), IMPI), (CK, IK, RAND, Impi("user2@home1.net"))):
        access, master = keys.access_keys(*changed), keys.application_master_key(*changed)
        assert access.ck != base[0]
        assert master != base[1]
    assert keys.as_key(K_M, AsId("notes.home1.net")) != K_AS
    assert keys.ua_key(K_AS, keys.UA_DIGEST) != keys.ua_key(K_AS, keys.UA_TLS13_PSK)


def test_no_two_keys_of_one_authentication_are_equal() -> None:
    access = keys.access_keys(CK, IK, RAND, IMPI)
    k_ua = keys.ua_key(K_AS)
    every = [key.reveal() for key in (CK, IK, access.ck, access.ik, K_M, K_AS, k_ua)]
    assert len(set(every)) == len(every)
    assert [len(key) for key in every] == [16, 16, 16, 16, 32, 32, 32]


def test_a_key_id_shows_no_octet_of_the_key() -> None:
    name = keys.key_id(K_AS, REALM)
    assert len(name.partition("@")[0]) == 24
    assert name.endswith("@home1.net")
    assert name.partition("@")[0] not in keys.digest_password(K_AS).reveal().decode()


@given(KEY, KEY)
def test_a_key_id_that_is_not_the_keys_own_is_refused(k_as: Secret, other: Secret) -> None:
    name = keys.key_id(k_as, REALM)
    keys.check_key_id(name, k_as, REALM)
    if k_as != other:
        with pytest.raises(PushRefused) as refusal:
            keys.check_key_id(name, other, REALM)
        assert refusal.value.reason == "key-id"


@pytest.mark.parametrize("claimed", ["", "@home1.net", "\udc80@home1.net", "é@home1.net"])
def test_a_key_id_of_another_form_is_refused(claimed: str) -> None:
    with pytest.raises(PushRefused):
        keys.check_key_id(KeyId(claimed), K_AS, REALM)


def test_a_key_id_of_another_realm_is_refused() -> None:
    with pytest.raises(PushRefused):
        keys.check_key_id(keys.key_id(K_AS, REALM), K_AS, "visited1.net")


def test_names_are_made_of_the_as_and_of_the_key() -> None:
    name = keys.key_id(K_AS, REALM)
    assert keys.digest_realm(parse_as_id("XCAP.home1.net.")) == "IMS-AS-key@xcap.home1.net"
    assert keys.psk_identity(bytes.fromhex("010001ccac"), name) == f"IMS-AS-key;010001ccac;{name}"
    assert len(keys.first_nonce(keys.ua_key(K_AS))) == 32
    assert len(keys.digest_password(keys.ua_key(K_AS))) == 44


def test_lengths_are_checked_where_a_key_is_made() -> None:
    short = Secret(bytes(15))
    wrong: list[Callable[[], object]] = [
        lambda: keys.access_keys(short, IK, RAND, IMPI),
        lambda: keys.application_master_key(CK, short, RAND, IMPI),
        lambda: keys.application_master_key(CK, IK, bytes(15), IMPI),
        lambda: keys.as_key(CK, AS_ID),
        lambda: keys.ua_key(CK),
        lambda: keys.ua_key(K_AS, b"\x01"),
        lambda: keys.first_nonce(CK),
        lambda: keys.key_id(CK, REALM),
        lambda: keys.psk_identity(b"", KeyId("x@y")),
    ]
    for call in wrong:
        with pytest.raises(LocalProtocolError):
            call()


@pytest.mark.parametrize("suite", sorted(keys.TLS12_PSK_SUITES))
def test_a_psk_identity_is_read_as_it_was_built(suite: str) -> None:
    """TS 33.220 annex H: 010001 and the two octets of the suite."""
    name = keys.key_id(K_AS, REALM)
    for ua_id in (keys.UA_TLS13_PSK, keys.ua_tls12_psk(suite)):
        assert keys.parse_psk_identity(keys.psk_identity(ua_id, name)) == ("IMS-AS-key", ua_id, name)
    assert keys.ua_tls12_psk("ECDHE-PSK-CHACHA20-POLY1305").hex() == "010001ccac"


@pytest.mark.parametrize(
    "text",
    ["", ";", "IMS-AS-key", "IMS-AS-key;0100000007", "IMS-AS-key;0100000007;", "IMS-AS-key;01000007;a@b", "IMS-AS-key;0100000007;a b",
     "IMS-AS-key;0100000007;a@b\n", "IMS-AS-key;0100000007;" + "a" * 256, "IMS-AS-key;010000000g;a@b", "IMS-AS-key;0100000007;é@b",
     "IMS-AS-key;0100000007;a\x00b", "x;" * 200_000],
)  # fmt: skip
def test_what_is_no_psk_identity_is_said(text: str) -> None:
    with pytest.raises(ParseError):
        keys.parse_psk_identity(text)


def test_a_suite_without_forward_secrecy_has_no_ua_id() -> None:
    with pytest.raises(LocalProtocolError):
        keys.ua_tls12_psk("PSK-AES128-GCM-SHA256")
