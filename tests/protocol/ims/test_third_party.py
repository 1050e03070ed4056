# SPDX-License-Identifier: Apache-2.0
"""Third-party REGISTER."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol import xmlsafe
from keyferry.protocol.ims.keypush import NAMESPACE, Push, build_push, parse_service_info
from keyferry.protocol.ims.multipart import Part, build_multipart
from keyferry.protocol.ims.third_party import (
    build_ims_body,
    build_third_party_register,
    parse_ims_body,
    parse_third_party_register,
    redact_register,
)
from keyferry.protocol.sip.message import Request, build_message, check_request, parse_message

UE_REGISTER = (
    b"REGISTER sip:home1.net SIP/2.0\r\nVia: SIP/2.0/UDP [5555::aaa];branch=z9hG4bKnashds7\r\nMax-Forwards: 70\r\n"
    b"From: <sip:user1@home1.net>;tag=4fa3\r\nTo: <sip:user1@home1.net>\r\nContact: <sip:[5555::aaa]>\r\n"
    b"Call-ID: apb03\r\nCSeq: 2 REGISTER\r\n"
    b'Authorization: Digest username="user1_private@home1.net", realm="home1.net", nonce="bm9uY2U=", uri="sip:home1.net", '
    b'response="6629fae49393a05397450978507c4ef1", algorithm=AKAv1-MD5, cnonce="0a4f113bdeadbeef", '
    b'qop=auth, nc=00000001, auts="c2VjcmV0"\r\n'
    b"Content-Length: 0\r\n\r\n"
)
UE_RESPONSE = (
    b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP [5555::aaa];branch=z9hG4bKnashds7\r\nFrom: <sip:user1@home1.net>;tag=4fa3\r\n"
    b"To: <sip:user1@home1.net>;tag=1\r\nContact: <sip:[5555::aaa]>;expires=600000\r\nCall-ID: apb03\r\nCSeq: 2 REGISTER\r\n"
    b'Authentication-Info: qop=auth, rspauth="6629fae49393a05397450978507c4ef1", cnonce="0a4f113bdeadbeef", nc=00000001\r\n'
    b'WWW-Authenticate: Digest realm="home1.net", nonce="x", ck="00112233", ik="44556677"\r\nContent-Length: 0\r\n\r\n'
)
PROOFS = (b"6629fae49393a05397450978507c4ef1", b"0a4f113bdeadbeef", b"c2VjcmV0", b"00112233", b"44556677")


def build(**changes: object) -> Request:
    arguments: dict[str, object] = {
        "server_name": "sip:as1.home1.net;transport=tcp",
        "scscf_uri": "sip:scscf1.home1.net",
        "impu": "sip:user1@home1.net",
        "expires": 600_000,
        "call_id": "7as3@scscf1.home1.net",
        "cseq": 7,
        "from_tag": "14",
    }
    return build_third_party_register(**(arguments | changes))  # type: ignore[arg-type]


def over_the_wire(request: Request) -> Request:
    message = parse_message(build_message(request.prepending("Via", "SIP/2.0/TCP scscf1.home1.net;branch=z9hG4bK7b2")))
    assert isinstance(message, Request)
    check_request(message)
    return message


def test_the_header_fields_are_those_of_the_clause() -> None:
    """TS 24.229 §5.4.1.7."""
    request = build(
        p_access_network_info="3GPP-E-UTRAN-FDD",
        p_visited_network_id='"visited1.net"',
        p_charging_vector='icid-value="x"; orig-ioi="type 3home1.net"',
        p_associated_uri=("sip:user1@home1.net", "tel:+491721"),
    )
    assert request == Request(
        "REGISTER",
        "sip:as1.home1.net;transport=tcp",
        (
            ("Max-Forwards", "70"),
            ("From", "<sip:scscf1.home1.net>;tag=14"),
            ("To", "<sip:user1@home1.net>"),
            ("Call-ID", "7as3@scscf1.home1.net"),
            ("CSeq", "7 REGISTER"),
            ("Contact", "<sip:scscf1.home1.net>"),
            ("Expires", "600000"),
            ("P-Access-Network-Info", "3GPP-E-UTRAN-FDD"),
            ("P-Visited-Network-ID", '"visited1.net"'),
            ("P-Charging-Vector", 'icid-value="x"; orig-ioi="type 3home1.net"'),
            ("P-Associated-URI", "<sip:user1@home1.net>, <tel:+491721>"),
        ),
    )


def test_service_info_alone_is_the_body() -> None:
    """TS 24.229 §5.4.1.7A."""
    request = build(service_info="<a>&\"'</a>")
    assert request.get("Content-Type") == "application/3gpp-ims+xml"
    found = parse_third_party_register(over_the_wire(request))
    assert found.service_info == "<a>&\"'</a>"
    assert (found.impu, found.scscf, found.expires) == ("sip:user1@home1.net", "sip:scscf1.home1.net", 600_000)
    assert (found.call_id, found.cseq, found.register, found.response) == ("7as3@scscf1.home1.net", 7, None, None)
    assert "<a>" not in repr(found)


def test_a_body_less_de_registration_is_read() -> None:
    """TS 24.229 §5.4.1.7, as Kamailio and Clearwater send it."""
    found = parse_third_party_register(over_the_wire(build(expires=0)))
    assert (found.expires, found.service_info) == (0, None)


@pytest.mark.parametrize(
    "which", [{"register"}, {"response"}, {"register", "response"}, {"register", "service_info"}, {"register", "response", "service_info"}]
)
def test_copies_of_the_registration_go_along_without_proofs(which: set[str]) -> None:
    """TS 24.229 §5.4.1.7A; DESIGN §6."""
    given_parts = {"register": UE_REGISTER, "response": UE_RESPONSE, "service_info": "x"}
    request = over_the_wire(build(**{name: given_parts[name] for name in which}))
    assert not any(proof in request.body for proof in PROOFS)
    assert (request.get("Content-Type") or "").startswith("multipart/mixed" if len(which) > 1 else "message/sip")
    found = parse_third_party_register(request)
    assert (found.register is not None, found.response is not None, found.service_info) == (
        "register" in which,
        "response" in which,
        "x" if "service_info" in which else None,
    )
    if found.register is not None:
        assert parse_message(found.register).get("Contact") == "<sip:[5555::aaa]>"


def test_credentials_keep_what_is_no_proof() -> None:
    """DESIGN §6."""
    shown = parse_message(redact_register(UE_REGISTER)).get("Authorization") or ""
    assert 'username="user1_private@home1.net"' in shown
    assert 'response=""' in shown
    assert not any(proof.decode() in shown for proof in PROOFS)


@pytest.mark.parametrize(
    "value",
    [
        b'Digest username="a", response="6629fae49393a05397450978507c4ef1',
        b'Digest username="a\\", response=\\"", realm="b", nonce="", uri="c", response="6629fae49393a05397450978507c4ef1", response=""',
        b"Basic 6629fae49393a05397450978507c4ef1",
        b'Digest username="a", realm="b",\r\n nonce="",uri="c",\r\n\t'
        b'RESPONSE = "6629fae49393a05397450978507c4ef1" , CNonce="0a4f113bdeadbeef"',
        b'Digest username="a", realm="b", nonce="", uri="c", response=6629fae49393a05397450978507c4ef1',
    ],
)
def test_however_a_response_is_written_it_does_not_pass(value: bytes) -> None:
    """DESIGN §6: what cannot be read goes whole."""
    hostile = UE_REGISTER.replace(b"Contact: ", b"authorization : " + value + b"\r\nProxy-Authorization: " + value + b"\r\nContact: ")
    assert not any(proof in redact_register(hostile) for proof in PROOFS)


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n", b"nonsense"])
def test_a_copy_that_is_no_message_is_refused(data: bytes) -> None:
    """DESIGN §6."""
    with pytest.raises(ParseError):
        redact_register(data)


PUSH = Push(1, "a@h.net", "xcap.h.net", "AbCdEfGhIjKl", (), ("sip:a@h.net",), "x & y")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'<ims-3gpp version="1"><service-info>naf=xcap.home1.net</service-info></ims-3gpp>', "naf=xcap.home1.net"),  # Kamailio
        (b"<ims-3gpp><service-info>banana</service-info></ims-3gpp>", "banana"),  # Clearwater
        (
            b'<?xml version="1.0"?>\n<ims-3gpp version="1">\n <service-info><![CDATA[<a b="c"/>]]></service-info>\n</ims-3gpp>\n',
            '<a b="c"/>',
        ),
        (b'<ims-3gpp version="1"><service-info>&lt;a/&gt;</service-info></ims-3gpp>', "<a/>"),
        (b'<ims-3gpp version="1"><service-info/><x:y xmlns:x="urn:x">z</x:y></ims-3gpp>', ""),
        (b'<ims-3gpp version="2" more="1"><new/><service-info>x</service-info></ims-3gpp>', "x"),
        (b'<ims-3gpp xmlns="urn:x"><service-info>x</service-info></ims-3gpp>', "x"),
        (b'<ims-3gpp version="1"><alternative-service><type>emergency</type><reason/></alternative-service></ims-3gpp>', None),
        (b'<ims-3gpp version="1"><service-info><a b="c">d<e/>f</a></service-info></ims-3gpp>', '<a b="c">d<e></e>f</a>'),
    ],
)
def test_bodies_of_other_peers_are_read(body: bytes, expected: str | None) -> None:
    """TS 24.229 §7.6, §7.6.2; what Kamailio and Clearwater send."""
    assert parse_ims_body(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<x/>",
        b"<ims-3gpp><service-info>a</service-info><service-info>b</service-info></ims-3gpp>",
        b"<ims-3gpp><service-info>a<!-- b -->c</service-info></ims-3gpp>",
        b"<ims-3gpp><service-info>a & b</service-info></ims-3gpp>",
        b"<!DOCTYPE x [<!ENTITY a 'b'>]><ims-3gpp><service-info>&a;</service-info></ims-3gpp>",
    ],
)
def test_a_body_that_two_could_read_differently_is_refused(body: bytes) -> None:
    """DESIGN §6."""
    with pytest.raises(ParseError):
        parse_ims_body(body)


def test_a_push_survives_kamailio_unescaping_it() -> None:
    """Kamailio decodes the text of the HSS once and puts it in as markup."""
    push = build_push(PUSH)
    body = f'<ims-3gpp version="1"><service-info>{push}</service-info></ims-3gpp>'.encode()
    text = parse_ims_body(body)
    assert text is not None
    assert parse_service_info(text) == PUSH
    bare = push.replace(f' xmlns:kf="{NAMESPACE}"', "")
    nested = f'<ims-3gpp version="1" xmlns:kf="{NAMESPACE}"><service-info> {bare}\n</service-info></ims-3gpp>'
    text = parse_ims_body(nested.encode())
    assert text is not None
    assert parse_service_info(text) == PUSH


def kamailio(**changes: str) -> Request:
    headers = {
        "Via": "SIP/2.0/UDP 10.0.0.1:6060;branch=z9hG4bK1",
        "To": "<sip:user1@home1.net>",
        "From": "<sip:scscf.home1.net:6060>;tag=533cb9e91f4b999cf76861cbb9ed54ed",
        "CSeq": "10 REGISTER",
        "Call-ID": "6fbc7f0c72b4f2a7-1@10.0.0.1",
        "Content-Type": "application/3gpp-ims+xml",
        "Max-Forwards": "10",
        "Event": "registration",
        "Contact": "<sip:scscf.home1.net:6060>",
        "Expires": "3720",
        "Path": "<sip:term@pcscf.home1.net;lr>",
        "P-Associated-URI": "<sip:user1@home1.net>",
    }
    rows = tuple((name, value) for name, value in (headers | changes).items() if value)
    return Request("REGISTER", "sip:as1.home1.net:5065", rows, b'<ims-3gpp version="1"><service-info>naf=x.net</service-info></ims-3gpp>')


def test_the_request_of_kamailio_is_read() -> None:
    """What ims_isc of Kamailio 5.6 sends."""
    check_request(kamailio())
    found = parse_third_party_register(kamailio())
    assert (found.scscf, found.expires, found.service_info) == ("sip:scscf.home1.net:6060", 3720, "naf=x.net")


def test_the_multipart_of_clearwater_is_read() -> None:
    """What sprout sends when several bodies are asked for."""
    body = (
        b"--8a2b\r\nContent-Length:   60\r\nContent-Type: application/3gpp-ims+xml\r\n\r\n"
        b"<ims-3gpp><service-info>banana</service-info></ims-3gpp>\r\n"
        b"--8a2b\r\nContent-Type: message/sip\r\n\r\n"
        + UE_RESPONSE
        + b"\r\n--8a2b\r\nContent-Type: message/sip\r\n\r\n"
        + UE_REGISTER
        + b"\r\n--8a2b--\r\n"
    )
    request = kamailio(**{"Content-Type": "multipart/mixed;boundary=8a2b"})
    found = parse_third_party_register(Request("REGISTER", "sip:as", request.headers, body))
    assert (found.service_info, found.register, found.response) == ("banana", UE_REGISTER, UE_RESPONSE)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"To": ""}, {"To": "<mailto:a@b>"}, {"To": "<sip:h.net>"}, {"From": ""}, {"Expires": ""}, {"Expires": "-1"}, {"Expires": "x"}],
        *[{"CSeq": "x"}, {"Call-ID": ""}, {"Content-Type": ""}, {"Content-Type": "x"}, {"Content-Encoding": "gzip"}],
        {"Content-Type": "multipart/mixed"},
    ],
)
def test_a_request_that_lacks_something_is_refused(changes: dict[str, str]) -> None:
    """TS 24.229 §5.4.1.7."""
    with pytest.raises(ParseError):
        parse_third_party_register(kamailio(**changes))


def test_what_is_repeated_is_refused() -> None:
    """Two readers could read two things."""
    request = kamailio()
    for name, value in (("To", "<sip:other@home1.net>"), ("Expires", "0"), ("Content-Type", "text/plain")):
        with pytest.raises(ParseError):
            parse_third_party_register(request.with_headers((*request.headers, (name, value))))
    with pytest.raises(ParseError):
        parse_third_party_register(Request("OPTIONS", request.uri, request.headers))
    for part in (Part("application/3gpp-ims+xml", request.body), Part("message/sip", UE_REGISTER), Part("message/sip", UE_RESPONSE)):
        boundary, body = build_multipart([part, part])
        typed = request.replacing("Content-Type", f"multipart/mixed;boundary={boundary}")
        with pytest.raises(ParseError, match="repeats"):
            parse_third_party_register(Request("REGISTER", request.uri, typed.headers, body))


def test_a_body_of_another_type_is_passed_over() -> None:
    """RFC 3261 §8.2.3: nothing of it is needed."""
    found = parse_third_party_register(kamailio(**{"Content-Type": "text/plain", "Content-Encoding": "identity"}))
    assert (found.service_info, found.register) == (None, None)


def test_a_boundary_that_was_asked_for_is_used() -> None:
    """RFC 2046 §5.1.1."""
    request = build(service_info="x", register=UE_REGISTER, boundary="mine")
    assert request.get("Content-Type") == 'multipart/mixed;boundary="mine"'
    with pytest.raises(LocalProtocolError):
        build(service_info="x\0")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=60))
def test_service_info_is_read_back(text: str) -> None:
    """Reverse of parse_third_party_register."""
    assert parse_ims_body(build_ims_body(text)) == text
    assert parse_third_party_register(build(service_info=text, register=UE_REGISTER)).service_info == text


@given(st.binary(max_size=300), st.sampled_from(["application/3gpp-ims+xml", "multipart/mixed;boundary=b", "message/sip", "x"]))
def test_any_body_gives_a_value_or_a_parse_error(body: bytes, content_type: str) -> None:
    """STYLE §4."""
    request = kamailio(**{"Content-Type": content_type})
    with contextlib.suppress(ParseError):
        parse_third_party_register(Request("REGISTER", request.uri, request.headers, body))


def test_hostile_64_kb_take_no_time() -> None:
    """STYLE §4."""
    with costs_under(1.0):
        for inside in ("<a>" * 30 + "</a>" * 30, "<a/>" * 9_000, "&lt;" * 15_000, "<a xmlns='urn:x'><b xmlns='urn:y'/></a>" * 1_500):
            parse_ims_body(f"<ims-3gpp><service-info>{inside}</service-info></ims-3gpp>".encode()[: xmlsafe.MAX_OCTETS])
