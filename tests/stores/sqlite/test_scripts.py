# SPDX-License-Identifier: Apache-2.0
"""What the HSS keeps for scripts of Kamailios: bounded, sealed, taken once, seen by every process."""

from __future__ import annotations

import pytest

from keyferry.errors import SealError
from keyferry.ports.scripts import GivenVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.scripts import END_LIFE, MAX_ENDS, MAX_TOLD, SWEPT, SqliteScriptStore
from stores.tamper import execute

IMPI, HOST = Impi("u@home1.net"), "scscf1.home1.net"
GIVEN = GivenVector(IMPI, Secret(bytes(range(8))), 1300.0)


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteScriptStore:
    return SqliteScriptStore(database, keyring, max_given=3)


async def test_another_process_sees_a_vector_and_takes_it_once(store: SqliteScriptStore, database: Database, keyring: Keyring) -> None:
    await store.keep("n", GIVEN, 1000.0)
    with Database(database.path) as other_database:
        other = SqliteScriptStore(other_database, keyring)
        assert other.given("n") == store.given("n") == GIVEN
        assert await other.take("n")
        assert not await store.take("n")
        assert store.given("n") is None


async def test_vectors_are_bounded_in_time_and_number(store: SqliteScriptStore) -> None:
    for number in range(5):
        await store.keep(f"n{number}", GIVEN._replace(until=1300.0 + number), 1000.0)
    assert [store.given(f"n{number}") is not None for number in range(5)] == [False, False, True, True, True]
    await store.keep("n", GIVEN._replace(until=2000.0), 1303.0)
    assert [store.given(f"n{number}") is not None for number in range(5)] == [False] * 4 + [True]


async def test_the_last_vector_goes_too_when_its_time_is_over(store: SqliteScriptStore, database: Database) -> None:
    await store.keep("n", GIVEN, 1000.0)
    await store.forget(1299.0)
    assert store.given("n") == GIVEN
    await store.forget(1300.0)
    assert execute(database.path, "SELECT count(*) FROM given_vector") == [(0,)]


async def test_what_a_flood_left_goes_bit_by_bit(store: SqliteScriptStore, database: Database) -> None:
    """The loop's thread does it: 100,000 rows at once would be a tenth of a second for everybody."""
    rows = ", ".join(f"({number}, 'n{number}', 'u', 1, x'00')" for number in range(1, 2 * SWEPT + 51))
    execute(database.path, f"INSERT INTO given_vector VALUES {rows}")
    large = SqliteScriptStore(database, store._keyring)
    left = []
    for turn in range(2):
        await large.keep(f"new{turn}", GIVEN, 1000.0)
        left += execute(database.path, "SELECT count(*) FROM given_vector WHERE until <= 1000")
    assert left == [(SWEPT + 50,), (50,)]
    await large.keep("last", GIVEN, 1.0)
    await large.forget(1300.0)
    assert execute(database.path, "SELECT count(*) FROM given_vector") == [(0,)]


async def test_xres_is_sealed_for_its_nonce_and_user(store: SqliteScriptStore, database: Database) -> None:
    await store.keep("n", GIVEN, 1000.0)
    [(sealed,)] = execute(database.path, "SELECT xres FROM given_vector")
    assert GIVEN.xres.reveal() not in sealed
    for change in ("nonce = 'm'", "impi = 'v@home1.net'", "until = 9e9"):
        await store.keep("n", GIVEN, 1000.0)
        execute(database.path, f"UPDATE given_vector SET {change}")
        with pytest.raises(SealError):
            store.given("m" if "nonce" in change else "n")
        execute(database.path, "DELETE FROM given_vector")


async def test_ends_are_told_in_their_order_to_whom_they_concern(store: SqliteScriptStore) -> None:
    """Also where a clock goes back, and of an end that counts from before another."""
    for number in range(3):
        await store.end(HOST, Impi(f"u{number}@home1.net"), 900 - number, 1000 - number)
    await store.end("other.home1.net", IMPI, 1000, 1000)
    told = store.ends(HOST, 0)
    assert [tuple(end) for end in told] == [(1000 + number, 900 - number, f"u{number}@home1.net") for number in range(3)]
    assert store.ends(HOST, told[1].place) == told[2:]
    assert store.ends(HOST, told[2].place) == []


async def test_ends_are_bounded_and_grow_old(store: SqliteScriptStore, database: Database) -> None:
    rows = ", ".join(f"({number}, '{HOST}', 'u', 1)" for number in range(1, MAX_ENDS + 6))
    execute(database.path, f"INSERT INTO ended_registration VALUES {rows}")
    await store.end(HOST, IMPI, 5, 5)
    assert execute(database.path, "SELECT count(*), max(place) FROM ended_registration") == [(MAX_ENDS, MAX_ENDS + 6)]
    assert len(store.ends(HOST, 0)) == MAX_TOLD
    await store.end(HOST, IMPI, 5, MAX_ENDS + END_LIFE)
    assert [end.place for end in store.ends(HOST, 0)] == [*range(MAX_ENDS, MAX_ENDS + 7), MAX_ENDS + END_LIFE]
