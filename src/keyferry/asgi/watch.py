# SPDX-License-Identifier: Apache-2.0
"""A login that lasts: whether its key is still there, asked now and then while something goes out or comes in.

A short answer costs one look at the clock for each of its messages; no task, no timer.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

from keyferry.asgi.exchange import Message, Receive
from keyferry.errors import SealError, SecurityError, StoreError

RECHECK = 30.0
"""Seconds after which the next message makes us look whether the key is still there."""
BODY_RECHECK = 0.5
"""Seconds after which the next piece of a request's body does: a user who is out must not go on writing, however slowly."""
RETRY = 5.0
"""Seconds until a store that did not answer is asked again."""
UNKNOWN = 300.0
"""Seconds for which a store that does not answer ends no login: enough to start it anew, and not for whoever should be out to stay in."""

OVER = "over"
STORE = "store"


class LoginEnded(SecurityError, ConnectionAbortedError):
    """Tell an application that sends that its client is gone (ASGI says: by an OSError); we are the reason."""


class Watch:
    """Watch over one login, from its beginning."""

    __slots__ = ("_asked", "_failing_since", "_lives", "_monotonic", "_next", "begun", "ended")

    def __init__(self, lives: Callable[[], Awaitable[bool]], monotonic: Callable[[], float]) -> None:
        """Take who tells whether the key is still there, and the time. The key was there a moment ago."""
        self._lives = lives
        self._monotonic = monotonic
        self._asked = monotonic()
        self._next = self._asked + RECHECK
        self._failing_since: float | None = None
        self.begun = False  # the client has the head of an answer
        self.ended = ""  # why: OVER, the key is gone; STORE, nobody could tell for too long

    def due(self) -> bool:
        """Tell whether it is time to ask, or the login has ended."""
        return self._monotonic() >= self._next

    async def check(self) -> None:
        """Ask. Raises LoginEnded."""
        if await self.ask():
            raise LoginEnded("the login of this answer has ended")

    async def lets_in(self) -> bool:
        """Tell whether a piece of the request's body may go on to the application."""
        if not self.ended and self._monotonic() - self._asked >= BODY_RECHECK:
            await self.ask()
        return not self.ended

    async def lives(self) -> bool:
        """Ask, whenever that was done last."""
        return not await self.ask()

    async def ask(self) -> str:
        """Ask whether the key is there, and return why the login has ended, if it has."""
        if self.ended:
            return self.ended
        now = self._monotonic()
        self._asked = now
        self._next = now + RETRY  # who comes while we ask goes on
        try:
            alive = await self._lives()
        except (StoreError, SealError):
            since = self._failing_since = now if self._failing_since is None else self._failing_since
            if now - since >= UNKNOWN:
                self._end(STORE)
            return self.ended
        self._failing_since = None
        if alive:
            self._next = now + RECHECK
        else:
            self._end(OVER)
        return self.ended

    def _end(self, reason: str) -> None:
        self.ended, self._next = reason, -math.inf


def watching(receive: Receive, watch: Watch) -> Receive:
    """Return a `receive` that gives `http.disconnect` in place of what comes after the end of the login."""

    async def watched() -> Message:
        if not watch.ended:
            message = await receive()
            if message["type"] != "http.request" or await watch.lets_in():
                return message
        return {"type": "http.disconnect"}

    return watched
