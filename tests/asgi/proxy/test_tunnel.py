# SPDX-License-Identifier: Apache-2.0
"""WebSocket through the proxy: RFC 6455 §4."""

from __future__ import annotations

import asyncio
import base64
import hashlib

import pytest
import websockets

from asgi.doorkit import Client, Echo, call, make_door
from asgi.proxy.proxykit import KEY, LIMIT, Recorder, Wire, proxying, recording, status
from keyferry.asgi.proxy import tunnel as tunnel_module
from keyferry.asgi.proxy.tunnel import Lives, accepts, join, offered_tunnel
from keyferry.asgi.watch import UNKNOWN
from keyferry.client.upstream import Address, HttpUpstream, Timeouts
from keyferry.errors import StoreError

ASK = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3


async def test_websockets_of_both_kinds_of_message_with_extensions() -> None:
    """The library at both ends, with compression: what it negotiates passes through."""
    seen: list[str] = []

    async def echo(socket: websockets.ServerConnection) -> None:
        assert socket.request is not None
        seen.append(socket.request.headers["X-3GPP-Asserted-Identity"])
        assert "Authorization" not in socket.request.headers
        async for message in socket:
            await socket.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=[websockets.Subprotocol("notes")]) as server:
        upstream = HttpUpstream(Address("127.0.0.1", next(iter(server.sockets)).getsockname()[1]))
        async with proxying(upstream=upstream) as proxy:
            _, value = Client(KEY).answer(await proxy.challenge(), 1, uri="/chat")
            async with websockets.connect(
                f"ws://xcap.home1.net:{proxy.port}/chat", host="127.0.0.1", port=proxy.port, proxy=None,
                additional_headers={"Authorization": value, "X-3GPP-Asserted-Identity": "eve"},
                subprotocols=[websockets.Subprotocol("notes")],
            ) as socket:  # fmt: skip
                assert socket.response is not None
                assert "rspauth" in socket.response.headers["Authentication-Info"]
                assert socket.subprotocol == "notes"
                for message in ("hello", b"\0" * 300_000, "x" * 200_000):
                    await socket.send(message)
                    assert await asyncio.wait_for(socket.recv(), LIMIT) == message
            assert "proxy 1xx" in proxy.counter.seen
    assert seen == ['"sip:alice@home1.net", "tel:+15551234"']


async def test_a_websocket_needs_a_login() -> None:
    async with recording() as server, proxying(server) as proxy:
        assert status(await proxy.ask(b"GET /chat HTTP/1.1\r\nHost: xcap.home1.net\r\n" + ASK + b"\r\nGET / HTTP/1.1\r\n\r\n")) == 401
    assert server.octets == []


async def test_a_server_that_neither_accepts_nor_refuses_is_given_up_whatever_the_client_sends_meanwhile() -> None:
    """What comes before the 101 is kept, up to a bound, and puts nothing off."""

    async def silent(_: Recorder, wire: Wire) -> None:
        await wire.head()
        while await wire.read():
            pass

    async with recording(silent) as server, proxying(server, timeouts=Timeouts(answer=0.2)) as proxy, proxy.connected() as (reader, writer):
        writer.write(await proxy.head("GET", "/chat", ASK))
        said = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(LIMIT):
            while not said.done():
                writer.write(b"\0" * 10_000)
                await asyncio.sleep(0.02)
        if said.exception() is None:  # a reset may overtake the answer: such a client must not send anything yet
            assert status(said.result()) == 504
        assert "proxy answer-timeout" in proxy.counter.seen


