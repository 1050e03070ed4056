# SPDX-License-Identifier: Apache-2.0
"""Pushed keys in SQLite: the contract, the seal, the cache."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from keyferry.errors import SealError
from keyferry.ports import KeyRecord
from keyferry.protocol.identity import Impu
from keyferry.protocol.ims.keypush import MAX_AHEAD, MAX_KEY_LIFE, Push
from keyferry.stores.database import Database, Row, Value
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite import keys
from keyferry.stores.sqlite.keys import SqliteKeyStore
from stores.contract import OTHER_IMPI, KeyContract
from stores.first_nonces import BEGAN, FirstNonceContract
from stores.made import AS_ID, IMPI, IMPU, NOW, OTHER_REG, PUSHER, REALM, REG, TEL, push, pushed_key
from stores.tamper import columns, execute


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteKeyStore:
    return SqliteKeyStore(database, keyring, now=BEGAN, skew=0)


class TestSqliteKeys(KeyContract, FirstNonceContract):
    """The contract."""


class CountingDatabase(Database):
    """Counts reads, which a cached lookup spares."""

    reads = 0

    def read(self, sql: str, arguments: Sequence[Value] = ()) -> list[Row]:
        self.reads += 1
        return super().read(sql, arguments)


async def apply(store: SqliteKeyStore, message: Push) -> None:
    await store.apply(message, pusher=PUSHER, realm=REALM, now=NOW)


async def held(store: SqliteKeyStore, name: str, now: float = NOW) -> KeyRecord | None:
    return await store.lookup(pushed_key(name).key_id, AS_ID, now)


@pytest.mark.parametrize("column", ["keys", *keys.KEYS.bound])
async def test_a_column_taken_from_another_row_breaks_the_seal(store: SqliteKeyStore, database: Database, column: str) -> None:
    """DESIGN §3."""
    await apply(store, push(1, "a"))
    other = Push(9, OTHER_IMPI, AS_ID, OTHER_REG, (pushed_key("b"),), (Impu("sip:bob@ims.example"),))
    await store.apply(other, pusher="other.ims.example", realm=REALM, now=NOW + 1)
    value = execute(database.path, f"SELECT {column} FROM held_set WHERE id = 2")[0][0]
    execute(database.path, f"UPDATE held_set SET {column} = ? WHERE id = 1", "other.ims.example" if column == "as_id" else value)
    with pytest.raises(SealError):
        await held(store, "a")


async def test_a_store_keeps_its_name_and_a_new_one_has_another(tmp_path: Path, keyring: Keyring) -> None:
    """By it the S-CSCF sees that an AS lost its keys."""
    names = []
    for name in ("one", "one", "two"):
        with Database(tmp_path / f"{name}.db") as opened:
            names.append(SqliteKeyStore(opened, keyring).store_id)
    assert names[0] == names[1] != names[2]
    assert all(len(name) == 24 for name in names)


async def record_of(store: SqliteKeyStore, name: str) -> KeyRecord:
    await apply(store, push(1, name))
    record = store.lookup_now(pushed_key(name).key_id, AS_ID, NOW)
    assert record is not None
    return record


async def test_a_first_nonce_is_claimed_once_by_all_processes(tmp_path: Path, keyring: Keyring) -> None:
    """DESIGN §7: two workers, one file, and one of them restarts."""
    file = tmp_path / "shared.db"
    with Database(file) as one, Database(file) as two:
        stores = [SqliteKeyStore(one, keyring, now=BEGAN, skew=0), SqliteKeyStore(two, keyring, now=NOW + 9, skew=0)]
        record = await record_of(stores[0], "a")
        assert sorted(await asyncio.gather(*(store.claim_first(record) for store in stores))) == [False, True]
    with Database(file) as one:
        assert not await SqliteKeyStore(one, keyring, now=NOW + 9, skew=0).claim_first(record)


async def test_a_first_nonce_needs_a_store_older_than_its_key_by_the_skew_of_the_clocks(tmp_path: Path, keyring: Keyring) -> None:
    """A pusher's clock may be ahead: what it calls younger than the store may be older."""
    granted = []
    for place, settings in enumerate(({"now": NOW - 60}, {"now": NOW - 59}, {"now": NOW, "skew": 0}, {"now": NOW + 1, "skew": 0}, {})):
        with Database(tmp_path / f"{place}.db") as database:
            store = SqliteKeyStore(database, keyring, **settings)  # type: ignore[arg-type]
            granted.append(await store.claim_first(await record_of(store, "a")))
    assert granted == [True, False, True, False, False]


