# SPDX-License-Identifier: Apache-2.0
"""Registrations and the pushes they owe in SQLite: the S-CSCF's K_M sealed (DESIGN §3, §5, §6)."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import Sequence

import msgspec

from keyferry.errors import SealError
from keyferry.ports import AsStore, OwedEnd, PendingPush, Registration, ServerAssignment
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.user_profile import identities_of
from keyferry.stores.database import Database, Row, octets, text
from keyferry.stores.sealing import Keyring, SealedColumn

SLICE = 200
"""Rows opened before other tasks get their turn: 3 ms."""
MAX_DEVICES = 1_000
"""Registrations of one IMPI that are returned; the S-CSCF admits far fewer."""
MAX_ENDS = 100_000
"""Ends that the HSS is owed, 100 octets each; the oldest goes. Of them the HSS learns with the user's next REGISTER."""
FIRST_DATED = 10**8
"""An `owed_end.id` above this is milliseconds since the epoch; earlier versions counted from 1."""
SEQ_MEMORY_MS = 10 * 86_400_000
"""A seq is at least the clock's milliseconds (DESIGN §6), so one this much older than the newest need not be remembered:
the AS's tombstone (seven days and an hour) is over, and the clock alone makes the next one higher."""

_FIELDS = "impi, reg, impu, contact, path, call_id, cseq, realm, expires_at, aka_time, key_not_before, release, user_data"
SCHEMA = (
    # what the UE sent is stored as octets: it may be no UTF-8
    "CREATE TABLE IF NOT EXISTS registration ("
    " id INTEGER PRIMARY KEY, impi TEXT NOT NULL, reg TEXT NOT NULL, impu TEXT NOT NULL, contact BLOB NOT NULL, path BLOB NOT NULL,"
    " call_id BLOB NOT NULL, cseq INTEGER NOT NULL, realm TEXT NOT NULL, expires_at REAL NOT NULL, aka_time REAL NOT NULL,"
    " key_not_before REAL NOT NULL, release INTEGER, user_data BLOB NOT NULL, k_m BLOB NOT NULL, body_id INTEGER NOT NULL,"
    " UNIQUE (impi, reg))",
    "CREATE INDEX IF NOT EXISTS registration_expires_at ON registration (expires_at)",
    # apart from the row, for a refresh brings it again; devices of one IMPI share it. registration.user_data is its SHA-256
    "CREATE TABLE IF NOT EXISTS user_data (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    # whose an identity is; it comes and goes with the user data that name it
    "CREATE TABLE IF NOT EXISTS identity (impu TEXT NOT NULL, body_id INTEGER NOT NULL, PRIMARY KEY (impu, body_id)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS identity_body_id ON identity (body_id)",
    "CREATE INDEX IF NOT EXISTS registration_body_id ON registration (body_id)",
    # a row outlives its push, for its seq; only a start looks for those owed, and then through the whole table
    "CREATE TABLE IF NOT EXISTS push ("
    " impi TEXT NOT NULL, reg TEXT NOT NULL, as_id TEXT NOT NULL, server_name TEXT NOT NULL, seq INTEGER NOT NULL, owed INTEGER NOT NULL,"
    " erase INTEGER NOT NULL, impu TEXT NOT NULL, give_up_at REAL NOT NULL, PRIMARY KEY (impi, reg, as_id, server_name)) WITHOUT ROWID",
    # ends of users' last registrations that the HSS is still to be told of, the oldest first: id is at least the milliseconds of the clock
    "CREATE TABLE IF NOT EXISTS owed_end ("
    " id INTEGER PRIMARY KEY, impi TEXT NOT NULL UNIQUE, impu TEXT NOT NULL, assignment INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS as_store ("
    " server_name TEXT NOT NULL, as_id TEXT NOT NULL, store_id TEXT NOT NULL, place INTEGER, PRIMARY KEY (server_name, as_id)"
    ") WITHOUT ROWID",
)
_NO_K_M = b"none"  # not empty: OpenSSL's SIV has not always taken that; a K_M has 32 octets
_READ_PATH = msgspec.msgpack.Decoder(list[bytes])
K_M = SealedColumn("registration", "k_m", tuple(_FIELDS.split(", ")))

