# SPDX-License-Identifier: Apache-2.0
"""Websockets behind a login: the upgrade request proves who it is, or gets the answer of any request; the socket ends with its key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from keyferry.asgi.exchange import Message, Receive, Scope, Send
from keyferry.errors import SealError, StoreError

RECHECK = 30.0
"""Seconds after which a message makes us look whether the key of its socket is still there."""
POLICY = 1008
"""Close code: the endpoint no longer takes messages from this peer (RFC 6455 §7.4.1)."""

_REFUSALS = {
    "http.response.start": "websocket.http.response.start",
    "http.response.body": "websocket.http.response.body",
}


async def no_body() -> Message:
    """Stand in for the body of an upgrade request, which has none."""
    return {"type": "http.request", "body": b"", "more_body": False}


def refusing(scope: Scope, receive: Receive, send: Send) -> Send:
    """Return a `send` that takes an HTTP answer in place of an accepted socket: whole where the server can, else it answers 403."""
    whole = "websocket.http.response" in (scope.get("extensions") or {})
    begun = False

    async def refuse(message: Message) -> None:
        nonlocal begun
        if not begun:
            begun = True
            await receive()  # the connect that the server tells of first
            if not whole:
                await send({"type": "websocket.close", "code": POLICY})
        if whole:
            await send({**message, "type": _REFUSALS[message["type"]]})

    return refuse


class LivingSocket:
    """Pass messages on as long as the key of a socket lives, and close it then."""

    def __init__(self, receive: Receive, send: Send, lives: Callable[[], Awaitable[bool]], monotonic: Callable[[], float]) -> None:
        """Take the server's two ends, and who tells whether the key is still there, and the time."""
        self._receive = receive
        self._send = send
        self._lives = lives
        self._monotonic = monotonic
        self._checked = monotonic()
        self._ended = False

    async def receive(self) -> Message:
        """Return the next message; after the end of the key a disconnect."""
        if not self._ended:
            message = await self._receive()
            if message["type"] != "websocket.receive" or await self._goes_on():
                return message
        return {"type": "websocket.disconnect", "code": POLICY}

    async def send(self, message: Message) -> None:
        """Send a message; after the end of the key nothing."""
        if (message["type"] != "websocket.send" or await self._goes_on()) and not self._ended:
            await self._send(message)

    async def _goes_on(self) -> bool:
        now = self._monotonic()
        if not self._ended and now - self._checked >= RECHECK:
            try:
                alive = await self._lives()
            except (StoreError, SealError):
                return True  # nobody knows; the next message asks again
            self._checked = now
            if not alive and not self._ended:
                self._ended = True
                await self._send({"type": "websocket.close", "code": POLICY, "reason": "the login has ended"})
        return not self._ended
