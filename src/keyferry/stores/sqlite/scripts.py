# SPDX-License-Identifier: Apache-2.0
"""What the HSS keeps for the scripts of Kamailios: XRES sealed until its answer is proven, and whom it has ended (docs/kamailio.md)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from keyferry.ports.scripts import End, GivenVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring, SealedColumn

MAX_GIVEN: Final = 100_000
"""Vectors, 30 MB; the oldest goes, and its 200 lacks rspauth."""
SWEPT: Final = 100
"""Vectors whose time is over that go at a time: what a flood of challenges left would hold up the HSS, all at once."""
MAX_ENDS: Final = 10_000
"""1 MB; the oldest goes, and its key lives to its own end."""
END_LIFE: Final = 3_600_000
"""Milliseconds that an end is told of: an S-CSCF that was away asks when it is back."""
MAX_TOLD: Final = 50
"""Ends in one answer, which has 16,384 octets (kemi/rspauth): an IMPI has 255 at most."""
SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS given_vector (id INTEGER PRIMARY KEY, nonce TEXT NOT NULL UNIQUE, impi TEXT NOT NULL, until REAL NOT NULL,"
    " xres BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS given_vector_until ON given_vector (until)",
    # S-CSCFs ask for what stands behind the last place that they know
    "CREATE TABLE IF NOT EXISTS ended_registration (place INTEGER PRIMARY KEY, host TEXT NOT NULL, impi TEXT NOT NULL,"
    " at INTEGER NOT NULL)",
)
XRES: Final = SealedColumn("given_vector", "xres", ("nonce", "impi", "until"))
_SWEEP: Final = "DELETE FROM given_vector WHERE id IN (SELECT id FROM given_vector WHERE until <= ? LIMIT ?)"


class SqliteScriptStore:
    """Implement ports.ScriptStore."""

    def __init__(self, database: Database, keyring: Keyring, *, max_given: int = MAX_GIVEN) -> None:
        database.ensure(SCHEMA)
        self._database = database
        self._keyring = keyring
        self._max_given = max_given

    async def keep(self, nonce: str, given: GivenVector, now: float) -> None:
        """Keep a vector durably; drop those whose time is over. Raises StoreError."""
        row = (nonce, given.impi, float(given.until))
        sealed = XRES.seal(self._keyring, given.xres.reveal(), row)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(_SWEEP, (now, SWEPT))
            insert = "INSERT OR REPLACE INTO given_vector (nonce, impi, until, xres) VALUES (?, ?, ?, ?) RETURNING id"
            (number,) = connection.execute(insert, (*row, sealed)).fetchone()
            connection.execute("DELETE FROM given_vector WHERE id <= ?", (number - self._max_given,))

        await self._database.write(work)

    def given(self, nonce: str) -> GivenVector | None:
        """Return the vector of a nonce, whether or not its time is over. Raises StoreError, SealError."""
        rows = self._database.read("SELECT xres, impi, until FROM given_vector WHERE nonce = ?", (nonce,))
        if not rows:
            return None
        sealed, impi, until = rows[0]
        return GivenVector(Impi(impi), Secret(XRES.open(self._keyring, sealed, (nonce, impi, until))), until)

    async def take(self, nonce: str) -> bool:
        """Drop a vector; true for one alone of all who try, in whatever process. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM given_vector WHERE nonce = ?", (nonce,)).rowcount == 1

        return await self._database.write(work)

    async def forget(self, now: float) -> None:
        """Drop vectors whose time is over, also where none comes after them; nothing is written where there are none. Raises StoreError."""
        while self._database.read("SELECT 1 FROM given_vector WHERE until <= ? LIMIT 1", (now,)):
            await self._database.write(lambda connection: connection.execute(_SWEEP, (now, SWEPT)))

    async def end(self, host: str, impi: Impi, at: int, now: int) -> None:
        """Keep durably that the registrations of a user at an S-CSCF that began before `at` are over (milliseconds). Raises StoreError."""

        def work(connection: sqlite3.Connection) -> None:
            (last,) = connection.execute("SELECT ifnull(max(place), 0) FROM ended_registration").fetchone()
            place = max(now, last + 1)
            connection.execute("INSERT INTO ended_registration (place, host, impi, at) VALUES (?, ?, ?, ?)", (place, host, impi, at))
            connection.execute(
                "DELETE FROM ended_registration WHERE place < ? OR place <="
                " (SELECT place FROM ended_registration ORDER BY place DESC LIMIT 1 OFFSET ?)",
                (now - END_LIFE, MAX_ENDS),
            )

        await self._database.write(work)

    def ends(self, host: str, after: int) -> Sequence[End]:
        """Return what was ended at an S-CSCF behind a place, the oldest first; not more than one answer holds. Raises StoreError."""
        select = "SELECT place, at, impi FROM ended_registration WHERE place > ? AND host = ? ORDER BY place LIMIT ?"
        return [End(place, at, Impi(impi)) for place, at, impi in self._database.read(select, (after, host, MAX_TOLD))]
