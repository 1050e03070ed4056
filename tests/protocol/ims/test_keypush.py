# SPDX-License-Identifier: Apache-2.0
"""The key push: its form and its seal."""

from __future__ import annotations

import base64
import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError, PushRefused, SealError
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.keypush import (
    MAX_KEYS,
    MAX_SEQ,
    NAMESPACE,
    Push,
    PushedKey,
    SealedPush,
    build_push,
    build_time,
    open_push,
    parse_push,
    parse_service_info,
    parse_time,
    seal_push,
)
from keyferry.protocol.ims.keys import key_id
from protocol.ims.pushes import NOW, PUSHER, REALM, TRANSPORT_KEY, key, push, take

# ---- the element


def test_a_push_looks_as_documented() -> None:
    """DESIGN §6."""
    one = key(1)
    encoded = base64.b64encode(one.k_as.reveal()).decode()
    assert build_push(push(5, one, service_info="a & b")) == (
        '<kf:push xmlns:kf="urn:keyferry:isc:1" seq="5" impi="user1@home1.net" as="xcap.home1.net" reg="AbCdEfGhIjKl">'
        f'<kf:key id="{one.key_id}" not-before="2027-01-15T08:00:00Z" not-after="2027-01-15T09:00:00Z">{encoded}</kf:key>'
        "<kf:impu>sip:user1@home1.net</kf:impu><kf:impu>tel:+491721</kf:impu><kf:service-info>a &amp; b</kf:service-info></kf:push>"
    )


def test_a_key_never_prints() -> None:
    """STYLE §3 rule 19."""
    sealed = parse_service_info(seal_push(push(1, key(65)), transport_key=TRANSPORT_KEY, scscf=PUSHER, kid="t1"))
    for shown in (repr(push(1, key(65))), repr(take(None, push(1, key(65)))), repr(sealed)):
        assert "AAAA" not in shown
        assert "QUFB" not in shown


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=20)
PUSHED = st.builds(
    lambda octets, start, life: PushedKey(key_id(Secret(octets), REALM), Secret(octets), start, start + life),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 4_000_000_000),
    st.integers(-10, 9_999_999),
).filter(lambda one: one.not_after >= 0)
PUSHES = st.builds(
    Push,
    st.integers(0, MAX_SEQ),
    st.sampled_from(["user1@home1.net", "a'&b@h"]),
    st.sampled_from(["xcap.home1.net", "a", "xn--grn-hoa.net"]),
    st.sampled_from(["AbCdEfGhIjKl", "-_-_-_-_-_-_"]),
    st.lists(PUSHED, max_size=3, unique_by=lambda one: one.key_id).map(tuple),
    st.lists(st.sampled_from(["sip:a@home1.net", "tel:+1", "sips:b%40c&d@h:5061"]), min_size=1, unique=True).map(tuple),
    st.none() | WORDS,
)


@given(PUSHES)
def test_a_push_that_was_built_is_read_back(made: Push) -> None:
    """Reverse of parse_push."""
    assert parse_push(build_push(made).encode()) == made
    assert parse_service_info(build_push(made)) == made


@given(PUSHES)
def test_a_sealed_push_opens_again(made: Push) -> None:
    """Reverse of seal_push."""
    sealed = parse_service_info(seal_push(made, transport_key=TRANSPORT_KEY, scscf=PUSHER, kid="t1"))
    assert isinstance(sealed, SealedPush)
    assert (sealed.scscf, sealed.as_id, sealed.kid) == (PUSHER, made.as_id, "t1")
    assert open_push(sealed, TRANSPORT_KEY) == open_push(sealed, Siv(TRANSPORT_KEY)) == made


