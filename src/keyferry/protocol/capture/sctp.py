# SPDX-License-Identifier: Apache-2.0
"""SCTP data chunks (RFC 9260 §3.3.1): user messages, whole ones and those cut into chunks that follow each other."""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

MAX_ASSOCIATIONS: Final = 1_024
"""Directions of associations remembered."""
MAX_CHUNKS: Final = 256
"""Chunks of one packet; one of 64 kB holds fewer that carry anything."""
MAX_MESSAGE: Final = 262_144
"""Octets of one user message; a Diameter answer with user data has some thousand."""
REMEMBERED: Final = 256
"""Transmission sequence numbers of one direction that are known, so that a retransmission is taken once."""

_DATA = 0
_BEGINS, _ENDS = 2, 1


@dataclass(slots=True)
class _Direction:
    seen: set[int] = field(default_factory=set)
    order: deque[int] = field(default_factory=deque)
    parts: bytearray = field(default_factory=bytearray)
    expected: int | None = None  # TSN of the next part


class SctpMessages:
    """Put the chunks of each direction together."""

    def __init__(self) -> None:
        self._directions: OrderedDict[object, _Direction] = OrderedDict()

    def add(self, key: object, packet: bytes) -> list[bytes]:
        """Take the chunks of one packet, common header included; return the user messages that are whole now.

        What is no chunk ends the packet. A message whose parts do not come one after the other is left out.
        """
        found: list[bytes] = []
        pos = 12
        for _ in range(MAX_CHUNKS):
            if pos + 4 > len(packet):
                break
            kind, flags, length = struct.unpack_from(">BBH", packet, pos)
            if length < 4:
                break
            if kind == _DATA and length >= 16 and pos + length <= len(packet):
                (sequence,) = struct.unpack_from(">I", packet, pos + 4)
                message = self._data(self._direction(key), flags, sequence, packet[pos + 16 : pos + length])
                if message is not None:
                    found.append(message)
            pos += (length + 3) // 4 * 4
        return found

    def _direction(self, key: object) -> _Direction:
        direction = self._directions.get(key)
        if direction is None:
            direction = self._directions[key] = _Direction()
            if len(self._directions) > MAX_ASSOCIATIONS:
                self._directions.popitem(last=False)
        else:
            self._directions.move_to_end(key)
        return direction

    @staticmethod
    def _data(direction: _Direction, flags: int, sequence: int, data: bytes) -> bytes | None:
        if sequence in direction.seen:
            return None
        direction.seen.add(sequence)
        direction.order.append(sequence)
        if len(direction.order) > REMEMBERED:
            direction.seen.discard(direction.order.popleft())
        if flags & _BEGINS:
            direction.parts = bytearray(data)
        elif sequence == direction.expected and len(direction.parts) + len(data) <= MAX_MESSAGE:
            direction.parts += data
        else:
            direction.expected = None
            return None
        if not flags & _ENDS:
            direction.expected = (sequence + 1) % 2**32
            return None
        direction.expected = None
        whole, direction.parts = bytes(direction.parts), bytearray()
        return whole
