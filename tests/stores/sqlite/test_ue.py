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
from stores.contract import OTHER_IMPI, UeContract
from stores.made import IMPI, NOW, ue_state
from stores.tamper import execute


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
