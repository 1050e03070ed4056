# SPDX-License-Identifier: Apache-2.0
"""Fields that a login adds to what goes out, unless the application has chosen them itself.

Cache-Control: no-store       on our refusals, and on all that a logged-in user gets: a cache would give it to the next user
X-Content-Type-Options        on the same: text that a client wrote is never taken for a page
Strict-Transport-Security     only if asked for: it holds for every port and application of the name, and cannot be taken back
Nothing is said about frames, scripts or referrers: what pages may do is the application's to know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from keyferry.asgi.exchange import Header, Message, Send
from keyferry.asgi.watch import Watch

PRIVATE: tuple[Header, ...] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

_STARTS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


def adding(
    send: Send,
    defaults: Sequence[Header],
    added: Sequence[Header] = (),
    challenge: Callable[[], Awaitable[Sequence[Header]]] | None = None,
    watch: Watch | None = None,
) -> Send:
    """Return a `send` that adds fields: `defaults` where the application has none of that name, `added` always.

    `challenge` yields what a 401 of the application lacks, unless it has a challenge of its own. With `watch` it raises LoginEnded in
    place of sending what a login that has ended would get.
    """

    async def add(message: Message) -> None:
        if watch is not None and watch.due():
            await watch.check()
        if message["type"] in _STARTS:
            if watch is not None:
                watch.begun = True
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _value in headers}
            headers += [field for field in defaults if field[0] not in names]
            headers += added
            if challenge is not None and message.get("status") == 401 and b"www-authenticate" not in names:
                headers += await challenge()
            message = {**message, "headers": headers}
        await send(message)

    return add


def hsts(seconds: int) -> tuple[Header, ...]:
    """Return Strict-Transport-Security (RFC 6797), or nothing for 0 seconds."""
    return ((b"strict-transport-security", b"max-age=%d" % seconds),) if seconds else ()
