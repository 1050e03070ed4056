# SPDX-License-Identifier: Apache-2.0
"""Time and chance of the machine we run on."""

from __future__ import annotations

import os
import time


class SystemClock:
    """Tell the machine's time: seconds since the epoch, UTC, and seconds that never go back."""

    now = staticmethod(time.time)  # noqa: TID251 - this is the port's one implementation
    monotonic = staticmethod(time.monotonic)


class SystemRandom:
    """Yield as many unpredictable octets as are asked for, from the operating system's generator."""

    octets = staticmethod(os.urandom)
