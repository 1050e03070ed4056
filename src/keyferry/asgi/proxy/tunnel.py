# SPDX-License-Identifier: Apache-2.0
"""WebSocket through the proxy (RFC 6455 §4): the upgrade request proves who asks, what follows its 101 goes both ways as it is."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeAlias

from keyferry.asgi.exchange import Header, Scope
from keyferry.asgi.proxy.fields import one

IDLE = 600.0
"""Seconds in which nothing moves either way; WebSocket libraries ping every 20 to 60."""
RECHECK = 30.0
"""Seconds between looks whether the key that opened a tunnel is still there."""
LIVES = "keyferry.lives"
"""In the scope, by SimLogin: tells whether the login of a request goes on."""
Lives: TypeAlias = Callable[[], Awaitable[bool]]
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
EXTENSION = "keyferry.tunnel"


class End(Protocol):
    """One side of a tunnel."""

    async def read(self) -> bytes:
        """Return what arrived; empty at the end."""

    async def write(self, octets: bytes) -> None:
        """Send; returns when the other side takes more."""


class Tunnel(End, Protocol):
    """The client's connection, which our HTTP server gives us after a 101 was sent on it."""

    def close(self) -> None:
        """Close the connection."""


class Breakable(End, Protocol):
    """The connection to the server behind."""

    def abort(self) -> None:
        """Close the connection."""


def offered_tunnel(scope: Scope) -> Tunnel | None:
    """Return the client's tunnel if it asks for WebSocket and our server can; any other upgrade is ignored (RFC 9110 §7.8).

    Raises RemoteProtocolError for two Sec-WebSocket-Key fields.
    """
    tunnel: Tunnel | None = scope.get("extensions", {}).get(EXTENSION)
    return tunnel if tunnel is not None and one(scope["headers"], b"sec-websocket-key") is not None else None


def accepts(request: Iterable[Header], answer: Iterable[Header]) -> bool:
    """Tell whether a 101 is the answer to this very request (RFC 6455 §4.2.2): not some page that says 101."""
    key = one(request, b"sec-websocket-key") or b""
    expected = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    said = [(name, value.strip(b" \t")) for name, value in answer if name in {b"sec-websocket-accept", b"upgrade"}]
    return sorted((name, value.lower() if name == b"upgrade" else value) for name, value in said) == [
        (b"sec-websocket-accept", expected),
        (b"upgrade", b"websocket"),
    ]


async def join(server: Breakable, client: Tunnel, idle: float, lives: Lives | None = None) -> None:
    """Carry octets both ways until either side ends, nothing moves for `idle` seconds, or the login has ended. Raises UpstreamFailed."""
    moved = [0]
    loop = asyncio.get_running_loop()
    pumps = {loop.create_task(_pump(server.read, client.write, moved)), loop.create_task(_pump(client.read, server.write, moved))}
    quiet, look = 0.0, min(idle, RECHECK)
    try:
        while quiet < idle:
            before = moved[0]
            done, _ = await asyncio.wait(pumps, timeout=look, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                pump.result()
            if done or (lives is not None and not await lives()):
                return
            quiet = quiet + look if before == moved[0] else 0.0
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        client.close()
        server.abort()


async def _pump(read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]], moved: list[int]) -> None:
    while octets := await read():
        await write(octets)
        moved[0] += 1