ELEMENT = build_push(push(5, key(1), service_info="x"))
IMPU = "<kf:impu>sip:user1@home1.net</kf:impu>"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('seq="5"', ""),
        ('seq="5"', 'seq=""'),
        ('seq="5"', 'seq="-1"'),
        ('seq="5"', 'seq="05"'),
        ('seq="5"', 'seq="\u0665"'),
        ('seq="5"', 'seq="5 "'),
        ('seq="5"', 'seq="9223372036854775808"'),
        ('seq="5"', f'seq="{"9" * 5_000}"'),
        ('seq="5"', 'seq="5" seq="6"'),
        ('seq="5"', 'kf:seq="5"'),
        ('impi="user1@home1.net"', 'impi="user1"'),
        ('as="xcap.home1.net"', 'as="XCAP.home1.net"'),
        ('as="xcap.home1.net"', 'as="xcap.home1.net."'),
        ('as="xcap.home1.net"', 'as="10.0.0.1"'),
        ('as="xcap.home1.net"', 'as="xcap.home1.net:443"'),
        ('reg="AbCdEfGhIjKl"', 'reg="AbCdEfGhIjK"'),
        ('reg="AbCdEfGhIjKl"', 'reg="AbCdEfGhIj=="'),
        ('@home1.net" not-before', '" not-before'),
        ('@home1.net" not-before', '@" not-before'),
        ('@home1.net" not-before', '@a b" not-before'),
        ("2027-01-15T09:00:00Z", "2027-01-15T09:00:00"),
        ("2027-01-15T09:00:00Z", "2027-01-15T09:00:00+00:00"),
        ("2027-01-15T09:00:00Z", "2027-02-30T09:00:00Z"),
        ("2027-01-15T09:00:00Z", "2027-01-15T24:00:01Z"),
        ("2027-01-15T09:00:00Z", "0000-01-15T09:00:00Z"),
        ("2027-01-15T09:00:00Z", "1969-12-31T23:59:59Z"),
        ("2027-01-15T09:00:00Z", "99999-01-15T09:00:00Z"),
        ("2027-01-15T09:00:00Z", "1893456000"),
        ("AQEB", "AQ EB"),
        ("AQEB", "AQE"),
        ("AQEB", "AQEBAQEB"),
        ("AQEB", "AQ==AQEB"),
        ("AQEB", "AQ<!-- -->EB"),
        ("AQEB", "AQ<?x?>EB"),
        ("AQEB", "AQ<kf:x/>EB"),
        ("AQEB", "ÄQEB"),
        (IMPU, "<kf:impu>mailto:a@b</kf:impu>"),
        (IMPU, "<kf:impu>sip:user1@home1.net<!-- .evil.net --></kf:impu>"),
        (IMPU, "<kf:impu><kf:x/></kf:impu>"),
        (IMPU, IMPU * 101),
        ("<kf:service-info>", "<kf:service-info>a</kf:service-info><kf:service-info>"),
        ("<kf:impu>", "<kf:IMPU>"),
        ("<kf:push ", "<!DOCTYPE x [<!ENTITY a 'b'>]><kf:push "),
        ("kf:push", "push"),
        ("kf:push", "kf:pull"),
        ("urn:keyferry:isc:1", "urn:keyferry:isc:2"),
        ("<kf:impu>", "&evil;<kf:impu>"),
    ],
)
def test_a_push_of_another_form_is_refused_without_quoting_it(old: str, new: str) -> None:
    """DESIGN §6."""
    changed = ELEMENT.replace(old, new)
    if old == "<kf:impu>" and "IMPU" in new:
        changed = changed.replace("</kf:impu>", "</kf:IMPU>")
    assert changed != ELEMENT
    with pytest.raises(ParseError) as problem:
        parse_push(changed.encode())
    assert "AQEB" not in str(problem.value)
    assert problem.value.__cause__ is None or not isinstance(problem.value.__cause__, UnicodeEncodeError)


