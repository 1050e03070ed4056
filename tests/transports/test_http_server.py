# SPDX-License-Identifier: Apache-2.0
"""HTTP listeners on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from keyferry.errors import TransportError
from keyferry.transports.http_server import HttpServer

Message = MutableMapping[str, Any]


async def echo(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """Answer with the raw path."""
    if scope["type"] == "lifespan":
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(scope["raw_path"])).encode())]})
    await send({"type": "http.response.body", "body": scope["raw_path"]})


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[HttpServer, str, int]]:
    """Serve the echo on a free port."""
    server = HttpServer(echo)
    host, port = await server.listen("127.0.0.1", 0)
    try:
        yield server, host, port
    finally:
        await server.aclose()


async def test_a_request_is_served_with_its_raw_path_and_no_server_name() -> None:
    async with listening() as (_, host, port), httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"http://{host}:{port}/a%2540b")
        assert response.content == b"/a%2540b"
        assert "server" not in response.headers


async def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TransportError, match="choose another port"):
            await HttpServer(echo).listen("127.0.0.1", taken.getsockname()[1])


async def test_the_port_is_free_again_after_close_and_small_answers_are_not_delayed() -> None:
    """RFC 9293 §3.7.4: without TCP_NODELAY the second of two small answers would wait for an acknowledgement, some 40 ms."""
    async with listening() as (server, host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"/one")).startswith(b"HTTP/1.1 200")
        accepted = next(iter(server._server.server_state.connections))
        assert accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()
        await writer.wait_closed()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((host, port))


async def test_close_before_listen_does_nothing() -> None:
    await HttpServer(echo).aclose()
