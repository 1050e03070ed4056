# SPDX-License-Identifier: Apache-2.0
"""SIP messages (RFC 3261 §7, RFC 4475)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.sip.headers import parse_name_addr, parse_via_list
from keyferry.protocol.sip.message import (
    Request,
    Response,
    build_message,
    check_request,
    make_response,
    parse_message,
    salvage_request,
    with_to_tag,
)

REGISTER = (
    b"REGISTER sip:home1.net SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP icscf1.home1.net;branch=z9hG4bK240f34.1\r\n"
    b"v: SIP/2.0/UDP [5555::aaa]:1357;branch=z9hG4bKnashds7;rport\r\n"
    b"Max-Forwards: 68\r\n"
    b"f: <sip:user1_public1@home1.net>;tag=4fa3\r\n"
    b"TO: <sip:user1_public1@home1.net>\r\n"
    b"call-id: apb03a0s09dkjdfglkj49111\r\n"
    b"X-Odd: J\xf6rg\r\n"
    b"Supported:\r\n"
    b"CSeq: 1 REGISTER\r\n"
    b"Content-Length: 4\r\n"
    b"\r\n"
    b"body"
)


def request(*rows: tuple[str, str]) -> Request:
    parsed = parse_message(REGISTER)
    assert isinstance(parsed, Request)
    for name, value in rows:
        parsed = parsed.replacing(name, value)
    return parsed


def test_a_request_is_read_with_canonical_names() -> None:
    """RFC 3261 §7.1, §7.3."""
    message = request()
    assert (message.method, message.uri, message.body) == ("REGISTER", "sip:home1.net", b"body")
    assert [name for name, _ in message.headers] == ["Via", "Via", "Max-Forwards", "From", "To", "Call-ID", "X-Odd", "Supported", "CSeq"]
    assert message.get("FROM") == message.get("f") == "<sip:user1_public1@home1.net>;tag=4fa3"
    assert message.get("x-odd") == "J\udcf6rg"
    assert message.get("Supported") == ""
    assert message.get("Path") is None
    assert message.all("V") == [
        "SIP/2.0/UDP icscf1.home1.net;branch=z9hG4bK240f34.1",
        "SIP/2.0/UDP [5555::aaa]:1357;branch=z9hG4bKnashds7;rport",
    ]
    assert message.all("Path") == []
    assert check_request(message).host == "icscf1.home1.net"
    assert parse_message(build_message(message)) == message


def test_a_response_is_read() -> None:
    """RFC 3261 §7.2."""
    message = parse_message(b"SIP/2.0 401 Nicht autorisiert \xc3\xa4\r\nl: 0\r\n\r\n")
    assert message == Response(401, "Nicht autorisiert ä", (), b"")
    assert parse_message(b"SIP/2.0 200 \r\n\r\n") == parse_message(b"SIP/2.0 200\r\n\r\n") == Response(200, "", ())
    assert parse_message(build_message(message)) == message


def test_repr_shows_no_content() -> None:
    """A message may hold keys."""
    assert "home1" not in repr(request())
    assert repr(Response(200, "secret", (("X", "secret"),), b"secret")) == "<Response 200, 1 header fields, body of 6 octets>"


def test_octets_after_content_length_are_dropped_and_missing_ones_refused() -> None:
    """RFC 3261 §18.3."""
    head = b"SIP/2.0 200 OK\r\nContent-Length: %d\r\n\r\nabcdef"
    assert parse_message(head % 3).body == b"abc"
    assert parse_message(head % 0).body == b""
    assert parse_message(b"SIP/2.0 200 OK\r\n\r\nabcdef").body == b"abcdef"
    with pytest.raises(ParseError):
        parse_message(head % 7)
    assert parse_message(b"SIP/2.0 200 OK\r\nl: 3\r\nContent-Length: 3\r\n\r\nabc").body == b"abc"
    assert parse_message(b"\r\n\r\nSIP/2.0 200 OK\r\n\r\n") == Response(200, "OK", ())


def test_a_tortuous_message_is_understood() -> None:
    """RFC 4475 §3.1.1.1: folding, odd space, compact and mixed-case names, escapes, several values in a row."""
    message = parse_message(
        b"REGISTER sip:vivekg@chair.example.com;unknownparam SIP/2.0\r\n"
        b"TO :\r\n sip:vivekg@chair.example.com ;   tag    = 1918181833n\r\n"
        b'from   : "J Rosenberg \\\\\\""       <sip:jdrosen@example.com>\r\n  ;\r\n  tag = 98asjd8\r\n'
        b"MaX-fOrWaRdS: 0068\r\n"
        b"Call-ID: wsinv.ndaksdj@192.0.2.1\r\n"
        b"Content-Length   : 4\r\n"
        b"cseq: 0009\r\n  REGISTER\r\n"
        b"Via  : SIP  /   2.0\r\n /UDP\r\n    192.0.2.2;branch=390skdjuw\r\n"
        b"s :\r\n"
        b"NewFangledHeader:   newfangled value\r\n continued newfangled value\r\n"
        b"UnknownHeaderWithUnusualValue: ;;,,;;,;\r\n"
        b"Route:\r\n <sip:services.example.com;lr;unknownwith=value;unknown-no-value>\r\n"
        b"v:  SIP  / 2.0  / TCP     spindle.example.com   ;\r\n  branch  =   z9hG4bK9ikj8  ,\r\n"
        b" SIP  /    2.0   / UDP  192.168.255.111   ; branch=\r\n z9hG4bK30239\r\n"
        b'm:"Quoted string \\"\\"" <sip:jdrosen@example.com> ; newparam =\r\n      newvalue ;\r\n  secondparam ; q = 0.33\r\n'
        b"\r\nbody"
    )
    assert isinstance(message, Request)
    assert check_request(message).branch == "390skdjuw"
    assert message.get("To") == "sip:vivekg@chair.example.com ;   tag    = 1918181833n"
    assert parse_name_addr(message.get("From") or "").display == 'J Rosenberg \\"'
    assert message.get("CSeq") == "0009 REGISTER"
    assert message.get("newfangledheader") == "newfangled value continued newfangled value"
    assert message.get("UnknownHeaderWithUnusualValue") == ";;,,;;,;"
    assert [via.branch for row in message.all("Via") for via in parse_via_list(row)] == ["390skdjuw", "z9hG4bK9ikj8", "z9hG4bK30239"]
    contact = parse_name_addr(message.get("Contact") or "")
    assert (contact.display, contact.parameter("q"), contact.parameter("secondparam")) == ('Quoted string ""', "0.33", "")
    assert parse_message(build_message(message)) == message


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nX: y\r\n", 400),
        (b"REGISTER  sip:a SIP/2.0\r\n\r\n", 400),  # RFC 4475 §3.1.2.9
        (b"REGISTER sip:a; lr SIP/2.0\r\n\r\n", 400),  # §3.1.2.8
        (b"REGISTER <sip:a> SIP/2.0\r\n\r\n", 400),  # §3.1.2.7
        (b"REGISTER sip:a SIP/2.0 \r\n\r\n", 400),  # §3.1.2.10
        (b" REGISTER sip:a SIP/2.0\r\n\r\n", 400),
        (b"REG\xc3\xa9 sip:a SIP/2.0\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/7.0\r\n\r\n", 505),  # §3.1.2.16
        (b"SIP/3.0 200 OK\r\n\r\n", 505),
        (b"SIP/2.0 99 OK\r\n\r\n", 400),
        (b"SIP/2.0 4294967301 better not break the receiver\r\n\r\n", 400),  # §3.1.2.19
        (b"SIP/2.0 700 OK\r\n\r\n", 400),
        (b"REGISTER sip:" + b"a" * 2_100 + b" SIP/2.0\r\n\r\n", 414),
        (b"M" * 65 + b" sip:a SIP/2.0\r\n\r\n", 400),  # whoever is refused is logged, with the method
        (b"REGISTER sip:a SIP/2.0\r\nContent-Length: -999\r\n\r\n", 400),  # §3.1.2.3
        (b"REGISTER sip:a SIP/2.0\r\nContent-Length: 9999999999999\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nContent-Length: 0\r\nl: 1\r\n\r\nab", 400),
        (b"REGISTER sip:a SIP/2.0\r\nno colon\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\n: no name\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nna me: x\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nX: a\nb\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nX: a\rb\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nX: a\n\rb\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nX: a\0b\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\nX: " + b"a" * 9_000 + b"\r\n\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\n" + b"a:b\r\n" * 257 + b"\r\n", 400),
        (b"REGISTER sip:a SIP/2.0\r\n\r\n" + bytes(70_000), 513),
    ],
)
def test_malformed_messages_are_refused(data: bytes, status: int) -> None:
    """RFC 4475 §3.1.2."""
    with pytest.raises(ParseError) as raised:
        parse_message(data)
    assert raised.value.status == status


@pytest.mark.parametrize(
    "row",
    [
        ("CSeq", "1 MESSAGE"),  # RFC 4475 §3.1.2.17
        ("CSeq", "36893488147419103232 REGISTER"),  # §3.1.2.4
        ("CSeq", "x"),
        ("From", "Bell, Alexander <sip:a@example.com>"),
        ("To", '"Mr. J. User <sip:j.user@example.com>'),  # §3.1.2.6
        ("To", ""),
        ("Call-ID", ""),
        ("Call-ID", "a b"),
        ("Call-ID", "a" * 600),
        ("Via", "SIP/2.0/UDP"),
        ("Max-Forwards", "0300"),
        ("Max-Forwards", "300"),
        ("Max-Forwards", "x"),
    ],
)
def test_a_request_without_what_it_must_hold_is_refused(row: tuple[str, str]) -> None:
    """RFC 3261 §8.1.1, §16.3."""
    with pytest.raises(ParseError):
        check_request(request(row))


@pytest.mark.parametrize("name", ["From", "To", "Call-ID", "CSeq", "Via", "Max-Forwards"])
def test_mandatory_fields_appear_once(name: str) -> None:
    """RFC 4475 §3.3.1, §3.3.8; Max-Forwards may be absent, as RFC 2543 elements send none."""
    message = request()
    twice = message.prepending(name, message.get(name) or "")
    if name == "Via":
        assert check_request(twice)
    else:
        with pytest.raises(ParseError):
            check_request(twice)
    if name == "Max-Forwards":
        assert check_request(message.without(name))
    else:
        with pytest.raises(ParseError):
            check_request(message.without(name))


def test_headers_are_replaced_removed_and_added() -> None:
    """A proxy's work on a message (RFC 3261 §16.6)."""
    message = Request("OPTIONS", "sip:a", (("A", "1"), ("v", "x"), ("B", "2"), ("VIA", "y")))
    assert message.replacing("via", "p", "q").headers == (("A", "1"), ("Via", "p"), ("Via", "q"), ("B", "2"))
    assert message.replacing("Route", "r").headers[-1] == ("Route", "r")
    assert message.replacing("Via").headers == message.without("V").headers == (("A", "1"), ("B", "2"))
    assert message.prepending("v", "top").all("Via") == ["top", "x", "y"]
    assert message.with_headers([]).headers == ()
    response = Response(200, "OK", (("X-A", "1"),), b"x")
    assert response.replacing("x-a", "2") == Response(200, "OK", (("x-a", "2"),), b"x")
    assert message.get("via") == "x"


