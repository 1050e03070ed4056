# SPDX-License-Identifier: Apache-2.0
"""The nonces of every AS_ID of a key agent: one nonce key, counts that survive a clean end (DESIGN §7)."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from keyferry.asgi.nonce import CHANCE, Nonces, SavedNonces
from keyferry.errors import SealError, StoreError
from keyferry.ports import Clock, KeyRecord, KeyStore, Log, RandomSource
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.stores.sqlite.ledger import SqliteLedgerStore

_KEY_OCTETS: Final = 32
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _State(NamedTuple):
    key: bytes
    nonces: dict[str, SavedNonces]


@dataclass(slots=True)
class SharedLedger:
    """The UseLedger of one AS_ID, behind the agent's socket."""

    nonces: Nonces
    keys: KeyStore
    clock: Clock
    random: RandomSource
    saved: bool = False  # nothing may be taken any more: the next start would not know of it

    def issue(self) -> str:
        """Return a new nonce."""
        return self.nonces.issue(self.clock.monotonic(), self.random.octets(CHANCE))

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        """Take a count of a nonce; true if the nonce grows old. Nothing here waits. Raises DigestRejected, stale; StoreError."""
        if self.saved:
            raise StoreError("the key agent is ending")
        return self.nonces.claim(nonce, record.key_id, count, self.clock.monotonic())

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, in the key store."""
        return await self.keys.claim_first(record)


class Ledgers:
    """Make a ledger for each AS_ID; `save` at a clean end, so that no client needs to begin again."""

    def __init__(self, key: Secret, ledgers: dict[AsId, SharedLedger], store: SqliteLedgerStore, boot: str) -> None:
        self._key = key
        self.of = ledgers
        self._store = store
        self._boot = boot

    @classmethod
    async def open(
        cls,
        store: SqliteLedgerStore,
        as_ids: Sequence[AsId],
        keys: KeyStore,
        *,
        lifetime: float,
        clock: Clock,
        random: RandomSource,
        log: Log,
    ) -> Ledgers:
        """Go on from the last clean end in this boot of the machine, or begin with a new nonce key. Raises StoreError."""
        boot = boot_id()
        saved = _State(random.octets(_KEY_OCTETS), {})
        try:
            octets = await store.take(boot)
            if octets is not None:
                saved = msgspec.msgpack.decode(octets, type=_State)
        except (SealError, msgspec.DecodeError) as problem:
            log.warning("nonces-unusable", problem=str(problem))
        key = Secret(saved.key)
        ledgers = {}
        for as_id in as_ids:
            nonces = Nonces(key=nonce_key(key, as_id), scope=as_id, lifetime=lifetime)
            if as_id in saved.nonces:
                nonces.restore(saved.nonces[as_id])
            ledgers[as_id] = SharedLedger(nonces, keys, clock, random)
        return cls(key, ledgers, store, boot)

    def key_of(self, as_id: AsId) -> Secret:
        """Return the nonce key of an AS_ID: its workers issue nonces, for no other."""
        return nonce_key(self._key, as_id)

    async def save(self) -> None:
        """Store what was used, sealed; nothing can be claimed any more. Raises StoreError."""
        for ledger in self.of.values():
            ledger.saved = True
        nonces: dict[str, SavedNonces] = {as_id: ledger.nonces.save() for as_id, ledger in self.of.items()}
        await self._store.save(self._boot, msgspec.msgpack.encode(_State(self._key.reveal(), nonces)))


def nonce_key(key: Secret, as_id: AsId) -> Secret:
    """Derive the nonce key of one AS_ID."""
    return Secret(hmac.digest(key.reveal(), b"nonces of " + as_id.encode("ascii"), "sha256"))


def boot_id() -> str:
    """Return what the kernel calls this boot: the monotonic clock means nothing beyond it."""
    return _BOOT_ID.read_text("ascii").strip()