def test_a_push_bounds_its_keys() -> None:
    """DESIGN §6: a key id twice would be two keys of one name."""
    element = ELEMENT[ELEMENT.index("<kf:key") : ELEMENT.index("<kf:impu>")]
    with pytest.raises(ParseError, match="repeats a key id"):
        parse_push(ELEMENT.replace(element, element * 2).encode())
    with pytest.raises(ParseError, match="more than 8"):
        parse_push(ELEMENT.replace(element, element * 9).encode())
    with pytest.raises(ParseError):
        parse_push(ELEMENT.replace(element, element * 3_000).encode())
    assert len(parse_push(build_push(push(1, *map(key, range(MAX_KEYS)))).encode()).keys) == MAX_KEYS
    for wrong in (
        push(1, *map(key, range(MAX_KEYS + 1))),
        push(1, key(1), impus=()),
        push(1, key(1), impus=("sip:a@h",) * 101),
        push(-1),
        push(MAX_SEQ + 1),
        push(1, service_info="x" * 40_000),
        push(1, service_info="\0"),
        push(1, key(1)._replace(k_as=Secret(b"short"))),
        push(1, key(1)._replace(not_after=10**12)),
        push(1, key(1)._replace(not_before=-1)),
    ):
        with pytest.raises(LocalProtocolError):
            build_push(wrong)


def test_what_a_receiver_does_not_know_it_passes_over() -> None:
    """DESIGN §6; identities that are the same in canonical form are one."""
    more = ELEMENT.replace(
        IMPU, f'{IMPU}<kf:impu>SIP:user1@HOME1.net;user=phone</kf:impu><kf:new><kf:key/></kf:new><x:key xmlns:x="urn:x"/>text<!-- -->'
    )
    more = more.replace("<kf:push ", '<kf:push more="1" ').replace(">AQEB", ">\n  AQEB")
    assert parse_push(more.encode()) == push(5, key(1), service_info="x")


def test_times_are_exact() -> None:
    """DESIGN §6."""
    assert (build_time(0), build_time(253_402_300_799)) == ("1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
    for seconds in (0, NOW, 253_402_300_799, 951_782_400):
        assert parse_time(build_time(seconds)) == seconds
    with pytest.raises(ParseError):
        parse_time("\uff12027-01-15T09:00:00Z")


@given(st.data())
def test_any_octets_give_a_push_or_a_parse_error(data: st.DataObject) -> None:
    """STYLE §4."""
    octets = bytearray(ELEMENT.encode() if data.draw(st.booleans()) else data.draw(st.binary(max_size=200)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(octets)))
        octets[at : at + data.draw(st.integers(0, 30))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"<", b">", b"&#0;", b"<kf:key>"])
        )
    with contextlib.suppress(ParseError):
        made = parse_push(bytes(octets))
        assert parse_push(build_push(made).encode()) == made
    with contextlib.suppress(ParseError, SealError):
        found = parse_service_info(bytes(octets).decode("utf-8", "surrogateescape"))
        if isinstance(found, SealedPush):
            open_push(found, TRANSPORT_KEY)


def test_hostile_64_kb_take_no_time() -> None:
    """STYLE §4."""
    head, tail = f'<kf:push xmlns:kf="{NAMESPACE}">', "</kf:push>"
    with costs_under(0.5):
        for text in (
            head + "<kf:key/>" * 3_000 + tail,
            head + "<kf:impu/>" * 2_500 + tail,
            head + "x" * 32_000 + tail,
            head + "x" * 33_000 + tail,
            head * 900,
            f'<kf:sealed xmlns:kf="{NAMESPACE}" from="{"a" * 40_000}"/>',
            f'<kf:sealed xmlns:kf="{NAMESPACE}">{"A" * 60_000}</kf:sealed>',
            "<" * 60_000 + NAMESPACE,
        ):
            with pytest.raises(ParseError):
                parse_service_info(text)


# ---- the seal


def test_the_seal_is_the_one_of_the_vector() -> None:
    """RFC 5297 under the associated data of DESIGN §6; computed with an independent implementation."""
    sealed = SealedPush(
        "scscf1.home1.net",
        AsId("xcap.home1.net"),
        "t1",
        base64.b64decode("YL8gYKAZRMqhnaY0ETkhfixPoV1TuAJ3ABUy4Ph/MqXX5BjpJ5PJ8E1uXcxMHVWKeeu1DdVkXAEoEgja3ufNJA=="),
    )
    with pytest.raises(ParseError, match="impi"):  # it opens: what is inside is too short for a push
        open_push(sealed, TRANSPORT_KEY)
    sealed_text = seal_push(push(1), transport_key=TRANSPORT_KEY, scscf=PUSHER, kid="t1")
    again = parse_service_info(sealed_text)
    assert isinstance(again, SealedPush)
    blob = Siv(TRANSPORT_KEY).seal(build_push(push(1)).encode(), [b"keyferry-isc-1", b"scscf1.home1.net", b"xcap.home1.net", b"t1"])
    assert again.blob == blob


