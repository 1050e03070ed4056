# SPDX-License-Identifier: Apache-2.0
"""Our HTTP/1.1 connection: bounds in octets and time that uvicorn lacks (RFC 9112 §3, §9.5; RFC 6585 §5), and who is there by TLS-PSK."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from contextlib import suppress
from enum import Enum, auto
from math import inf
from typing import Any, ClassVar, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from keyferry.errors import RemoteProtocolError
from keyferry.protocol.ims.key_record import PSK_SCOPE, PskProof
from keyferry.transports.tls_psk import PskObject

MAX_HEAD = 16_384
"""Octets of request line and header fields: Digest credentials and a long XCAP path are under 2 kB; nginx stops at 32 kB."""
MAX_FIELDS = 128
"""Header fields of a request: browsers and proxies send 20 to 40. One of three octets costs 70 when parsed."""
MAX_PIPELINED = 1_000
"""Requests that wait behind the one being answered. 256 kB that arrive at once hold 5,000 small ones, 3 kB each when parsed."""
CROWDED = 0.8
"""Of the connections that a door may have: from there on an idle one is kept as long as one without a head."""
SPARE = 1_000
"""Connections above those that a door may have, which are told 503; further ones are closed unheard."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LINUX_TCP_INFO = 128  # octets, of which the last eight are tcpi_bytes_acked


class Bounds(NamedTuple):
    """What a client may take of a connection. No time begins anew because an octet came or went.

    The time between two requests is uvicorn's, `timeout_keep_alive`.
    """

    head: float = 15.0
    """Seconds for one head, from its first octet; and from the connection to the first."""
    portion: int = 32_768
    """Octets of a body or an answer: for each the client has `portion_time`."""
    portion_time: float = 75.0
    """Seconds. That makes 437 octets a second, with which a phone far from its base station keeps up; the proxy's own 60 s come first."""
    rest: float = 30.0
    """Seconds, for all of it: what is left of a request that was answered already, or of an answer when the connection is to end."""
    rest_octets: int = 67_108_864
    """Octets, as well: of such a request."""


class Phase(Enum):
    """Whose turn it is, and for what."""

    HEAD = auto()
    BODY = auto()
    REST = auto()  # of a body, after the answer (RFC 9112 §9.6)
    IDLE = auto()
    OURS = auto()  # the application's, or those of a tunnel
    ENDED = auto()  # closed, but for what the client has not taken yet


