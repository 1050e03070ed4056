# SPDX-License-Identifier: Apache-2.0
"""Lines that strangers can cause: the first few of a kind in full, the rest of a minute as one number (*ours*).

Nothing is lost in silence: each one taken is either in full or in exactly one count.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

FULL = 5
"""Lines of one kind in full, a window."""
ALL_FULL = 300
"""Lines in full of all kinds, a window."""
KINDS = 256
"""Kinds told apart in a window, some 400 octets each: an attacker may have more addresses than we have disk."""
WINDOW = 60.0
"""Seconds."""

Kind: TypeAlias = tuple[str, ...]


class Repeated(NamedTuple):
    """What was not told in full."""

    kind: Kind
    number: int
    since: float  # when the first of them came: seconds since the epoch, or whatever `take` was given
    until: float  # and the last


class Repeats:
    """Decide which lines are told in full, and count the others."""

    def __init__(self, *, full: int = FULL, all_full: int = ALL_FULL, kinds: int = KINDS, window: float = WINDOW) -> None:
        self._full = full
        self._all_full = all_full
        self._kinds = kinds
        self._window = window
        self._ends = -math.inf
        self._left = all_full
        self._seen: dict[Kind, _Seen] = {}
        self._counting = False  # something in this window is not in full
        self._over: list[Repeated] = []

    @property
    def next_at(self) -> float:
        """Return when there is something to tell by `over`: a monotonic time, of the past if there is now, or infinity."""
        return -math.inf if self._over else self._ends if self._counting else math.inf

    def take(self, kind: Kind, rest: Kind, at: float, now: float) -> bool:
        """Tell whether this line goes out in full; else it is counted.

        Where too many kinds came it counts as `rest`, of which there are few by nature. `at` is the time that people read,
        `now` is monotonic.
        """
        if now >= self._ends and not self._over:  # else nobody has fetched the last window: this one goes on
            self._turn(now)
        seen = self._seen.get(kind)
        if seen is None and len(self._seen) >= self._kinds:
            kind, seen = rest, self._seen.get(rest)
        if seen is None:
            seen = self._seen[kind] = _Seen()
        if seen.full < self._full and self._left:
            seen.full += 1
            self._left -= 1
            return True
        if not seen.count:
            seen.since = at
        seen.count += 1
        seen.until = at
        self._counting = True
        return False

    def over(self, now: float, *, final: bool = False) -> list[Repeated]:
        """Return the counts of the window that is over, once; `final`: those of the present one, too."""
        if (now >= self._ends and not self._over) or final:
            self._turn(now)
        over, self._over = self._over, []
        return over

    def _turn(self, now: float) -> None:
        self._over += [Repeated(kind, seen.count, seen.since, seen.until) for kind, seen in self._seen.items() if seen.count]
        self._seen.clear()
        self._counting, self._left, self._ends = False, self._all_full, now + self._window


class _Seen:
    """What came of one kind."""

    __slots__ = ("count", "full", "since", "until")

    def __init__(self) -> None:
        self.full = 0
        self.count = 0
        self.since = self.until = 0.0
