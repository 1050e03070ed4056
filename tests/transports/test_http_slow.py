# SPDX-License-Identifier: Apache-2.0
"""Bodies that never end, and answers that nobody takes (RFC 9112 §9.5, §9.6; RFC 9110 §15.5.9)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
import uvloop

from asgi.doorkit import Pki
from keyferry.transports import http_bounds
from keyferry.transports.http_bounds import BoundedHttp, Bounds
from keyferry.transports.http_server import AsgiApp, HttpServer, tls_context
from steady import steady
from transports.httpkit import Message, answer, length, sent

LIMIT = 60.0  # seconds; what takes so long has no bound
LOOPS = (pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop"))


def bounded(*, keep_alive: float = 60.0, connections: int | None = None, **bounds: Any) -> type[BoundedHttp]:
    """Return a connection with bounds that a test need not wait for."""

    class Hasty(BoundedHttp):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.timeout_keep_alive = keep_alive  # type: ignore[assignment]
            self.limit_concurrency = connections or self.limit_concurrency

    Hasty.bounds = Bounds(**bounds)
    return Hasty


@dataclass(slots=True)
class Refusing:
    """Answer 401 and read no body, as SimLogin does where nobody is logged in."""

    fields: tuple[tuple[bytes, bytes], ...] = ()
    paths: list[str] = field(default_factory=list)

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2"), *self.fields]})
        await send({"type": "http.response.body", "body": b"no"})


@dataclass(slots=True)
class Waiting:
    """Read until the body ends or the client is gone; what was told is kept."""

    told: list[Message] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    begin: asyncio.Event | None = None  # nothing is read before

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if self.begin is not None:
            await self.begin.wait()
        while not self.told or self.told[-1].get("more_body"):
            self.told.append(await receive())
        if scope["path"] == "/stay":
            self.told.append(await receive())
        self.ended.set()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@dataclass(slots=True)
class Pouring:
    """Answer with more than any buffer holds, in pieces or at once; then it is known whether the client was there."""

    octets: int = 30_000_000
    piece: int = 100_000
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(self.octets).encode())]})
        for start in range(0, self.octets, self.piece):
            more = start + self.piece < self.octets
            await send({"type": "http.response.body", "body": b"x" * min(self.piece, self.octets - start), "more_body": more})
        self.ended.set()


@dataclass(frozen=True, slots=True)
class Opened:
    """A server, and a connection to it."""

    server: HttpServer
    address: tuple[str, int]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def freed(self) -> None:
        """Wait until the server has forgotten the connection."""
        async with asyncio.timeout(LIMIT):
            while self.server._server.server_state.connections:
                await asyncio.sleep(0.01)

    async def answered(self, body: bytes, status: int = 401) -> None:
        """Read one answer."""
        assert (await answer(self.reader)).startswith(b"HTTP/1.1 %d " % status)
        assert await self.reader.readexactly(len(body)) == body


@asynccontextmanager
async def opened(
    app: AsgiApp, protocol: type[BoundedHttp], tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
) -> AsyncIterator[Opened]:
    """Serve an application, and connect; `tls` are the server's context and the client's."""
    server = HttpServer(app, protocol=protocol, tls=tls[0] if tls else None)
    address = await server.listen("127.0.0.1", 0)
    named = (tls[1], "a.test") if tls else (None, None)
    reader, writer = await asyncio.open_connection(*address, ssl=named[0], server_hostname=named[1])
    try:
        yield Opened(server, address, reader, writer)
    finally:
        writer.transport.abort()
        await server.aclose()


@pytest.fixture(name="tls", scope="module")
def tls_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    pki = Pki(tmp_path_factory.mktemp("pki"))
    pem = pki.issue("a.test", "a").pem
    return tls_context(pem, pem), pki.trust()


def run(work: Callable[[], Coroutine[Any, Any, None]], factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work())


async def trickled(connection: Opened, octet: bytes = b"x") -> None:
    """Send an octet now and then until the server has had enough."""
    async with asyncio.timeout(LIMIT):
        with suppress(ConnectionError):
            while connection.server._server.server_state.connections:
                connection.writer.write(octet)
                await connection.writer.drain()
                await asyncio.sleep(0.03)


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n"
CLOSE = ((b"connection", b"close"),)


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("fields", [(), CLOSE])
@pytest.mark.parametrize("octets", ["none", "one", "more and more"])
def test_who_is_refused_and_never_ends_his_body_is_ended(
    factory: Callable[[], asyncio.AbstractEventLoop], secure: bool, fields: Any, octets: str, tls: Any
) -> None:
    """Ten thousand of them would shut the door: an octet put off the keep-alive time, and no other ran."""

    async def attack() -> None:
        async with opened(Refusing(fields), bounded(rest=0.25), tls if secure else None) as connection:
            connection.writer.write(POST)
            await connection.answered(b"no")
            if octets == "one":
                connection.writer.write(b"x")
            elif octets == "more and more":
                await trickled(connection)
            await connection.freed()

    run(attack, factory)


@pytest.mark.parametrize("factory", LOOPS)
@steady(0.05)
def test_who_ends_a_refused_body_and_is_silent_is_idle(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The keep-alive time runs from the end of both, and no octet of the body stops it for good."""

    async def attack() -> None:
        async with opened(Refusing(), bounded(keep_alive=0.2, head=0.1)) as connection:
            connection.writer.write(POST)
            await connection.answered(b"no")
            connection.writer.write(b"x" * 10_000)
            await connection.freed()

    run(attack, factory)


