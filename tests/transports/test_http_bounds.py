# SPDX-License-Identifier: Apache-2.0
"""Heads of HTTP requests that never end (RFC 9112 §3; RFC 6585 §5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from keyferry.transports import http_bounds
from keyferry.transports.http_bounds import MAX_FIELDS, MAX_HEAD
from keyferry.transports.http_server import HttpServer
from steady import steady
from transports.httpkit import Message, answer, length, sent


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a server on a free port."""
    server = HttpServer(length)
    reader, writer = await asyncio.open_connection(*await server.listen("127.0.0.1", 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.aclose()


@pytest.mark.parametrize("piece", [100, 4096, 1_000_000])
@pytest.mark.parametrize(
    "head", [b"GET /" + b"a" * 200_000, b"GET / HTTP/1.1\r\nA: " + b"b" * 200_000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 40_000]
)
async def test_a_head_without_end_is_cut_off(head: bytes, piece: int) -> None:
    async with connected() as (reader, writer):
        await sent(writer, head, piece)
        assert (await answer(reader))[:12] in {b"HTTP/1.1 431", b""}  # a reset may overtake the answer
        assert not await answer(reader)


async def test_a_large_body_after_a_small_head_passes_and_so_does_the_next_request() -> None:
    body = b"x" * 300_000
    async with connected() as (reader, writer):
        for _ in range(3):
            await sent(writer, b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + body, 100_000)
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(6) == b"300000"


async def test_pipelined_requests_pass() -> None:
    async with connected() as (reader, writer):
        await sent(writer, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 700, 1_000_000)
        for _ in range(700):
            assert (await answer(reader)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"0"


async def test_a_trailer_without_end_is_cut_off() -> None:
    async with connected() as (reader, writer):
        await sent(writer, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nA: " + b"b" * (8 * MAX_HEAD))
        assert not await answer(reader)


async def test_a_chunked_body_of_single_octets_passes() -> None:
    async with connected() as (reader, writer):
        await sent(writer, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(5) == b"20000"


@pytest.mark.parametrize("piece", [7, 100_000])
async def test_a_head_of_more_fields_than_any_client_sends_is_refused_before_any_application_hears_of_it(piece: int) -> None:
    async with connected() as (reader, writer):
        await sent(writer, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * MAX_FIELDS + b"\r\n", piece)
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(1) == b"0"
        await sent(writer, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * (MAX_FIELDS + 1) + b"\r\n", piece)
        assert (await answer(reader)).startswith(b"HTTP/1.1 431")
        assert not await answer(reader)


async def test_many_fields_in_a_head_without_end_are_refused_once() -> None:
    async with connected() as (reader, writer):
        await sent(writer, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 5_000, 1_000_000)
        assert (await reader.read()).count(b"431") == 1


@pytest.mark.parametrize("octets", [b"", b"GET / HT"])
@steady(0.1)
def test_a_head_that_takes_too_long_is_cut_off_and_an_idle_connection_is_not(octets: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_bounds.BoundedHttp, "bounds", http_bounds.Bounds(head=0.2))

    async def slow() -> None:
        async with connected() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" if octets else b"")
            if octets:
                assert (await answer(reader)).startswith(b"HTTP/1.1 200")
                await reader.readexactly(1)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(reader.read(1), 0.5)  # idle between two requests: the keep-alive time is another
                writer.write(octets)
            assert not await answer(reader)

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(slow())


async def test_a_connection_without_a_key_adds_nothing_to_the_scope() -> None:
    """Whatever its request says: the name is our protocol class's."""
    scopes: list[Message] = []

    async def noting(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        scopes.append(scope)
        await length(scope, receive, send)

    server = HttpServer(noting)
    reader, writer = await asyncio.open_connection(*await server.listen("127.0.0.1", 0))
    try:
        await sent(writer, b"GET /?keyferry.psk=1 HTTP/1.1\r\nHost: a\r\nkeyferry.psk: alice\r\n\r\n")
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()
        await server.aclose()
    assert "keyferry.psk" not in scopes[0]


async def test_a_connection_with_thousands_of_requests_in_waiting_is_closed() -> None:
    """They arrive in one piece, and each would be held until its turn comes."""
    small = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"
    async with connected() as (reader, writer):
        writer.write((small + b"x") * (http_bounds.MAX_PIPELINED + 1))
        answers = b""
        while answers.count(b"HTTP/1.1 200 ") <= http_bounds.MAX_PIPELINED:
            answers += await asyncio.wait_for(reader.read(65_536), 60)
    async with connected() as (reader, writer):
        writer.write((small + b"x") * (http_bounds.MAX_PIPELINED + 2))
        with suppress(ConnectionResetError):
            assert b" 200 " not in await asyncio.wait_for(reader.read(), 60)