@pytest.mark.parametrize(
    "answered",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n",
    ],
)
async def test_a_101_that_answers_another_question_opens_nothing(answered: bytes) -> None:
    async def once(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(answered)
        while await wire.read():
            pass

    async with recording(once) as server, proxying(server) as proxy:
        assert status(await proxy.ask(await proxy.head("GET", "/chat", ASK) + b"GET /smuggled HTTP/1.1\r\n\r\n")) == 502
    assert b"smuggled" not in b"".join(server.octets)


@pytest.mark.parametrize("origin", [b"Origin: https://evil.example", b"Origin: http://xcap.home1.net", b"Sec-Fetch-Site: cross-site"])
async def test_a_page_of_another_site_opens_no_websocket_in_the_users_name(origin: bytes) -> None:
    """A browser answers the challenge for any page; a WebSocket is not covered by what protects fetch."""
    async with recording() as server, proxying(server) as proxy:
        assert status(await proxy.ask(await proxy.head("GET", "/chat", ASK + origin + b"\r\n"))) == 403
        assert server.octets == []
        await proxy.ask(await proxy.head("GET", "/chat", ASK + b"Origin: https://xcap.home1.net:8443\r\n"))
    assert len(server.octets) == 1


async def test_two_keys_of_an_upgrade_are_refused() -> None:
    async with recording() as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head("GET", "/chat", ASK + b"Sec-WebSocket-Key: AAAA\r\n"))
        assert status(said) == 400
        assert "proxy refused" in proxy.counter.seen
    assert server.octets == []


async def test_after_a_refused_upgrade_nothing_more_is_read_from_that_connection() -> None:
    """WebSocket smuggling: a client that goes on as if a tunnel were open, or as if none were."""
    async with recording() as server, proxying(server) as proxy:
        said = await proxy.ask(await proxy.head("GET", "/chat", ASK) + b"GET /smuggled HTTP/1.1\r\nHost: xcap.home1.net\r\n\r\n")
        assert status(said) == 200
        assert b"connection: close" in said
    assert [got.target for got in server.requests()] == ["/chat"]


async def test_octets_around_the_101_arrive_and_both_ends_end_it() -> None:
    async def early(_: Recorder, wire: Wire) -> None:
        await wire.head()
        await wire.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "
            + ACCEPT
            + b"\r\n\r\nfirst"
        )
        while not wire.seen.endswith(b"pong"):
            await wire.read()

    async with recording(early) as server, proxying(server) as proxy, proxy.connected() as (reader, writer):
        writer.write(await proxy.head("GET", "/chat", ASK) + b"ping")
        head = await asyncio.wait_for(reader.readuntil(b"first"), LIMIT)
        assert head.startswith(b"HTTP/1.1 101 ")
        writer.write(b"pong")
        assert await asyncio.wait_for(reader.read(), LIMIT) == b""
    assert bytes(server.octets[0]).endswith(b"pingpong")


class Silent:
    """An end of a tunnel on which nothing moves."""

    def __init__(self) -> None:
        self.closed = 0

    async def read(self) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def write(self, octets: bytes) -> None: ...

    def close(self) -> None:
        self.closed += 1

    abort = close


async def test_a_tunnel_in_which_nothing_moves_ends() -> None:
    server, client = Silent(), Silent()
    await asyncio.wait_for(join(server, client, 0.01), LIMIT)
    assert (server.closed, client.closed) == (1, 1)


async def test_a_tunnel_ends_with_the_key_that_opened_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel_module, "RECHECK", 0.001)
    looks = [True, True, False]

    async def lives() -> bool:
        return looks.pop(0)

    server, client = Silent(), Silent()
    await asyncio.wait_for(join(server, client, 60, lives), LIMIT)
    assert (server.closed, client.closed, looks) == (1, 1, [])


async def test_simlogin_tells_whether_the_key_is_there() -> None:
    """A store that fails ends no login, for some minutes."""
    app = Echo()
    door = make_door(KEY, app=app)

    async def opened() -> Lives:
        answer = Client(KEY).answer(await door.challenge())
        assert (await call(door.door, headers=[answer], extensions={})).status == 200
        lives: Lives = app.scopes[-1]["keyferry.lives"]
        assert await lives()
        return lives

    lives = await opened()
    door.keys.records.clear()
    assert not await lives()
    door.keys.records[KEY.key_id] = KEY
    assert not await lives()  # it does not begin again
    lives = await opened()
    door.keys.lookup_fails, door.keys.problem = True, StoreError("busy")
    assert await lives()
    door.clock.time += UNKNOWN - 1
    assert await lives()
    door.clock.time += 1
    assert not await lives()


def test_the_accept_value_is_the_one_of_the_standard() -> None:
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    assert base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()) == ACCEPT
    assert accepts([(b"sec-websocket-key", key)], [(b"upgrade", b"WebSocket"), (b"sec-websocket-accept", ACCEPT)])
    assert offered_tunnel({"headers": [], "extensions": {"keyferry.tunnel": Silent()}}) is None
