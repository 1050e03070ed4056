# SPDX-License-Identifier: Apache-2.0
"""DESIGN §10: a 401 leaves with CK', IK', or with its nonce unmarked, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi.kemikit import AUTN, CK, IK, IMPI, MARKER, NONCE, RAND, challenge, response
from keyferry.kemi.challenge import NotMaskable, mask, read_challenge, refusal
from keyferry.protocol.digest import aka_nonce, parse_challenge
from keyferry.protocol.ims.keys import access_keys, application_master_key
from keyferry.protocol.ims.marker import Marker, build_marker
from keyferry.protocol.sip.message import Response, parse_message

C, I = CK.reveal().hex(), IK.reveal().hex()  # noqa: E741 - IK
MASKED = access_keys(CK, IK, RAND, IMPI)


def masked(data: bytes) -> bytes:
    """Return what leaves."""
    found = read_challenge(data)
    assert found is not None
    return mask(found, IMPI).message


def is_clean(data: bytes) -> bool:
    """Tell whether no form of CK, IK is there."""
    lower = data.lower()
    return not any(key in lower for key in (C.encode(), I.encode(), CK.reveal(), IK.reveal()))


@pytest.mark.parametrize(
    "keys",
    [
        f'ck="{C}", ik="{I}"',
        f'ik="{I}", ck="{C}"',
        f'CK="{C.upper()}",IK="{I.upper()}"',
        f'Ck="{C}" ,\tiK="{I}"',
        f"ck={C}, ik={I}",
        f'ck="{C}",\r\n ik="{I}"',
        f'opaque="x",\r\n\tik="{I}",\r\n  stale=false, ck={C}',
        f'ck="{C}", x-other="a, b=c", ik="{I}"',
    ],
)
@pytest.mark.parametrize("name", ["WWW-Authenticate", "www-authenticate", "WWW-AUTHENTICATE ", "Proxy-Authenticate"])
def test_ck_and_ik_are_replaced_in_whatever_order_case_and_folding(keys: str, name: str) -> None:
    leaves = masked(challenge(keys=keys, name=name))
    assert is_clean(leaves)
    message = parse_message(leaves)
    assert isinstance(message, Response)
    value = parse_challenge((message.all("WWW-Authenticate") or message.all("Proxy-Authenticate"))[0])
    assert (value.parameter("ck"), value.parameter("ik")) == (MASKED.ck.reveal().hex(), MASKED.ik.reveal().hex())
    assert value.nonce == NONCE  # peers compare it octet for octet
    assert value.qop == ("auth",)


def test_k_m_is_that_of_the_design() -> None:
    found = read_challenge(challenge())
    assert found is not None
    assert mask(found, IMPI).k_m == application_master_key(CK, IK, RAND, IMPI)


@pytest.mark.parametrize(
    "data",
    [
        challenge(keys=f'ck="{C}"'),
        challenge(keys=f'ik="{I}"'),
        challenge(keys=f'ck="{C[:-2]}", ik="{I}"'),
        challenge(keys=f'ck="{C}00", ik="{I}"'),
        challenge(keys=f'ck="{C}", ik="{I}", ck="{C}"'),
        challenge(keys=f'ck="{C}", ik="{I}", CK="{C}"'),
        challenge(keys=f'ck="{C}", ik="{I}", x="{C}"'),
        challenge(keys=f'ck="{C}", ik="{I}", x="y{I.upper()}z"'),
        challenge(keys=f'ck="{C}" ik="{I}"'),
        challenge(keys=f'ck="{C}", ik="{I}"\r\nX-Debug: {C}'),
        challenge(keys=f'ck="{C}", ik="{I}"\r\nWWW-Authenticate: Digest realm="x", nonce="y"'),
        challenge(keys=f'ck="{C}", ik="{I}"\r\nWWW-Authenticate: Basic realm="x"'),
        challenge().replace(b"\r\n\r\n", b"\r\n"),
        challenge().replace(b"SIP/2.0 401", b"SIP/9.0 401"),
        b"",
    ],
    ids=range(15),
)
def test_what_cannot_wholly_be_replaced_does_not_leave(data: bytes) -> None:
    with pytest.raises(NotMaskable) as raised:
        masked(data)
    assert is_clean(str(raised.value).encode())
    assert is_clean(refusal(data) or b"")


def test_a_challenge_without_the_marker_is_not_touched() -> None:
    """A Release 5 UE: CK, IK for its P-CSCF as ever."""
    for server_data in (b"", b"3G\x05\x07", build_marker(Marker(6, access_keys=False, as_keys=False, rspauth=False)), b"xy\x06\x07"):
        assert read_challenge(challenge(aka_nonce(RAND, AUTN, server_data))) is None
    assert read_challenge(challenge("no AKA nonce")) is None


def test_longer_markers_are_markers() -> None:
    assert is_clean(masked(challenge(aka_nonce(RAND, AUTN, MARKER + bytes(60)))))


def test_the_500_goes_where_the_401_would_have_gone() -> None:
    refused = parse_message(refusal(challenge()) or b"")
    assert isinstance(refused, Response)
    assert refused.status == 500
    for name in ("Via", "From", "To", "Call-ID", "CSeq"):
        assert refused.all(name) == parse_message(challenge()).all(name)
    assert refused.all("WWW-Authenticate") == []


@given(st.binary(max_size=300), st.integers(0, 600), st.integers(0, 40))
def test_no_damage_lets_the_keys_out(noise: bytes, place: int, cut: int) -> None:
    """Either it is refused, or it has no marker that a UE would act on, or no key is in it."""
    whole = challenge()
    data = whole[:place] + noise + whole[place + cut :]
    try:
        found = read_challenge(data)
    except NotMaskable:
        assert is_clean(refusal(data) or b"")
        return
    if found is None:
        assert _unmarked(data)
        return
    try:
        leaves = mask(found, IMPI).message
    except NotMaskable:
        return
    assert is_clean(leaves) or (found.ck, found.ik) != (CK, IK)


def _unmarked(data: bytes) -> bool:
    """Tell whether an honest reader finds no challenge with the marker."""
    message = parse_message(data)
    values = [value for name in ("WWW-Authenticate", "Proxy-Authenticate") for value in message.all(name)]
    return all(parse_challenge(value).nonce != NONCE for value in values)


def test_the_kit_makes_what_kamailio_makes() -> None:
    assert parse_message(response("200 OK")).get("CSeq") == "1 REGISTER"
