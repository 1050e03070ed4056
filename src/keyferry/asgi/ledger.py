# SPDX-License-Identifier: Apache-2.0
"""The use ledger of a door with one process: nonces in memory, first nonces in the key store (DESIGN §7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from keyferry.asgi.nonce import CHANCE, KEYS, Nonces
from keyferry.protocol.crypto.secret import Secret

if TYPE_CHECKING:
    from keyferry.ports import Clock, RandomSource
    from keyferry.protocol.ims.key_record import KeyRecord


@runtime_checkable
class FirstUses(Protocol):
    """A key source whose store remembers first nonces."""

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, once; false if it was taken, or if nobody can know that it was not."""


@runtime_checkable
class Prepares(Protocol):
    """A ledger that has to fetch something before it issues nonces, and here may wait for it; `issue` would hold up the event loop."""

    async def ready(self) -> None:
        """Fetch what is missing. Raises StoreError."""


class LocalLedger:
    """Decide for the one process that has it; a restart makes every nonce stale, and forgets no first nonce."""

    def __init__(
        self, *, scope: str, clock: Clock, random: RandomSource, lifetime: float, keys: int = KEYS, first: FirstUses | None = None
    ) -> None:
        """Take what nonces are bound to, their life in seconds, and who remembers first nonces; None: they are all refused."""
        self._nonces = Nonces(key=Secret(random.octets(32)), scope=scope, lifetime=lifetime, keys=keys)
        self._clock = clock
        self._random = random
        self._first = first

    def issue(self) -> str:
        """Return a new nonce."""
        return self._nonces.issue(self._clock.monotonic(), self._random.octets(CHANCE))

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        """Take a count; true if the nonce grows old. Nothing here waits, so no other request comes between.

        Raises DigestRejected, stale.
        """
        return self._nonces.claim(nonce, record.key_id, count, self._clock.monotonic())

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, in its store."""
        return self._first is not None and await self._first.claim_first(record)
