# SPDX-License-Identifier: Apache-2.0
"""Registrations in SQLite: the contract, the seal, what is stored once."""

from __future__ import annotations

import pytest

from keyferry.errors import SealError, StoreError
from keyferry.ports import OwedEnd, ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite import registrations
from keyferry.stores.sqlite.registrations import SqliteRegistrationStore
from stores.contract import OTHER_IMPI, RegistrationContract
from stores.made import IMPI, NOW, OTHER_REG, REG, key, pending, registration
from stores.tamper import columns, execute


@pytest.fixture
def store(database: Database, keyring: Keyring) -> SqliteRegistrationStore:
    return SqliteRegistrationStore(database, keyring)


class TestSqliteRegistrations(RegistrationContract):
    """The contract."""


OTHER = registration(
    OTHER_IMPI,
    OTHER_REG,
    impu=Impu("sip:bob@ims.example"),
    contact="<sip:bob@192.0.2.2>",
    path=(),
    call_id="other",
    cseq=9,
    realm="other.example",
    expires_at=NOW + 9,
    aka_time=NOW + 9,
    key_not_before=NOW + 9,
    release=None,
    k_m=key("other"),
    user_data=b"<other/>",
)


@pytest.mark.parametrize("column", ["k_m", "body_id", *registrations.K_M.bound[2:]])
async def test_a_column_taken_from_another_row_breaks_the_seal(store: SqliteRegistrationStore, database: Database, column: str) -> None:
    """DESIGN §3."""
    await store.commit(registration(), [])
    await store.commit(OTHER, [])
    execute(database.path, f"UPDATE registration SET {column} = (SELECT {column} FROM registration WHERE id = 2) WHERE id = 1")
    with pytest.raises(SealError):
        await store.get(IMPI, REG)
    with pytest.raises(SealError):
        await store.of_impi(IMPI)
    assert await store.get(OTHER_IMPI, OTHER_REG) == OTHER


async def test_a_page_of_users_is_read_from_the_index_alone(store: SqliteRegistrationStore, database: Database) -> None:
    """However many there are, no more rows are looked at, and none is opened."""
    await store.commit(registration(), [])
    query = "SELECT DISTINCT impi FROM registration WHERE impi > ? ORDER BY impi LIMIT ?"
    plan = " ".join(str(row[-1]) for row in database.read(f"EXPLAIN QUERY PLAN {query}", ("", 2)))
    assert "SEARCH registration USING COVERING INDEX" in plan
    assert "TEMP B-TREE" not in plan
    execute(database.path, "UPDATE registration SET k_m = x'00'")
    assert list(await store.impis("", 2)) == [IMPI]


@pytest.mark.parametrize("column", ["impi", "reg"])
async def test_a_row_given_to_another_user_or_device_breaks_the_seal(
    store: SqliteRegistrationStore, database: Database, column: str
) -> None:
    """DESIGN §3."""
    await store.commit(registration(), [])
    execute(database.path, f"UPDATE registration SET {column} = ?", OTHER_IMPI if column == "impi" else OTHER_REG)
    with pytest.raises(SealError):
        await store.get(OTHER_IMPI if column == "impi" else IMPI, OTHER_REG if column == "reg" else REG)


async def test_a_registration_without_k_m_cannot_be_given_one(store: SqliteRegistrationStore, database: Database) -> None:
    """DESIGN §5, S1."""
    await store.commit(registration(k_m=None), [])
    await store.commit(OTHER, [])
    execute(database.path, "UPDATE registration SET k_m = (SELECT k_m FROM registration WHERE id = 2) WHERE id = 1")
    with pytest.raises(SealError):
        await store.get(IMPI, REG)


@pytest.mark.parametrize("sql", ["UPDATE user_data SET body = 'x'", "DELETE FROM user_data"])
async def test_user_data_changed_or_gone_is_noticed(store: SqliteRegistrationStore, database: Database, sql: str) -> None:
    """DESIGN §3: the filter criteria say who gets a key."""
    await store.commit(registration(), [])
    execute(database.path, sql.replace("'x'", "CAST('x' AS BLOB)"))
    with pytest.raises(SealError, match="user_data"):
        await store.get(IMPI, REG)