_SELECT = f"SELECT k_m, {_FIELDS}, body FROM registration LEFT JOIN user_data ON user_data.id = body_id"  # noqa: S608
_ONE = f"{_SELECT} WHERE impi = ? AND reg = ?"
_OF_IMPI = f"{_SELECT} WHERE impi = ? ORDER BY reg LIMIT ?"
_AT = f"{_SELECT} WHERE registration.id = ?"
_NEW_VALUES = ", ".join(f"{field} = excluded.{field}" for field in ("k_m", "body_id", *K_M.bound[2:]))
_PLACES = ", ".join("?" for _ in ("k_m", "body_id", *K_M.bound))
_UPSERT = f"INSERT INTO registration (k_m, body_id, {_FIELDS}) VALUES ({_PLACES}) ON CONFLICT (impi, reg) DO UPDATE SET {_NEW_VALUES}"  # noqa: S608
_UPSERT_PUSH = (
    "INSERT INTO push (impi, reg, as_id, server_name, seq, owed, erase, impu, give_up_at) VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?)"
    " ON CONFLICT (impi, reg, as_id, server_name) DO UPDATE SET seq = excluded.seq, owed = 1, erase = excluded.erase,"
    " impu = excluded.impu, give_up_at = excluded.give_up_at WHERE excluded.seq >= seq"
)