def test_a_seal_opens_only_for_what_it_was_made_for() -> None:
    """DESIGN §6."""
    sealed = parse_service_info(seal_push(push(1, key(1)), transport_key=TRANSPORT_KEY, scscf=PUSHER, kid="t1"))
    assert isinstance(sealed, SealedPush)
    for other in (
        dataclasses.replace(sealed, scscf="scscf2.home1.net"),
        dataclasses.replace(sealed, as_id=AsId("notes.home1.net")),
        dataclasses.replace(sealed, kid="t2"),
        dataclasses.replace(sealed, blob=sealed.blob[:-1]),
        dataclasses.replace(sealed, blob=sealed.blob + b"\0"),
        dataclasses.replace(sealed, blob=bytes([sealed.blob[0] ^ 1]) + sealed.blob[1:]),
    ):
        with pytest.raises(SealError):
            open_push(other, TRANSPORT_KEY)
    with pytest.raises(SealError):
        open_push(sealed, Secret(b"x" * 64))


def test_a_push_for_one_as_does_not_pass_under_the_seal_of_another() -> None:
    """DESIGN §6: who holds the transport key of one AS must not speak for another."""
    blob = Siv(TRANSPORT_KEY).seal(build_push(push(1)).encode(), [b"keyferry-isc-1", PUSHER.encode(), b"notes.home1.net", b"t1"])
    with pytest.raises(PushRefused) as problem:
        open_push(SealedPush(PUSHER, AsId("notes.home1.net"), "t1", blob), TRANSPORT_KEY)
    assert problem.value.reason == "as"


@pytest.mark.parametrize(
    "text", ["", "banana", "naf=xcap.home1.net", "<a/>", "<a>", "naf=x <kf:push", f"{NAMESPACE} x", f"<a xmlns:k='{NAMESPACE}'/>"]
)
def test_what_is_not_ours_is_no_push(text: str) -> None:
    """A ServiceInfo belongs to the HSS's operator."""
    assert parse_service_info(text) is None


SEALED = seal_push(push(1, key(1)), transport_key=TRANSPORT_KEY, scscf=PUSHER, kid="t1")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kf:sealed", "kf:seal"),
        ('from="scscf1.home1.net"', ""),
        ('from="scscf1.home1.net"', 'from="a b"'),
        ('from="scscf1.home1.net"', 'from="ü"'),
        ('as="xcap.home1.net"', 'as="Xcap.home1.net"'),
        ('kid="t1"', 'kid=""'),
        ('kid="t1"', f'kid="{"t" * 33}"'),
        ("</kf", "A</kf"),
        (SEALED[SEALED.index(">") + 1 : SEALED.index("</")], "AAAAAAAAAAAAAAAAAAAAAA=="),
        (SEALED[SEALED.index(">") + 1 : SEALED.index("</")], "AAAA" * 11_000),
        ("</kf", "<!-- --></kf"),
        ("<kf", "<!DOCTYPE a><kf"),
    ],
)
def test_a_seal_of_another_form_is_refused(old: str, new: str) -> None:
    """DESIGN §6."""
    changed = SEALED.replace(old, new)
    assert changed != SEALED
    with pytest.raises(ParseError):
        parse_service_info(changed)


def test_names_that_the_seal_cannot_carry_are_our_bug() -> None:
    """DESIGN §6."""
    for scscf, kid, as_id in (('a"b', "t1", "a"), ("", "t1", "a"), ("a", "t 1", "a"), ("a", "t1", "ü")):
        with pytest.raises(LocalProtocolError):
            seal_push(push(1, as_id=as_id), transport_key=TRANSPORT_KEY, scscf=scscf, kid=kid)
