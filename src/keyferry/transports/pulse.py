# SPDX-License-Identifier: Apache-2.0
"""Notice that this process stood still (SIGSTOP, a machine without time for it): what waited in its sockets is old news (*ours*)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from keyferry.ports import Clock, Log

GRACE: Final = 1.0
"""Seconds after which all that came meanwhile has been read."""


@dataclass(slots=True)
class Pulse:
    """Look at the clock every so often; who takes something from a socket looks, too, as that may come before the timers."""

    clock: Clock
    log: Log
    limit: float  # seconds without a look after which somebody else has been asked what we were asked
    _last: float = field(init=False)
    _until: float = 0.0

    def __post_init__(self) -> None:
        """Begin now."""
        self._last = self.clock.monotonic()

    async def beat(self) -> None:
        """Look at the clock; a few times in `limit` seconds."""
        self.stood_still()

    def stood_still(self) -> bool:
        """Tell whether we did just now, so that what is read may be from before."""
        now = self.clock.monotonic()
        gap, self._last = now - self._last, now
        if gap > self.limit:
            self._until = now + GRACE
            self.log.warning("stood-still", seconds=round(gap, 1))
        return now < self._until
