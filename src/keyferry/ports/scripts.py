# SPDX-License-Identifier: Apache-2.0
"""What an HSS keeps for scripts of stock Kamailios that are S-CSCFs (docs/kamailio.md), shared by its processes, over restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi


class GivenVector(NamedTuple):
    """A vector that an S-CSCF has, whose answer was not proven yet."""

    impi: Impi
    xres: Secret
    until: float  # seconds since the epoch


class End(NamedTuple):
    """What was ended at an S-CSCF."""

    place: int  # rising, also where the moments do not
    at: int  # milliseconds since the epoch: registrations that began later are not meant
    impi: Impi


class ScriptStore(Protocol):
    """XRES of vectors with a marker, and registrations that were ended; bounded both."""

    async def keep(self, nonce: str, given: GivenVector, now: float) -> None:
        """Keep a vector durably; drop those whose time is over. Raises StoreError."""

    def given(self, nonce: str) -> GivenVector | None:
        """Return the vector of a nonce, whether or not its time is over. Raises StoreError, SealError."""

    async def take(self, nonce: str) -> bool:
        """Drop a vector; true for one alone of all who try, in whatever process. Raises StoreError."""

    async def forget(self, now: float) -> None:
        """Drop vectors whose time is over, also where none comes after them. Raises StoreError."""

    async def end(self, host: str, impi: Impi, at: int, now: int) -> None:
        """Keep durably that the registrations of a user at an S-CSCF that began before `at` are over (milliseconds). Raises StoreError."""

    def ends(self, host: str, after: int) -> Sequence[End]:
        """Return what was ended at an S-CSCF behind a place, the oldest first; not more than one answer holds. Raises StoreError."""
