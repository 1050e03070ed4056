# SPDX-License-Identifier: Apache-2.0
"""What a key agent's nonces were used for, sealed between a clean end and the next start (DESIGN §3, §7)."""

from __future__ import annotations

import sqlite3

from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring, SealedColumn

SCHEMA = ("CREATE TABLE IF NOT EXISTS nonce_ledger (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, state BLOB NOT NULL)",)
STATE = SealedColumn("nonce_ledger", "state", ("boot",))
_ONLY = 1


class SqliteLedgerStore:
    """Keep one state, which is there to be taken once: whoever has it decides alone what of it is used."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        database.ensure(SCHEMA)
        self._database = database
        self._keyring = keyring

    async def take(self, boot: str) -> bytes | None:
        """Return what was saved in this boot of the machine, and remove it, durably; None after an end that was not clean.

        Raises StoreError, SealError.
        """

        def work(connection: sqlite3.Connection) -> bytes | None:
            rows = connection.execute("SELECT boot, state FROM nonce_ledger").fetchall()
            connection.execute("DELETE FROM nonce_ledger")
            found = [state for of, state in rows if of == boot]
            return bytes(found[0]) if found else None

        sealed = await self._database.write(work)
        return None if sealed is None else STATE.open(self._keyring, sealed, (boot,))

    async def save(self, boot: str, state: bytes) -> None:
        """Store it, durably. Raises StoreError."""
        sealed = STATE.seal(self._keyring, state, (boot,))

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO nonce_ledger (id, boot, state) VALUES (?, ?, ?)", (_ONLY, boot, sealed))

        await self._database.write(work)
