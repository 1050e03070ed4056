# SPDX-License-Identifier: Apache-2.0
"""SIP and Diameter found in payloads (RFC 3261 §7, §18.3; RFC 6733 §3)."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.capture import messages
from keyferry.protocol.capture.diameter import DiameterMessage
from keyferry.protocol.capture.messages import MAX_LINE, MAX_PROBLEMS, TWICE, Found, MessageFinder
from keyferry.protocol.capture.packets import Endpoint, Payload, TransportName
from keyferry.protocol.sip.message import Request, Response, build_message
from protocol.capture.capturekit import HSS, PCSCF, SCSCF, START, UE, avp, diameter

ONE = build_message(Request("REGISTER", "sip:home1.net", (("Call-ID", "1"),), b"body"))
TWO = build_message(Response(401, "Unauthorized", (("Call-ID", "2"),)))
MAR = diameter(303, avp(1, b"a@b"))


def payload(data: bytes, transport: TransportName = "UDP", *, at: float = START, target: Endpoint = PCSCF, **more: bool) -> Payload:
    return Payload(1, at, transport, UE, target, data, **more)


def stream(*parts: bytes, begins: bool = True, target: Endpoint = PCSCF, gaps: tuple[int, ...] = ()) -> tuple[list[Found], MessageFinder]:
    finder = MessageFinder()
    found = []
    for number, part in enumerate(parts):
        found += finder.feed(payload(part, "TCP", begins=begins and number == 0, gap=number in gaps, target=target))
    return found, finder


def call_ids(found: list[Found]) -> list[str | None]:
    return [one.content.get("Call-ID") for one in found if not isinstance(one.content, DiameterMessage)]


def test_sip_in_datagrams_is_found_on_any_port() -> None:
    """By its start line; CRLF before it is passed over (RFC 3261 §7.5)."""
    finder = MessageFinder()
    for data in (ONE, TWO, b"\r\n\r\n" + ONE + b" "):
        (found,) = finder.feed(payload(data, target=HSS))
        assert (found.transport, found.source, found.target, found.octets) == ("UDP", UE, HSS, len(data))
    assert finder.unread == {}
    assert finder.feed(payload(b"something else", target=HSS)) == []
    assert finder.unread == {}


def test_what_is_no_sip_on_a_sip_port_is_told() -> None:
    """Keep-alives are not (RFC 5626 §3.5.1)."""
    finder = MessageFinder()
    for data in (b"\x80\x00rtp", b"\r\n\r\n", b"\0", b""):
        assert finder.feed(payload(data)) == []
    assert finder.unread == {"on a SIP port, but no SIP": 1}
    elsewhere = MessageFinder([9])
    elsewhere.feed(payload(b"\x80\x00rtp"))
    assert elsewhere.unread == {}


def test_malformed_sip_is_told_one_by_one_without_its_octets() -> None:
    """A bounded number."""
    finder = MessageFinder()
    for number in range(MAX_PROBLEMS + 5):
        assert finder.feed(payload(b"REGISTER sip:secret SIP/2.0\r\nX%d\r\n\r\n" % number, target=HSS)) == []
    assert finder.unread == {"SIP not readable": MAX_PROBLEMS + 5}
    assert len(finder.problems) == MAX_PROBLEMS
    assert "secret" not in str(finder.problems)
    cut = MessageFinder()
    assert cut.feed(payload(ONE[:-2], cut=True)) == []
    assert "tcpdump -s 0" in cut.problems[0].text


def test_a_datagram_captured_twice_is_taken_once_a_retransmission_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interface `any` shows what passes lo twice; T1 is half a second (RFC 3261 §17.1.1.1)."""
    monkeypatch.setattr(messages, "MAX_RECENT", 4)
    finder = MessageFinder()
    assert len(finder.feed(payload(ONE))) == 1
    assert len(finder.feed(payload(ONE, at=START + TWICE / 2))) == 0
    assert len(finder.feed(payload(ONE, at=START + 0.5))) == 1
    assert len(finder.feed(payload(ONE, target=HSS, at=START + 0.5))) == 1
    assert finder.twice == 1
    for port in range(5):
        finder.feed(payload(ONE, target=Endpoint("h", port), at=START + 0.5))
    assert len(finder.feed(payload(ONE, at=START + 0.51))) == 1  # forgotten


def test_messages_of_a_stream_come_out_octet_by_octet() -> None:
    """RFC 3261 §18.3."""
    whole = b"\r\n\r\n" + ONE + TWO + ONE
    found, finder = stream(*(bytes((octet,)) for octet in whole))
    assert call_ids(found) == ["1", "2", "1"]
    assert call_ids(stream(whole)[0]) == ["1", "2", "1"]
    assert finder.unread == {}


