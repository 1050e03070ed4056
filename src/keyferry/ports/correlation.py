# SPDX-License-Identifier: Apache-2.0
"""Which registration the work at hand belongs to: what the log writes beside every event, and tasks begun meanwhile inherit."""

from __future__ import annotations

from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("keyferry_correlation", default="")


def correlate(correlation: str) -> None:
    """Say which registration the current task works for from now on; "" none in particular."""
    _current.set(correlation)


def correlation() -> str:
    """Return which registration the current task works for, "" if none."""
    return _current.get()
