# SPDX-License-Identifier: Apache-2.0
"""The proxy's connections to a server behind it: RFC 9112 §9, RFC 9110 §9.2.2."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import Pki
from asgi.proxy.proxykit import LIMIT, Recorder, Wire, recording
from keyferry.asgi.proxy.forward import RequestHead
from keyferry.client import upstream as module
from keyferry.client.upstream import Address, HttpUpstream, Timeouts
from keyferry.errors import UpstreamFailed

GET = RequestHead("GET", b"/a", [(b"host", b"h")])
PUT = RequestHead("PUT", b"/a", [(b"host", b"h"), (b"content-length", b"5")])
POST = RequestHead("POST", b"/a", [(b"host", b"h"), (b"content-length", b"0")])


async def ask(upstream: HttpUpstream, head: RequestHead = GET, body: bytes = b"") -> tuple[int, bytes]:
    async with asyncio.timeout(LIMIT), upstream.exchange(head) as exchange:
        if body:
            await exchange.write(body)
        await exchange.finish()
        answer = await exchange.answer()
        pieces = []
        while piece := await exchange.read():
            pieces.append(piece)
        return answer.status, b"".join(pieces)


@contextlib.asynccontextmanager
async def closing(upstream: HttpUpstream):  # type: ignore[no-untyped-def]
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with recording() as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        assert await ask(upstream, PUT, b"hello") == (200, b"ok")
        assert len(server.octets) == 1


async def test_a_request_that_met_a_closing_connection_is_sent_again_if_it_may_be() -> None:
    """RFC 9110 §9.2.2: never one that changes something."""

    async def once(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(recorder.answer)
        await wire.read()  # the next request, which it does not answer

    async with recording(once) as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        assert await ask(upstream) == (200, b"ok")
        with pytest.raises(UpstreamFailed) as failed:
            await ask(upstream, POST)
        assert (failed.value.reason, failed.value.status) == ("closed", 502)
        assert [got.method for got in server.requests()] == ["GET", "GET", "GET", "POST"]


async def test_what_was_broken_off_is_not_sent_again() -> None:
    """Not even when that happens while the second connection is on its way."""

    class Slow(HttpUpstream):
        async def connect(self) -> Any:
            if server.octets:
                asked.set()
                await go.wait()
            return await super().connect()

    async def once(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        if len(recorder.octets) == 1:
            await wire.write(recorder.answer)
            await wire.read()

    asked, go = asyncio.Event(), asyncio.Event()
    async with recording(once) as server, closing(Slow(Address("127.0.0.1", server.port))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        async with asyncio.timeout(LIMIT), upstream.exchange(GET) as exchange:
            answering = asyncio.get_running_loop().create_task(exchange.answer())
            await asked.wait()
            exchange.abort()
            go.set()
            with pytest.raises(UpstreamFailed):
                await answering
        async with asyncio.timeout(LIMIT):
            while len(server.octets) < 2 or server.over < 2:
                server.ended.clear()
                await server.ended.wait()
        assert [bytes(octets).count(b"GET") for octets in server.octets] == [2, 0]


async def test_a_broken_off_answer_ends_at_once() -> None:
    """What has arrived already is not taken either."""

    async def all_at_once(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000)
        await wire.read()

    async with recording(all_at_once) as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        async with asyncio.timeout(LIMIT), upstream.exchange(GET) as exchange:
            await exchange.answer()
            assert await exchange.read() == b"x"
            exchange.abort()
            with pytest.raises(UpstreamFailed):
                await exchange.read()
        await asyncio.wait_for(server.ended.wait(), LIMIT)


async def test_a_first_connection_that_closes_is_not_tried_again() -> None:
    async def never(_: Recorder, wire: Wire) -> None:
        await wire.head()

    async with recording(never) as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        with pytest.raises(UpstreamFailed):
            await ask(upstream)
        assert len(server.octets) == 1


async def test_what_may_not_be_repeated_takes_a_fresh_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH", -1.0)
    async with recording() as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        await ask(upstream)
        await ask(upstream, POST)
        assert len(server.octets) == 2


async def test_idle_connections_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_FOR", 0.01)
    async with recording() as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        await ask(upstream)
        await asyncio.wait_for(server.ended.wait(), LIMIT)


@pytest.mark.parametrize("behind", [b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"junk"])
async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next(behind: bytes) -> None:
    """Response splitting by the server behind: the connection is not used again."""

    async def twice(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(recorder.answer + behind)
        await wire.read()

    async with recording(twice) as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        assert await ask(upstream) == (200, b"ok")
        assert len(server.octets) == 2


async def test_more_connections_than_allowed_are_503() -> None:
    async with recording() as server, closing(HttpUpstream(Address("127.0.0.1", server.port), max_connections=1)) as upstream:
        async with upstream.exchange(GET):
            with pytest.raises(UpstreamFailed) as failed:
                await ask(upstream)
            assert (failed.value.reason, failed.value.status) == ("busy", 503)
        assert await ask(upstream) == (200, b"ok")


async def test_a_connection_that_cannot_be_had_in_time_is_504() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # the kernel accepts TCP, and nobody speaks TLS
        address = Address("127.0.0.1", mute.getsockname()[1])
        with pytest.raises(UpstreamFailed) as failed:
            await ask(HttpUpstream(address, tls=ssl.create_default_context(), timeouts=Timeouts(connect=0.05)))
    assert (failed.value.reason, failed.value.status) == ("connect-timeout", 504)


async def test_a_server_that_takes_nothing_is_given_up() -> None:
    async def deaf(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await given_up.wait()

    given_up = asyncio.Event()
    big = RequestHead("PUT", b"/", [(b"host", b"h"), (b"transfer-encoding", b"chunked")])
    async with (
        recording(deaf) as server,
        closing(HttpUpstream(Address("127.0.0.1", server.port), timeouts=Timeouts(idle=0.05))) as upstream,
    ):
        with pytest.raises(UpstreamFailed) as failed:
            async with asyncio.timeout(LIMIT), upstream.exchange(big) as exchange:
                while True:
                    await exchange.write(b"x" * 1_000_000)
        assert failed.value.reason == "idle-timeout"
        given_up.set()


async def test_a_server_behind_a_unix_socket(tmp_path: Path) -> None:
    recorder = Recorder()
    server = await asyncio.start_unix_server(recorder.serve, tmp_path / "s")
    async with closing(HttpUpstream(Address("", 0, str(tmp_path / "s")))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        assert str(upstream.address) == f"unix:{tmp_path}/s"
    server.close()
    await recorder.ended.wait()


async def test_a_server_with_a_certificate_that_nobody_vouches_for_gets_nothing(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.issue("localhost", "server").pem)
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "localhost", 0, family=2, ssl=context)
    address = Address("localhost", server.sockets[0].getsockname()[1])
    with pytest.raises(UpstreamFailed) as failed:
        await ask(HttpUpstream(address, tls=ssl.create_default_context()))
    assert failed.value.reason == "connect"
    async with closing(HttpUpstream(address, tls=pki.trust())) as upstream:
        assert await ask(upstream) == (200, b"ok")
    server.close()
    await recorder.ended.wait()


async def test_what_comes_on_an_idle_connection_is_nobody_s_answer() -> None:
    """RFC 9112 §9.2: a body after HEAD, or an answer that nobody asked for, ends the connection."""

    async def chatty(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(recorder.answer)
        if len(recorder.octets) == 1:
            await more.wait()
            await wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await wire.read()

    more = asyncio.Event()
    async with recording(chatty) as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        (idle,) = upstream._idle
        assert idle.quiet()
        more.set()
        async with asyncio.timeout(LIMIT):
            while idle.quiet():
                await asyncio.sleep(0)
        assert await ask(upstream) == (200, b"ok")
        assert len(server.octets) == 2


async def test_an_idle_connection_with_unread_octets_is_not_quiet() -> None:
    """The peer has not closed: only the octets tell."""

    async def chatty(recorder: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(recorder.answer)
        await wire.read()

    async with recording(chatty) as server, closing(HttpUpstream(Address("127.0.0.1", server.port))) as upstream:
        assert await ask(upstream) == (200, b"ok")
        (idle,) = upstream._idle
        assert idle.quiet()
        idle.reader.feed_data(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        assert not idle.quiet()
        assert await ask(upstream) == (200, b"ok")
        assert len(server.octets) == 2