async def test_a_refused_body_that_ends_leaves_the_connection_to_the_next_request() -> None:
    """What an honest client does that gets a challenge: a new handshake would cost more than the rest of the body."""
    app = Refusing()
    async with opened(app, bounded()) as connection:
        for _ in range(3):
            connection.writer.write(POST)
            await connection.answered(b"no")
            connection.writer.write(b"x" * 10_000)
    assert app.paths == ["/"] * 3


async def test_a_refused_body_is_bounded_in_octets() -> None:
    async with opened(Refusing(), bounded(rest_octets=1_000_000)) as connection:
        connection.writer.write(POST.replace(b"10000", b"99999999"))
        await connection.answered(b"no")
        await sent(connection.writer, b"x" * 30_000_000, 100_000)
        await connection.freed()


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_the_last_answer_arrives_although_its_request_is_still_being_sent(
    factory: Callable[[], asyncio.AbstractEventLoop], secure: bool, tls: Any
) -> None:
    """RFC 9112 §9.6: a close at once would be a reset, which takes the answer away from a client that sends first and reads then."""

    async def upload() -> None:
        app = Refusing(CLOSE)
        async with opened(app, bounded(), tls if secure else None) as connection:
            connection.writer.write(POST.replace(b"10000", b"5000000"))
            while not app.paths:
                await asyncio.sleep(0.01)
            for _ in range(50):
                connection.writer.write(b"x" * 100_000)
                await connection.writer.drain()
            await connection.answered(b"no")
            assert await asyncio.wait_for(connection.reader.read(), LIMIT) == b""
            await connection.freed()

    run(upload, factory)


