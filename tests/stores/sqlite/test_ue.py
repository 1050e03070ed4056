# SPDX-License-Identifier: Apache-2.0
"""The UE's state in SQLite: the contract and the seal."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.errors import SealError
from keyferry.protocol.identity import KeyId
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.ue import REMEMBERED, SqliteUeStore
from stores.contract import OTHER_IMPI
from stores.made import IMPI, NOW, ue_state
from stores.tamper import execute
from stores.ue_contract import UeContract


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteUeStore:
    return SqliteUeStore(database, keyring)


class TestSqliteUe(UeContract):
    """The contract."""


async def test_a_first_nonce_is_used_once_by_all_processes(store: SqliteUeStore, database: Database, keyring: Keyring) -> None:
    """DESIGN §7: two commands at once; and what is long gone takes no room."""
    key = KeyId("A" * 24 + "@home1.net")
    with Database(database.path) as again:
        other = SqliteUeStore(again, keyring)
        assert sorted(await asyncio.gather(store.claim_first(key, NOW), other.claim_first(key, NOW))) == [False, True]
    await store.claim_first(KeyId("B" * 24 + "@home1.net"), NOW + REMEMBERED + 1)
    assert len(execute(database.path, "SELECT id FROM first_nonce")) == 1


async def test_a_process_that_began_before_another_rolls_no_sequence_number_back(
    store: SqliteUeStore, database: Database, keyring: Keyring
) -> None:
    """TS 33.102 annex C.2.2: both have read SEQ_MS, and both write."""
    first, second = (5, 0, *(0,) * 30), (0, 6, *(0,) * 30)
    with Database(database.path) as again:
        other = SqliteUeStore(again, keyring)
        await asyncio.gather(store.save(ue_state(seq_ms=first)), other.save(ue_state(seq_ms=second)))
        for each in (store, other):
            kept = await each.load(IMPI)
            assert kept is not None
            assert kept.seq_ms == (5, 6, *(0,) * 30)
        async with store.alone(IMPI):
            waiting = asyncio.create_task(_turn_of(other))
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting


async def _turn_of(store: SqliteUeStore) -> None:
    async with store.alone(IMPI):
        pass


async def test_a_state_that_does_not_open_is_not_written_over(store: SqliteUeStore, database: Database) -> None:
    """Its sequence numbers are not known, and to begin at none would accept every challenge again."""
    await store.save(ue_state())
    execute(database.path, "UPDATE ue_state SET state = zeroblob(100)")
    with pytest.raises(SealError):
        await store.save(ue_state())


async def test_states_that_change_places_do_not_open(store: SqliteUeStore, database: Database) -> None:
    """DESIGN §3."""
    await store.save(ue_state())
    await store.save(ue_state(impi=OTHER_IMPI))
    states = execute(database.path, "SELECT id, state FROM ue_state")
    for identifier, state in states:
        execute(database.path, "UPDATE ue_state SET state = ? WHERE id = ?", state, 3 - identifier)
    for impi in (IMPI, OTHER_IMPI):
        with pytest.raises(SealError):
            await store.load(impi)
