# SPDX-License-Identifier: Apache-2.0
"""SIP (RFC 3261 §7) and Diameter (RFC 6733 §3) found in what the transports carried: by content everywhere, by port where told."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import ParseError
from keyferry.protocol.capture.diameter import DiameterMessage, message_length, parse_diameter
from keyferry.protocol.capture.packets import Endpoint, Payload
from keyferry.protocol.sip.framing import StreamFramer
from keyferry.protocol.sip.message import Message, parse_message

SIP_PORTS: Final = frozenset({5060, 5061})
DIAMETER_PORTS: Final = frozenset({3868})
MAX_STREAMS: Final = 4_096
"""Directions of TCP connections that are looked into; the one longest silent goes first."""
MAX_LINE: Final = 4_096
"""Octets in which a start line ends: a Request-URI has at most 2,048."""
MAX_RECENT: Final = 4_096
"""Datagrams compared with the next ones."""
TWICE: Final = 0.1
"""Seconds: an equal datagram that comes sooner was captured twice, by two interfaces; SIP retransmits after T1, 0.5 s (RFC 3261 §17.1)."""
MAX_PROBLEMS: Final = 100
"""Messages not readable that are told one by one."""

# Request-Line or Status-Line; a method without a hyphen, as all that are registered
_REQUEST_LINE = rb"[A-Za-z]{1,32}+ (?:sips?|tel|urn):[^\r\n ]{1,2048}+ SIP/2\.0\r\n"
_STATUS_LINE = rb"SIP/2\.0 [1-6][0-9]{2}(?: [^\r\n]*+)?+\r\n"
_START = re.compile(rb"(?:%b|%b)" % (_REQUEST_LINE, _STATUS_LINE), re.IGNORECASE)
# Within a stream: a body may end without a line break, and a status line is like nothing else
_START_LATER = re.compile(rb"^%b|%b" % (_REQUEST_LINE, _STATUS_LINE), re.IGNORECASE | re.MULTILINE)
_MAYBE = re.compile(rb"[A-Za-z]{1,32}+(?: [^\r\n]*+)?+\r?+\Z|SIP/?+2?+\.?+0?+(?: [^\r\n]*+)?+\r?+\Z", re.IGNORECASE)
_TLS = re.compile(rb"[\x14-\x17]\x03[\x00-\x04]", re.DOTALL)

Content: TypeAlias = Message | DiameterMessage


class Found(NamedTuple):
    """A message and how it travelled."""

    number: int  # of the frame that completed it
    at: float  # seconds since the epoch
    transport: str  # UDP, TCP or SCTP
    source: Endpoint
    target: Endpoint
    octets: int
    digest: bytes  # of its octets: a retransmission has the same
    content: Content


class Problem(NamedTuple):
    """A message that cannot be read; never its octets."""

    number: int
    at: float
    source: Endpoint
    target: Endpoint
    text: str


@dataclass(slots=True)
class _Stream:
    """One direction of a TCP connection."""

    mode: str = "new"  # new, sip, diameter, lost: between messages nobody knows where
    buffer: bytearray = field(default_factory=bytearray)
    framer: StreamFramer = field(default_factory=StreamFramer)


class MessageFinder:
    """Find messages in payloads. `unread` counts by fixed words what was meant to be a message and is none; nothing raises.

    `ports` are those where SIP is expected: what is there and is no SIP is told. Elsewhere SIP is taken where it is seen.
    """

    def __init__(self, ports: Collection[int] = SIP_PORTS) -> None:
        self._ports = frozenset(ports)
        self._streams: OrderedDict[tuple[Endpoint, Endpoint], _Stream] = OrderedDict()
        self._recent: OrderedDict[bytes, float] = OrderedDict()
        self._payload = Payload(0, 0.0, "UDP", Endpoint("", 0), Endpoint("", 0), b"")
        self._found: list[Found] = []
        self.unread: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self.twice = 0  # datagrams that two interfaces captured

    def feed(self, payload: Payload) -> list[Found]:
        """Take what a transport carried; return the messages it completes."""
        self._payload = payload
        self._found = []
        if payload.transport == "TCP":
            self._stream(payload)
        else:
            self._datagram(payload)
        return self._found

    # ---- datagrams

    def _datagram(self, payload: Payload) -> None:
        data = payload.data
        if _is_diameter(data) and payload.transport == "SCTP":
            self._diameter(data)
            return
        if not _START.match(data.lstrip(b"\r\n") if data[:1] in b"\r\n" else data):
            if self._expected(payload) and data.strip(b"\r\n\0 "):
                self.unread["on a SIP port, but no SIP"] += 1
            return
        if self._captured_twice(payload):
            self.twice += 1
        elif payload.cut:
            self._wrong("cut by the capture: let it keep whole frames (tcpdump -s 0)")
        else:
            self._sip(data)

    def _captured_twice(self, payload: Payload) -> bool:
        key = _digest(repr((payload.source, payload.target)).encode() + payload.data)
        before = self._recent.pop(key, None)
        self._recent[key] = payload.at
        if len(self._recent) > MAX_RECENT:
            self._recent.popitem(last=False)
        return before is not None and abs(payload.at - before) < TWICE

    # ---- streams

    def _stream(self, payload: Payload) -> None:
        key = (payload.source, payload.target)
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
            if len(self._streams) > MAX_STREAMS:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(key)
        if payload.begins:
            self._restart(stream, "new")
        elif payload.gap:
            self._restart(stream, "lost")
        self._advance(stream, payload.data)

    @staticmethod
    def _restart(stream: _Stream, mode: str) -> None:
        stream.mode = mode
        stream.buffer.clear()
        stream.framer = StreamFramer()

    def _advance(self, stream: _Stream, data: bytes) -> None:
        if stream.mode == "new":
            stream.buffer += data
            data = self._recognise(stream)
        elif stream.mode == "lost":
            data = self._search(stream, data)
        if data and stream.mode == "sip":
            self._frames(stream, data)
        elif data and stream.mode == "diameter":
            self._diameters(stream, data)

    def _recognise(self, stream: _Stream) -> bytes:
        """Say what a connection carries as soon as its first octets tell; return what is to be read now."""
        head = bytes(stream.buffer)
        text = head.lstrip(b"\r\n")
        if _is_diameter(head):
            return self._becomes(stream, "diameter", head)
        if _START.match(text):
            return self._becomes(stream, "sip", head)
        if _TLS.match(head):
            self.unread["TLS, encrypted"] += 1
            return self._becomes(stream, "lost", b"")
        undecided = len(head) <= MAX_LINE and (not text or _MAYBE.match(text) or (head[:1] == b"\x01" and len(head) < 20))
        if undecided:
            return b""
        if self._expected(self._payload):
            self.unread["on a SIP port, but no SIP"] += 1
        return self._becomes(stream, "lost", head[-MAX_LINE:])

    @staticmethod
    def _becomes(stream: _Stream, mode: str, data: bytes) -> bytes:
        stream.mode = mode
        stream.buffer.clear()
        if mode != "lost":
            return data
        stream.buffer += data
        return b""

    def _search(self, stream: _Stream, data: bytes) -> bytes:
        """Look for the next start line after a gap; keep what may be the beginning of one."""
        if _is_diameter(data):  # its messages mostly begin where a segment does
            return self._becomes(stream, "diameter", data)
        if _START.match(data):
            return self._becomes(stream, "sip", data)
        stream.buffer += data
        found = _START_LATER.search(stream.buffer) if b"SIP/2.0" in stream.buffer else None
        if found is not None:
            return self._becomes(stream, "sip", bytes(stream.buffer[found.start() :]))
        del stream.buffer[:-MAX_LINE]
        return b""

    def _frames(self, stream: _Stream, data: bytes) -> None:
        try:
            for message in stream.framer.feed(data):
                self._sip(message)
            if stream.framer.problem is not None:
                raise stream.framer.problem
        except ParseError as problem:
            self._wrong(str(problem))
            self._restart(stream, "lost")

    def _diameters(self, stream: _Stream, data: bytes) -> None:
        stream.buffer += data
        pos = 0
        while len(stream.buffer) - pos >= 4:
            length = message_length(bytes(stream.buffer[pos : pos + 4]))
            if length is None:
                self.unread["Diameter not readable"] += 1
                self._restart(stream, "lost")
                return
            if len(stream.buffer) - pos < length:
                break
            self._diameter(bytes(stream.buffer[pos : pos + length]))
            pos += length
        if pos:
            del stream.buffer[:pos]

    # ---- messages

    def _sip(self, data: bytes) -> None:
        try:
            self._take(data, parse_message(data))
        except ParseError as problem:
            self._wrong(str(problem))

    def _diameter(self, data: bytes) -> None:
        try:
            self._take(data, parse_diameter(data))
        except ParseError:
            self.unread["Diameter not readable"] += 1

    def _take(self, data: bytes, content: Content) -> None:
        number, at, transport, source, target = self._payload[:5]
        self._found.append(Found(number, at, transport, source, target, len(data), _digest(data), content))

    def _wrong(self, text: str) -> None:
        self.unread["SIP not readable"] += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(self._payload.number, self._payload.at, self._payload.source, self._payload.target, text))

    def _expected(self, payload: Payload) -> bool:
        return payload.source.port in self._ports or payload.target.port in self._ports


def _is_diameter(data: bytes) -> bool:
    """Tell whether a Diameter header begins here: the version, a plausible length, no reserved flag, a command below 2**16."""
    return len(data) >= 20 and message_length(data) is not None and not data[4] & 0x0F and data[5] == 0


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()
