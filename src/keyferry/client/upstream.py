# SPDX-License-Identifier: Apache-2.0
"""The proxy's way to a server behind it: HTTP/1.1 by h11 over our own sockets, both ways at once, nothing held back (RFC 9112).

h11 and not httpx: a proxy needs the request target as it came, the interim answers, and the answer while the body still goes up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple, NoReturn

import h11

from keyferry.asgi.proxy.forward import AnswerHead, RequestHead
from keyferry.errors import UpstreamFailed

MAX_HEAD = 65_536
"""Octets of the head of an answer: a server behind may set many cookies; nginx takes 4 to 8 kB, curl 300 kB."""
PIECE = 65_536
"""Octets read at once, and held at most for a client that reads slowly."""
MAX_CONNECTIONS = 512
"""Open to one server, tunnels included; above, 503."""
MAX_IDLE = 64
"""Connections kept open without a request, 30 kB each."""
IDLE_FOR = 4.0
"""Seconds that one is kept: servers close theirs after five and more, and a request sent at that very moment is lost."""
FRESH = 1.0
"""Seconds of idleness up to which it takes a request that cannot be repeated."""
CONTINUE_AFTER = 1.0
"""Seconds to wait for a 100 before the body is sent all the same (RFC 9110 §10.1.1), as curl does."""
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS"})


class Address(NamedTuple):
    """Where a server is: a host and a port, or the path of a UNIX socket."""

    host: str
    port: int
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"


class Timeouts(NamedTuple):
    """Seconds."""

    connect: float = 5.0  # TLS included
    answer: float = 60.0  # from the end of the request to the head of its answer
    idle: float = 60.0  # without an octet of the answer, or in which the server takes none of the body


class HttpUpstream:
    """A server, with the connections kept open to it; for one event loop."""

    def __init__(
        self,
        address: Address,
        *,
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts | None = None,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Take where it is, and with `tls` whom to trust and what to show."""
        self.address = address
        self.timeouts = timeouts or Timeouts()
        self._tls = tls
        self._max_connections = max_connections
        self._open = 0
        self._idle: deque[_Connection] = deque()  # the latest used last
        self._sweep: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def exchange(self, head: RequestHead) -> AsyncIterator[HttpExchange]:
        """Send the head; at the end the connection is kept if both sides are done with it. Raises UpstreamFailed."""
        if self._open >= self._max_connections:
            raise UpstreamFailed(str(self.address), "busy", f"{self._open} connections are in use")
        self._open += 1
        try:
            exchange = HttpExchange(self, head, self._take(head) or await self.connect())
            try:
                await exchange.begin()
                yield exchange
            finally:
                self._give_back(exchange.connection)
        finally:
            self._open -= 1

    async def connect(self) -> _Connection:
        """Open a connection. Raises UpstreamFailed."""
        try:
            async with asyncio.timeout(self.timeouts.connect):
                if self.address.path:
                    reader, writer = await asyncio.open_unix_connection(self.address.path, limit=PIECE)
                else:
                    reader, writer = await asyncio.open_connection(self.address.host, self.address.port, limit=PIECE, ssl=self._tls)
        except TimeoutError:
            raise UpstreamFailed(str(self.address), "connect-timeout", f"no connection in {self.timeouts.connect:g} s") from None
        except (OSError, ssl.SSLError) as problem:
            raise UpstreamFailed(str(self.address), "connect", f"no connection: {_said(problem)}") from problem
        return _Connection(reader, writer)

    async def aclose(self) -> None:
        """Close what is idle."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        while self._idle:
            self._idle.pop().abort()

    def _take(self, head: RequestHead) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - (IDLE_FOR if head.method in REPEATABLE else FRESH)
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and connection.quiet():
                return connection
            connection.abort()
        return None

    def _give_back(self, connection: _Connection) -> None:
        if not connection.reusable() or len(self._idle) >= MAX_IDLE:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(IDLE_FOR, self._close_old)

    def _close_old(self) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[0].idle_since <= loop.time() - IDLE_FOR:
            self._idle.popleft().abort()
        self._sweep = loop.call_later(IDLE_FOR, self._close_old) if self._idle else None


class _Connection:
    """One connection: its sockets, and what h11 knows of it."""

    __slots__ = ("http", "idle_since", "reader", "used", "writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self.idle_since = 0.0
        self.used = False  # for an earlier request

    def abort(self) -> None:
        """Close at once."""
        self.writer.transport.abort()

    def quiet(self) -> bool:
        """Tell whether nothing has come since the last answer: what has is no answer to the next request, whoever meant it as one."""
        unread = getattr(self.reader, "_buffer", b"")  # asyncio has no public word for it
        return not unread and not self.reader.at_eof() and not self.writer.is_closing()

    def reusable(self) -> bool:
        """Begin anew, if both sides ended rightly and nothing stands behind the answer."""
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE or self.http.trailing_data[0]:
            return False
        if self.reader.at_eof() or self.writer.is_closing():
            return False
        self.http.start_next_cycle()
        self.used = True
        return True


class HttpExchange:
    """One request and its answer: an `Exchange` of `keyferry.asgi.proxy.forward`."""

    def __init__(self, upstream: HttpUpstream, head: RequestHead, connection: _Connection) -> None:
        self.connection = connection
        self._upstream = upstream
        self._head = head
        self._bodiless = not any(name in {b"transfer-encoding", b"content-length"} and value != b"0" for name, value in head.fields)
        self._progress = 0  # pieces of the request that were sent
        self._decided = asyncio.Event()  # the server wants the body, or has answered
        self._answered = False
        self._behind = b""  # what came with a 101
        self._broken_off = asyncio.Event()  # by us: nothing is sent or taken any more, and nothing sent once more
        self._failure: UpstreamFailed | None = None  # what we broke it off for, if the server gave the reason

    async def begin(self) -> None:
        """Send the head."""
        request = h11.Request(method=self._head.method, target=self._head.target, headers=list(self._head.fields))
        try:
            octets = self.connection.http.send(request) or b""
            if self._bodiless:
                octets += self.connection.http.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError as problem:
            self._fail("malformed", f"the request cannot be passed on: {problem}")
        await self._send(octets)

    async def continued(self) -> bool:
        """Wait until the server wants the body, or CONTINUE_AFTER; false if it has answered without."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONTINUE_AFTER):
                await self._decided.wait()
        return not self._answered

    async def write(self, octets: bytes) -> None:
        """Send a piece of the body, or into the tunnel. Raises UpstreamFailed."""
        await self._send_event(h11.Data(data=octets))

    async def finish(self) -> None:
        """End the body. Raises UpstreamFailed."""
        if not self._bodiless:
            await self._send_event(h11.EndOfMessage())

    async def answer(self) -> AnswerHead:
        """Return the head of the answer. Raises UpstreamFailed."""
        while True:
            event = await self._event(self._upstream.timeouts.answer, "answer-timeout")
            if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                if event.status_code == 100:
                    self._decided.set()
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                self._answered = True
                self._decided.set()
                if event.status_code > 599:
                    self._fail("malformed", f"no status is {event.status_code}")
                if event.status_code == 101:
                    self._behind = bytes(self.connection.http.trailing_data[0])
                return AnswerHead(event.status_code, list(event.headers))
            elif not await self._again():
                self._fail("closed", "it closed the connection instead of an answer")

    async def read(self) -> bytes:
        """Return a piece of the answer's body, or of the tunnel; empty at the end. Raises UpstreamFailed."""
        if self.connection.http.their_state is h11.SWITCHED_PROTOCOL:
            return await self._tunnelled()
        event = await self._event(self._upstream.timeouts.idle, "idle-timeout")
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            self._fail("closed", "it closed the connection before the end of its answer")
        return b""

    def abort(self) -> None:
        """Break the connection off, for good: what has arrived on it is not taken either."""
        self._broken_off.set()
        self.connection.abort()

    async def _event(self, seconds: float, reason: str) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what comes next, read as far as needed; ConnectionClosed if it ended before an answer."""
        http = self.connection.http
        if self._broken_off.is_set():
            self._fail("closed", "the connection was broken off")
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                octets = await self._receive(seconds, reason)
                if not octets and http.their_state is h11.SEND_RESPONSE and not http.trailing_data[0]:
                    return h11.ConnectionClosed()
                http.receive_data(octets)
        except h11.RemoteProtocolError as problem:
            gone = self.connection.reader.at_eof()
            self._fail("closed" if gone else "malformed", "it closed the connection too early" if gone else f"not HTTP: {problem}")
        return event

    async def _receive(self, seconds: float | None, reason: str) -> bytes:
        progress = self._progress
        while True:
            try:
                async with asyncio.timeout(seconds):
                    octets = await self.connection.reader.read(PIECE)
            except TimeoutError:
                if progress == self._progress:
                    self._fail(reason, f"nothing came for {seconds:g} s")
                progress = self._progress  # the request still goes up, or has just ended
            except OSError as problem:
                self._fail("closed", f"the connection broke: {_said(problem)}")
            else:
                if not octets and self._failure is not None:
                    raise self._failure
                return octets

    async def _again(self) -> bool:
        """Send once more what may be repeated and went into a connection that the server was about to close (RFC 9110 §9.2.2)."""
        if self._broken_off.is_set() or not self.connection.used or self._head.method not in REPEATABLE or not self._bodiless:
            return False
        self.connection.abort()
        connection = await self._upstream.connect()
        if self._broken_off.is_set():  # meanwhile
            connection.abort()
            return False
        self.connection = connection
        await self.begin()
        return True

    async def _tunnelled(self) -> bytes:
        if self._behind:
            octets, self._behind = self._behind, b""
            return octets
        return await self._receive(None, "")

    async def _send_event(self, event: h11.Data | h11.EndOfMessage) -> None:
        if self.connection.http.our_state is h11.SWITCHED_PROTOCOL:
            await self._send(bytes(event.data) if isinstance(event, h11.Data) else b"")
            return
        try:
            octets = self.connection.http.send(event) or b""
        except h11.LocalProtocolError as problem:
            self._fail("malformed", f"the request cannot be passed on: {problem}")
        await self._send(octets)
        self._progress += 1

    async def _send(self, octets: bytes) -> None:
        try:
            self.connection.writer.write(octets)
            async with asyncio.timeout(self._upstream.timeouts.idle):
                await self.connection.writer.drain()
        except TimeoutError:
            self._fail("idle-timeout", f"it took nothing of the request for {self._upstream.timeouts.idle:g} s")
        except OSError as problem:
            raise UpstreamFailed(str(self._upstream.address), "closed", f"the connection broke: {_said(problem)}") from problem

    def _fail(self, reason: str, problem: str) -> NoReturn:
        if self._failure is None:
            self._failure = UpstreamFailed(str(self._upstream.address), reason, problem)
        self.abort()
        raise self._failure


def _said(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or getattr(problem, "verify_message", None) or type(problem).__name__)
