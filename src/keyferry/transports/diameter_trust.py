# SPDX-License-Identifier: Apache-2.0
"""Whether a Diameter peer answers what it is asked: watchdogs say only that it lives (RFC 6733 §5.5.4; RFC 3539 §3.4; *ours*)."""

from __future__ import annotations

import math
from typing import Final

TRIAL_FIRST: Final = 30.0
"""Seconds that a peer which left a request unanswered gets no other, while there is one to ask instead; then it gets one."""
TRIAL_MOST: Final = 240.0
"""Seconds, doubled each time: a trial costs one request half of its time."""


class Trust:
    """Of one connection. All times are those of the monotonic clock, in seconds."""

    __slots__ = ("_pause", "_until", "answered_at")

    def __init__(self) -> None:
        self.answered_at = -math.inf  # when an answer came last before another peer was asked for it
        self._until = 0.0
        self._pause = 0.0

    @property
    def doubted(self) -> bool:
        """Whether it has left a request unanswered, and answered none in time since."""
        return self._until > 0.0

    def answered(self, now: float) -> None:
        """Note an answer in time, which ends all doubt; late ones are not noted: who answers everybody too late is no use, either."""
        self.answered_at = now
        self._until = self._pause = 0.0

    def failed(self, now: float) -> None:
        """Note that a request had no answer in its time; those that were sent along with it say nothing new."""
        if now >= self._until:
            self._pause = min(max(TRIAL_FIRST, 2 * self._pause), TRIAL_MOST)
            self._until = now + self._pause

    def holds(self, now: float, waiting: int) -> bool:
        """Tell whether a request may be sent where `waiting` others are: one of them, when the time of doubt is over, is the trial."""
        return not self.doubted or (now >= self._until and not waiting)