def test_a_stream_without_its_beginning_is_read_from_the_next_start_line() -> None:
    """The capture began in the middle, or lost a segment."""
    assert call_ids(stream(b"5060;branch=z\r\nX: y\r\n\r\n" + ONE[10:], TWO + ONE, begins=False)[0]) == ["2", "1"]
    found, _ = stream(ONE + ONE[:20], ONE[-30:] + TWO, gaps=(1,))
    assert call_ids(found) == ["1", "2"]
    found, _ = stream(ONE, b"Via: SIP/2.0/UDP", b" x\r\n\r\nSIP/2.0 200", b" OK\r\nCall-ID: 3\r\nContent-Length: 0\r\n\r\n", gaps=(1,))
    assert call_ids(found) == ["1", "3"]
    found, _ = stream(MAR + MAR[:8], MAR, gaps=(1,), target=HSS)
    assert len(found) == 2


def test_a_stream_that_is_cut_wrongly_is_told_and_taken_up_again() -> None:
    """No Content-Length on a stream (RFC 3261 §20.14)."""
    found, finder = stream(ONE, b"OPTIONS sip:a SIP/2.0\r\n\r\n", TWO)
    assert call_ids(found) == ["1", "2"]
    assert finder.unread == {"SIP not readable": 1}
    assert call_ids(stream(ONE + b"OPTIONS sip:a SIP/2.0\r\n\r\n", TWO)[0]) == ["1", "2"]


def test_other_streams_are_passed_over() -> None:
    """TLS is counted once a connection; on a SIP port what is no SIP is told."""
    _, tls = stream(b"\x16\x03\x01\x02\x00\x01", bytes(900))
    assert tls.unread == {"TLS, encrypted": 1}
    _, http = stream(b"GET / HTTP/1.1\r\n\r\n", bytes(MAX_LINE * 2), target=HSS)
    assert http.unread == {}
    _, odd = stream(b"GET / HTTP/1.1\r\n", b"\r\n")
    assert odd.unread == {"on a SIP port, but no SIP": 1}
    _, endless = stream(*[b"A" * 30, b" " + b"x" * MAX_LINE])
    assert endless.unread == {"on a SIP port, but no SIP": 1}
    found, _ = stream(b"\x01", MAR[1:19], MAR[19:])
    assert len(found) == 1


def test_a_new_connection_on_the_same_ports_is_looked_at_anew() -> None:
    """A SYN begins a stream."""
    finder = MessageFinder()
    finder.feed(payload(b"\x16\x03\x01", "TCP", begins=True))
    assert call_ids(finder.feed(payload(ONE, "TCP", begins=True))) == ["1"]


def test_diameter_is_found_in_streams_and_sctp() -> None:
    """RFC 6733 §2.1."""
    found, finder = stream(*(bytes((octet,)) for octet in MAR * 2), target=HSS)
    assert [one.content.name for one in found if isinstance(one.content, DiameterMessage)] == ["MAR", "MAR"]
    _, broken = stream(MAR + b"\x02\0\0\x14" + bytes(16), target=HSS)
    assert broken.unread == {"Diameter not readable": 1}
    (one,) = finder.feed(Payload(1, START, "SCTP", SCSCF, HSS, MAR))
    assert isinstance(one.content, DiameterMessage)
    wrong = diameter(303, b"\0\0\0\x01\0\0\0\x01")
    assert finder.feed(Payload(1, START, "SCTP", SCSCF, HSS, wrong)) == []
    assert finder.unread == {"Diameter not readable": 1}


def test_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one longest silent goes first: then it is as if the capture began there."""
    monkeypatch.setattr(messages, "MAX_STREAMS", 2)
    finder = MessageFinder()
    for port in range(4):
        finder.feed(payload(ONE[:30], "TCP", begins=True, target=Endpoint("h", port)))
    assert finder.feed(payload(ONE[30:], "TCP", target=Endpoint("h", 0))) == []
    assert len(finder.feed(payload(ONE[30:], "TCP", target=Endpoint("h", 3)))) == 1


PARTS = st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([ONE, TWO, MAR, ONE[:30], b"\r\n", b"SIP/2.0 200 OK\r\n"])), max_size=8)


@given(PARTS, st.sets(st.integers(0, 8)), st.booleans())
def test_any_octets_are_taken(parts: list[bytes], gaps: set[int], begins: bool) -> None:
    """Messages or a count, never an exception."""
    stream(*parts, gaps=tuple(gaps), begins=begins)
    finder = MessageFinder()
    for part, transport in itertools.product(parts, ("UDP", "SCTP")):
        finder.feed(payload(part, transport))  # type: ignore[arg-type]


def test_time_is_linear() -> None:
    """A stream of nothing octet by octet, one of half start lines."""
    began = time.process_time()
    stream(*[b"\n"] * 20_000, begins=False)
    stream(b"SIP/2.0 " * 100_000, b"REGISTER sip:" * 50_000, begins=False)
    finder = MessageFinder()
    finder.feed(payload(b"A" * 65_000))
    finder.feed(payload(b"REGISTER sip:" * 5_000))
    assert time.process_time() - began < 3.0
