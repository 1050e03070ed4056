# SPDX-License-Identifier: Apache-2.0
"""IP fragments put together (RFC 791 §3.2; RFC 8200 §4.5; RFC 5722)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_DATAGRAM: Final = 65_535
"""Octets of one datagram."""
MAX_PIECES: Final = 128
"""Fragments of one datagram; a full one over a link of 576 octets has 119."""
MAX_WAITING: Final = 512
"""Datagrams that wait for fragments; the oldest goes first."""
MAX_OCTETS: Final = 8_000_000
"""Octets of all that wait."""
LIFETIME: Final = 30.0
"""Seconds of capture time: what Linux waits too."""


class FragmentKey(NamedTuple):
    """What the fragments of one datagram have in common."""

    source: bytes
    target: bytes
    protocol: int
    identification: int


@dataclass(slots=True)
class _Waiting:
    began: float
    pieces: dict[int, bytes] = field(default_factory=dict)
    octets: int = 0
    length: int | None = None  # known once the last fragment is there


class Fragments:
    """Hold fragments until a datagram is whole; bounded in number, octets and time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[FragmentKey, _Waiting] = OrderedDict()
        self._octets = 0
        self.lost = 0  # datagrams given up: fragments that never came, overlap or are impossible

    @property
    def waiting(self) -> int:
        """How many datagrams are not whole."""
        return len(self._waiting)

    def add(self, key: FragmentKey, offset: int, data: bytes, *, more: bool, at: float) -> bytes | None:
        """Take one fragment, `offset` in octets; return the datagram if it is whole now.

        Fragments that overlap are an attack or damage: the datagram is given up (RFC 5722 §3). An exact duplicate is passed over.
        """
        self._expire(at)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(at)
        if offset in waiting.pieces and len(waiting.pieces[offset]) == len(data):
            return None
        if not self._fits(waiting, offset, data, more):
            self._give_up(key)
            return None
        waiting.pieces[offset] = data
        waiting.octets += len(data)
        self._octets += len(data)
        if not more:
            waiting.length = offset + len(data)
        if waiting.length is None or waiting.octets < waiting.length:
            self._bound()
            return None
        whole = _joined(waiting)
        if whole is None:
            self._give_up(key)
        else:
            self._forget(key)
        return whole

    @staticmethod
    def _fits(waiting: _Waiting, offset: int, data: bytes, more: bool) -> bool:
        end = offset + len(data)
        return (
            bool(data)
            and end <= MAX_DATAGRAM
            and offset not in waiting.pieces
            and len(waiting.pieces) < MAX_PIECES
            and (len(data) % 8 == 0 or not more)
            and (waiting.length is None or (more and end <= waiting.length))
        )

    def _expire(self, at: float) -> None:
        while self._waiting:
            key, oldest = next(iter(self._waiting.items()))
            if at - oldest.began <= LIFETIME:
                return
            self._give_up(key)

    def _bound(self) -> None:
        while len(self._waiting) > MAX_WAITING or self._octets > MAX_OCTETS:
            self._give_up(next(iter(self._waiting)))

    def _give_up(self, key: FragmentKey) -> None:
        self.lost += 1
        self._forget(key)

    def _forget(self, key: FragmentKey) -> None:
        self._octets -= self._waiting.pop(key).octets


def _joined(waiting: _Waiting) -> bytes | None:
    expected = 0
    for offset in sorted(waiting.pieces):
        if offset != expected:
            return None
        expected += len(waiting.pieces[offset])
    return b"".join([waiting.pieces[offset] for offset in sorted(waiting.pieces)])