@pytest.mark.parametrize(
    "message",
    [
        Request("OPTIONS", "sip:a", (("X", "a\r\nEvil: b"),)),
        Request("OPTIONS", "sip:a", (("X", "a\nb"),)),
        Request("OPTIONS", "sip:a", (("X", "a\rb"),)),
        Request("OPTIONS", "sip:a", (("X", "a\0b"),)),
        Request("OPTIONS", "sip:a", (("X", "a\r\n\r\nbody"),)),
        Request("OPTIONS", "sip:a", (("X: y\r\nZ", "a"),)),
        Request("OPTIONS", "sip:a", (("", "a"),)),
        Request("OPTIONS", "sip:a", (("X y", "a"),)),
        Request("OPTIONS", "sip:a", (("content-length", "7"),)),
        Request("OPTIONS", "sip:a", (("X", "\ud800"),)),
        Request("OPT IONS", "sip:a", ()),
        Request("OPTIONS", "sip:a b", ()),
        Request("OPTIONS", "", ()),
        Response(200, "OK\r\nX: y", ()),
        Response(99, "OK", ()),
        Response(700, "OK", ()),
    ],
)
def test_nobody_may_inject_a_header_field(message: Request | Response) -> None:
    """What we write is one message, whatever a role puts in."""
    with pytest.raises(LocalProtocolError):
        build_message(message)