@pytest.mark.parametrize("behind", [b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", b"this is no HTTP\r\n\r\n"])
async def test_after_the_last_answer_nothing_is_served(behind: bytes) -> None:
    """RFC 9112 §9.6: its client would never learn what came of it."""
    app = Refusing(CLOSE)
    async with opened(app, bounded()) as connection:
        connection.writer.write(POST)
        await connection.answered(b"no")
        await sent(connection.writer, b"x" * 10_000 + behind, 20_000)
        assert await asyncio.wait_for(connection.reader.read(), LIMIT) == b""
        await connection.freed()
    assert app.paths == ["/"]


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
def test_what_waited_unread_behind_the_last_answer_is_not_served_at_the_close(
    factory: Callable[[], asyncio.AbstractEventLoop], secure: bool, tls: Any
) -> None:
    """RFC 9112 §9.6, whatever a transport hands over at its close: the server did not read while the first request was under way."""

    async def pipeline() -> None:
        app, begin = Refusing(CLOSE), asyncio.Event()

        async def slow(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
            await begin.wait()
            await app(scope, receive, send)

        async with opened(slow, bounded(), tls if secure else None) as connection:
            for number in range(4):
                connection.writer.write(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
                await asyncio.sleep(0.02)
            begin.set()
            with suppress(ConnectionError):
                await asyncio.wait_for(connection.reader.read(), LIMIT)
            await connection.freed()
        assert app.paths == ["/0"]

    run(pipeline, factory)


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("trickles", [False, True])
@steady(0.05)
def test_a_body_that_comes_too_slowly_is_408_and_its_application_is_told(
    factory: Callable[[], asyncio.AbstractEventLoop], secure: bool, trickles: bool, tls: Any
) -> None:
    async def attack() -> None:
        app = Waiting()
        async with opened(app, bounded(portion=100, portion_time=0.2, rest=0.1), tls if secure else None) as connection:
            connection.writer.write(POST + b"x")
            if trickles:
                await trickled(connection)
            assert (await answer(connection.reader)).startswith(b"HTTP/1.1 408 ")
            await asyncio.wait_for(app.ended.wait(), LIMIT)
            await connection.freed()
        assert app.told[-1] == {"type": "http.disconnect"}

    run(attack, factory)


@steady(0.02)
async def test_a_body_that_keeps_its_pace_may_take_as_long_as_it_likes() -> None:
    async with opened(length, bounded(head=0.05, portion=50, portion_time=0.3, rest=0.1)) as connection:
        connection.writer.write(POST.replace(b"10000", b"1000"))
        for _ in range(10):
            await asyncio.sleep(0.06)
            connection.writer.write(b"x" * 100)
        await connection.answered(b"1000", 200)


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
@steady(0.02)
async def test_while_the_application_does_not_read_no_time_runs(expect: bytes) -> None:
    """Not against a client that waits for "100 Continue", nor one whose body fills the buffer."""
    app = Waiting(begin=asyncio.Event())
    async with opened(app, bounded(head=0.05, portion_time=0.3)) as connection:
        connection.writer.write(POST.replace(b"10000\r\n", b"1000000\r\n" + expect) + (b"" if expect else b"x" * 1_000_000))
        await asyncio.sleep(0.4)
        assert app.begin is not None
        app.begin.set()
        if expect:
            assert (await answer(connection.reader)).startswith(b"HTTP/1.1 100 ")
            connection.writer.write(b"x" * 1_000_000)
        await connection.answered(b"ok", 200)


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("octets", [30_000_000, 7_000_000])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("end", [b"", b"Connection: close\r\n"])
@steady(0.05)
def test_an_answer_that_nobody_takes_is_given_up(
    factory: Callable[[], asyncio.AbstractEventLoop], secure: bool, octets: int, at_once: bool, end: bytes, tls: Any
) -> None:
    """Its application waits no longer; nor does a close for what was written before."""

    async def attack() -> None:
        app = Pouring(octets, octets if at_once else 100_000)
        protocol = bounded(keep_alive=0.2, head=0.1, portion_time=0.2, rest=0.1)
        async with opened(app, protocol, tls if secure else None) as connection:
            connection.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + end + b"\r\n")
            connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await connection.freed()
            await asyncio.wait_for(app.ended.wait(), LIMIT)

    run(attack, factory)


@pytest.mark.parametrize("factory", LOOPS)
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
@steady(0.02)
def test_an_answer_that_is_taken_slowly_arrives(
    factory: Callable[[], asyncio.AbstractEventLoop], secure: bool, at_once: bool, tls: Any
) -> None:
    """However it was written; the keep-alive time is for connections on which nothing moves."""

    async def take() -> None:
        octets, got = 20_000_000, 0
        protocol = bounded(keep_alive=0.3, head=0.05, portion=10_000, portion_time=0.3, rest=0.3)
        async with opened(Pouring(octets, octets if at_once else 100_000), protocol, tls if secure else None) as connection:
            connection.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await answer(connection.reader)
            while got < octets:
                await asyncio.sleep(0.05)
                got += len(await asyncio.wait_for(connection.reader.readexactly(min(1_000_000, octets - got)), LIMIT))

    run(take, factory)


async def test_the_application_of_each_request_hears_that_the_client_is_gone() -> None:
    """Not that of the last one alone: the first would wait for ever, and its task counts against all others."""
    app = Waiting()
    async with opened(app, bounded()) as connection:
        connection.writer.write(b"GET /stay HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        async with asyncio.timeout(LIMIT):
            while not app.told:
                await asyncio.sleep(0.01)
        connection.writer.transport.abort()
        await asyncio.wait_for(app.ended.wait(), LIMIT)
        assert [event["type"] for event in app.told] == ["http.request", "http.disconnect"]
        async with asyncio.timeout(LIMIT):
            while connection.server._server.server_state.tasks:
                await asyncio.sleep(0.01)


@steady(0.05)
async def test_where_there_is_little_room_an_idle_connection_goes_early() -> None:
    """Else a request a minute on each of 10,000 would keep all others out."""
    async with opened(length, bounded(head=0.1, connections=10)) as connection:
        others = [await asyncio.open_connection(*connection.address) for _ in range(8)]
        for reader, writer in [(connection.reader, connection.writer), *others]:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await answer(reader)
        open_ = connection.server._server.server_state.connections
        async with asyncio.timeout(LIMIT):
            while len(open_) > 8:
                await asyncio.sleep(0.01)
        for _, writer in others:
            writer.close()


async def test_above_the_bound_some_are_told_503_and_the_rest_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds, "SPARE", 1)
    async with opened(length, bounded(connections=2)) as connection:
        second, third, fourth = [await asyncio.open_connection(*connection.address) for _ in range(3)]
        with suppress(ConnectionError):
            assert await asyncio.wait_for(fourth[0].read(), LIMIT) == b""
        third[1].write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await answer(third[0])).startswith(b"HTTP/1.1 503 ")
        for _, writer in (second, third, fourth):
            writer.transport.abort()


async def test_a_websocket_of_uvicorn_s_is_looked_at_no_more() -> None:
    """Else each would leave a timer behind for ever."""
    pytest.importorskip("wsproto")
    made: list[BoundedHttp] = []

    class Noted(BoundedHttp):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

    async def accepts(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await send({"type": "websocket.close"})

    config = uvicorn.Config(accepts, http=Noted, ws="wsproto", lifespan="off", log_level="critical", access_log=False)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await server.startup(sockets=[listener])
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert b"hello" in await asyncio.wait_for(reader.readuntil(b"hello"), LIMIT)
        writer.close()
        await server.shutdown(sockets=[listener])
    assert made[0]._look is None
