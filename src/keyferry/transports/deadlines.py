# SPDX-License-Identifier: Apache-2.0
"""One coarse timer for many deadlines, instead of a task or a loop handle for each."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable
from typing import Final

from keyferry.ports import Clock

GRANULARITY: Final = 0.02
"""Seconds that a deadline may be late; T1, the shortest timer, is 0.5 s."""


class Deadline:
    """A callback that waits for its time; `cancel` forgets it."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        """Forget the callback now; the empty entry goes when its time comes."""
        self._callback = None

    def fire(self) -> bool:
        """Call back once; false if it was cancelled."""
        callback, self._callback = self._callback, None
        if callback is None:
            return False
        callback()
        return True


class Deadlines:
    """Group deadlines into ticks of GRANULARITY seconds and wake up only for a tick that has some.

    Time is the clock's, so a test moves its clock and calls `run`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ticks: dict[int, list[Deadline]] = {}
        self._order: list[int] = []  # a heap of the ticks
        self._handle: asyncio.TimerHandle | None = None
        self._armed: int | None = None
        self._closed = False

    def at(self, when: float, callback: Callable[[], object]) -> Deadline:
        """Call back at `when`, seconds of Clock.monotonic, or up to GRANULARITY later."""
        deadline = Deadline(callback)
        tick = math.ceil(when / GRANULARITY)
        waiting = self._ticks.get(tick)
        if waiting is None:
            self._ticks[tick] = [deadline]
            heapq.heappush(self._order, tick)
            self._arm()
        else:
            waiting.append(deadline)
        return deadline

    def after(self, seconds: float, callback: Callable[[], object]) -> Deadline:
        """Call back `seconds` from now."""
        return self.at(self._clock.monotonic() + seconds, callback)

    def run(self) -> int:
        """Fire what is due by the clock; return how many callbacks ran."""
        fired = 0
        while self._order and self._order[0] * GRANULARITY <= self._clock.monotonic():
            for deadline in self._ticks.pop(heapq.heappop(self._order)):
                fired += self._fire(deadline)
        self._arm()
        return fired

    def close(self) -> None:
        """Forget everything."""
        self._closed = True
        self._ticks.clear()
        self._order.clear()
        self._disarm()

    @staticmethod
    def _fire(deadline: Deadline) -> bool:
        try:
            return deadline.fire()
        except Exception as problem:  # one that fails must not take the others with it
            asyncio.get_running_loop().call_exception_handler({"message": "a deadline's callback failed", "exception": problem})
            return True

    def _arm(self) -> None:
        first = self._order[0] if self._order else None
        if first == self._armed or self._closed:
            return
        self._disarm()
        if first is not None:
            delay = first * GRANULARITY - self._clock.monotonic()
            self._armed = first
            self._handle = asyncio.get_running_loop().call_later(max(delay, 0.0), self._wake)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._armed = None

    def _wake(self) -> None:
        self._handle = self._armed = None
        self.run()
