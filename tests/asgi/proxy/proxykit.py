# SPDX-License-Identifier: Apache-2.0
"""A proxy on a loopback socket, a server behind it that records every octet, and clients that write what they like."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h11

from asgi.doorkit import AS_ID, Client, FakeClock, FakeCounter, FakeKeys, FakeRandom, record
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import App, Receive, Scope, Send
from keyferry.asgi.proxy.fields import Route
from keyferry.asgi.proxy.forward import Forward
from keyferry.asgi.proxy.front import Front
from keyferry.client.upstream import Address, HttpUpstream, Timeouts
from keyferry.protocol import digest
from keyferry.transports.http_server import HttpServer
from keyferry.transports.http_upgrade import UpgradingHttp

KEY = record()
LIMIT = 60.0  # seconds a test waits for anything


class FakeLog:
    """Remember what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Mapping[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))


@dataclass
class Got:
    """One request that reached the server behind."""

    method: str
    target: str
    fields: list[tuple[bytes, bytes]]
    body: bytes
    whole: bool

    def all(self, name: bytes) -> list[bytes]:
        return [value for field, value in self.fields if field == name]


@dataclass
class Recorder:
    """A server on a raw socket: `octets` is everything that came, by connection."""

    octets: list[bytearray] = field(default_factory=list)
    behave: Behave | None = None
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    port: int = 0
    over: int = 0  # connections that ended
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.octets.append(wire.seen)
        try:
            await (self.behave or answer_each)(self, wire)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
            self.over += 1
            self.ended.set()

    def requests(self) -> list[Got]:
        """Parse what came, strictly; the last of a connection may lack its end. What is no HTTP fails the test."""
        return [got for octets in self.octets for got in _parsed(bytes(octets))]


class Wire:
    """One connection to the server behind."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.seen = bytearray()

    async def read(self) -> bytes:
        octets = await self._reader.read(65_536)
        self.seen += octets
        return octets

    async def head(self) -> bytes:
        """Read until a head is whole."""
        while b"\r\n\r\n" not in self.seen and await self.read():
            pass
        return bytes(self.seen)

    async def write(self, octets: bytes) -> None:
        self._writer.write(octets)
        await self._writer.drain()


Behave = Callable[[Recorder, Wire], Awaitable[None]]


def _parsed(octets: bytes) -> list[Got]:
    found: list[Got] = []
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    http.receive_data(octets)
    http.receive_data(b"")
    while True:
        try:
            event = http.next_event()
        except h11.RemoteProtocolError as problem:
            assert "without sending complete" in str(problem), problem
            return found
        if isinstance(event, h11.Request):
            found.append(Got(event.method.decode(), event.target.decode("latin-1"), list(event.headers), b"", False))
        elif isinstance(event, h11.Data):
            found[-1].body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            found[-1].whole = True
            http.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            http.send(h11.EndOfMessage())
            if http.our_state is not h11.DONE:
                return found
            http.start_next_cycle()
        else:
            return found


async def answer_each(recorder: Recorder, wire: Wire) -> None:
    """Answer every request, after its end."""
    http = h11.Connection(h11.SERVER)
    while True:
        http.receive_data(await wire.read())
        while (event := http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.ConnectionClosed):
                return
            if isinstance(event, h11.EndOfMessage):
                await wire.write(recorder.answer)
                http.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                http.send(h11.EndOfMessage())
                if http.our_state is not h11.DONE:
                    return
                http.start_next_cycle()


@contextlib.asynccontextmanager
async def recording(behave: Behave | None = None) -> AsyncIterator[Recorder]:
    """Run a recorder."""
    recorder = Recorder(behave=behave)
    server = await asyncio.start_server(recorder.serve, "127.0.0.1", 0)
    recorder.port = server.sockets[0].getsockname()[1]
    try:
        yield recorder
    finally:
        server.close()
        async with asyncio.timeout(LIMIT):
            while recorder.over < len(recorder.octets):
                recorder.ended.clear()
                await recorder.ended.wait()


def as_https(app: App) -> App:
    """Say that TLS ended in front of the server: what these tests look at begins behind it."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        scope["scheme"] = "https"
        await app(scope, receive, send)

    return called


@dataclass
class Proxy:
    """A proxy that listens."""

    port: int
    log: FakeLog
    counter: FakeCounter
    forward: Forward
    upstream: HttpUpstream
    keys: FakeKeys
    clock: FakeClock

    async def ask(self, octets: bytes) -> bytes:
        """Write octets on a connection of their own; return one whole answer, or all up to the end of the connection."""
        async with self.connected() as (reader, writer):
            writer.write(octets)
            return await answer(reader)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def challenge(self, host: str = AS_ID) -> digest.Challenge:
        """Ask without credentials."""
        said = await self.ask(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert status(said) == 401, said
        field = next(line for line in said.split(b"\r\n") if line.lower().startswith(b"www-authenticate:"))
        return digest.parse_challenge(field.split(b":", 1)[1].strip().decode())

    async def head(self, method: str = "GET", uri: str = "/", fields: bytes = b"", *, host: str = AS_ID) -> bytes:
        """Return the head of a request of Alice's, with a right answer to a new challenge."""
        name, value = Client(KEY).answer(await self.challenge(), 1, method=method, uri=uri)
        return f"{method} {uri} HTTP/1.1\r\nHost: {host}\r\n{name}: {value}\r\n".encode() + fields + b"\r\n"


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read one whole answer, or all up to the end of the connection."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=100_000)
    http.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    http.send(h11.EndOfMessage())
    read = bytearray()
    async with asyncio.timeout(LIMIT):
        while octets := await reader.read(65_536):
            read += octets
            http.receive_data(octets)
            while (event := http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.EndOfMessage):
                    return bytes(read)
    return bytes(read)


def status(said: bytes) -> int:
    """Return the status of an answer, 0 if there is none."""
    return int(said.split(b" ")[1]) if said else 0


@contextlib.asynccontextmanager
async def proxying(
    recorder: Recorder | None = None,
    *,
    upstream: HttpUpstream | None = None,
    route: Route | None = None,
    timeouts: Timeouts | None = None,
    wrap: Callable[[App], App] = as_https,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """Run a proxy in front of a recorder, for AS_ID; it knows Alice's key."""
    log, counter, clock, keys = FakeLog(), FakeCounter(), FakeClock(), FakeKeys(KEY)
    if upstream is None:
        upstream = HttpUpstream(Address("127.0.0.1", recorder.port if recorder else 1), timeouts=timeouts)
    forward = Forward(upstream, route or Route(AS_ID), log=log, counter=counter, **settings)
    login = SimLogin(forward, as_id=AS_ID, keys=keys, clock=clock, random=FakeRandom(), counter=counter)
    server = HttpServer(wrap(Front({AS_ID: login}, clock=clock, counter=counter)), protocol=UpgradingHttp, date=False)
    _, port = await server.listen("127.0.0.1", 0)
    try:
        yield Proxy(port, log, counter, forward, upstream, keys, clock)
    finally:
        await forward.aclose()
        await server.aclose()
        await upstream.aclose()
