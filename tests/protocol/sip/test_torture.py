# SPDX-License-Identifier: Apache-2.0
"""RFC 4475, torture tests: what the parser makes of each message."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.sip.framing import StreamFramer
from keyferry.protocol.sip.headers import parse_cseq, parse_expires, parse_name_addr, parse_name_addr_list, parse_via_list
from keyferry.protocol.sip.message import Message, Request, Response, build_message, check_request, parse_message, refuse_method
from keyferry.protocol.sip.proxy import forwarded
from keyferry.protocol.sip.transaction import server_key
from keyferry.protocol.sip.uri import parse_sip_uri, same_uri
from protocol.sip.torture import Tortured, messages

MESSAGES = {one.id: one for one in messages()}


def read(name: str) -> Message:
    message = parse_message(MESSAGES[name].data)
    if isinstance(message, Request):
        check_request(message)
    return message


def request(name: str) -> Request:
    message = read(name)
    assert isinstance(message, Request)
    return message


@pytest.mark.parametrize("one", MESSAGES.values(), ids=lambda one: f"{one.section}-{one.id}")
def test_it_is_read_or_refused_with_the_status(one: Tortured) -> None:
    """RFC 4475 §3, each section."""
    if one.parse:
        with pytest.raises(ParseError) as refusal:
            read(one.id)
        assert refusal.value.status == one.parse
    else:
        assert parse_message(build_message(message := read(one.id))) == message


@pytest.mark.parametrize("one", MESSAGES.values(), ids=lambda one: f"{one.section}-{one.id}")
def test_a_stream_cuts_it_or_says_that_it_cannot(one: Tortured) -> None:
    """RFC 4475 §3, over TCP; octet by octet and whole alike."""
    whole, single = StreamFramer(), StreamFramer()
    found: list[bytes] = []
    try:
        found = whole.feed(one.data)
        for octet in one.data:
            found[len(found) :] = single.feed(bytes((octet,)))
    except ParseError:
        assert one.id in {"length-negative", "several-lengths", "rfc2543", "trailing-octets", "quoted-nul"} or not one.data
    else:
        assert found[: len(found) // 2] == found[len(found) // 2 :]


def test_a_short_tortuous_register() -> None:
    """RFC 4475 §3.1.1.1."""
    message = request("tortuous")
    to, sender = (parse_name_addr(message.get(name) or "") for name in ("To", "From"))
    assert (to.uri, to.parameter("tag")) == ("sip:a.user@home1.net", "191xyz")
    assert (sender.display, sender.uri, sender.parameter("tag")) == ('J Doe \\"', "sip:a.user@home1.net", "98as")
    vias = [via for row in message.all("Via") for via in parse_via_list(row)]
    assert [(via.transport, via.host, via.branch) for via in vias] == [
        ("UDP", "127.0.0.1", "390skdjuw"),
        ("TCP", "spindle.home1.net", "z9hG4bK9ikj8"),
        ("UDP", "192.168.255.111", "z9hG4bK30239"),
    ]
    (contact,) = parse_name_addr_list(message.get("Contact") or "")
    assert contact.display == 'Quoted string ""'
    assert contact.parameters == (("newparam", "newvalue"), ("secondparam", None), ("q", "0.33"))
    assert message.get("NewFangledHeader") == "newfangled value continued newfangled value"
    assert message.get("UnknownHeaderWithUnusualValue") == ";;,,;;,;"
    assert (message.get("Subject"), message.body) == ("", b"hello")


def test_a_wide_range_of_valid_characters() -> None:
    """RFC 4475 §3.1.1.2."""
    message = request("characters")
    assert parse_name_addr(message.get("To") or "").display == "BEL:\x07 DEL:\x7f"
    assert message.method == "!odd-Method0123456789_*+`.%indeed'~"
    assert parse_sip_uri(message.uri).host == "home1.net"
    sender = parse_name_addr(message.get("From") or "")
    assert (sender.display, sender.parameter("tag")) == ("token1~` token2'+_ token3*%!.-", "_token~1'+`*%!-.")
    assert sender.parameter("fromParam''~+*_!.-%") == "работающий"
    assert message.get("extensionHeader-!.%*+_`'~") == "大停電"


def test_valid_use_of_the_escaping_mechanism() -> None:
    """RFC 4475 §3.1.1.3."""
    message = request("escapes")
    assert parse_sip_uri(message.uri).user == "sips%3Auser%40home1.net"
    assert same_uri(parse_sip_uri(parse_name_addr(message.get("To") or "").uri), parse_sip_uri("sip:user@home1.net"))
    contact = parse_sip_uri(parse_name_addr(message.get("Contact") or "").uri)
    assert contact.parameters == (("%6c%72", None), ("n%61me", "v%61lue%25%34%31"))


def test_escaped_nulls_stay_and_two_are_not_one() -> None:
    """RFC 4475 §3.1.1.4."""
    one, two = (parse_sip_uri(parse_name_addr(row).uri) for row in request("escaped-nulls").all("Contact"))
    assert (one.user, two.user) == ("%00", "%00%00")
    assert not same_uri(one, two)
    assert same_uri(one, one)


def test_percent_that_is_no_escape() -> None:
    """RFC 4475 §3.1.1.5: an unknown method, answered 501, and two Contacts."""
    message = request("no-escapes")
    assert refuse_method(message, "REGISTER").status == 501
    assert refuse_method(replace(message, method="REGISTER"), "SUBSCRIBE").status == 405
    assert message.method == "RE%47IST%45R"
    assert len(message.all("Contact")) == 2
    assert message.get("C%6Fntact") == "<sip:alias2@host2.home1.net>"


def test_no_space_before_the_bracket() -> None:
    """RFC 4475 §3.1.1.6."""
    message = request("no-space")
    assert [parse_name_addr(message.get(name) or "").display for name in ("To", "From")] == ["Called", "caller"]


def test_long_values() -> None:
    """RFC 4475 §3.1.1.7."""
    message = request("long-values")
    to, sender = (parse_name_addr(message.get(name) or "") for name in ("To", "From"))
    assert (len(to.display or ""), parse_sip_uri(to.uri).port) == (len("I have a user name of  proportion") + 40 * len("extreme"), 6000)
    assert len(sender.parameter("tag") or "") == 247
    assert len([via for row in message.all("Via") for via in parse_via_list(row)]) == 17
    assert len(message.get("Call-ID") or "") == len("longvalues.") + 270


def test_extra_trailing_octets() -> None:
    """RFC 4475 §3.1.1.8: noise in a datagram, another message in a stream."""
    one = MESSAGES["trailing-octets"]
    message = request(one.id)
    assert message.body == b""
    assert b"SUBSCRIBE" not in build_message(message)
    methods = [found.method for data in StreamFramer().feed(one.data) if isinstance(found := parse_message(data), Request)]
    assert methods == ["REGISTER", "SUBSCRIBE"]


def test_semicolons_in_the_user_part() -> None:
    """RFC 4475 §3.1.1.9."""
    uri = parse_sip_uri(request("semicolons").uri)
    assert (uri.user, uri.parameters) == ("user;par=u%40home2.net", ())


def test_unknown_transports() -> None:
    """RFC 4475 §3.1.1.10."""
    vias = [via.transport for row in request("transports").all("Via") for via in parse_via_list(row)]
    assert vias == ["UDP", "SCTP", "TLS", "UNKNOWN", "TCP"]


def test_a_multipart_body_is_counted_in_octets() -> None:
    """RFC 4475 §3.1.1.11."""
    body = request("multipart").body
    assert len(body) == 107
    assert "日本".encode() in body
    assert b"\0\x01\0\x89\xff" in body


@pytest.mark.parametrize(("name", "status", "ending"), [("unusual-reason", 200, "простое"), ("empty-reason", 100, "")])
def test_reason_phrases(name: str, status: int, ending: str) -> None:
    """RFC 4475 §3.1.1.12, §3.1.1.13."""
    message = read(name)
    assert isinstance(message, Response)
    assert (message.status, message.reason[-7:]) == (status, ending)


def test_overlarge_scalars_one_by_one() -> None:
    """RFC 4475 §3.1.2.4: CSeq and Max-Forwards spoil the request, Expires only itself."""
    text = MESSAGES["scalars"].data.replace(b"36893488147419103232", b"1").replace(b"300", b"70")
    message = parse_message(text)
    assert isinstance(message, Request)
    check_request(message)
    for value in (message.get("Expires"), parse_name_addr(message.get("Contact") or "").parameter("expires")):
        with pytest.raises(ParseError):
            parse_expires(value or "")


def test_a_bare_contact_with_headers_is_an_error_of_its_own() -> None:
    """RFC 4475 §3.1.2.13: a registrar answers 400, it does not guess."""
    with pytest.raises(ParseError) as refusal:
        parse_name_addr_list(request("bare-contact-with-headers").get("Contact") or "")
    assert refusal.value.status == 400


def test_a_branch_without_an_identifier_names_no_transaction() -> None:
    """RFC 4475 §3.2.1: the fields of RFC 2543 tell requests apart."""
    one = request("bare-cookie")
    other = one.replacing("Call-ID", "another")
    via = check_request(one)
    keys = {server_key(each, via, "udp:127.0.0.1:1", b"k") for each in (one, one, other)}
    assert len(keys) == 2


def test_no_hops_left() -> None:
    """RFC 4475 §3.3.11: a proxy answers 483."""
    with pytest.raises(RemoteProtocolError) as refusal:
        forwarded(request("no-hops-left"))
    assert refusal.value.status == 483


def test_escaped_headers_in_a_request_uri_are_not_sent_on() -> None:
    """RFC 4475 §3.1.2.11: a proxy refuses; an element whose own Request-URI takes the place of the other does not send them."""
    message = request("headers-in-request-uri")
    with pytest.raises(ParseError) as refusal:
        forwarded(message)
    assert refusal.value.status == 400
    assert forwarded(message, uri="sip:scscf1.home1.net").uri == "sip:scscf1.home1.net"
    assert forwarded(request("characters")).uri == request("characters").uri  # its "?" is in the user part


def test_a_response_whose_scalars_are_too_large_is_discarded() -> None:
    """RFC 4475 §3.1.2.5: CSeq cannot be read, so it belongs to no request."""
    with pytest.raises(ParseError):
        parse_cseq(read("response-scalars").get("CSeq") or "")


def test_contact_parameters_and_uri_parameters() -> None:
    """RFC 4475 §3.3.12, §3.3.13."""
    contact = parse_name_addr(request("contact-parameter").get("Contact") or "")
    assert (contact.uri, contact.parameters) == ("sip:+19725552222@gw1.home1.net", (("unknownparam", None),))
    contact = parse_name_addr(request("uri-parameter").get("Contact") or "")
    assert (contact.uri, contact.parameters) == ("sip:+19725552222@gw1.home1.net;unknownparam", ())


def test_an_escaped_header_in_a_contact() -> None:
    """RFC 4475 §3.3.14: it is kept, and it is no Route of this request."""
    message = request("header-in-contact")
    uri = parse_sip_uri(parse_name_addr(message.get("Contact") or "").uri)
    assert uri.headers == "Route=%3Csip:sip.home1.net%3E"
    assert message.get("Route") is None