def test_content_length_counts_octets() -> None:
    """RFC 3261 §20.14."""
    assert build_message(Response(200, "OK", (("Subject", "ä"),), "ä".encode())).endswith(
        b"Subject: \xc3\xa4\r\nContent-Length: 2\r\n\r\n\xc3\xa4"
    )


def test_a_response_copies_what_the_request_holds() -> None:
    """RFC 3261 §8.2.6.2."""
    response = make_response(request(), 401, headers=(("WWW-Authenticate", "Digest"),), to_tag="t1", body=b"x")
    assert response.headers == (
        ("Via", "SIP/2.0/UDP icscf1.home1.net;branch=z9hG4bK240f34.1"),
        ("Via", "SIP/2.0/UDP [5555::aaa]:1357;branch=z9hG4bKnashds7;rport"),
        ("From", "<sip:user1_public1@home1.net>;tag=4fa3"),
        ("To", "<sip:user1_public1@home1.net>;tag=t1"),
        ("Call-ID", "apb03a0s09dkjdfglkj49111"),
        ("CSeq", "1 REGISTER"),
        ("WWW-Authenticate", "Digest"),
    )
    assert (response.status, response.reason, response.body) == (401, "Unauthorized", b"x")
    assert make_response(request(), 499).reason == "Bad Request"
    assert make_response(request(), 200, "Fine").reason == "Fine"
    assert make_response(request(("To", "<sip:a@b>;tag=old")), 200, to_tag="t1").get("To") == "<sip:a@b>;tag=old"
    assert make_response(request(("To", "nonsense")), 400, to_tag="t1").get("To") == "nonsense"
    assert with_to_tag(Response(200, "OK", ()), "t1") == Response(200, "OK", ())


