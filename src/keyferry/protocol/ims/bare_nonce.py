# SPDX-License-Identifier: Apache-2.0
"""Which devices get a nonce without a marker, since theirs is a stack that rejects more than 32 octets (DESIGN §4; *ours*)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeAlias

from keyferry.protocol.identity import Impi, Reg

MAX_SUSPECTS = 50_000  # devices whose last answer failed; a stranger needs so many failures within one retry to hide another's
MAX_KNOWN = 100_000  # devices that answered a bare challenge rightly: only subscribers get here
SUSPECTED_FOR = 600.0  # seconds; a phone tries again within minutes
KNOWN_FOR = 86_400.0  # seconds, DESIGN §4

Device: TypeAlias = tuple[Impi, Reg]


class BareNonces:
    """Remember devices that stated no release and failed over a marker.

    A failure makes one challenge bare. Only a right answer to a bare challenge is remembered, and nobody but the subscriber can give it:
    so a stranger brings about at most a challenge without a marker, for a device that gets no keys anyway.
    """

    def __init__(self, *, suspects: int = MAX_SUSPECTS, known: int = MAX_KNOWN) -> None:
        self._suspects: OrderedDict[Device, float] = OrderedDict()  # until when
        self._known: OrderedDict[Device, float] = OrderedDict()
        self._most = (suspects, known)

    def __len__(self) -> int:
        return len(self._suspects) + len(self._known)

    def failed(self, impi: Impi, reg: Reg, now: float) -> None:
        """Note that a device that stated no release failed over a challenge with a marker."""
        _put(self._suspects, (impi, reg), now + SUSPECTED_FOR, self._most[0])

    def proven(self, impi: Impi, reg: Reg, now: float) -> None:
        """Note that a device answered a bare challenge rightly."""
        _put(self._known, (impi, reg), now + KNOWN_FOR, self._most[1])

    def take(self, impi: Impi, reg: Reg, now: float) -> bool:
        """Tell whether the next challenge of a device that states no release is bare; a failure counts for one challenge."""
        suspected = self._suspects.pop((impi, reg), 0.0)
        known = self._known.get((impi, reg), 0.0)
        if known and known <= now:
            del self._known[impi, reg]
        return max(suspected, known) > now


def _put(held: OrderedDict[Device, float], device: Device, until: float, most: int) -> None:
    held[device] = until
    held.move_to_end(device)
    if len(held) > most:
        held.popitem(last=False)
