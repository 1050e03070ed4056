# SPDX-License-Identifier: Apache-2.0
"""The key push: its form, its seal, its receiver."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from keyferry.errors import LocalProtocolError, ParseError, PushRefused, SealError
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims import keypush
from keyferry.protocol.ims.keypush import (
    GRACE,
    MAX_AHEAD,
    MAX_KEY_LIFE,
    MAX_KEYS,
    MAX_SEQ,
    NAMESPACE,
    HeldKey,
    HeldSet,
    Push,
    PushedKey,
    PushOutcome,
    SealedPush,
    after_use,
    build_push,
    build_time,
    check_domains,
    erased,
    open_push,
    parse_push,
    parse_service_info,
    parse_time,
    receive,
    seal_push,
    valid,
)
from keyferry.protocol.ims.keys import key_id

REALM = "home1.net"
PUSHER = "scscf1.home1.net"
NOW = 1_800_000_000
TRANSPORT_KEY = Secret(bytes(range(64)))


def key(number: int, *, start: int = NOW, life: int = 3_600, realm: str = REALM) -> PushedKey:
    k_as = Secret(bytes([number]) * 32)
    return PushedKey(key_id(k_as, realm), k_as, start, start + life)


def push(seq: int, *keys: PushedKey, **changes: object) -> Push:
    impus = ("sip:user1@home1.net", "tel:+491721") if keys else ()
    made = Push(seq, Impi("user1@home1.net"), AsId("xcap.home1.net"), Reg("AbCdEfGhIjKl"), keys, impus)  # type: ignore[arg-type]
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def nobody(_: KeyId) -> None:
    return None


def take(
    held: HeldSet | None,
    new: Push,
    *,
    pusher: str = PUSHER,
    realm: str = REALM,
    now: float = NOW,
    owner_of: Callable[[KeyId], keypush.Owner | None] = nobody,
) -> PushOutcome:
    return receive(held, new, pusher=pusher, realm=realm, now=now, owner_of=owner_of)


def ids(held: HeldSet, now: float = NOW) -> set[KeyId]:
    return {one.key_id for one in held.keys if valid(one, now)}


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
    started = time.perf_counter()
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
    assert time.perf_counter() - started < 0.5


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


# ---- the receiver


def test_a_first_push_is_stored() -> None:
    """DESIGN §6."""
    outcome = take(None, push(5, key(1), service_info="x"))
    assert (outcome.stored, outcome.stale) == (1, False)
    held = outcome.held
    assert held[:6] == (PUSHER, "user1@home1.net", "xcap.home1.net", "AbCdEfGhIjKl", 5, ("sip:user1@home1.net", "tel:+491721"))
    assert held.keys == (HeldKey(*key(1)),)
    assert held.service_info == "x"


def test_an_older_push_and_a_repeated_one_change_nothing() -> None:
    """DESIGN §6: lower is answered 200 and ignored; equal is answered 200, whatever it holds."""
    held = take(None, push(5, key(1))).held
    assert take(held, push(4, key(2))) == (held, 0, True)
    assert take(held, push(5, key(1))) == (held, 0, False)
    assert take(held, push(5, key(2))) == (held, 0, False)
    assert take(held, push(5)) == (held, 0, False)
    assert take(held, push(0)).held is held


def test_a_newer_key_supersedes_an_older_one_for_a_while() -> None:
    """DESIGN §6: until the newer one is used, 600 s, or the older one's own end."""
    held = take(take(None, push(1, key(1), key(2, life=100))).held, push(2, key(3)), now=NOW + 10).held
    assert [(one.key_id, one.superseded_until) for one in held.keys] == [
        (key(3).key_id, None),
        (key(1).key_id, NOW + 10 + GRACE),
        (key(2).key_id, NOW + 100),
    ]
    assert ids(held, NOW + 20) == {key(1).key_id, key(2).key_id, key(3).key_id}
    assert ids(held, NOW + 100) == {key(1).key_id, key(3).key_id}
    assert ids(held, NOW + 609.9) == {key(1).key_id, key(3).key_id}
    assert ids(held, NOW + 610) == {key(3).key_id}
    again = take(held, push(3, key(4)), now=NOW + 300).held
    assert [one.superseded_until for one in again.keys] == [None, NOW + 900, NOW + 610]  # the grace is not granted anew
    back = take(again, push(4, key(1, life=7_200)), now=NOW + 301).held
    assert (back.keys[0].key_id, back.keys[0].not_after, back.keys[0].superseded_until) == (key(1).key_id, NOW + 7_200, None)


