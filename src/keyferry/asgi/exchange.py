# SPDX-License-Identifier: Apache-2.0
"""One HTTP exchange over ASGI: read a body within bounds, answer in one go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from keyferry.errors import RemoteProtocolError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

TEXT = "text/plain; charset=utf-8"


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return the whole body of a request.

    Raises RemoteProtocolError: 413 as soon as it is over `limit` octets, 400 if the client goes away.
    """
    parts: list[bytes] = []
    left = limit
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise RemoteProtocolError("the client went away", 400)
        part = message.get("body", b"")
        left -= len(part)
        if left < 0:
            raise RemoteProtocolError(f"the body is over {limit} octets", 413)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def respond(send: Send, status: int, body: bytes = b"", content_type: str = TEXT, headers: Iterable[Header] = ()) -> None:
    """Send a whole response."""
    fields: list[Header] = [(b"content-length", b"%d" % len(body)), *headers]
    if body:
        fields.append((b"content-type", content_type.encode("latin-1")))
    if status == 413:
        fields.append((b"connection", b"close"))  # else the server reads on, to find the next request behind the body
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def headers_named(scope: Scope, name: bytes) -> list[bytes]:
    """Return all values of a header, `name` in lower case."""
    return [value for field, value in scope["headers"] if field == name]
