# SPDX-License-Identifier: Apache-2.0
"""Bodies under qop=auth-int: of the request before the application acts on it, of the response before it leaves (RFC 7616 §3.4.3, §3.5)."""

from __future__ import annotations

from collections.abc import Callable

from keyferry.asgi.exchange import Message, Receive, Send


def signed(send: Send, info: bytes) -> Send:
    """Return a `send` that adds Authentication-Info to the response."""

    async def sign(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"authentication-info", info)]}
        await send(message)

    return sign


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class SignedResponse:
    """Hold a response back until its body can be signed (auth-int); one over the limit goes out unsigned."""

    def __init__(self, send: Send, info: Callable[[bytes], bytes], limit: int, *, head: bool) -> None:
        self._send = send
        self._info = info
        self._limit = limit
        self._head = head
        self._held: list[Message] = []

    async def __call__(self, message: Message) -> None:
        """Take one ASGI message of the application."""
        if self._limit < 0:
            await self._send(message)
            return
        self._held.append(message)
        self._limit -= len(message.get("body", b""))
        complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        if complete and self._limit >= 0:
            body = b"" if self._head else b"".join(part.get("body", b"") for part in self._held)
            send = signed(self._send, self._info(body))
        elif self._limit < 0:
            send = self._send
        else:
            return
        self._limit = -1
        for held in self._held:
            await send(held)
        self._held.clear()