def test_superseded_keys_do_not_pile_up() -> None:
    """Bounded whatever a pusher sends."""
    held = None
    for seq in range(40):
        held = take(held, push(seq, key(seq))).held
        assert len(held.keys) <= 1 + MAX_KEYS
    assert held is not None
    assert held.keys[1].key_id == key(38).key_id


def test_the_use_of_the_newer_key_ends_the_older() -> None:
    """DESIGN §6."""
    held = take(take(None, push(1, key(1))).held, push(2, key(2))).held
    assert after_use(held, key(1).key_id, NOW) is held
    assert after_use(held, KeyId("unknown"), NOW) is held
    assert after_use(held, key(2).key_id, NOW + 4_000) is held  # over: nothing was proved by it
    assert ids(after_use(held, key(2).key_id, NOW)) == {key(2).key_id}


def test_an_empty_push_erases_at_once_and_is_remembered() -> None:
    """DESIGN §6: an older push must not bring a key back after the de-registration."""
    held = take(take(None, push(1, key(1))).held, push(3)).held
    assert (held.keys, held.impus, held.seq) == ((), (), 3)
    assert take(held, push(2, key(1))) == (held, 0, True)
    assert held.tombstone_until >= NOW + MAX_KEY_LIFE
    first = take(None, push(3)).held
    assert take(first, push(2, key(1))).stale


def test_a_body_less_de_registration_erases_and_keeps_the_count() -> None:
    """DESIGN §6."""
    held = erased(take(None, push(5, key(1))).held)
    assert (held.keys, held.seq) == ((), 5)
    assert take(held, push(5, key(1))).held.keys == ()


def test_a_push_replayed_after_its_tombstone_brings_no_living_key() -> None:
    """No key outlives the tombstone of a later push, so that an attacker gains nothing by waiting."""
    oldest = push(1, key(1, start=NOW + MAX_AHEAD, life=MAX_KEY_LIFE))
    assert take(None, oldest).stored == 1
    tombstone = take(None, push(2)).held
    outcome = take(None, oldest, now=tombstone.tombstone_until)
    assert (outcome.stored, outcome.held.keys) == (0, ())


@pytest.mark.parametrize(
    "wrong",
    [
        key(1)._replace(not_after=NOW),
        key(1)._replace(not_after=NOW - 1),
        key(1, life=MAX_KEY_LIFE + 1),
        key(1)._replace(not_after=253_402_300_799),
        key(1, start=NOW + MAX_AHEAD + 1),
        key(1, start=253_402_300_000, life=60),
    ],
)
def test_a_life_that_makes_no_sense_is_refused(wrong: PushedKey) -> None:
    """DESIGN §6."""
    with pytest.raises(PushRefused) as problem:
        take(None, push(1, wrong))
    assert problem.value.reason == "lifetime"


def test_a_key_whose_time_is_over_is_not_stored() -> None:
    """DESIGN §6; what it supersedes lives no longer than it would anyway."""
    outcome = take(None, push(1, key(1, start=NOW - 3_600)))
    assert (outcome.stored, outcome.held.keys) == (0, ())
    held = take(take(None, push(1, key(1))).held, push(2, key(2, start=NOW - 3_600), key(3))).held
    assert ids(held) == {key(1).key_id, key(3).key_id}


def refused(reason: str, held: HeldSet | None, new: Push, **changes: object) -> None:
    with pytest.raises(PushRefused) as problem:
        take(held, new, **changes)  # type: ignore[arg-type]
    assert (problem.value.reason, problem.value.status) == (reason, 403)


