# SPDX-License-Identifier: Apache-2.0
"""TCP streams out of captured segments (RFC 9293 §3.4, §3.10.7.4): in order, once, with the holes named."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

MAX_FLOWS: Final = 4_096
"""Directions of connections remembered; the one longest silent goes first."""
MAX_HELD: Final = 128
"""Segments of one direction that wait for one before them; after that the capture has lost it."""
MAX_HELD_OCTETS: Final = 16_000_000
"""Octets that wait in all directions together."""
PATIENCE: Final = 10.0
"""Seconds of capture time after which a missing segment is taken as lost: TCP itself would have sent it again."""

Key = TypeVar("Key", bound=Hashable)
"""What names a direction of a connection."""

_MODULUS = 2**32
_HALF = 2**31


class Segment(NamedTuple):
    """One captured TCP segment."""

    number: int  # of the frame
    at: float  # seconds since the epoch
    sequence: int
    data: bytes
    syn: bool


class Piece(NamedTuple):
    """Octets of a stream in their order."""

    number: int
    at: float
    data: bytes
    gap: bool  # octets before these are missing
    begins: bool  # the first octets after a SYN


@dataclass(slots=True)
class _Flow:
    expected: int | None = None  # sequence number, unwrapped: it does not return to 0
    begins: bool = False
    gap: bool = False
    held: list[tuple[int, int, Segment]] = field(default_factory=list)  # a heap by sequence number


class TcpStreams(Generic[Key]):
    """Put the segments of each direction in order; retransmitted octets come out once. Bounded in flows and octets."""

    def __init__(self) -> None:
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()
        self._held_octets = 0
        self.retransmitted = 0  # segments that brought nothing new
        self.gaps = 0

    @property
    def held_octets(self) -> int:
        """How many octets wait for others before them."""
        return self._held_octets

    def add(self, key: Key, segment: Segment) -> list[Piece]:
        """Take a segment of the direction `key`; return the octets that are in order now."""
        flow = self._flow(key)
        found: list[Piece] = []
        if segment.syn:
            self._began(flow, segment, found)
        if not segment.data:
            return found
        start = self._place(flow, segment)
        if flow.expected is not None and start + len(segment.data) <= flow.expected:
            self.retransmitted += 1
        else:
            heapq.heappush(flow.held, (start, segment.number, segment))
            self._held_octets += len(segment.data)
            self._drain(flow, found)
            while flow.held and self._overdue(flow, segment.at):
                self._skip(flow, found)
        return found

    def finish(self) -> list[tuple[Key, list[Piece]]]:
        """Give out what still waits, with its gaps."""
        left: list[tuple[Key, list[Piece]]] = []
        for key, flow in self._flows.items():
            found: list[Piece] = []
            self._flush(flow, found)
            if found:
                left.append((key, found))
        self._flows.clear()
        return left

    def _flow(self, key: Key) -> _Flow:
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Flow()
            if len(self._flows) > MAX_FLOWS:
                _, oldest = self._flows.popitem(last=False)
                self._held_octets -= sum(len(segment.data) for _, _, segment in oldest.held)
        else:
            self._flows.move_to_end(key)
        return flow

    def _began(self, flow: _Flow, segment: Segment, found: list[Piece]) -> None:
        first = (segment.sequence + 1) % _MODULUS
        if flow.expected is not None and flow.begins and flow.expected % _MODULUS == first:
            return  # the SYN again
        self._flush(flow, found)
        flow.expected, flow.begins, flow.gap = first + _MODULUS, True, False

    @staticmethod
    def _place(flow: _Flow, segment: Segment) -> int:
        """Return the unwrapped sequence number of the first octet."""
        sequence = segment.sequence + 1 if segment.syn else segment.sequence
        if flow.expected is None:  # the capture began in the middle
            flow.expected = sequence + _MODULUS
        return flow.expected + (sequence - flow.expected + _HALF) % _MODULUS - _HALF

    def _drain(self, flow: _Flow, found: list[Piece]) -> None:
        while flow.held and flow.expected is not None and flow.held[0][0] <= flow.expected:
            start, _, segment = heapq.heappop(flow.held)
            self._held_octets -= len(segment.data)
            data = segment.data[flow.expected - start :]
            if not data:
                self.retransmitted += 1
                continue
            found.append(Piece(segment.number, segment.at, data, flow.gap, flow.begins))
            flow.expected += len(data)
            flow.gap = flow.begins = False

    def _overdue(self, flow: _Flow, at: float) -> bool:
        return len(flow.held) > MAX_HELD or self._held_octets > MAX_HELD_OCTETS or at - flow.held[0][2].at > PATIENCE

    def _skip(self, flow: _Flow, found: list[Piece]) -> None:
        flow.expected = flow.held[0][0]
        flow.gap, flow.begins = True, False
        self.gaps += 1
        self._drain(flow, found)

    def _flush(self, flow: _Flow, found: list[Piece]) -> None:
        while flow.held:
            self._skip(flow, found)