class BoundedHttp(HttpToolsProtocol):
    """One connection whose heads are bounded in octets, and all that its client does in time; the application bounds bodies.

    Without these a stranger fills memory with one endless header field, or holds connections with half a request, or half an answer, each.
    """

    bounds: ClassVar[Bounds] = Bounds()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._whole = True  # nothing is left to come of the last request
        self._ending = False  # the answer said so; its client may send the rest of the request
        self._heads = 0  # complete ones
        self._head_octets = 0  # of the head that is arriving
        self._quiet = 0  # octets since the last of a body
        self._body_octets = 0  # since the last portion
        self._rest_octets = 0
        self._since = 0.0  # when the phase began
        self._taken = 0  # a count of octets that the client had taken, at `_took` at the latest
        self._took = -inf
        self._stalled: float | None = None  # since when there is something to take
        self._open: deque[RequestResponseCycle] = deque()  # not answered, in order; the first one's application runs
        self._answers: _Answers | None = None
        self._look: asyncio.TimerHandle | None = None
        self._psk: PskProof | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if isinstance(tls, PskObject):
            self._psk = tls.proof
            if self._psk is None:  # cannot be: its handshake would have failed
                transport.abort()
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + SPARE:
            transport.abort()
        self._answers = _Answers(self, transport)
        self._since = self.loop.time()
        self._look_in(inf)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every application that waits for the client, not only that of the last request that came; stop looking."""
        self._stop_looking()
        for cycle in self._open:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Leave the connection to uvicorn's WebSocket, which has bounds of its own."""
        self._stop_looking()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """Begin a request; only here does its scope learn who proved a key in the handshake of this connection."""
        if self.is_ending:  # whatever a transport hands over after its close
            raise RemoteProtocolError("a request on a connection whose end was announced")  # it must not be served (RFC 9112 §9.6)
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise RemoteProtocolError("too many requests at once on a connection")  # stops the parser in the midst of its data
        super().on_message_begin()
        if self._psk is not None:
            cast("dict[str, Any]", self.scope)[PSK_SCOPE] = self._psk

    def data_received(self, data: bytes) -> None:
        """Pass on what arrives, as long as a head stays within its bound."""
        while self._in_head and self._head_octets + len(data) > MAX_HEAD:
            room, heads = MAX_HEAD - self._head_octets, self._heads
            part, data = data[:room], data[room:]
            self._feed(part)
            if self._heads == heads:
                self._refuse_head()
                return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if self._in_head:
            if not self._head_octets:
                self._since = self.loop.time()
            self._head_octets += len(data)
        elif not self._may_come(len(data)):
            self.transport.abort()
            return
        self._parse(data)

    def _may_come(self, octets: int) -> bool:
        """Count octets that are no head; false for trailers or chunk extensions without end (RFC 9112 §7.1), and for too large a rest."""
        if self._quiet > MAX_HEAD:
            return False
        self._quiet += octets
        if self._ending or not self._open:
            self._rest_octets += octets
        return self._rest_octets <= self.bounds.rest_octets

    def _refuse_head(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; one of the trailers is not taken for such a field (RFC 9110 §6.5.1)."""
        if not self._in_head:
            return
        if len(self.headers) >= MAX_FIELDS:
            self._refuse_head()
            raise RemoteProtocolError("too many header fields", 431)  # stops the parser in the midst of its data
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the body through."""
        self._in_head, self._whole, self._head_octets, self._body_octets, self._rest_octets = False, False, 0, 0, 0
        self._since = self.loop.time()
        self._heads += 1
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # uvicorn's WebSocket has none
            self.cycle.transport = cast("asyncio.Transport", self._answers)
            self._open.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Note that what arrives is a body."""
        self._quiet = 0
        self._body_octets += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next head: its time runs from its first octet, until then the keep-alive time does."""
        super().on_message_complete()
        self._in_head, self._whole, self._quiet = True, True, 0
        self._since = self.loop.time()
        if self._ending:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Wait for the rest of the request, if it is not whole, or for the next."""
        self._open.popleft()
        if not self._head_octets:
            self._since = self.loop.time()
        if self._ending:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Look: an answer that is on its way still, or a body, is no idleness."""
        self._stop_looking()
        self._look_again()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless it stands behind the last answer."""
        if self.is_ending:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def end_gently(self) -> None:
        """Close; where the request that was answered is still arriving, read it first: else the answer may be lost (RFC 9112 §9.6)."""
        answered = bool(self._open) and self._open[0].response_complete
        if answered and not (self._whole or self._ending or self._is_crowded()):
            self._linger()
        else:
            self.transport.close()

    @property
    def is_ending(self) -> bool:
        """Tell whether nothing more is sent."""
        return self._ending or self.transport.is_closing()

    def _linger(self) -> None:
        self._ending = True
        self._since = self.loop.time()
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # TLS has no half-closed connections; there the end of the answer is in its framing
            self.transport.write_eof()

    def _phase(self) -> Phase:
        if self.transport.is_closing():
            return Phase.ENDED
        if self._ending:
            return Phase.REST
        if self._whole:
            if self._in_head and (self._head_octets or not self._heads):
                return Phase.HEAD
            return Phase.OURS if self._open or not self._in_head else Phase.IDLE
        return Phase.BODY if self._open else Phase.REST

    def _look_again(self) -> None:
        """End what takes too long; one timer a connection, not one a request."""
        now, phase = self.loop.time(), self._phase()
        to_take = self._left_to_take(now)
        left = min(to_take, self._left_of(phase, now))
        if left > 0:
            self._look_in(left)
            return
        if phase is Phase.IDLE and to_take > 0:
            self.transport.close()
        elif phase is Phase.BODY and to_take > 0 and self._may_answer():
            self._give_up_body()
        else:
            self.transport.abort()
            return
        self._look_in(inf)

    def _left_of(self, phase: Phase, now: float) -> float:
        """Return how many seconds the client has for what it is to send."""
        bounds = self.bounds
        match phase:
            case Phase.HEAD:
                self._since = now if self.flow.read_paused else self._since
                return self._since + bounds.head - now
            case Phase.BODY:
                if self._body_octets >= bounds.portion or self.flow.read_paused or self.cycle.waiting_for_100_continue:
                    self._since, self._body_octets = now, 0
                return self._since + bounds.portion_time - now
            case Phase.REST:
                return self._since + bounds.rest - now
            case Phase.IDLE:
                time = min(bounds.head, self.timeout_keep_alive) if self._is_crowded() else self.timeout_keep_alive
                return max(self._since, self._took) + time - now
            case _:
                return inf

    def _left_to_take(self, now: float) -> float:
        """Return how many seconds the client has to take more of what was sent."""
        closing, taken = self.transport.is_closing(), _taken(self.transport)
        if taken - self._taken >= self.bounds.portion:
            self._taken, self._took = taken, now
        if not (closing or self.flow.write_paused or self.transport.get_write_buffer_size()):
            self._stalled = None
            return inf
        if self._stalled is None:
            self._stalled, self._taken = now, taken
        return max(self._stalled, self._took) + (self.bounds.rest if closing else self.bounds.portion_time) - now

    def _may_answer(self) -> bool:
        """Tell whether an answer to the request that is arriving would be the next on the connection, and its first."""
        return self._open[0] is self.cycle and not self.cycle.response_started

    def _give_up_body(self) -> None:
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self.transport.write(TOO_SLOW)
        self._linger()

    def _is_crowded(self) -> bool:
        return self.limit_concurrency is not None and len(self.connections) > CROWDED * self.limit_concurrency

    def _look_in(self, seconds: float) -> None:
        """Look again, at the latest when something could be over that has not begun yet."""
        bounds = self.bounds
        self._look = self.loop.call_later(min(seconds, bounds.head, bounds.rest, bounds.portion_time), self._look_again)

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None


class _Answers:
    """What a request's application knows of the connection: it writes, and asks for the end."""

    def __init__(self, connection: BoundedHttp, transport: asyncio.Transport) -> None:
        self._connection = connection
        self.write = transport.write
        self.close = connection.end_gently

    def is_closing(self) -> bool:
        return self._connection.is_ending


def _taken(transport: asyncio.Transport) -> int:
    """Return a count that grows by the octets which the client takes: the kernel's, else what leaves the buffer while nothing is added.

    A buffer alone says little with TLS: there it hides another one.
    """
    sock = transport.get_extra_info("socket")
    if sys.platform == "linux" and sock is not None and sock.family != socket.AF_UNIX:
        with suppress(OSError):  # it was closed in this moment
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LINUX_TCP_INFO)
            if len(info) == _LINUX_TCP_INFO:
                return int.from_bytes(info[-8:], sys.byteorder)
    return -transport.get_write_buffer_size()
