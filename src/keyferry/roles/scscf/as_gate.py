# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: who may send to an AS that does not answer, and when (TS 24.229 §5.4.1.7, Release 17; DESIGN §6, delivery)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from keyferry.ports import Clock

RETRY_FIRST = 0.5
"""Seconds after which an AS that did not answer is tried again; doubled up to RETRY_MOST."""
RETRY_MOST = 2.0
"""Seconds: an AS that is back has what it is owed within 5, and one request in two seconds hurts nobody who is down."""
CLOSED_MOST = 30.0
"""Seconds that a Retry-After may keep us away."""
TOGETHER = 64
"""Requests under way of those that waited: an AS that is just back is not buried under what it missed."""


@dataclass(slots=True)
class AsGate:
    """Everybody may send while the AS answers; while it does not, one at a time after a pause, and the others wait for that one."""

    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    is_open: bool = True
    under_way: int = 0  # deliveries that were begun and have not ended, whether they wait or not
    silent: bool = False  # a 200 has waited for it in vain, and nothing has come from it since
    _answered_at: float = 0.0  # seconds of the monotonic clock
    _pause: float = RETRY_FIRST
    _not_before: float = 0.0  # seconds of the monotonic clock: the next attempt while it is closed
    _waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    _passing: int = 0
    _timer: asyncio.Task[None] | None = None
    _timer_until: float = 0.0  # seconds of the monotonic clock

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn to send, and keep it for as long as the attempt takes."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._let_in()
        try:
            await future
            yield
        finally:
            if future.done() and not future.cancelled():  # it had been let in
                self._passing -= 1
                self._let_in()

    def answered(self) -> None:
        """Note an answer: the AS is there."""
        self._answered_at = self.clock.monotonic()
        self.silent = False
        if not self.is_open:
            self.is_open = True
            self._let_in()

    def failed(self, after: float | None = None) -> None:
        """Note that it did not answer, or asked to be left alone for `after` seconds.

        What fails during a pause was sent before it, and does not make it longer.
        """
        now = self.clock.monotonic()
        if self.is_open:
            self.is_open, self._pause = False, RETRY_FIRST
        elif now < self._not_before:
            return
        pause = self._pause if after is None else min(max(after, RETRY_FIRST), CLOSED_MOST)
        self._not_before = now + pause
        self._pause = min(2 * self._pause, RETRY_MOST)

    def waited_in_vain(self, since: float) -> None:
        """Note that a 200 waited for an answer since then (monotonic seconds); the next need not, until the AS says something."""
        self.silent = self.silent or self._answered_at < since

    def try_now(self) -> None:
        """End the pause: there is a sign that the AS is back."""
        if not self.is_open and self._not_before > self.clock.monotonic():
            self._not_before, self._pause = self.clock.monotonic(), RETRY_FIRST
            self._let_in()

    def close(self) -> None:
        """Let nobody in for now: who waits is about to be cancelled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_in(self) -> None:
        while self._waiting and self._passing < (TOGETHER if self.is_open else 1):
            left = 0.0 if self.is_open else self._not_before - self.clock.monotonic()
            if left > 0:
                self._let_in_later(left)
                return
            future = self._waiting.popleft()
            if not future.done():
                self._passing += 1
                future.set_result(None)

    def _let_in_later(self, seconds: float) -> None:
        if self._timer is not None and self._not_before < self._timer_until:
            self.close()  # it was set for a longer pause, which a sign of life has ended since
        if self._timer is None:
            self._timer_until = self._not_before
            self._timer = asyncio.get_running_loop().create_task(self._wake(seconds))

    async def _wake(self, seconds: float) -> None:
        await self.sleep(seconds)
        self._timer = None
        self._let_in()
