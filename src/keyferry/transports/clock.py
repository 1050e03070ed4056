# SPDX-License-Identifier: Apache-2.0
"""Time and chance of the machine we run on."""

from __future__ import annotations

import os
import time


class SystemClock:
    """Tell the machine's time."""

    def now(self) -> float:
        """Return seconds since the epoch, UTC."""
        return time.time()  # noqa: TID251 - this is the port's one implementation

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return time.monotonic()


class SystemRandom:
    """Yield octets of the operating system's generator."""

    def octets(self, count: int) -> bytes:
        """Return `count` unpredictable octets."""
        return os.urandom(count)