def test_a_key_of_another_home_network_is_refused() -> None:
    """DESIGN §6: the realm of the key id is the pusher's home."""
    refused("realm", None, push(1, key(1, realm="home2.net")))
    refused("realm", None, push(1, key(1)), realm="home2.net")
    refused("realm", None, push(1, key(1, realm="sub.home1.net")))
    refused("realm", None, push(1, key(1)._replace(key_id=KeyId("no-realm"))))
    refused("realm", None, push(1, key(1, realm="home1.net@home2.net")), realm="home2.net")


def test_a_key_id_that_is_not_its_keys_is_refused() -> None:
    """DESIGN §3: the key id certifies itself."""
    refused("key-id", None, push(1, key(1)._replace(k_as=Secret(b"x" * 32))))
    refused("key-id", None, push(1, key(2), key(1)._replace(key_id=key(3).key_id)))


@pytest.mark.parametrize(
    "owner",
    [
        ("user2@home1.net", "xcap.home1.net", "AbCdEfGhIjKl"),
        ("user1@home1.net", "notes.home1.net", "AbCdEfGhIjKl"),
        ("user1@home1.net", "xcap.home1.net", "AAAAAAAAAAAA"),
    ],
)
def test_a_key_that_is_anothers_is_refused(owner: keypush.Owner) -> None:
    """DESIGN §6: the key block re-bound to another user, AS or device, by whatever pusher."""
    held = take(None, push(1, key(2))).held
    refused("rebound", held, push(2, key(2), key(1)), owner_of=lambda one: owner if one == key(1).key_id else None)
    mine = (Impi("user1@home1.net"), AsId("xcap.home1.net"), Reg("AbCdEfGhIjKl"))
    assert take(held, push(2, key(1)), owner_of=lambda _: mine).stored == 1


def test_a_known_key_id_with_another_key_is_refused() -> None:
    """DESIGN §6."""
    held = take(None, push(1, key(1))).held
    forged = held._replace(keys=(held.keys[0]._replace(k_as=Secret(b"x" * 32)),))
    refused("rebound", forged, push(2, key(1)))
    assert take(held, push(2, key(1, life=7_200))).held.keys[0].not_after == NOW + 7_200


@pytest.mark.parametrize(
    "changes", [{"pusher": "scscf2.home1.net"}, {"impi": "user2@home1.net"}, {"as_id": "notes.home1.net"}, {"reg": "AAAAAAAAAAAA"}]
)
def test_another_set_is_not_touched(changes: dict[str, str]) -> None:
    """DESIGN §6: a set is (pusher, impi, as, reg); to hand in another is our bug."""
    held = take(None, push(1, key(1))).held
    with pytest.raises(LocalProtocolError):
        take(held._replace(**changes), push(2))  # type: ignore[arg-type]


def test_clocks_may_differ_by_a_minute() -> None:
    """DESIGN §6; not-after has its minute already."""
    one = HeldKey(*key(1))
    assert not valid(one, NOW - 60.1)
    assert valid(one, NOW - 60)
    assert valid(one, NOW + 3_599.9)
    assert not valid(one, NOW + 3_600)
    assert not valid(one, NOW - 1, skew=0.0)
    assert not valid(one._replace(superseded_until=NOW + 5.0), NOW + 5)


def test_one_operator_does_not_name_anothers_users() -> None:
    """DESIGN §6: who may push; the realm of a key id says nothing about the identities."""
    check_domains(push(1, key(1)), {"home1.net"})
    check_domains(push(1, key(1), impus=("sip:a@ims.home1.net:5060",)), {"home1.net", "ims.home1.net"})
    for impu in ("sip:user1@home2.net", "sips:x@home1.net.evil.net", "sip:a%40home1.net@evil.net"):
        with pytest.raises(PushRefused):
            check_domains(push(1, key(1), impus=("tel:+1", Impu(impu))), {"home1.net"})


