# SPDX-License-Identifier: Apache-2.0
"""What a SIGHUP means: that somebody wants files read again, or that the terminal of this process was closed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def closing() -> Callable[[], bool]:
    """Return what tells, when SIGHUP has come, whether the terminal that there is now was closed meanwhile.

    A process that was started to ignore SIGHUP, as with nohup, stays when its terminal goes.
    """
    had = _there() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    ours = [number for number in range(3) if os.isatty(number)]

    def closed() -> bool:
        if not had or _there():
            return False
        _let_go(ours)
        return True

    return closed


def _let_go(numbers: list[int]) -> None:
    """Point standard streams away from a terminal that is gone: what is left to write would fail, and with it the exit code."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)


def _there() -> bool:
    """Tell whether this process has a controlling terminal: without one the kernel opens none by this name."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
