# SPDX-License-Identifier: Apache-2.0
"""When subscriptions want to be looked at: one time each, moved without cost (RFC 6665 §4.1.2, §4.2.1)."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=str)


class Agenda(Generic[Key]):
    """Keep one time, in seconds, per key."""

    __slots__ = ("_heap", "_times")

    def __init__(self) -> None:
        self._times: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def __len__(self) -> int:
        return len(self._times)

    def put(self, key: Key, when: float) -> None:
        """Set the time of a key."""
        self._times[key] = when
        heapq.heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._times) + 16:  # times that were moved again and again: the memory stays bounded
            self._heap = [(time, each) for each, time in self._times.items()]
            heapq.heapify(self._heap)

    def drop(self, key: Key) -> None:
        """Forget a key."""
        self._times.pop(key, None)

    def due(self, now: float, limit: int) -> list[Key]:
        """Take out at most `limit` keys whose time has come, the earliest first."""
        found: list[Key] = []
        while self._heap and self._heap[0][0] <= now and len(found) < limit:
            when, key = heapq.heappop(self._heap)
            if self._times.get(key) == when:
                del self._times[key]
                found.append(key)
        return found