class SqliteRegistrationStore:
    """Implement ports.RegistrationStore."""

    def __init__(self, database: Database, keyring: Keyring) -> None:
        database.ensure(SCHEMA)
        self._database = database
        self._keyring = keyring

    async def commit(self, registration: Registration, pushes: Sequence[PendingPush]) -> None:
        """Replace the registration of (impi, reg) and, per (impi, as_id, server_name, reg), the push owed; durable when it returns."""
        await self.commit_all([registration], pushes)

    async def commit_all(self, registrations: Sequence[Registration], pushes: Sequence[PendingPush]) -> None:
        """Do so with several registrations and all that they owe, all or none."""
        rows = [(registration, self._row(registration)) for registration in registrations]
        owed = [_push_row(push) for push in pushes]

        def work(connection: sqlite3.Connection) -> None:
            for registration, (k_m, *values) in rows:
                body_id = _keep_body(connection, registration, values[-1])
                connection.execute(_UPSERT, (k_m, body_id, *values))
            connection.executemany(_UPSERT_PUSH, owed)

        await self._database.write(work)

    async def remove(self, impi: Impi, reg: Reg, pushes: Sequence[PendingPush], end: OwedEnd | None = None) -> None:
        """Remove the registration, replace the pushes owed, and owe the HSS `end` if the user has no other; durable when it returns."""
        owed = [_push_row(push) for push in pushes]
        forget_below = max((push.seq for push in pushes), default=0) - SEQ_MEMORY_MS

        def work(connection: sqlite3.Connection) -> None:
            removed = connection.execute("DELETE FROM registration WHERE impi = ? AND reg = ? RETURNING body_id", (impi, reg)).fetchall()
            for (body_id,) in removed:
                _drop_body(connection, impi, body_id)
            connection.execute("DELETE FROM push WHERE impi = ? AND owed = 0 AND seq < ?", (impi, forget_below))
            connection.executemany(_UPSERT_PUSH, owed)
            if end is not None:
                _owe_end(connection, end)

        await self._database.write(work)

    async def owed_ends(self) -> Sequence[OwedEnd]:
        """Return what the HSS is still to be told, the oldest first."""
        rows = await self._database.scan("SELECT impi, impu, assignment, id FROM owed_end ORDER BY id")
        return [OwedEnd(Impi(impi), Impu(impu), ServerAssignment(kind), _since(place)) for impi, impu, kind, place in rows]

    async def owe_end(self, end: OwedEnd) -> None:
        """Owe the HSS an end if the user has no registration; durable when it returns."""
        await self._database.write(lambda connection: _owe_end(connection, end))

    async def forget_ends(self, until: float) -> int:
        """Drop the ends that are owed since before `until`, as far as that is known; return how many."""
        bounds = FIRST_DATED, int(until * 1000)
        sql = "DELETE FROM owed_end WHERE id > ? AND id < ?"
        return await self._database.write(lambda connection: connection.execute(sql, bounds).rowcount)

    async def end_told(self, impi: Impi) -> None:
        """Owe the HSS no end of this user's; durable when it returns."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM owed_end WHERE impi = ?", (impi,))

        await self._database.write(work)

    async def get(self, impi: Impi, reg: Reg) -> Registration | None:
        """Return one registration, expired or not.

        Raises SealError if the row was tampered with.
        """
        rows = self._database.read(_ONE, (impi, reg))
        return self._registration(rows[0]) if rows else None

    async def of_impi(self, impi: Impi) -> Sequence[Registration]:
        """Return every device's registration, by reg.

        Raises SealError if a row was tampered with.
        """
        rows = self._database.read(_OF_IMPI, (impi, MAX_DEVICES))
        return [self._registration(row) for row in rows]

    async def impis(self, after: str, limit: int) -> Sequence[Impi]:
        """Return whose registrations there are, sorted, above `after` ("": all); at most `limit`, by the index alone."""
        rows = self._database.read("SELECT DISTINCT impi FROM registration WHERE impi > ? ORDER BY impi LIMIT ?", (after, limit))
        return [Impi(impi) for (impi,) in rows]

    async def of_impu(self, impu: Impu) -> Impi | None:
        """Return whose registrations name a public identity; None where nobody's do."""
        rows = self._database.read(
            "SELECT impi FROM identity JOIN registration ON registration.body_id = identity.body_id WHERE identity.impu = ? LIMIT 1",
            (impu,),
        )
        return Impi(rows[0][0]) if rows else None

    async def expired(self, now: float, limit: int = 1000) -> Sequence[Registration]:
        """Return registrations whose time is over, the oldest first.

        Raises SealError if none of them opens; a single one that was tampered with must not keep the others alive.
        """
        registrations: list[Registration] = []
        problem: SealError | None = None
        ids = self._database.read("SELECT id FROM registration WHERE expires_at <= ? ORDER BY expires_at, id LIMIT ?", (now, limit))
        for place, identifier in enumerate(ids, 1):
            if place % SLICE == 0:
                await asyncio.sleep(0)
            try:
                registrations.extend(map(self._registration, self._database.read(_AT, identifier)))
            except SealError as error:
                problem = error
        if problem is not None and not registrations:
            raise problem
        return registrations

    async def delivered(self, push: PendingPush) -> None:
        """Note that the AS answered 2xx; a later push of the same set stays owed."""
        arguments = (push.impi, push.reg, push.as_id, push.server_name, push.seq)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE push SET owed = 0 WHERE impi = ? AND reg = ? AND as_id = ? AND server_name = ? AND seq <= ? AND owed = 1", arguments
            )

        await self._database.write(work)

    async def pending(self) -> Sequence[PendingPush]:
        """Return every push owed, at start-up."""
        rows = await self._database.scan(
            "SELECT impi, as_id, reg, seq, erase, server_name, impu, give_up_at FROM push WHERE owed = 1 ORDER BY seq"
        )
        return [
            PendingPush(Impi(impi), AsId(as_id), Reg(reg), seq, bool(erase), server_name, Impu(impu), give_up_at)
            for impi, as_id, reg, seq, erase, server_name, impu, give_up_at in rows
        ]

    async def last_seq(self, impi: Impi, as_id: AsId, reg: Reg) -> int:
        """Return the highest seq ever stored for this set, 0 if none."""
        rows = self._database.read("SELECT max(seq) FROM push WHERE impi = ? AND reg = ? AND as_id = ?", (impi, reg, as_id))
        return int(rows[0][0] or 0)

    async def walk(self, after: int, limit: int) -> Sequence[tuple[int, Impi, Reg]]:
        """Return registrations and their places, by place, above the place `after` (0: all); one that is renewed keeps its place."""
        rows = self._database.read("SELECT id, impi, reg FROM registration WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [(place, Impi(impi), Reg(reg)) for place, impi, reg in rows]

    async def as_stores(self) -> Sequence[AsStore]:
        """Return what was last heard of every AS."""
        rows = self._database.read("SELECT server_name, as_id, store_id, place FROM as_store ORDER BY server_name, as_id")
        return [AsStore(server_name, AsId(as_id), store_id, place) for server_name, as_id, store_id, place in rows]

    async def keep_as_store(self, store: AsStore) -> None:
        """Replace what was heard of (server_name, as_id); durable when it returns."""
        arguments = (store.server_name, store.as_id, store.store_id, store.place)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO as_store (server_name, as_id, store_id, place) VALUES (?, ?, ?, ?)", arguments)

        await self._database.write(work)

    async def count(self) -> int:
        """Return the number of registrations."""
        rows = await self._database.scan("SELECT count(*) FROM registration")
        return int(rows[0][0])

    def _row(self, registration: Registration) -> Row:
        values = (
            registration.impi,
            registration.reg,
            registration.impu,
            octets(registration.contact),
            msgspec.msgpack.encode([octets(entry) for entry in registration.path]),
            octets(registration.call_id),
            registration.cseq,
            registration.realm,
            float(registration.expires_at),
            float(registration.aka_time),
            float(registration.key_not_before),
            registration.release,
            hashlib.sha256(registration.user_data).digest(),
        )
        # a registration without K_M is sealed too, so that no K_M can be given to it and no field changed
        k_m = _NO_K_M if registration.k_m is None else registration.k_m.reveal()
        return (K_M.seal(self._keyring, k_m, values), *values)

    def _registration(self, row: Row) -> Registration:
        sealed, *values, body = row
        k_m = K_M.open(self._keyring, sealed, values)
        impi, reg, impu, contact, path, call_id, cseq, realm, expires_at, aka_time, key_not_before, release, digest = values
        if body is None or hashlib.sha256(body).digest() != digest:
            raise SealError("registration.user_data: is missing or was changed")
        return Registration(
            impi=Impi(impi),
            reg=Reg(reg),
            impu=Impu(impu),
            contact=text(contact),
            path=tuple([text(entry) for entry in _READ_PATH.decode(path)]),
            call_id=text(call_id),
            cseq=cseq,
            realm=realm,
            expires_at=expires_at,
            aka_time=aka_time,
            key_not_before=key_not_before,
            release=release,
            k_m=None if k_m == _NO_K_M else Secret(k_m),
            user_data=body,
        )


def _keep_body(connection: sqlite3.Connection, registration: Registration, digest: bytes) -> int | None:
    """Return where the user data are stored: where this IMPI has them already, or a new place."""
    impi = registration.impi
    old = connection.execute("SELECT reg, user_data, body_id FROM registration WHERE impi = ?", (impi,)).fetchall()
    for _, old_digest, body_id in old:
        if old_digest == digest:
            place: int | None = body_id
            break
    else:
        place = connection.execute("INSERT INTO user_data (body) VALUES (?)", (registration.user_data,)).lastrowid
        impus = {registration.impu, *identities_of(registration.user_data)}
        connection.executemany("INSERT INTO identity (impu, body_id) VALUES (?, ?)", [(impu, place) for impu in impus])
    for reg, _, body_id in old:
        if reg == registration.reg and body_id != place and sum(other == body_id for _, _, other in old) == 1:
            connection.execute("DELETE FROM user_data WHERE id = ?", (body_id,))
            connection.execute("DELETE FROM identity WHERE body_id = ?", (body_id,))
    return place


def _drop_body(connection: sqlite3.Connection, impi: Impi, body_id: int) -> None:
    """Delete user data that no other device of the IMPI has."""
    if connection.execute("SELECT 1 FROM registration WHERE impi = ? AND body_id = ?", (impi, body_id)).fetchone() is None:
        connection.execute("DELETE FROM user_data WHERE id = ?", (body_id,))
        connection.execute("DELETE FROM identity WHERE body_id = ?", (body_id,))


def _owe_end(connection: sqlite3.Connection, end: OwedEnd) -> None:
    if connection.execute("SELECT 1 FROM registration WHERE impi = ? LIMIT 1", (end.impi,)).fetchone() is not None:
        return
    connection.execute(
        "INSERT OR REPLACE INTO owed_end (id, impi, impu, assignment)"
        " VALUES (max(?, 1 + coalesce((SELECT max(id) FROM owed_end), 0)), ?, ?, ?)",
        (int(end.since * 1000), end.impi, end.impu, int(end.assignment)),
    )
    connection.execute("DELETE FROM owed_end WHERE id <= (SELECT id FROM owed_end ORDER BY id DESC LIMIT 1 OFFSET ?)", (MAX_ENDS,))


def _since(place: int) -> float:
    """Return when an end was owed, 0 for a row that is older than this use of its id."""
    return place / 1000 if place > FIRST_DATED else 0.0


def _push_row(push: PendingPush) -> Row:
    return (push.impi, push.reg, push.as_id, push.server_name, push.seq, int(push.erase), push.impu, push.give_up_at)