async def test_a_file_of_an_older_keyferry_begins_when_it_is_opened(tmp_path: Path, keyring: Keyring) -> None:
    """Its keys may be older than what it remembers of first nonces."""
    file = tmp_path / "old.db"
    with Database(file) as database:
        await apply(SqliteKeyStore(database, keyring), push(1, "a"))
    for table in ("key_store_began", "first_nonce"):
        execute(file, f"DROP TABLE {table}")
    with Database(file) as database:
        store = SqliteKeyStore(database, keyring, now=NOW + 5, skew=0)
        assert not await store.claim_first(await record_of(store, "a"))
        younger = pushed_key("b", start=NOW + 5)
        await apply(store, Push(2, IMPI, AS_ID, REG, (younger,), (IMPU,)))
        record = store.lookup_now(younger.key_id, AS_ID, NOW + 5)
        assert record is not None
        assert await store.claim_first(record)


async def test_every_column_is_bound(store: SqliteKeyStore, database: Database) -> None:
    """DESIGN §3."""
    assert set(columns(database.path, "held_set")) - set(keys.KEYS.bound) == {"id", "keys"}


async def test_a_pointer_to_another_users_set_is_noticed(store: SqliteKeyStore, database: Database) -> None:
    """DESIGN §3."""
    await apply(store, push(1, "a"))
    await apply(store, push(1, "b", impi=OTHER_IMPI))
    execute(database.path, "UPDATE held_key SET set_id = 3 - set_id")
    with pytest.raises(SealError, match="does not hold the key"):
        await held(store, "a")


async def test_a_pointer_with_other_times_prolongs_nothing(store: SqliteKeyStore, database: Database) -> None:
    await apply(store, push(1, "a"))
    execute(database.path, "UPDATE held_key SET starts = 0, ends = 9e9")
    assert await held(store, "a", NOW + 3600) is None


async def test_an_impu_pointer_to_another_users_set_erases_nothing(store: SqliteKeyStore, database: Database) -> None:
    await apply(store, push(1, "a"))
    execute(database.path, "INSERT INTO held_impu VALUES (?, 'sip:eve@ims.example', 1)", PUSHER)
    assert await store.erase_impu(PUSHER, Impu("sip:eve@ims.example"), [AS_ID], NOW) == 0
    assert await held(store, "a")


async def test_a_sweep_passes_over_a_row_that_does_not_open(store: SqliteKeyStore, database: Database) -> None:
    await apply(store, push(1, "a"))
    await apply(store, push(1, "b", impi=OTHER_IMPI))
    execute(database.path, "UPDATE held_set SET reg = 'x' WHERE id = 1")
    assert await store.sweep(NOW + 3600) == 2
    assert await store.sweep(NOW + MAX_AHEAD + MAX_KEY_LIFE) == 2
    assert [execute(database.path, f"SELECT count(*) FROM {table}") for table in ("held_set", "held_key", "held_impu")] == [[(0,)]] * 3


async def test_what_leads_to_a_set_goes_with_its_keys(store: SqliteKeyStore, database: Database) -> None:
    await apply(store, push(1, "a", "b"))
    await apply(store, push(2, "b", impus=(TEL,)))
    assert database.read("SELECT impu FROM held_impu") == [(TEL,)]
    await apply(store, push(3))
    assert database.read("SELECT * FROM held_impu") == database.read("SELECT * FROM held_key") == []


