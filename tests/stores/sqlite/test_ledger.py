# SPDX-License-Identifier: Apache-2.0
"""What a key agent's nonces were used for, in SQLite: taken once, in the same boot, sealed."""

from __future__ import annotations

import pytest

from keyferry.errors import SealError
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.ledger import SqliteLedgerStore
from stores.tamper import execute

STATE = b"nonce key and counts" * 10


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteLedgerStore:
    return SqliteLedgerStore(database, keyring)


async def test_it_is_taken_once(store: SqliteLedgerStore, database: Database, keyring: Keyring) -> None:
    """An agent that was killed leaves nothing, and the next one begins anew."""
    assert await store.take("boot 1") is None
    await store.save("boot 1", b"older")
    await store.save("boot 1", STATE)
    assert await SqliteLedgerStore(database, keyring).take("boot 1") == STATE
    assert await store.take("boot 1") is None


async def test_after_another_boot_it_means_nothing_and_goes(store: SqliteLedgerStore) -> None:
    """Its times are of a clock that began anew."""
    await store.save("boot 1", STATE)
    assert await store.take("boot 2") is None
    assert await store.take("boot 1") is None


async def test_it_is_sealed_and_of_its_boot_alone(store: SqliteLedgerStore, database: Database) -> None:
    """DESIGN §3: a writer of the file cannot bring old counts back under a new boot."""
    await store.save("boot 1", STATE)
    [(sealed,)] = execute(database.path, "SELECT state FROM nonce_ledger")
    assert STATE not in sealed
    execute(database.path, "UPDATE nonce_ledger SET boot = 'boot 2'")
    with pytest.raises(SealError):
        await store.take("boot 2")
    assert await store.take("boot 2") is None
