# SPDX-License-Identifier: Apache-2.0
"""Subscribers in SQLite: the contract, the seal, a million rows' worth of habits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyferry.errors import SealError
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite import subscribers
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from stores.made import subscriber
from stores.subscriber_contract import SubscriberContract
from stores.tamper import columns, execute


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteSubscriberStore:
    return SqliteSubscriberStore(database, keyring)


class TestSqliteSubscribers(SubscriberContract):
    """The contract."""


@pytest.mark.parametrize("column", ["keys", *subscribers.KEYS.bound[1:]])
async def test_a_column_taken_from_another_row_breaks_the_seal(store: SqliteSubscriberStore, database: Database, column: str) -> None:
    """DESIGN §3."""
    await store.add(subscriber(1))
    await store.add(subscriber(2, algorithm="tuak", amf=b"\0\0", profile="other"))
    execute(database.path, f"UPDATE subscriber SET {column} = (SELECT {column} FROM subscriber WHERE id = 2) WHERE id = 1")
    with pytest.raises(SealError):
        await store.get(subscriber(1).impi)
    with pytest.raises(SealError):
        await store.all()


@pytest.mark.parametrize("column", ["keys", *subscribers.KEYS.bound[1:]])
async def test_a_row_that_was_opened_is_opened_again_once_it_has_changed(
    store: SqliteSubscriberStore, database: Database, column: str
) -> None:
    """DESIGN §3: what is remembered of a row vouches for that row only."""
    await store.add(subscriber(1))
    await store.add(subscriber(2, algorithm="tuak", amf=b"\0\0", profile="other"))
    assert await store.subscription(subscriber(1).impi) == await store.subscription(subscriber(1).impi)
    execute(database.path, f"UPDATE subscriber SET {column} = (SELECT {column} FROM subscriber WHERE id = 2) WHERE id = 1")
    with pytest.raises(SealError):
        await store.subscription(subscriber(1).impi)


async def test_rows_that_were_opened_are_forgotten_again(store: SqliteSubscriberStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribers, "MAX_OPENED", 2)
    for number in (1, 2, 3):
        await store.add(subscriber(number))
    for number in (1, 2, 1, 3, 1, 2):
        found = await store.subscription(subscriber(number).impi)
        assert found is not None
        assert found.impus == subscriber(number).impus
    assert len(store._opened) == 2


async def test_two_processes_reserve_seq_values_of_their_own(store: SqliteSubscriberStore, database: Database, keyring: Keyring) -> None:
    """TS 33.102 annex C.1: what the one has read is no ground for the other's next value."""
    impi = subscriber().impi
    await store.add(subscriber())
    with Database(database.path) as again:
        other = SqliteSubscriberStore(again, keyring)
        firsts = await asyncio.gather(*(each.reserve_seq(impi, 1, 10) for _ in range(20) for each in (store, other)))
    assert sorted(firsts) == list(range(1, 401, 10))


async def test_a_row_renamed_breaks_the_seal(store: SqliteSubscriberStore, database: Database) -> None:
    """DESIGN §3."""
    await store.add(subscriber(1))
    execute(database.path, "UPDATE subscriber SET impi = ?", subscriber(2).impi)
    with pytest.raises(SealError):
        await store.get(subscriber(2).impi)


async def test_every_column_is_bound_but_those_that_authorise_nothing(store: SqliteSubscriberStore, database: Database) -> None:
    """DESIGN §3."""
    assert set(columns(database.path, "subscriber")) - set(subscribers.KEYS.bound) == {"id", "keys", "seq", "server_name"}


async def test_many_come_back_in_slices(store: SqliteSubscriberStore) -> None:
    for number in range(subscribers.SLICE + 1):
        await store.add(subscriber(number, impus=()))
    assert len(await store.all()) == subscribers.SLICE + 1


async def test_another_store_of_the_same_file_sees_them(tmp_path: Path, keyring: Keyring) -> None:
    with Database(tmp_path / "two.db") as database:
        await SqliteSubscriberStore(database, keyring).add(subscriber())
    with Database(tmp_path / "two.db") as database:
        assert await SqliteSubscriberStore(database, keyring).get(subscriber().impi) == subscriber()


async def test_of_subscribers_of_an_older_keyferry_nobody_says_that_a_file_had_them(tmp_path: Path, keyring: Keyring) -> None:
    with Database(tmp_path / "old.db") as database:
        await SqliteSubscriberStore(database, keyring).add(subscriber())
    execute(tmp_path / "old.db", "DROP TABLE subscriber_of_file")
    with Database(tmp_path / "old.db") as database:
        store = SqliteSubscriberStore(database, keyring)
        assert set(await store.from_file()) == set()
        await store.note_from_file([subscriber().impi])
        assert set(await store.from_file()) == {subscriber().impi}
