# SPDX-License-Identifier: Apache-2.0
"""Final responses kept for timer J (RFC 3261 §17.2.2)."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.sip.completed import ENTRY_OVERHEAD, CompletedResponses, pack, unpack
from keyferry.protocol.sip.message import Request, Response, make_response

CONTACT = (
    "<sip:user1_public1@[5555::aaa:bbb:ccc:ddd]:1357>;expires=600000;"
    '+sip.instance="<urn:gsma:imei:90420156-025763-0>";+g.3gpp.smsip;reg-id=1'
)
REQUEST = Request(
    "REGISTER",
    "sip:home1.net",
    (
        ("Via", "SIP/2.0/UDP icscf1.home1.net;branch=z9hG4bK240f34.1;received=192.0.2.1"),
        ("Via", "SIP/2.0/UDP pcscf1.visited1.net;branch=z9hG4bK240f34.1"),
        ("Max-Forwards", "68"),
        ("Path", "<sip:term@pcscf1.visited1.net;lr>"),
        ("From", "<sip:user1_public1@home1.net>;tag=4fa3"),
        ("To", "<sip:user1_public1@home1.net>"),
        ("Contact", CONTACT),
        ("Call-ID", "apb03a0s09dkjdfglkj49111"),
        ("CSeq", "2 REGISTER"),
    ),
)
CHALLENGE = make_response(
    REQUEST,
    401,
    headers=(
        (
            "WWW-Authenticate",
            'Digest realm="home1.net", nonce="qcxmvQG8rGfX7YIsDe0U8RJ2ZHpXcVEwQ0NGRkZGRkY3N0cGBw==", algorithm=AKAv1-MD5, qop="auth", '
            'ck="00112233445566778899aabbccddeeff", ik="00112233445566778899aabbccddeeff"',
        ),
    ),
    to_tag="0123456789abcdef",
)
SUCCESS = make_response(
    REQUEST,
    200,
    headers=(
        ("Path", "<sip:term@pcscf1.visited1.net;lr>"),
        ("Service-Route", "<sip:orig@scscf1.home1.net;lr>"),
        ("P-Associated-URI", "<sip:user1_public1@home1.net>, <sip:user1_public2@home1.net>"),
        ("Contact", CONTACT.replace("600000", "3600")),
        ("Authentication-Info", 'qop=auth, rspauth="6629fae49393a05397450978507c4ef1", cnonce="0a4f113b0a4f113b", nc=00000001'),
    ),
    to_tag="0123456789abcdef",
)


def test_a_response_is_rebuilt_against_the_retransmission() -> None:
    """RFC 3261 §17.2.2: the same response, octet for octet."""
    for response in (CHALLENGE, SUCCESS, Response(299, "Odd ä", (("X-New", "a" * 300),), b"body"), Response(200, "OK", ())):
        packed = pack(REQUEST, response)
        assert packed is not None
        assert unpack(REQUEST, packed) == response


def test_what_the_request_gives_back_costs_two_octets() -> None:
    """Five echoed fields, two Vias and a Path are 16 octets and the To tag."""
    packed = pack(REQUEST, make_response(REQUEST, 200, headers=(("Path", "<sip:term@pcscf1.visited1.net;lr>"),), to_tag="1"))
    assert packed is not None
    assert len(packed) <= 30
    changed = pack(REQUEST, Response(200, "OK", (("Contact", CONTACT.replace("600000", "3600")),)))
    assert changed is not None
    assert len(changed) <= 16


def test_a_request_that_is_no_retransmission_gets_nothing() -> None:
    """A reference that leads nowhere is not followed."""
    packed = pack(REQUEST, SUCCESS)
    assert packed is not None
    assert unpack(Request("REGISTER", "sip:a", ()), packed) is None


def test_what_does_not_fit_is_not_kept() -> None:
    """Lengths have 15 bits."""
    store = CompletedResponses()
    for response in (
        Response(200, "OK", (("X", "a" * 40_000),)),
        Response(200, "a" * 300, ()),
        Response(200, "OK", (("X", "a"),) * 70_000),
    ):
        store.remember(1, REQUEST, response, 0.0)
    assert (store.entries, store.octets) == (0, 0)


def test_a_response_is_remembered_for_its_lifetime() -> None:
    """Timer J: 64*T1."""
    store = CompletedResponses(lifetime=32.0)
    store.remember(1, REQUEST, CHALLENGE, 100.0)
    store.remember(1, REQUEST, SUCCESS, 100.0)
    assert store.recall(1, REQUEST, 131.9) == CHALLENGE
    assert store.recall(2, REQUEST, 131.9) is None
    store.remember(3, REQUEST, SUCCESS, 120.0)
    assert store.recall(1, REQUEST, 132.0) is None
    assert store.recall(3, REQUEST, 132.0) == SUCCESS
    assert store.entries == 1
    store.sweep(152.0)
    assert (store.entries, store.octets) == (0, 0)


def test_over_a_limit_the_oldest_go_first() -> None:
    """Bounded by number and by octets."""
    store = CompletedResponses(max_entries=80)
    for key in range(1_000):
        store.remember(key, REQUEST, CHALLENGE, 0.0)
        assert store.entries <= 80
        assert store.recall(key, REQUEST, 0.0) == CHALLENGE
    assert store.entries >= 60
    assert store.recall(0, REQUEST, 0.0) is None
    packed = pack(REQUEST, CHALLENGE)
    assert packed is not None
    size = len(packed) + ENTRY_OVERHEAD
    store = CompletedResponses(max_octets=16 * size)
    for key in range(100):
        store.remember(key, REQUEST, CHALLENGE, 0.0)
        assert store.octets <= 16 * size
    assert store.recall(99, REQUEST, 0.0) == CHALLENGE
    store = CompletedResponses(max_entries=1)
    for key in range(5):
        store.remember(key, REQUEST, CHALLENGE, 0.0)
    assert store.entries == 1


def test_the_two_responses_of_a_registration_take_less_than_1000_octets() -> None:
    """Memory: at 5,000 registrations a second 320,000 responses are held."""
    store = CompletedResponses()
    count = 2_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            store.remember(2**63 + 2 * number, REQUEST, CHALLENGE, 0.0)
            store.remember(2**63 + 2 * number + 1, REQUEST, SUCCESS, 0.0)
        taken = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert taken < 1_000
    assert store.octets / count < 1_000


VALUES = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=40)
ROWS = st.lists(
    st.tuples(st.sampled_from(["Via", "Contact", "X-A"]), VALUES | st.sampled_from(["aaaaaaaaaaaa", "aaaaaaXaaaaaa", "aaaaaaaaaaaaaaaa"])),
    max_size=5,
).map(tuple)


@given(ROWS, ROWS, st.binary(max_size=20))
def test_unpack_reverses_pack(given_rows: tuple[tuple[str, str], ...], rows: tuple[tuple[str, str], ...], body: bytes) -> None:
    """Codec property."""
    request, response = Request("OPTIONS", "sip:a", given_rows), Response(200, "OK", rows, body)
    packed = pack(request, response)
    assert packed is not None
    assert unpack(request, packed) == response


def test_what_is_remembered_is_known_until_it_is_swept() -> None:
    """RFC 3261 §17.2.2: timer J."""
    kept = CompletedResponses(lifetime=32.0)
    kept.remember(7, REQUEST, CHALLENGE, 0.0)
    assert 7 in kept
    assert 8 not in kept
    kept.sweep(33.0)
    assert 7 not in kept