def test_what_an_answer_needs_is_salvaged_from_a_malformed_request() -> None:
    """RFC 3261 §8.2.6.2; RFC 4475 §3.1.2.1 wants a 400."""
    broken = REGISTER.replace(b"Max-Forwards: 68", b"Max-Forwards 68\r\nX: a\nb\0").replace(b"Content-Length: 4", b"Content-Length: 4000")
    with pytest.raises(ParseError):
        parse_message(broken)
    salvaged = salvage_request(broken)
    assert salvaged is not None
    assert build_message(make_response(salvaged, 400, to_tag="1")).startswith(b"SIP/2.0 400 Bad Request\r\nVia: SIP/2.0/UDP icscf1")
    assert salvage_request(REGISTER.replace(b"REGISTER sip", b"ACK sip")) is None
    assert salvage_request(REGISTER.replace(b"CSeq: 1", b"CSeq: x")) is None
    assert salvage_request(REGISTER.replace(b"call-id", b"call-no")) is None
    assert salvage_request(REGISTER.replace(b"f: <", b"f: \n<")) is None
    assert salvage_request(b"SIP/2.0 200 OK\r\n\r\n") is None
    assert salvage_request(b"\xff\xfe") is None


NAMES = st.sampled_from(["Via", "From", "To", "Call-ID", "X-A", "Route"])
VALUES = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=30).map(lambda text: text.strip(" \t"))
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6).map(tuple)
MESSAGES = st.builds(
    Request, st.sampled_from(["REGISTER", "OPTIONS", "M-X"]), st.sampled_from(["sip:a", "tel:1"]), HEADERS, st.binary(max_size=30)
) | st.builds(Response, st.integers(100, 699), st.sampled_from(["OK", "", "ä b"]), HEADERS, st.binary(max_size=30))


