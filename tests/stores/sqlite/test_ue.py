# SPDX-License-Identifier: Apache-2.0
"""The UE's state in SQLite: the contract and the seal."""

from __future__ import annotations

import pytest

from keyferry.errors import SealError
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.ue import SqliteUeStore
from stores.contract import OTHER_IMPI, UeContract
from stores.made import IMPI, ue_state
from stores.tamper import execute


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteUeStore:
    return SqliteUeStore(database, keyring)


class TestSqliteUe(UeContract):
    """The contract."""


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
