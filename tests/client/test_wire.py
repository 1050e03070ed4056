# SPDX-License-Identifier: Apache-2.0
"""RFC 9112: one connection of a client to the forward proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from keyferry.client.wire import MAX_HEAD, Wire
from keyferry.errors import RemoteProtocolError

Heard = tuple[list[object], bytes]


async def talk(octets: bytes, serve: Callable[[Wire], Awaitable[object]]) -> Heard:
    """Send octets, and end; return what the server made of them and what it answered."""
    found: list[object] = []
    ended = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        try:
            found.append(await serve(wire))
        except RemoteProtocolError as problem:
            found.append(problem)
        finally:
            wire.close()
            ended.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(octets)
        writer.write_eof()
        answer = await reader.read()
        await ended.wait()
        writer.close()
        await writer.wait_closed()
    return found, answer


async def echo(wire: Wire) -> object:
    bodies = []
    while (await wire.request()) is not None:
        bodies.append(b"".join([block async for block in wire.body()]))
        await wire.answer(200, "ok")
        if not wire.goes_on():
            break
    return bodies


async def test_requests_follow_each_other_and_bodies_are_framed_either_way() -> None:
    sized = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nmilk"
    chunked = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nmi\r\n2\r\nlk\r\n0\r\n\r\n"
    found, answer = await talk(sized + chunked, echo)
    assert found == [[b"milk", b"milk"]]
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_who_waits_for_100_gets_it() -> None:
    """RFC 9110 §10.1.1."""
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"

    async def expecting(wire: Wire) -> object:
        await wire.request()
        with pytest.raises(RemoteProtocolError):
            _ = [block async for block in wire.body()]
        return None

    _, answer = await talk(head, expecting)
    assert answer.startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused(octets: bytes) -> None:
    found, _ = await talk(octets, echo)
    assert isinstance(found[0], RemoteProtocolError)
    assert 400 <= found[0].status < 500


async def test_a_body_that_ends_early_is_no_body() -> None:
    found, _ = await talk(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nmilk", echo)
    assert isinstance(found[0], RemoteProtocolError)


async def test_nothing_may_come_with_a_connect() -> None:
    """It would be read as if it had come through the tunnel."""
    import ssl

    async def connect(wire: Wire) -> object:
        await wire.request()
        return await wire.tunnel(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    found, answer = await talk(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nGET / HTTP/1.1\r\n\r\n", connect)
    assert isinstance(found[0], RemoteProtocolError)
    assert answer == b""