@given(MESSAGES)
def test_parse_reverses_build(message: Request | Response) -> None:
    """Codec property."""
    assert parse_message(build_message(message)) == message


@given(
    st.binary(max_size=200)
    | st.tuples(st.sampled_from([REGISTER, b"SIP/2.0 200 OK\r\n"]), st.integers(0, 400), st.binary(max_size=8)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
    )
)
def test_any_octets_give_a_message_that_round_trips_or_parse_error(data: bytes) -> None:
    """Parser property."""
    salvage_request(data)
    try:
        message = parse_message(data)
    except ParseError:
        return
    assert parse_message(build_message(message)) == message
    if isinstance(message, Request):
        with contextlib.suppress(ParseError):
            check_request(message)
        assert build_message(make_response(message, 400, to_tag="x"))


@pytest.mark.parametrize(
    "data",
    [
        b"a:b\r\n" * 13_000,
        b"REGISTER sip:a SIP/2.0\r\n" + b" x\r\n" * 16_000 + b"\r\n",
        b"REGISTER sip:a SIP/2.0\r\nX: y\r\n" + b"\t\r\n" * 20_000 + b"\r\n",
        b"REGISTER sip:a SIP/2.0\r\nVia: " + b'"' * 60_000 + b"\r\n\r\n",
        b"\r\n" * 32_000,
        b"\n" * 65_000,
        b"REGISTER " + b"a" * 60_000 + b"\r\n\r\n",
        b"SIP/2.0 200 " + b" " * 60_000 + b"\0\r\n\r\n",
        b"REGISTER sip:a SIP/2.0\r\n" + b"To: " + b"a " * 4_000 + b"\r\n\r\n",
    ],
)
def test_64_kb_of_hostile_octets_take_linear_time(data: bytes) -> None:
    """One datagram may cost milliseconds, not seconds."""
    with costs_under(0.5):
        with contextlib.suppress(ParseError):
            message = parse_message(data)
            assert isinstance(message, Request)
            check_request(message)
        salvage_request(data)


@pytest.mark.parametrize("indexed", [False, True])
def test_the_first_row_of_a_field_is_exchanged(indexed: bool) -> None:
    request = Request("REGISTER", "sip:a", (("To", "t"), ("Via", "one"), ("Via", "two")))
    if indexed:
        assert request.all("Via") == ["one", "two"]
    changed = request.with_first("Via", "new")
    assert changed.headers == (("To", "t"), ("Via", "new"), ("Via", "two"))
    assert (changed.all("Via"), request.all("Via"), changed.get("To")) == (["new", "two"], ["one", "two"], "t")


@pytest.mark.parametrize(
    ("to", "tagged"),
    [
        ("<sip:a@b>;tag=1", True), ("sip:a@b;tag=1", True), ("<sip:a@b>;TAG=1", True), ('<sip:a@b>;x="\\"";tag=1', True),
        ('<sip:a@b>;x=";tag=1"', False), ('";tag=1" <sip:a@b>', False), ("<sip:a@b;tag=1>", False),
    ],
)  # fmt: skip
def test_a_tag_is_told_from_what_looks_like_one(to: str, tagged: bool) -> None:
    """RFC 3261 §8.2.6.2."""
    response = Response(200, "OK", (("To", to),))
    assert with_to_tag(response, "new").get("To") == (to if tagged else f"{to};tag=new")
