# SPDX-License-Identifier: Apache-2.0
"""What the tests of HTTP connections have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


async def length(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """Answer with the length of the body."""
    if scope["type"] == "lifespan":
        return
    octets, more = 0, True
    while more:
        event = await receive()
        octets, more = octets + len(event.get("body", b"")), event.get("more_body", False)
    body = str(octets).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


async def sent(writer: asyncio.StreamWriter, octets: bytes, piece: int = 4096) -> None:
    """Send in pieces, as far as the server takes them."""
    try:
        for start in range(0, len(octets), piece):
            writer.write(octets[start : start + piece])
            await writer.drain()
    except ConnectionError:
        pass


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read until the server closes, or one answer is whole."""
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
