# SPDX-License-Identifier: Apache-2.0
"""A rotation covers every sealed row, and a crash in the middle loses none (DESIGN §3)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from keyferry.errors import SealError, StateError, StoreError
from keyferry.protocol.identity import Impi
from keyferry.stores import rotation
from keyferry.stores.database import Database
from keyferry.stores.rotation import rotate
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.sqlite.ledger import SqliteLedgerStore
from keyferry.stores.sqlite.registrations import SqliteRegistrationStore
from keyferry.stores.sqlite.scripts import SqliteScriptStore
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.sqlite.ue import SqliteUeStore
from keyferry.stores.state_dir import StateDir, open_state
from stores.made import AS_ID, IMPI, NOW, PUSHER, REALM, REG, CountedRandom, push, pushed_key, registration, subscriber, ue_state
from stores.tamper import execute

COUNTS = {"as.db:held_set": 1, "hss.db:subscriber": 3, "scscf.db:registration": 1, "ue.db:ue_state": 1}


async def fill(state: StateDir) -> None:
    keyring = state.keyring
    with Database(state.path("hss.db")) as hss, Database(state.path("scscf.db")) as scscf, Database(state.path("as.db")) as server:
        for number in range(3):
            await SqliteSubscriberStore(hss, keyring).add(subscriber(number))
        await SqliteRegistrationStore(scscf, keyring).commit(registration(), [])
        await SqliteKeyStore(server, keyring).apply(push(1, "a"), pusher=PUSHER, realm=REALM, now=NOW)
        SqliteDocumentStore(server)
    with Database(state.path("ue.db")) as ue:
        await SqliteUeStore(ue, keyring).save(ue_state())


async def check(state: StateDir) -> None:
    keyring = state.keyring
    with Database(state.path("hss.db")) as hss, Database(state.path("scscf.db")) as scscf, Database(state.path("as.db")) as server:
        assert list(await SqliteSubscriberStore(hss, keyring).all()) == [subscriber(number) for number in range(3)]
        assert await SqliteRegistrationStore(scscf, keyring).get(IMPI, REG) == registration()
        assert await SqliteKeyStore(server, keyring).lookup(pushed_key("a").key_id, AS_ID, NOW)
    with Database(state.path("ue.db")) as ue:
        assert await SqliteUeStore(ue, keyring).load(IMPI) == ue_state()


async def test_every_row_is_sealed_again_and_the_old_kek_goes(tmp_path: Path) -> None:
    with open_state(tmp_path / "s", random=CountedRandom()) as state:
        await fill(state)
        old = state.keyring
        assert rotate(state) == COUNTS
        assert list(state.keks) == [state.keyring.current] != [old.current]
        await check(state)
        with Database(state.path("hss.db")) as hss, pytest.raises(SealError, match="not here"):
            await SqliteSubscriberStore(hss, old).all()
    with open_state(tmp_path / "s", random=CountedRandom()) as state:
        await check(state)


async def test_a_crash_at_any_point_leaves_a_state_that_opens(tmp_path: Path) -> None:
    for fail_at in range(1, 20):
        path = tmp_path / str(fail_at)
        with open_state(path, random=CountedRandom()) as state:
            await fill(state)
        crashing = CountedRandom(fail_at)
        with open_state(path, random=crashing) as state, contextlib.suppress(KeyboardInterrupt):
            rotate(state)
        with open_state(path, random=CountedRandom()) as state:
            await check(state)
            rotate(state)
            await check(state)
            assert len(state.keks) == 1
        if crashing.calls < fail_at:
            assert fail_at > sum(COUNTS.values())
            return
    pytest.fail("the rotation never got through")


def test_every_sealed_table_is_covered(tmp_path: Path, database: Database) -> None:
    """A column that is sealed and not rotated would be lost with the old KEK."""
    random = CountedRandom()
    with open_state(tmp_path / "s", random=random) as state:
        for store in (SqliteSubscriberStore, SqliteRegistrationStore, SqliteKeyStore, SqliteLedgerStore, SqliteUeStore, SqliteScriptStore):
            store(database, state.keyring)
    blobs = {
        (table, column)
        for (table,) in execute(database.path, "SELECT name FROM sqlite_master WHERE type = 'table'")
        for _, column, kind, *_ in execute(database.path, f"PRAGMA table_info({table})")
        if kind == "BLOB"
    }
    public = {
        ("subscriber", "amf"),
        ("registration", "contact"),
        ("registration", "path"),
        ("registration", "call_id"),
        ("registration", "user_data"),
        ("user_data", "body"),
    }
    assert blobs - public == {(column.table, column.column) for column in rotation.SEALED_COLUMNS}


async def test_more_rows_than_one_transaction_holds(tmp_path: Path) -> None:
    with open_state(tmp_path / "s", random=CountedRandom()) as state:
        with Database(state.path("ue.db")) as ue:
            store = SqliteUeStore(ue, state.keyring)
            for number in range(rotation.BATCH + 1):
                await store.save(ue_state(impi=Impi(f"{number}@ims.example")))
        assert rotate(state) == {"ue.db:ue_state": rotation.BATCH + 1}


async def test_a_row_that_does_not_open_stops_it_and_no_kek_goes(tmp_path: Path) -> None:
    with open_state(tmp_path / "s", random=CountedRandom()) as state:
        await fill(state)
        execute(state.path("hss.db"), "UPDATE subscriber SET profile = 'other' WHERE id = 2")
        with pytest.raises(SealError, match=r"hss\.db: row 2 of subscriber"):
            rotate(state)
        assert len(state.keks) == 2
        execute(state.path("hss.db"), "UPDATE subscriber SET profile = 'default' WHERE id = 2")
        rotate(state)
        await check(state)


async def test_it_needs_the_state_for_itself(tmp_path: Path) -> None:
    with open_state(tmp_path / "s", random=CountedRandom()) as state, open_state(tmp_path / "s", random=CountedRandom()):
        kek = (tmp_path / "s" / "kek").read_bytes()
        with pytest.raises(StateError, match="in use"):
            rotate(state)
        assert (tmp_path / "s" / "kek").read_bytes() == kek


async def test_a_database_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    with open_state(tmp_path / "s", random=CountedRandom()) as state:
        await fill(state)
        execute(state.path("ue.db"), "CREATE TRIGGER stop BEFORE UPDATE ON ue_state BEGIN SELECT RAISE(ABORT, 'read only'); END")
        with pytest.raises(StoreError, match=r"ue\.db: read only"):
            rotate(state)
        execute(state.path("ue.db"), "DROP TRIGGER stop")
        await check(state)
