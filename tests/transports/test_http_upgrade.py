# SPDX-License-Identifier: Apache-2.0
"""Our HTTP server for the proxy: RFC 9112 §3.2, RFC 9110 §7.8, §6.5.1."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from keyferry.errors import TransportError
from keyferry.transports.http_bounds import Bounds
from keyferry.transports.http_server import HttpServer
from keyferry.transports.http_upgrade import UpgradingHttp
from steady import steady

LIMIT = 60.0
UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


class App:
    """Answer, and remember the scopes."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.scopes: list[Any] = []
        self.tunnelled = bytearray()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-length", b"0")]})
        if self.status != 101:
            await send({"type": "http.response.body", "body": b""})
            return
        tunnel = scope["extensions"]["keyferry.tunnel"]
        await tunnel.write(b"hello")
        while octets := await tunnel.read():
            self.tunnelled += octets
            if octets.endswith(b"bye"):
                await tunnel.write(b"x" * 1_000_000)
                tunnel.close()


@contextlib.asynccontextmanager
async def served(app: App) -> AsyncIterator[int]:
    server = HttpServer(app, protocol=UpgradingHttp, date=False)
    _, port = await server.listen("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.aclose()


async def ask(port: int, octets: bytes) -> bytes:
    """Return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(octets)
        return await asyncio.wait_for(reader.read(), LIMIT)
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("target", [b"/a%2F?", b"/?", b"/x#f", b"https://b/x", b"//x"])
async def test_the_target_is_told_as_it_was_sent(target: bytes) -> None:
    app = App()
    async with served(app) as port:
        said = await ask(port, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"date" not in said
    assert app.scopes[0]["keyferry.target"] == target


async def test_every_request_of_a_connection_is_told_that_the_client_left() -> None:
    app = App()
    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
        for _ in range(2):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT)
        first, second = (scope["keyferry.left"] for scope in app.scopes)
        assert not first.done()
        writer.transport.abort()
        await asyncio.wait_for(asyncio.gather(first, second), LIMIT)


async def test_trailers_are_no_header_fields() -> None:
    """They could name a user, or a host, after the door has looked."""
    app = App()
    async with served(app) as port:
        await ask(port, b"PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\nX: 1\r\n\r\n")
    assert [name for name, _ in app.scopes[0]["headers"]] == [b"host", b"connection", b"transfer-encoding"]


async def test_a_tunnel_carries_octets_both_ways() -> None:
    app = App(101)
    async with served(app) as port:
        said = await ask(port, UPGRADE + b"first" + b"y" * 300_000 + b"bye")
    head, _, rest = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols")
    assert b"transfer-encoding" not in head
    assert rest == b"hello" + b"x" * 1_000_000
    assert bytes(app.tunnelled) == b"first" + b"y" * 300_000 + b"bye"


async def test_a_tunnel_ends_with_its_client() -> None:
    app = App(101)
    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(UPGRADE)
        await asyncio.wait_for(reader.readuntil(b"hello"), LIMIT)
        writer.close()


class Hasty(UpgradingHttp):
    bounds = Bounds(head=0.1, portion_time=0.2, rest=0.1)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@steady(0.05)
def test_a_tunnel_whose_client_takes_nothing_is_ended(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Else what the server behind sends waits for ever, as long as the client sends something now and then."""
    ended = asyncio.Event()

    async def pours(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 101, "headers": []})
        tunnel = scope["extensions"]["keyferry.tunnel"]
        for _ in range(300):
            await tunnel.write(b"x" * 100_000)
        assert await tunnel.read() == b"ping"
        assert not await tunnel.read()
        ended.set()

    async def attack() -> None:
        server = HttpServer(pours, protocol=Hasty)
        _, port = await server.listen("127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=10_000)
        try:
            writer.write(UPGRADE + b"ping")
            await asyncio.wait_for(ended.wait(), LIMIT)
        finally:
            writer.transport.abort()
            await server.aclose()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(attack())


@steady(0.05)
async def test_a_tunnel_in_which_nothing_moves_is_the_business_of_who_joins_it() -> None:
    """RFC 6455 §5.5.2: both ends may be silent for minutes."""
    app = App(101)
    server = HttpServer(app, protocol=Hasty)
    _, port = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE)
    await asyncio.wait_for(reader.readuntil(b"hello"), LIMIT)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    writer.write(b"bye")
    assert len(await asyncio.wait_for(reader.read(), LIMIT)) == 1_000_000
    writer.close()
    await server.aclose()


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"websocket, h2c"])
async def test_after_a_refused_upgrade_the_connection_ends_and_what_stands_behind_is_not_read(upgrade: bytes) -> None:
    app = App(401)
    async with served(app) as port:
        said = await ask(port, UPGRADE.replace(b"websocket", upgrade) + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in said
    assert len(app.scopes) == 1


@pytest.mark.parametrize(
    "head",
    [b"POST / HTTP/1.1\r\nContent-Length: 3", b"GET / HTTP/1.1\r\nContent-Length: 3", b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked"],
)
async def test_only_a_get_without_a_body_gets_a_tunnel(head: bytes) -> None:
    app = App(200)
    async with served(app) as port:
        await ask(port, head + b"\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc")
    assert "extensions" not in app.scopes[0]


async def test_what_is_no_http_is_400() -> None:
    async with served(App()) as port:
        assert (await ask(port, b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_unix_socket_is_for_its_owner_and_group_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = HttpServer(App())
    await first.listen_unix(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), LIMIT)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    with pytest.raises(TransportError, match="cannot listen"):
        await HttpServer(App()).listen_unix(path)
    await first.aclose()
    assert not path.exists()


async def test_a_unix_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    left = await asyncio.start_unix_server(lambda _r, _w: None, path)
    os.link(path, tmp_path / "kept")
    left.close()
    os.link(tmp_path / "kept", path) if not path.exists() else None
    server = HttpServer(App())
    await server.listen_unix(path)
    await server.aclose()