async def test_a_key_of_two_pushers_is_found_until_the_later_one_erases_it(store: SqliteKeyStore) -> None:
    for pusher in (PUSHER, "other.ims.example"):
        await store.apply(push(1, "a"), pusher=pusher, realm=REALM, now=NOW)
    await apply(store, push(2))
    assert await held(store, "a")
    await store.apply(push(2), pusher="other.ims.example", realm=REALM, now=NOW)
    assert await held(store, "a") is None


class TestCache:
    """DESIGN §11."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> Iterator[CountingDatabase]:
        with contextlib.closing(CountingDatabase(tmp_path / "counted.db")) as database:
            yield database

    async def test_a_key_is_read_and_opened_once(self, store: SqliteKeyStore, database: CountingDatabase) -> None:
        await apply(store, push(1, "a"))
        await asyncio.gather(*[held(store, "a") for _ in range(10)])
        assert database.reads == 1

    async def test_our_own_writes_keep_the_other_keys_cached(self, store: SqliteKeyStore, database: CountingDatabase) -> None:
        await apply(store, push(1, "a"))
        assert await held(store, "a")
        for number in range(5):
            await apply(store, push(number, "b", impi=OTHER_IMPI))
            assert await held(store, "a")
        assert database.reads == 1

    async def test_another_process_that_erases_is_noticed_at_once(self, store: SqliteKeyStore, database: CountingDatabase) -> None:
        await apply(store, push(1, "a"))
        assert await held(store, "a")
        execute(database.path, "DELETE FROM held_key")
        assert await held(store, "a") is None

    async def test_another_process_is_noticed_between_our_own_writes(self, store: SqliteKeyStore, database: CountingDatabase) -> None:
        await apply(store, push(1, "a"))
        assert await held(store, "a")
        execute(database.path, "DELETE FROM held_key WHERE key_id = ?", pushed_key("a").key_id)
        await apply(store, push(1, "b", impi=OTHER_IMPI))
        assert await held(store, "a") is None

    async def test_another_process_is_noticed_while_we_wait_for_it(self, store: SqliteKeyStore, database: CountingDatabase) -> None:
        await apply(store, push(1, "a"))
        assert await held(store, "a")
        with contextlib.closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.ensure_future(apply(store, push(1, "b", impi=OTHER_IMPI)))
            for _ in range(3):
                await asyncio.sleep(0)
            assert await held(store, "a")
            other.execute("DELETE FROM held_key")
            other.execute("COMMIT")
            assert await held(store, "a") is None
            await waiting
        assert await held(store, "b") is not None

    async def test_a_waiter_that_is_cancelled_does_not_leave_an_old_key_cached(self, store: SqliteKeyStore) -> None:
        await apply(store, push(1, "a"))
        assert await held(store, "a")
        erasing = asyncio.ensure_future(apply(store, push(2)))
        await asyncio.sleep(0)
        erasing.cancel()
        await asyncio.gather(erasing, return_exceptions=True)
        await apply(store, push(1, "b", impi=OTHER_IMPI))
        assert await held(store, "a") is None

    async def test_the_cache_is_bounded_and_keeps_what_is_used(self, database: CountingDatabase, keyring: Keyring) -> None:
        store = SqliteKeyStore(database, keyring, max_cached=2)
        await apply(store, push(1, "a", "b", "c"))
        for name in "abacab":
            assert await held(store, name)
        assert database.reads == 4

    async def test_using_the_only_key_of_a_device_writes_nothing(self, store: SqliteKeyStore, database: CountingDatabase) -> None:
        await apply(store, push(1, "a"))
        record = await held(store, "a")
        assert record is not None
        with contextlib.closing(sqlite3.connect(database.path)) as other:
            version = other.execute("PRAGMA data_version").fetchone()
            await store.used(record, NOW)
            assert other.execute("PRAGMA data_version").fetchone() == version


async def test_the_order_of_impus_is_kept(store: SqliteKeyStore) -> None:
    await apply(store, push(1, "a", impus=(TEL, IMPU)))
    record = await held(store, "a")
    assert record is not None and record.impus == (TEL, IMPU)
