# SPDX-License-Identifier: Apache-2.0
"""Websockets behind a login: the upgrade request proves who it is, or gets the answer of any request; the socket ends with its key."""

from __future__ import annotations

from keyferry.asgi.exchange import Message, Receive, Scope, Send
from keyferry.asgi.watch import OVER, STORE, Watch

POLICY = 1008
"""Close code: the endpoint no longer takes messages from this peer (RFC 6455 §7.4.1)."""
LATER = 1013
"""Close code: try again later (registered with IANA by the authors of RFC 6455)."""

_REFUSALS = {
    "http.response.start": "websocket.http.response.start",
    "http.response.body": "websocket.http.response.body",
}
_CLOSES = {OVER: (POLICY, "the login has ended"), STORE: (LATER, "the key store does not answer")}


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

    def __init__(self, receive: Receive, send: Send, watch: Watch) -> None:
        """Take the server's two ends, and who watches over the login."""
        self._receive = receive
        self._send = send
        self._watch = watch
        self._closed = 0  # with this code, by us

    async def receive(self) -> Message:
        """Return the next message; after the end of the key a disconnect."""
        if not self._closed:
            message = await self._receive()
            if message["type"] != "websocket.receive" or await self._goes_on():
                return message
        return {"type": "websocket.disconnect", "code": self._closed}

    async def send(self, message: Message) -> None:
        """Send a message; after the end of the key nothing."""
        if (message["type"] != "websocket.send" or await self._goes_on()) and not self._closed:
            await self._send(message)

    async def _goes_on(self) -> bool:
        if not self._closed and self._watch.due():
            ended = await self._watch.ask()
            if ended and not self._closed:
                self._closed, reason = _CLOSES[ended]
                await self._send({"type": "websocket.close", "code": self._closed, "reason": reason})
        return not self._closed