async def test_one_row_that_does_not_open_does_not_keep_the_others_alive(store: SqliteRegistrationStore, database: Database) -> None:
    await store.commit(registration(expires_at=NOW - 1), [])
    await store.commit(registration(reg=OTHER_REG, expires_at=NOW), [])
    execute(database.path, "UPDATE registration SET cseq = 77 WHERE reg = ?", REG)
    assert [found.reg for found in await store.expired(NOW)] == [OTHER_REG]
    await store.remove(IMPI, OTHER_REG, [])
    with pytest.raises(SealError):
        await store.expired(NOW)


async def test_every_column_is_bound(store: SqliteRegistrationStore, database: Database) -> None:
    """DESIGN §3: body_id only says where the user data are, whose hash is bound."""
    assert set(columns(database.path, "registration")) - set(registrations.K_M.bound) == {"id", "k_m", "body_id"}


async def test_user_data_are_stored_once_and_go_with_the_last_device(store: SqliteRegistrationStore, database: Database) -> None:
    def bodies() -> list[bytes]:
        return [body for (body,) in database.read("SELECT body FROM user_data ORDER BY body")]

    for reg in (REG, OTHER_REG, REG):
        await store.commit(registration(reg=reg), [])
    assert bodies() == [b"<IMSSubscription/>"]
    await store.commit(registration(user_data=b"<new/>"), [])
    assert bodies() == [b"<IMSSubscription/>", b"<new/>"]
    await store.commit(registration(reg=OTHER_REG, user_data=b"<new/>"), [])
    assert bodies() == [b"<new/>"]
    await store.remove(IMPI, REG, [])
    assert bodies() == [b"<new/>"]
    await store.remove(IMPI, OTHER_REG, [])
    assert bodies() == []


async def test_a_seq_is_forgotten_when_the_clock_alone_makes_the_next_one_higher(
    store: SqliteRegistrationStore, database: Database
) -> None:
    """DESIGN §6: a device that comes with ever new Contacts must not fill the disk."""
    old, new = pending(1_000, reg=OTHER_REG), pending(1_000 + registrations.SEQ_MEMORY_MS + 1, erase=True)
    await store.commit(registration(reg=OTHER_REG), [old])
    await store.remove(IMPI, REG, [new])
    assert list(await store.pending()) == [old, new]  # what is owed stays
    await store.delivered(old)
    await store.remove(IMPI, REG, [new])
    assert await store.last_seq(IMPI, old.as_id, OTHER_REG) == 0
    assert list(await store.pending()) == [new]


async def test_a_number_that_sqlite_cannot_hold_is_a_store_error(store: SqliteRegistrationStore) -> None:
    with pytest.raises(StoreError):
        await store.commit(registration(), [pending(2**63)])
    assert await store.get(IMPI, REG) is None


async def test_many_expired_come_in_slices(store: SqliteRegistrationStore) -> None:
    for number in range(registrations.SLICE + 1):
        await store.commit(registration(reg=f"{number:012}", expires_at=NOW), [])  # type: ignore[arg-type]
    assert len(await store.expired(NOW)) == registrations.SLICE + 1


async def test_of_more_ends_than_may_be_owed_the_latest_are_kept(store: SqliteRegistrationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrations, "MAX_ENDS", 3)
    ends = [OwedEnd(Impi(f"u{number}"), Impu("sip:u@x"), ServerAssignment.TIMEOUT_DEREGISTRATION, NOW + number) for number in range(6)]
    for end in ends:
        await store.remove(end.impi, REG, [], end)
        if end is ends[1]:
            await store.remove(ends[0].impi, REG, [], ends[0])  # is the latest again
    assert list(await store.owed_ends()) == ends[3:]


async def test_an_end_that_an_earlier_version_owes_is_of_no_known_age_and_kept(store: SqliteRegistrationStore) -> None:
    old = OwedEnd(Impi("old"), Impu("sip:old@x"), ServerAssignment.TIMEOUT_DEREGISTRATION)
    await store.owe_end(old)
    await store.owe_end(old._replace(impi=Impi("new"), since=NOW))
    assert await store.forget_ends(NOW + 1) == 1
    assert list(await store.owed_ends()) == [old]
