# SPDX-License-Identifier: Apache-2.0
"""Shedding new work (RFC 3261 §21.5.4): the control, what may be refused, and the refusal."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.protocol.sip.headers import parse_name_addr, parse_via_list
from keyferry.protocol.sip.message import Request, Response, make_response, parse_message
from keyferry.protocol.sip.overload import (
    RECENT,
    TRANSITIONS,
    IssuedNonces,
    LetIn,
    Level,
    Load,
    OverloadControl,
    OverloadPolicy,
    Refusal,
    deregisters,
    first_via,
    glance,
    refusal,
)

POLICY = OverloadPolicy(
    delay_high=0.05, delay_low=0.01, in_progress_high=100, in_progress_low=50, patience=0.1, memory=2.0, retry_after=5
)  # fmt: skip
KEY = b"k" * 32


def told(control: OverloadControl, *steps: tuple[float, float, int]) -> list[Load]:
    """Observe (now, delay, in progress) in turn."""
    return [control.observe(delay, in_progress, now) for now, delay, in_progress in steps]


def test_every_state_and_level_is_decided() -> None:
    """A machine without holes."""
    assert set(TRANSITIONS) == set(itertools.product(Load, Level, (False, True)))


def test_a_short_pause_sheds_nothing() -> None:
    """OverloadPolicy.patience: a collection of garbage, a slow disk."""
    control = OverloadControl(POLICY)
    assert told(control, (0.0, 0.0, 0), (1.0, 0.5, 0), (1.09, 0.5, 0), (1.1, 0.04, 0)) == [
        Load.CALM,
        Load.STRAINED,
        Load.STRAINED,
        Load.CALM,
    ]
    assert told(control, (1.2, 0.05, 0), (1.29, 0.05, 0)) == [Load.STRAINED, Load.STRAINED]
    assert control.shedding is False


def test_lasting_delay_sheds_until_it_is_low_and_comes_back_at_once() -> None:
    """Hysteresis, and memory: an overload that lasts is met at once."""
    control = OverloadControl(POLICY)
    assert told(control, (0.0, 0.06, 0), (0.1, 0.06, 0)) == [Load.STRAINED, Load.SHEDDING]
    shedding = [control.shedding]
    assert told(control, (0.2, 0.03, 0), (0.3, 0.011, 0), (0.4, 0.01, 0)) == [Load.SHEDDING, Load.SHEDDING, Load.WARY]
    assert [*shedding, control.shedding] == [True, False]
    assert told(control, (0.5, 0.03, 0), (2.3, 0.05, 0)) == [Load.WARY, Load.SHEDDING]
    assert told(control, (2.4, 0.0, 0), (4.3, 0.03, 0), (4.4, 0.0, 0), (4.5, 0.09, 0)) == [Load.WARY, Load.WARY, Load.CALM, Load.STRAINED]


def test_shedding_ends_though_the_delay_does_not_get_low() -> None:
    """OverloadPolicy.ease, counted from the last measurement that was high: other programs use the machine, too."""
    control = OverloadControl(POLICY)
    assert told(control, (0.0, 0.06, 0), (0.1, 0.06, 0), (0.25, 0.06, 0)) == [Load.STRAINED, Load.SHEDDING, Load.SHEDDING]
    assert told(control, (0.4, 0.03, 0), (0.44, 0.03, 0), (0.45, 0.03, 0)) == [Load.SHEDDING, Load.SHEDDING, Load.WARY]


def test_many_requests_in_progress_are_load_too() -> None:
    """A store or an HSS that does not answer keeps the loop idle."""
    control = OverloadControl(POLICY)
    assert told(control, (0.0, 0.0, 100), (0.1, 0.0, 100), (0.2, 0.0, 51), (0.3, 0.0, 50)) == [
        Load.STRAINED,
        Load.SHEDDING,
        Load.SHEDDING,
        Load.WARY,
    ]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 200)), max_size=50))
def test_it_sheds_only_after_something_was_high_and_ends_when_all_is_low(steps: list[tuple[float, float, int]]) -> None:
    """For any history."""
    control, now = OverloadControl(POLICY), 0.0
    for pause, delay, in_progress in steps:
        now += pause
        before = control.shedding
        control.observe(delay, in_progress, now)
        high = delay >= POLICY.delay_high or in_progress >= POLICY.in_progress_high
        low = delay <= POLICY.delay_low and in_progress <= POLICY.in_progress_low
        if control.shedding and not before:
            assert high
        assert not (control.shedding and low)


# ---- what may be refused


def initial(data: bytes) -> bool:
    seen = glance(data)
    return seen is not None and seen.initial


def answers(nonces: IssuedNonces, data: bytes) -> bool:
    seen = glance(data)
    return seen is not None and nonces.answered_by(seen)


def protects(data: bytes) -> bool:
    seen = glance(data)
    return seen is not None and seen.protected


def register(
    authorization: str | None = 'Digest username="a@home1.net", realm="home1.net", nonce="", uri="sip:home1.net", response=""',
) -> str:
    """Return a REGISTER as an I-CSCF passes it on."""
    row = "" if authorization is None else f"Authorization: {authorization}\r\n"
    return (
        "REGISTER sip:scscf1.home1.net SIP/2.0\r\n"
        "Via: SIP/2.0/UDP 192.0.2.1:5060;rport;branch=z9hG4bK1, SIP/2.0/UDP 192.0.2.2;branch=z9hG4bK2\r\n"
        "Via: SIP/2.0/TCP [2001:db8::1]:5062;branch=z9hG4bK3\r\n"
        "Max-Forwards: 68\r\nFrom: <sip:a@home1.net>;tag=1\r\nTo: <sip:a@home1.net>\r\nCall-ID: c1@192.0.2.2\r\n"
        f"CSeq: 1 REGISTER\r\n{row}Contact: <sip:192.0.2.2>;expires=600000\r\nContent-Length: 0\r\n\r\n"
    )


FIRST = register()
SECOND = register('Digest username="a@home1.net", realm="home1.net", nonce="abc==", uri="sip:home1.net", response="0123"')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FIRST, True),
        (register(None), True),
        (register("Digest nonce=,response="), True),
        (register('Digest nonce = "",cnonce="x"'), True),
        (register('Digest username="nonce=1",nonce=""'), False),  # looks like a second one: not refused, in doubt
        (SECOND, False),
        (register('Digest username="a", nonce="abc", response="", auts="AAAA"'), False),  # a synchronisation failure
        (register('Digest nonce="abc", response=""'), False),  # a wrong MAC
        (register('Digest nonce=abc, response="x"'), False),
        (register('Digest username="a",\r\n nonce="abc", response="x"'), False),
        (SECOND.replace("Authorization:", "AUTHORIZATION :"), False),
        (FIRST.replace("Authorization:", "authorization:"), True),
        (FIRST.replace("Contact:", 'Authorization: Digest nonce="abc"\r\nContact:'), False),
        (FIRST.replace("Content-Length: 0\r\n\r\n", 'Content-Length: 9\r\n\r\n\r\nAuthorization: Digest nonce="abc"'), True),
        (FIRST.replace("REGISTER sip", "SUBSCRIBE sip"), False),
        (FIRST.replace("\r\n\r\n", "\r\n"), False),
        ("REGISTER ", False),
        ("", False),
    ],
)
def test_only_a_register_that_answers_no_challenge_may_be_refused(text: str, expected: bool) -> None:
    """DESIGN §11: SM1, never SM7; TS 24.229 §5.1.1.2.2, §5.1.1.5.3."""
    assert initial(text.encode()) is expected


def test_an_issued_nonce_is_answered_once_however_often_that_is_sent() -> None:
    """RFC 3261 §17.1.2.1: a retransmission is the same octets."""
    nonces = IssuedNonces()
    assert not answers(nonces, SECOND.encode())
    nonces.issued('Digest realm="home1.net", nonce="abc==", algorithm=AKAv1-MD5', 0.0)
    assert not answers(nonces, FIRST.encode())
    assert answers(nonces, SECOND.encode())
    assert answers(nonces, SECOND.encode())
    assert not answers(nonces, SECOND.replace("z9hG4bK1", "z9hG4bK9").encode())


def test_nonces_are_bounded_and_the_oldest_goes_first() -> None:
    """MAX_ISSUED, MAX_ISSUED_NONCE."""
    nonces = IssuedNonces(2)
    for value in ('Digest nonce="abc=="', 'Digest nonce="2"', 'Digest nonce="3"', f'Digest nonce="{"4" * 257}"', 'Digest realm="a"'):
        nonces.issued(value, 0.0)
    assert len(nonces) == 2
    answered = [answers(nonces, SECOND.replace("abc==", text).encode()) for text in ("abc==", "2", "3", "4" * 257)]
    assert answered == [False, True, True, False]


def test_nonces_are_forgotten_when_nobody_can_be_answering_them_any_more() -> None:
    """RECENT: what an hour of registrations leaves in memory is a minute or two of them."""
    nonces = IssuedNonces()
    answer = SECOND.encode()
    nonces.issued('Digest nonce="abc=="', 1000.0)
    nonces.issued('Digest nonce="2"', 1063.9)
    nonces.issued('Digest nonce="3"', 1064.1)
    assert answers(nonces, answer)
    assert len(nonces) == 3
    for number in range(10_000):
        nonces.issued(f'Digest nonce="{number}-"', 1100.0 + number / 10)
    assert len(nonces) <= 2 * RECENT * 10 + 2
    assert not answers(nonces, answer)


def test_after_a_long_pause_nothing_old_is_kept() -> None:
    """RECENT: both generations are over."""
    nonces = IssuedNonces()
    nonces.issued('Digest nonce="abc=="', 0.0)
    nonces.issued('Digest nonce="2"', 2 * RECENT)
    assert len(nonces) == 1


def test_a_message_that_was_let_in_is_known_when_the_same_octets_come_again() -> None:
    """RFC 3261 §17.1.2.2."""
    let_in = LetIn()
    let_in.note(FIRST.encode(), 0.0)
    assert FIRST.encode() in let_in
    assert FIRST.replace("z9hG4bK1", "z9hG4bK9").encode() not in let_in


def test_messages_that_were_let_in_are_bounded_and_forgotten() -> None:
    """MAX_LET_IN, RECENT."""
    let_in = LetIn(4)
    for number in range(5):
        let_in.note(b"%d" % number, 0.0)
    assert len(let_in) == 3
    assert b"4" in let_in
    let_in.note(b"5", 2 * RECENT)
    assert len(let_in) == 1


def test_one_of_several_credentials_may_be_the_answer() -> None:
    """RFC 3261 §22.4: a list of realms."""
    nonces = IssuedNonces()
    nonces.issued('Digest nonce="abc=="', 0.0)
    assert answers(nonces, SECOND.replace("Contact:", 'Authorization: Digest nonce="other"\r\nContact:').encode())
    assert not answers(nonces, SECOND.replace("abc==", "other").encode())


@pytest.mark.parametrize(
    ("parameter", "protected"),
    [
        ('integrity-protected="yes"', True),
        ("integrity-protected = yes", True),
        ('Integrity-Protected="YES"', True),
        ('integrity-protected="no"', False),
        ('integrity-protected="yes-not"', False),
        ('x-integrity-protected="yes"', False),
    ],
)
def test_what_a_p_cscf_says_of_protection_is_read(parameter: str, protected: bool) -> None:
    """TS 24.229 §7.2A.2."""
    assert protects(SECOND.replace('response="0123"', f'response="0123", {parameter}').encode()) is protected
    assert not protects(FIRST.encode())


@given(st.binary(max_size=400))
def test_any_octets_answer_nothing(data: bytes) -> None:
    """No exception, whatever comes."""
    nonces = IssuedNonces()
    nonces.issued('Digest nonce="abc=="', 0.0)
    assert not answers(nonces, data) or b"abc==" in data
    assert not protects(data) or b"yes" in data.lower()


# ---- how it is refused


def refuse(data: bytes, *, host: str, port: int) -> Refusal | None:
    seen = glance(data)
    return None if seen is None else refusal(seen, host=host, port=port, retry_after=5, key=KEY)


def refused(text: str, host: str = "192.0.2.1", port: int = 5060) -> tuple[Response, int]:
    found = refuse(text.encode(), host=host, port=port)
    assert found is not None
    message = parse_message(found.data)
    assert isinstance(message, Response)
    return message, found.port


def test_a_refusal_is_the_response_that_parsing_would_have_given() -> None:
    """RFC 3261 §8.2.6.2, §21.5.4."""
    response, port = refused(FIRST, port=40_000)
    request = parse_message(FIRST.encode())
    assert isinstance(request, Request)
    expected = make_response(request, 503)
    assert (response.status, response.reason, port) == (503, expected.reason, 40_000)
    for name in ("From", "Call-ID", "CSeq"):
        assert response.all(name) == expected.all(name)
    vias = [via for row in response.all("Via") for via in parse_via_list(row)]
    assert [via.branch for via in vias] == ["z9hG4bK1", "z9hG4bK2", "z9hG4bK3"]
    assert (vias[0].received, vias[0].rport, vias[1].received) == ("192.0.2.1", "40000", None)
    assert len(parse_name_addr(response.get("To") or "").parameter("tag") or "") == 16
    assert 5 <= int(response.get("Retry-After") or "") <= 10


def test_the_same_request_gets_the_same_refusal_and_others_come_back_at_other_times() -> None:
    """RFC 3261 §8.2.7; those refused together do not come back together."""
    assert refused(FIRST) == refused(FIRST)
    assert len({refused(FIRST.replace("c1@", f"c{number}@"))[0].get("Retry-After") for number in range(100)}) == 6


@pytest.mark.parametrize(
    ("sent_by", "host", "port", "received"),
    [
        ("192.0.2.1:5080", "192.0.2.1", 5080, None),
        ("192.0.2.1", "192.0.2.1", 5060, None),
        ("pcscf1.home1.net:5080", "192.0.2.1", 5080, "192.0.2.1"),
        ("[2001:db8::9]:5080", "2001:db8::9", 5080, None),
        ("[2001:db8::9]", "2001:db8::8", 5060, "2001:db8::8"),
    ],
)
def test_without_rport_it_goes_to_the_port_in_sent_by(sent_by: str, host: str, port: int, received: str | None) -> None:
    """RFC 3261 §18.2.1, §18.2.2."""
    response, back = refused(FIRST.replace("192.0.2.1:5060;rport", sent_by), host, 40_000)
    (via, _) = parse_via_list(response.all("Via")[0])
    assert (via.received, back) == (received, port)


def test_a_tag_of_the_request_is_kept_and_compact_names_are_understood() -> None:
    """RFC 3261 §7.3.3, §8.2.6.2."""
    response, _ = refused(
        FIRST.replace("To: <sip:a@home1.net>", "t: <sip:a@home1.net> ; TAG = 7").replace("Via:", "v:").replace("From:", "f :")
    )
    assert parse_name_addr(response.get("To") or "").parameter("tag") == "7"
    tagged = refused(FIRST.replace("To: <sip:a@home1.net>", "To: <sip:a;tag=x@home1.net>"))[0]
    assert len(parse_name_addr(tagged.get("To") or "").parameter("tag") or "") == 16


UNUSUAL = [
    FIRST.replace("\r\n\r\n", "\r\n"),
    FIRST.replace("REGISTER sip", "MESSAGE sip"),
    FIRST.replace("SIP/2.0\r\nVia", "SIP/3.0\r\nVia"),
    FIRST.replace("From: <", "From:\r\n <"),
    FIRST.replace("From: <", "From:\r\n\t<"),
    FIRST.replace("Call-ID: c1", "Call-ID: c1\nX: y"),
    FIRST.replace("Call-ID: c1", "Call-ID: c1\rX: y"),
    FIRST.replace("Call-ID: c1", "Call-ID: c1\0"),
    FIRST.replace("Call-ID: c1@192.0.2.2\r\n", ""),
    FIRST.replace("To:", "To: <sip:b@home1.net>\r\nTo:"),
    FIRST.replace("Via:", "X:"),
    FIRST.replace("Via: SIP/2.0/UDP", "Via: SIP / 2.0 / UDP"),
    FIRST.replace(";rport;", ";rport=1;"),
    FIRST.replace(";rport;", ";received=198.51.100.1;"),
    FIRST.replace(":5060;rport;", ":99999;"),
    FIRST.replace("Max-Forwards: 68\r\n", "Via: SIP/2.0/UDP 192.0.2.9\r\n" * 300),
    FIRST.replace(";rport;", ";rport;rport;"),
    FIRST.replace("Contact:", "X: " + "y" * 70_000 + "\r\nContact:"),
]


@pytest.mark.parametrize("text", UNUSUAL)
def test_what_is_not_of_the_usual_form_goes_the_long_way(text: str) -> None:
    """It must be parsed to be answered, if at all."""
    assert refuse(text.encode(), host="192.0.2.1", port=5060) is None


@pytest.mark.parametrize("odd", ["X: y\r\n  Via: z", "X: y\nVia: z", "X: y\rTo: z", "X: y\0", "Via-X: z", "Contact: z"])
def test_what_is_odd_in_rows_that_are_not_repeated_does_not_matter(odd: str) -> None:
    """Nothing of it is sent, and nobody is served."""
    response, _ = refused(FIRST.replace("Max-Forwards: 68", odd))
    assert (response.headers, response.body) == (refused(FIRST)[0].headers, b"")


@given(
    st.binary(max_size=2_000)
    | st.lists(st.sampled_from([*FIRST.encode().splitlines(keepends=True), b"Via: ", b"\r\n", b"v", b"\t"])).map(b"".join)
)
@example(FIRST.encode())
def test_any_octets_are_refused_with_a_message_or_not_at_all(data: bytes) -> None:
    """RFC 3261 §7: what we send is SIP, whatever we got."""
    initial(data)
    found = refuse(data, host="192.0.2.1", port=5060)
    if found is not None:
        message = parse_message(found.data)
        assert isinstance(message, Response)
        assert 0 <= found.port <= 65_535


@pytest.mark.parametrize(
    "hostile",
    [
        FIRST.replace("Contact:", "Authorization: " + "nonce" * 12_000 + "\r\nContact:"),
        FIRST.replace("Contact:", "X: " + "\r\nauthorization" * 4_000 + "\r\nContact:"),
        FIRST.replace(";rport;", ";" + ";" * 60_000),
        FIRST.replace(";rport;", ";a" * 30_000 + ";"),
        "REGISTER " + "\r\n" * 32_000 + "\r\n\r\n",
        FIRST.replace("Contact:", "Authorization: nonce" + " " * 60_000 + "\r\nContact:"),
        FIRST.replace("To: ", "To: " + ";tag" * 15_000),
        FIRST.replace("To: ", "To: " + ";" + " " * 60_000),
    ],
)
def test_hostile_input_takes_linear_time(hostile: str) -> None:
    """64 kB in a few milliseconds."""
    data = hostile.encode()[:65_535]
    with costs_under(0.1):
        initial(data)
        refuse(data, host="192.0.2.1", port=5060)


@pytest.mark.parametrize(
    ("data", "row"),
    [
        (b"REGISTER sip:a SIP/2.0\r\nTo: x\r\nVia: one\r\nVia: two\r\n\r\n", "one"),
        (b"REGISTER sip:a SIP/2.0\r\nv :\tone\r\n\r\n", "one"),
        (b"REGISTER sip:a SIP/2.0\r\nVia-X: one\r\n\r\n", None),
        (b"", None),
    ],
)
def test_the_first_via_is_found_without_parsing(data: bytes, row: str | None) -> None:
    """RFC 3261 §17.2.3: it names the transaction."""
    assert first_via(data) == row


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("Contact: *\r\nExpires: 0", True), ("m:\t*\r\nexpires : 0", True), ("Contact: <sip:a@b>\r\nExpires: 0", True),
        ("Contact: <sip:a@b>;Expires = 00\r\nExpires: 600", True), ("Contact: <sip:a@b>\r\n ;expires=0", True),
        ("Contact: <sip:a@b>\r\nExpires: 600", False), ("Contact: <sip:a@b>", False), ("Expires: 0", False),
        ("Contact: <sip:a@b>;expires=600\r\nExpires: 0", False), ("Contact: <sip:a@b;expires=0>\r\nExpires: 600", False),
        ("Contact: <sip:a@b>\r\nExpires: 05", False),
    ],
)  # fmt: skip
def test_a_de_registration_is_known_by_its_contact_and_expires(fields: str, expected: bool) -> None:
    """RFC 3261 §10.2.2: a Contact's own `expires` goes before the field."""
    assert deregisters(f"REGISTER sip:home1.net SIP/2.0\r\n{fields}\r\nContent-Length: 0\r\n\r\nContact: *".encode()) is expected
