# SPDX-License-Identifier: Apache-2.0
"""Subscribers in SQLite: the HSS's K and OPc sealed (DESIGN §3, §9)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, cast

import msgspec

from keyferry.errors import StoreError
from keyferry.ports import Assignment, DeregistrationReason, OwedTermination, SubscribedImpu, Subscriber, Subscription, ToldEnd
from keyferry.protocol.aka import AkaName
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu
from keyferry.stores.database import Database, Row
from keyferry.stores.sealing import Keyring, SealedColumn

SLICE = 200
"""Rows opened before other tasks get their turn: 3 ms."""
MAX_OPENED = 4_096
"""Rows remembered as opened, 6 MB: an SAR follows its MAR within seconds, and asks for no key."""

SCHEMA = (
    # seq and server_name change with every vector and every registration and say nothing about what K may be used for
    "CREATE TABLE IF NOT EXISTS subscriber ("
    " id INTEGER PRIMARY KEY, impi TEXT NOT NULL UNIQUE, algorithm TEXT NOT NULL, amf BLOB NOT NULL, profile TEXT NOT NULL,"
    " impus TEXT NOT NULL, keys BLOB NOT NULL, seq INTEGER NOT NULL DEFAULT 0, server_name TEXT)",
    # only so that no IMPU has two owners; what counts is the sealed row's impus
    "CREATE TABLE IF NOT EXISTS subscriber_impu (impu TEXT PRIMARY KEY, impi TEXT NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS subscriber_impu_impi ON subscriber_impu (impi)",
    # who comes from the configuration file; of a row that is older than this table nobody knows, so that no file takes it away
    "CREATE TABLE IF NOT EXISTS subscriber_of_file (impi TEXT PRIMARY KEY) WITHOUT ROWID",
    # S-CSCFs that may have registrations of a user: the one that serves, whose reason is NULL, and those to which an RTR is owed;
    # since is when that began, and info what the RTR says to people, or for the one that serves the order of its SAR
    "CREATE TABLE IF NOT EXISTS serving (impi TEXT NOT NULL, server_name TEXT NOT NULL, reason INTEGER, info TEXT NOT NULL,"
    " since REAL NOT NULL, PRIMARY KEY (impi, server_name)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS serving_owed ON serving (server_name, since) WHERE reason IS NOT NULL",
    # the last end that an S-CSCF told of, whose SAR's order is the number; a challenge or a registration takes it away
    "CREATE TABLE IF NOT EXISTS told_end (impi TEXT PRIMARY KEY, server_name TEXT NOT NULL, number TEXT NOT NULL, since REAL NOT NULL)"
    " WITHOUT ROWID",
)
KEYS = SealedColumn("subscriber", "keys", ("impi", "algorithm", "amf", "profile", "impus"))

_COLUMNS = "keys, impi, algorithm, amf, profile, impus"
_SERVING = "(SELECT server_name FROM serving WHERE serving.impi = subscriber.impi AND reason IS NULL)"
_SELECT: Final = f"SELECT server_name, seq, {_COLUMNS} FROM subscriber WHERE impi = ?"  # noqa: S608
_SELECT_SERVED: Final = f"SELECT server_name, {_SERVING}, {_COLUMNS} FROM subscriber WHERE impi = ?"  # noqa: S608
_READ_KEYS: Final = msgspec.msgpack.Decoder(list[bytes | int])
_READ_IMPUS: Final = msgspec.json.Decoder(list[tuple[str, bool]])
_ASSIGNED: Final = (
    "SELECT subscriber.server_name, told_end.server_name, number, since FROM subscriber LEFT JOIN told_end USING (impi) WHERE impi = ?"
)
_ASSIGNMENT: Final = "SELECT server_name, reason, info, since FROM serving WHERE impi = ? ORDER BY since, server_name"


class SqliteSubscriberStore:
    """Implement ports.SubscriberStore."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        database.ensure(SCHEMA)
        self._database = database
        self._keyring = keyring
        self._opened: dict[Impi, tuple[Row, Subscription]] = {}

    async def add(self, subscriber: Subscriber) -> None:
        """Store a new subscriber durably.

        Raises StoreError if the IMPI or an IMPU is taken.
        """
        await self._store(subscriber, "INSERT INTO subscriber (keys, impi, algorithm, amf, profile, impus) VALUES (?, ?, ?, ?, ?, ?)")

    async def replace(self, subscriber: Subscriber) -> None:
        """Store durably, new or not; SEQ and the S-CSCF's name are kept.

        Raises StoreError if an IMPU is another subscriber's.
        """
        await self._store(
            subscriber,
            "INSERT INTO subscriber (keys, impi, algorithm, amf, profile, impus) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (impi) DO UPDATE SET keys = excluded.keys, algorithm = excluded.algorithm, amf = excluded.amf,"
            " profile = excluded.profile, impus = excluded.impus",
        )

    async def _store(self, subscriber: Subscriber, sql: str) -> None:
        row = self._row(subscriber)
        impi = subscriber.impi
        impus = [(subscribed.impu, impi) for subscribed in subscriber.impus]

        def work(connection: sqlite3.Connection) -> None:
            try:
                connection.execute(sql, row)
                connection.execute("DELETE FROM subscriber_impu WHERE impi = ?", (impi,))
                connection.executemany("INSERT INTO subscriber_impu (impu, impi) VALUES (?, ?)", impus)
            except sqlite3.IntegrityError as problem:
                raise StoreError(f"{impi}: the IMPI, or one of its IMPUs, is there already") from problem

        await self._database.write(work)

    async def get(self, impi: Impi) -> Subscriber | None:
        """Return a subscriber.

        Raises SealError if the row was tampered with.
        """
        found = await self.for_vector(impi)
        return None if found is None else found[0]

    async def for_vector(self, impi: Impi) -> tuple[Subscriber, str | None, int] | None:
        """Return a subscriber, the SIP URI of the S-CSCF assigned and SEQ.

        Raises SealError if the row was tampered with.
        """
        rows = self._database.read(_SELECT, (impi,))
        if not rows:
            return None
        server_name, seq, *_ = rows[0]
        return self._open(impi, rows[0][2:]), server_name, seq

    async def subscription(self, impi: Impi) -> Subscription | None:
        """Return what is not secret of a subscriber; a row that is, octet for octet, one that was opened before is not opened again.

        Raises SealError if the row was tampered with.
        """
        rows = self._database.read(_SELECT_SERVED, (impi,))
        if not rows:
            return None
        server_name, serving, *_ = rows[0]
        row = rows[0][2:]
        opened = self._opened.get(impi)
        if opened is None or opened[0] != row:
            self._open(impi, row)
            opened = self._opened[impi]
        impus, profile, _, release, _ = opened[1]
        return Subscription(impus, profile, server_name, release, serving)

    def _open(self, impi: Impi, row: Row) -> Subscriber:
        subscriber = self._subscriber(row)
        self._opened.pop(impi, None)
        if len(self._opened) >= MAX_OPENED:
            del self._opened[next(iter(self._opened))]
        self._opened[impi] = row, Subscription(subscriber.impus, subscriber.profile, None, subscriber.release)
        return subscriber

    async def all(self) -> Sequence[Subscriber]:
        """Return every subscriber, by IMPI."""
        rows = await self._database.scan(f"SELECT {_COLUMNS} FROM subscriber ORDER BY impi")  # noqa: S608
        subscribers: list[Subscriber] = []
        for start in range(0, len(rows), SLICE):
            subscribers.extend(self._subscriber(row) for row in rows[start : start + SLICE])
            await asyncio.sleep(0)
        return subscribers

    async def remove(self, impi: Impi) -> bool:
        """Forget a subscriber; false if there was none."""

        def work(connection: sqlite3.Connection) -> bool:
            connection.execute("DELETE FROM subscriber_impu WHERE impi = ?", (impi,))
            connection.execute("DELETE FROM serving WHERE impi = ?", (impi,))
            connection.execute("DELETE FROM told_end WHERE impi = ?", (impi,))
            connection.execute("DELETE FROM subscriber_of_file WHERE impi = ?", (impi,))
            return connection.execute("DELETE FROM subscriber WHERE impi = ?", (impi,)).rowcount > 0

        return await self._database.write(work)

    async def note_from_file(self, impis: Sequence[Impi]) -> None:
        """Note durably that these subscribers come from the configuration file."""

        def work(connection: sqlite3.Connection) -> None:
            sql = "INSERT OR IGNORE INTO subscriber_of_file SELECT impi FROM subscriber WHERE impi = ?"
            connection.executemany(sql, [(impi,) for impi in impis])

        await self._database.write(work)

    async def from_file(self) -> Collection[Impi]:
        """Return the subscribers that come from the configuration file."""
        return frozenset([Impi(impi) for (impi,) in await self._database.scan("SELECT impi FROM subscriber_of_file")])

    async def of_impu(self, impu: Impu) -> Impi | None:
        """Return whose public identity this is; the caller opens the row itself, which is sealed."""
        rows = self._database.read("SELECT impi FROM subscriber_impu WHERE impu = ?", (impu,))
        return Impi(rows[0][0]) if rows else None

    async def seq(self, impi: Impi) -> int:
        """Return the SEQ up to which values may have been used; 0 for a new subscriber."""
        rows = self._database.read("SELECT seq FROM subscriber WHERE impi = ?", (impi,))
        return int(rows[0][0]) if rows else 0

    async def reserve_seq(self, impi: Impi, seq: int, count: int, *, anew: bool = False) -> int:
        """Reserve `count` SEQ values, durably before it returns, and return the first; other processes may do so at the same time.

        Raises StoreError if there is no such subscriber.
        """

        def work(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT seq FROM subscriber WHERE impi = ?", (impi,)).fetchone()
            if row is None:
                raise StoreError(f"{impi}: no such subscriber")
            first = seq if anew else max(seq, int(row[0]) + 1)
            connection.execute("UPDATE subscriber SET seq = ? WHERE impi = ?", (first + count - 1, impi))
            return first

        return await self._database.write(work)

    async def server_name(self, impi: Impi) -> str | None:
        """Return the SIP URI of the S-CSCF assigned, if any."""
        rows = self._database.read("SELECT server_name FROM subscriber WHERE impi = ?", (impi,))
        return cast("str | None", rows[0][0]) if rows else None

    async def set_server_name(self, impi: Impi, name: str | None) -> None:
        """Assign or clear the S-CSCF.

        Raises StoreError if there is no such subscriber.
        """

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute("UPDATE subscriber SET server_name = ? WHERE impi = ?", (name, impi)).rowcount == 0:
                raise StoreError(f"{impi}: no such subscriber")

        await self._database.write(work)

    async def assignment(self, impi: Impi) -> Assignment:
        """Return which S-CSCFs have to do with a user."""
        assigned = self._database.read(_ASSIGNED, (impi,))
        return _assignment(assigned[0], self._database.read(_ASSIGNMENT, (impi,))) if assigned else Assignment()

    async def reassign(self, impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
        """Change that durably, and return what it was and what it is; processes take turns, by SQLite's lock.

        Raises StoreError if there is no such subscriber.
        """

        def work(connection: sqlite3.Connection) -> tuple[Assignment, Assignment]:
            row = connection.execute(_ASSIGNED, (impi,)).fetchone()
            if row is None:
                raise StoreError(f"{impi}: no such subscriber")
            before = _assignment(row, connection.execute(_ASSIGNMENT, (impi,)).fetchall())
            after = change(before)
            if after.server_name != before.server_name:
                connection.execute("UPDATE subscriber SET server_name = ? WHERE impi = ?", (after.server_name, impi))
            if after.ended != before.ended:
                _keep_end(connection, impi, after.ended)
            if after[1:-1] != before[1:-1]:
                connection.execute("DELETE FROM serving WHERE impi = ?", (impi,))
                rows: list[Row] = [(impi, each.server_name, int(each.reason), each.info, each.since) for each in after.owed]
                if after.serving is not None:
                    rows.append((impi, after.serving, None, str(after.order or ""), after.since))
                connection.executemany("INSERT INTO serving (impi, server_name, reason, info, since) VALUES (?, ?, ?, ?, ?)", rows)
            return before, after

        return await self._database.write(work)

    async def owing(self) -> Mapping[str, float]:
        """Return the S-CSCFs for which there are RTRs, each with the time of the oldest."""
        sql = "SELECT server_name, MIN(since) FROM serving WHERE reason IS NOT NULL GROUP BY server_name"
        return dict(await self._database.scan(sql))

    async def owed_to(self, server_name: str, limit: int) -> Sequence[tuple[Impi, OwedTermination]]:
        """Return the oldest RTRs for an S-CSCF."""
        sql = "SELECT impi, reason, info, since FROM serving WHERE server_name = ? AND reason IS NOT NULL ORDER BY since LIMIT ?"
        rows = self._database.read(sql, (server_name, limit))
        return [(Impi(impi), OwedTermination(server_name, DeregistrationReason(reason), *rest)) for impi, reason, *rest in rows]

    async def forget_owed(self, until: float) -> int:
        """Drop the RTRs that are from before; return how many."""

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM serving WHERE reason IS NOT NULL AND since < ?", (until,)).rowcount

        return await self._database.write(work)

    def _row(self, subscriber: Subscriber) -> Row:
        impus = msgspec.json.encode([(subscribed.impu, subscribed.barred) for subscribed in subscriber.impus]).decode()
        values = (subscriber.impi, subscriber.algorithm, subscriber.amf, subscriber.profile, impus)
        # The release decides whether a proxy gets raw keys, so it is under the seal; a row of before it was there has two values.
        release = () if subscriber.release is None else (subscriber.release,)
        keys = msgspec.msgpack.encode((subscriber.k.reveal(), subscriber.opc.reveal(), *release))
        return (KEYS.seal(self._keyring, keys, values), *values)

    def _subscriber(self, row: Row) -> Subscriber:
        sealed, *values = row
        k, opc, *release = _READ_KEYS.decode(KEYS.open(self._keyring, sealed, values))
        impi, algorithm, amf, profile, impus = values
        return Subscriber(
            impi=Impi(impi),
            impus=tuple([SubscribedImpu(Impu(impu), barred) for impu, barred in _READ_IMPUS.decode(impus)]),
            algorithm=cast("AkaName", algorithm),
            k=Secret(cast("bytes", k)),
            opc=Secret(cast("bytes", opc)),
            amf=amf,
            profile=profile,
            release=cast("int", release[0]) if release else None,
        )


def _keep_end(connection: sqlite3.Connection, impi: Impi, end: ToldEnd | None) -> None:
    connection.execute("DELETE FROM told_end WHERE impi = ?", (impi,))
    if end is not None:
        values = (impi, end.server_name, str(end.order), end.since)
        connection.execute("INSERT INTO told_end (impi, server_name, number, since) VALUES (?, ?, ?, ?)", values)


def _assignment(assigned: Row, rows: Sequence[Row]) -> Assignment:
    server_name, ended_at, number, ended_since = assigned
    ended = None if ended_at is None else ToldEnd(ended_at, int(number), ended_since)
    serving, order, since = next(((name, info, since) for name, reason, info, since in rows if reason is None), (None, "", 0.0))
    owed = [OwedTermination(name, DeregistrationReason(reason), info, since) for name, reason, info, since in rows if reason is not None]
    return Assignment(server_name, serving, tuple(owed), int(order or 0), since, ended)
