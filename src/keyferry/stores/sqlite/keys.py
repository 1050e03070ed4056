# SPDX-License-Identifier: Apache-2.0
"""Pushed keys in SQLite: the K_AS of one device sealed in one row (DESIGN §3, §6, §7)."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from keyferry.errors import SealError
from keyferry.ports import KeyRecord
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims.keypush import MAX_KEY_LIFE, SKEW, HeldKey, HeldSet, Owner, Push, PushOutcome, after_use, erased, receive, valid
from keyferry.stores.database import Database, Row
from keyferry.stores.sealing import Keyring, SealedColumn

MAX_CACHED = 50_000
"""Unsealed keys in memory, about 1 kB each: those in use, not those stored."""
SLICE = 100
"""Sets that one transaction of a sweep handles: 5 ms."""

_FIELDS = "pusher, impi, as_id, reg, seq, impus, service_info, tombstone_until"
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS held_set ("
    " id INTEGER PRIMARY KEY, pusher TEXT NOT NULL, impi TEXT NOT NULL, as_id TEXT NOT NULL, reg TEXT NOT NULL, seq INTEGER NOT NULL,"
    " impus TEXT NOT NULL, service_info TEXT, tombstone_until REAL NOT NULL, keys BLOB NOT NULL, UNIQUE (impi, reg, as_id, pusher))",
    "CREATE INDEX IF NOT EXISTS held_set_tombstone_until ON held_set (tombstone_until)",
    # the two tables below only lead to sets: what they say counts only if the sealed row says it too
    "CREATE TABLE IF NOT EXISTS held_key ("
    " key_id TEXT PRIMARY KEY, set_id INTEGER NOT NULL, starts REAL NOT NULL, ends REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS held_key_ends ON held_key (ends)",
    "CREATE TABLE IF NOT EXISTS held_impu ("
    " pusher TEXT NOT NULL, impu TEXT NOT NULL, set_id INTEGER NOT NULL, PRIMARY KEY (pusher, impu, set_id)) WITHOUT ROWID",
    # the name of this store: one that was lost and made again has another
    "CREATE TABLE IF NOT EXISTS key_store (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
    "INSERT INTO key_store (one, id) SELECT 1, lower(hex(randomblob(12))) WHERE NOT EXISTS (SELECT 1 FROM key_store)",
    # when this store began to note first nonces; of an older file, when it was first opened by a keyferry that does
    "CREATE TABLE IF NOT EXISTS key_store_began (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS first_nonce (key_id TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS first_nonce_until ON first_nonce (until)",
)
_BEGAN = "INSERT INTO key_store_began (one, at) SELECT 1, {} WHERE NOT EXISTS (SELECT 1 FROM key_store_began)"
_SYSTEM_TIME = "(julianday('now') - 2440587.5) * 86400.0"
KEYS = SealedColumn("held_set", "keys", tuple(_FIELDS.split(", ")))

_SELECT = f"SELECT held_set.id, keys, {_FIELDS} FROM held_set"  # noqa: S608
_BY_KEY = f"SELECT id, keys, {_FIELDS} FROM held_key JOIN held_set ON id = set_id WHERE key_id = ?"  # noqa: S608
_BY_IMPU = f"{_SELECT} WHERE id IN (SELECT set_id FROM held_impu WHERE pusher = ? AND impu = ?)"  # noqa: S608
_READ_KEYS = msgspec.msgpack.Decoder(list[tuple[str, bytes, int, int, float | None]])
_READ_IMPUS = msgspec.json.Decoder(list[str])


class _Place(NamedTuple):
    """A set and where it is stored."""

    id: int
    held: HeldSet


class _Cached(NamedTuple):
    """An unsealed key as it is handed out, if it is valid then; `alone` if its set holds no superseded one."""

    record: KeyRecord
    key: HeldKey
    alone: bool


class KeySpan(NamedTuple):
    """The valid keys of one application server, and seconds since the AKA runs of the oldest and the youngest."""

    keys: int
    oldest: float
    youngest: float


class SqliteKeyStore:
    """Implement ports.KeyStore."""

    def __init__(
        self, database: Database, keyring: Keyring, *, max_cached: int = MAX_CACHED, now: float | None = None, skew: float = SKEW,
        changed: Callable[[Sequence[KeyId]], None] | None = None,
    ) -> None:  # fmt: skip
        """Take what a new store calls its beginning, else the system's time, and how many seconds a pusher's clock may be ahead of it.

        A first nonce counts only for a key that is younger than the store by more than `skew`: 0 for pushers of the same machine.
        `changed` is told of every key that this process changed, when that is durable and before whoever asked for it is answered.
        """
        database.ensure((*SCHEMA, _BEGAN.format(_SYSTEM_TIME if now is None else repr(float(now)))))
        self._database = database
        self._keyring = keyring
        self._max_cached = max_cached
        self._cache: OrderedDict[KeyId, _Cached] = OrderedDict()
        self._changed = changed
        self._generation = 0  # of the database's other writers, when the cache was begun
        self._store_id = ""
        self._skew = skew
        self._began: float | None = None

    @property
    def store_id(self) -> str:
        """A random name that the store got when it was made: after a loss there is another. Raises StoreError."""
        if not self._store_id:
            self._store_id = str(self._database.read("SELECT id FROM key_store")[0][0])
        return self._store_id

    async def apply(self, push: Push, *, pusher: str, realm: str, now: float) -> PushOutcome:
        """Decide by `keypush.receive` and store in one transaction; durable when it returns.

        Raises PushRefused.
        """
        touched: list[KeyId] = []

        def work(connection: sqlite3.Connection) -> PushOutcome:
            rows = connection.execute(
                f"{_SELECT} WHERE impi = ? AND reg = ? AND as_id = ? AND pusher = ?", (push.impi, push.reg, push.as_id, pusher)
            ).fetchall()
            place = self._place(rows[0]) if rows else None
            held = place.held if place is not None else None
            outcome = receive(held, push, pusher=pusher, realm=realm, now=now, owner_of=lambda key_id: _owner(connection, key_id))
            if outcome.held is not held:
                self._store(connection, place, outcome.held, touched)
            return outcome

        return await self._database.write(work, after=lambda: self._forget(touched))

    async def erase_impu(self, pusher: str, impu: Impu, as_ids: Sequence[AsId], now: float) -> int:
        """Erase every key of that pusher whose IMPUs hold `impu` (a body-less Expires 0); return how many."""
        del now  # what is over is erased too
        touched: list[KeyId] = []

        def work(connection: sqlite3.Connection) -> int:
            count = 0
            rows = connection.execute(_BY_IMPU, (pusher, impu)).fetchall()
            for place in map(self._place, rows):
                if place.held.pusher == pusher and place.held.as_id in as_ids and impu in place.held.impus:
                    count += len(place.held.keys)
                    self._store(connection, place, erased(place.held), touched)
            return count

        return await self._database.write(work, after=lambda: self._forget(touched))

    async def lookup(self, key_id: KeyId, as_id: AsId, now: float) -> KeyRecord | None:
        """Return a key valid at `now`.

        Raises SealError if its row was tampered with.
        """
        return self.lookup_now(key_id, as_id, now)

    def lookup_now(self, key_id: KeyId, as_id: AsId, now: float) -> KeyRecord | None:
        """Do the same at once: one read by an index, or none.

        Raises SealError.
        """
        cached = self._cached(key_id)
        return cached.record if cached is not None and cached.record.as_id == as_id and valid(cached.key, now) else None

    async def claim_first(self, record: KeyRecord) -> bool:
        """Insert if absent; the claim outlives every push of the key, however late and with whatever lifetime. Raises StoreError."""
        if self._began is None:
            self._began = float(self._database.read("SELECT at FROM key_store_began")[0][0])
        if record.not_before < self._began + self._skew:
            return False
        until = record.not_before + MAX_KEY_LIFE + SKEW

        def work(connection: sqlite3.Connection) -> bool:
            if connection.execute("SELECT 1 FROM held_key WHERE key_id = ?", (record.key_id,)).fetchone() is None:
                return False  # it was erased meanwhile
            sql = "INSERT OR IGNORE INTO first_nonce (key_id, until) VALUES (?, ?)"
            return connection.execute(sql, (record.key_id, until)).rowcount == 1

        return await self._database.write(work)

    async def used(self, record: KeyRecord, now: float) -> None:
        """End the superseded keys of the record's device if the record itself is not superseded."""
        cached = self._cached(record.key_id)
        if cached is None or cached.alone or record.superseded:
            return
        touched: list[KeyId] = []

        def work(connection: sqlite3.Connection) -> None:
            for place in map(self._place, connection.execute(_BY_KEY, (record.key_id,)).fetchall()):
                left = after_use(place.held, record.key_id, now)
                if left is not place.held:
                    self._store(connection, place, left, touched)

        await self._database.write(work, after=lambda: self._forget(touched))

    async def count(self, now: float, as_id: AsId | None = None) -> int:
        """Return the number of keys valid at `now`, of one application server or of all."""
        if as_id is None:
            rows = await self._database.scan("SELECT count(*) FROM held_key WHERE starts <= ? AND ends > ?", (now, now))
        else:
            sql = "SELECT count(*) FROM held_key JOIN held_set ON id = set_id WHERE starts <= ? AND ends > ? AND as_id = ?"
            rows = await self._database.scan(sql, (now, now, as_id))
        return int(rows[0][0])

    async def span(self, now: float, as_id: AsId) -> KeySpan:
        """Return how many keys of an application server are valid at `now`, and how old they are."""
        columns = "count(*), min(starts), max(starts)"
        sql = f"SELECT {columns} FROM held_key JOIN held_set ON id = set_id WHERE starts <= ? AND ends > ? AND as_id = ?"  # noqa: S608
        ((count, first, last),) = await self._database.scan(sql, (now, now, as_id))
        return KeySpan(count, max(0.0, now - first - SKEW), max(0.0, now - last - SKEW)) if count else KeySpan(0, 0.0, 0.0)

    async def sweep(self, now: float) -> int:
        """Delete keys and tombstones whose time is over; return how many rows went."""
        total, more = await self._sweep_slice(now)
        while more:
            went, more = await self._sweep_slice(now)
            total += went
        return total

    async def _sweep_slice(self, now: float) -> tuple[int, bool]:
        touched: list[KeyId] = []
        work = partial(self._sweep, now=now, touched=touched)
        return await self._database.write(work, after=lambda: self._forget(touched))

    def _sweep(self, connection: sqlite3.Connection, now: float, touched: list[KeyId]) -> tuple[int, bool]:
        went = 0
        ended = connection.execute("SELECT key_id, set_id FROM held_key WHERE ends <= ? LIMIT ?", (now, SLICE)).fetchall()
        for key_id, set_id in ended:
            went += 1
            touched.append(key_id)
            connection.execute("DELETE FROM held_key WHERE key_id = ?", (key_id,))
            self._drop_ended(connection, set_id, now, touched)
        over = connection.execute("SELECT id, pusher, impus FROM held_set WHERE tombstone_until <= ? LIMIT ?", (now, SLICE)).fetchall()
        for set_id, pusher, impus in over:
            _drop_impus(connection, set_id, pusher, _READ_IMPUS.decode(impus))
            connection.execute("DELETE FROM held_set WHERE id = ?", (set_id,))
        claims = connection.execute(
            "DELETE FROM first_nonce WHERE key_id IN (SELECT key_id FROM first_nonce WHERE until <= ? LIMIT ?)", (now, SLICE)
        ).rowcount
        return went + len(over) + claims, max(len(ended), len(over), claims) == SLICE

    def _drop_ended(self, connection: sqlite3.Connection, set_id: int, now: float, touched: list[KeyId]) -> None:
        try:
            for place in map(self._place, connection.execute(f"{_SELECT} WHERE id = ?", (set_id,)).fetchall()):
                keys = tuple([key for key in place.held.keys if _ends(key) > now])
                if len(keys) < len(place.held.keys):
                    self._store(connection, place, place.held._replace(keys=keys), touched)
        except SealError:  # nobody can use it, and its tombstone's end removes it; the sweep goes on
            pass

    # ---- rows

    def _place(self, row: Row) -> _Place:
        set_id, sealed, *values = row
        pusher, impi, as_id, reg, seq, impus, service_info, tombstone_until = values
        opened = _READ_KEYS.decode(KEYS.open(self._keyring, sealed, values))
        keys = tuple([HeldKey(KeyId(key_id), Secret(k_as), start, end, until) for key_id, k_as, start, end, until in opened])
        names = tuple([Impu(impu) for impu in _READ_IMPUS.decode(impus)])
        return _Place(set_id, HeldSet(pusher, Impi(impi), AsId(as_id), Reg(reg), seq, names, keys, service_info, tombstone_until))

    def _store(self, connection: sqlite3.Connection, place: _Place | None, new: HeldSet, touched: list[KeyId]) -> None:
        """Store a set, and let the tables that lead to it lead to what it holds now."""
        impus = msgspec.json.encode(new.impus).decode()
        values = (new.pusher, new.impi, new.as_id, new.reg, new.seq, impus, new.service_info, float(new.tombstone_until))
        plain = [(key.key_id, key.k_as.reveal(), key.not_before, key.not_after, key.superseded_until) for key in new.keys]
        sealed = KEYS.seal(self._keyring, msgspec.msgpack.encode(plain), values)
        if place is None:
            sql = f"INSERT INTO held_set (keys, {_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
            set_id = connection.execute(sql, (sealed, *values)).lastrowid
            old_keys: dict[KeyId, HeldKey] = {}
            old_impus: set[Impu] = set()
        else:
            set_id, old = place
            sql = "UPDATE held_set SET keys = ?, seq = ?, impus = ?, service_info = ?, tombstone_until = ? WHERE id = ?"
            connection.execute(sql, (sealed, *values[4:], set_id))
            old_keys = {key.key_id: key for key in old.keys}
            old_impus = set(old.impus) if old.keys else set()
        new_impus = set(new.impus) if new.keys else set()
        _drop_impus(connection, set_id, new.pusher, old_impus - new_impus)
        for impu in new_impus - old_impus:
            connection.execute("INSERT OR IGNORE INTO held_impu (pusher, impu, set_id) VALUES (?, ?, ?)", (new.pusher, impu, set_id))
        for key in new.keys:
            if old_keys.get(key.key_id) is not key:
                sql = "INSERT OR REPLACE INTO held_key (key_id, set_id, starts, ends) VALUES (?, ?, ?, ?)"
                connection.execute(sql, (key.key_id, set_id, key.not_before - SKEW, _ends(key)))
        for key_id in old_keys.keys() - {key.key_id for key in new.keys}:
            connection.execute("DELETE FROM held_key WHERE key_id = ? AND set_id = ?", (key_id, set_id))
        touched.extend(old_keys)
        touched.extend(key.key_id for key in new.keys)

    # ---- the cache

    def _cached(self, key_id: KeyId) -> _Cached | None:
        generation = self._database.foreign_generation()
        if generation != self._generation:
            self._generation = generation
            self._cache.clear()
        cached = self._cache.get(key_id)
        if cached is not None:
            self._cache.move_to_end(key_id)
            return cached
        if not key_id.isascii():  # it comes from an HTTP header as it was sent
            return None
        rows = self._database.read(_BY_KEY, (key_id,))
        if not rows:
            return None
        held = self._place(rows[0]).held
        alone = all(key.superseded_until is None for key in held.keys)
        for key in held.keys:
            if key.key_id == key_id:
                cached = _Cached(_record(held, key), key, alone)
                self._cache[key_id] = cached
                if len(self._cache) > self._max_cached:
                    self._cache.popitem(last=False)
                return cached
        raise SealError("held_key.set_id: leads to a set that does not hold the key")

    def _forget(self, key_ids: Sequence[KeyId]) -> None:
        for key_id in key_ids:
            self._cache.pop(key_id, None)
        if self._changed is not None and key_ids:
            self._changed(key_ids)


def _record(held: HeldSet, key: HeldKey) -> KeyRecord:
    superseded = key.superseded_until is not None
    return KeyRecord(key.key_id, held.as_id, held.impi, held.reg, held.impus, key.k_as, float(key.not_before), _ends(key), superseded)


def _owner(connection: sqlite3.Connection, key_id: KeyId) -> Owner | None:
    row = connection.execute("SELECT impi, as_id, reg FROM held_key JOIN held_set ON id = set_id WHERE key_id = ?", (key_id,)).fetchone()
    return None if row is None else (Impi(row[0]), AsId(row[1]), Reg(row[2]))


def _drop_impus(connection: sqlite3.Connection, set_id: int | None, pusher: str, impus: Sequence[str] | set[Impu]) -> None:
    for impu in impus:
        connection.execute("DELETE FROM held_impu WHERE pusher = ? AND impu = ? AND set_id = ?", (pusher, impu, set_id))


def _ends(key: HeldKey) -> float:
    """Return when the key is no longer valid, as `keypush.valid` sees it."""
    return float(key.not_after if key.superseded_until is None else min(key.not_after, key.superseded_until))