class Receiver(RuleBasedStateMachine):
    """An AS with two devices and two pushers, and S-CSCFs whose pushes are lost, repeated and re-ordered."""

    SETS = tuple((pusher, reg) for pusher in (PUSHER, "scscf2.home1.net") for reg in ("AbCdEfGhIjKl", "AAAAAAAAAAAA"))

    @initialize()
    def start(self) -> None:
        self.now = float(NOW)
        self.held: dict[tuple[str, str], HeldSet] = {}
        self.sent: dict[tuple[str, str], list[Push]] = {which: [] for which in self.SETS}
        self.accepted: dict[tuple[str, str], Push] = {}
        self.next_key = 0

    def owner_of(self, wanted: KeyId) -> keypush.Owner | None:
        for held in self.held.values():
            if any(one.key_id == wanted for one in held.keys):
                return held.impi, held.as_id, held.reg
        return None

    @rule(which=st.sampled_from(SETS), fresh=st.integers(0, 2), keep=st.booleans(), life=st.sampled_from([30, 3_600, MAX_KEY_LIFE]))
    def send(self, which: tuple[str, str], fresh: int, keep: bool, life: int) -> None:
        """Make the next push of a set: new keys, perhaps the old ones too, or nothing."""
        keys = list(self.sent[which][-1].keys[:2]) if keep and self.sent[which] else []
        for _ in range(fresh):
            self.next_key += 1
            octets = Secret(self.next_key.to_bytes(32, "big"))
            keys.append(PushedKey(key_id(octets, REALM), octets, int(self.now), int(self.now) + life))
        self.sent[which].append(push(len(self.sent[which]), *keys, reg=Reg(which[1])))

    @rule(which=st.sampled_from(SETS), data=st.data())
    def arrive(self, which: tuple[str, str], data: st.DataObject) -> None:
        """Let any push ever made arrive, again or for the first time."""
        if not self.sent[which]:
            return
        new = data.draw(st.sampled_from(self.sent[which]))
        before = dict(self.held)
        outcome = take(self.held.get(which), new, pusher=which[0], now=self.now, owner_of=self.owner_of)
        self.held[which] = outcome.held
        assert {one: held for one, held in before.items() if one != which} == {one: held for one, held in self.held.items() if one != which}
        last = self.accepted.get(which)
        assert outcome.stale is (last is not None and new.seq < last.seq)
        if last is None or new.seq > last.seq:
            self.accepted[which] = new
            if not new.keys:
                assert outcome.held.keys == ()
        else:
            assert outcome.held is before[which]

    @rule(which=st.sampled_from(SETS), data=st.data())
    def steal(self, which: tuple[str, str], data: st.DataObject) -> None:
        """Push a key that the AS holds for another device."""
        others = [one for key_of, held in self.held.items() if key_of[1] != which[1] for one in held.keys]
        if not others:
            return
        stolen = PushedKey(*data.draw(st.sampled_from(others))[:4])
        with pytest.raises(PushRefused):
            take(self.held.get(which), push(10**6, stolen, reg=Reg(which[1])), pusher=which[0], now=self.now, owner_of=self.owner_of)

    @rule(seconds=st.sampled_from([1, 31, 599, 601, 4_000, MAX_KEY_LIFE + MAX_AHEAD]))
    def wait(self, seconds: int) -> None:
        """Let time pass, and the store sweep tombstones whose time is over."""
        self.now += seconds
        for which in [one for one, held in self.held.items() if held.tombstone_until <= self.now]:
            assert not ids(self.held[which], self.now)
            del self.held[which]
            self.accepted.pop(which)

    @rule(which=st.sampled_from(SETS), data=st.data())
    def use(self, which: tuple[str, str], data: st.DataObject) -> None:
        """Prove a key that is valid."""
        held = self.held.get(which)
        usable = [one for one in held.keys if valid(one, self.now)] if held else []
        if held and usable:
            used = data.draw(st.sampled_from(usable))
            self.held[which] = after_use(held, used.key_id, self.now)
            assert used in self.held[which].keys

    @invariant()
    def no_key_lives_that_the_last_push_ended(self) -> None:
        """A key is valid if the newest accepted push names it, or, if that has keys, for the grace at most."""
        for which, held in self.held.items():
            last = self.accepted[which]
            assert held.seq == last.seq
            named = {one.key_id for one in last.keys}
            for one in held.keys:
                assert last.keys
                assert (one.superseded_until is None) is (one.key_id in named)
                assert one.superseded_until is None or one.superseded_until <= self.now + GRACE
            assert len(held.keys) <= 2 * MAX_KEYS


Receiver.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestReceiver = Receiver.TestCase
