# SPDX-License-Identifier: Apache-2.0
"""What Kamailio's processes share: bounded, sealed, kept over restarts."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from kemi.kemikit import AS_ID, IMPI, IMPU, NONCE, REALM, Clock, opened
from keyferry.errors import SealError, StateError, StoreError
from keyferry.kemi.store import BUSY_MS, MAX_DEVICES, PENDING_LIFE, SWEEP_EVERY, TRANSACTION_LIFE, KemiStore, State
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.challenges import MAX_PER_CALL, MAX_PER_IMPI, MAX_PER_PLACE
from keyferry.stores.connection import claim

K_M, REG = Secret(bytes(range(32))), Reg("AAAAAAAAAAAA")
OTHER = Impi("user2_private@home1.net")


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    """Time."""
    return Clock()


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path, clock: Clock) -> KemiStore:
    """One process's."""
    return opened(tmp_path, clock)


def test_another_process_and_a_later_one_see_the_same(store: KemiStore, tmp_path: Path, clock: Clock) -> None:
    assert store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    other = opened(tmp_path, clock)
    found = other.authenticated(NONCE, IMPI, IMPU, REG, clock.now() + 600)
    assert found is not None
    other.close()
    store.close()
    again = opened(tmp_path, clock).challenged(NONCE)
    assert again is not None
    assert (again.state, again.reg, again.k_m, again.impi) == (State.AUTHENTICATED, REG, K_M, IMPI)


def test_processes_that_fork_each_open_the_file_for_themselves(store: KemiStore, tmp_path: Path, clock: Clock) -> None:
    """As Kamailio's do: sequence numbers of all are different."""
    store.close()
    count, children = 40, []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            mine = opened(tmp_path, clock)
            numbers = [mine.next_seq(IMPI, AS_ID, REG) for _ in range(count)]
            (tmp_path / f"{os.getpid()}").write_text("\n".join(map(str, numbers)))
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    found = [int(line) for child in children for line in (tmp_path / str(child)).read_text().split()]
    assert len(set(found)) == 3 * count


def test_a_challenge_is_authenticated_by_its_own_user_and_device_alone(store: KemiStore, clock: Clock) -> None:
    until = clock.now() + 600
    assert store.authenticated(NONCE, IMPI, IMPU, REG, until) is None
    store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    assert store.authenticated(NONCE, OTHER, IMPU, REG, until) is None
    assert store.authenticated(NONCE, IMPI, Impu("sip:other@home1.net"), REG, until) is None
    assert store.authenticated(NONCE, IMPI, IMPU, REG, until) is not None
    assert store.authenticated(NONCE, IMPI, IMPU, REG, until) is not None  # a REGISTER that was sent again
    assert store.authenticated(NONCE, IMPI, IMPU, Reg("BBBBBBBBBBBB"), until) is None


def test_a_nonce_has_one_k_m(store: KemiStore) -> None:
    assert store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    assert store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    assert not store.keep(NONCE, IMPI, IMPU, REALM, Secret(bytes(32)))
    assert not store.keep(NONCE, OTHER, IMPU, REALM, K_M)


def test_a_new_answer_of_a_device_ends_its_older_key_and_no_other(store: KemiStore, clock: Clock) -> None:
    for number, reg in enumerate((REG, REG, Reg("BBBBBBBBBBBB"))):
        store.keep(f"n{number}", IMPI, IMPU, REALM, K_M)
        store.authenticated(f"n{number}", IMPI, IMPU, reg, clock.now() + 600)
    assert [store.challenged(f"n{number}") is not None for number in range(3)] == [False, True, True]
    store.forget(IMPI, REG)
    assert [store.challenged(f"n{number}") is not None for number in range(3)] == [False, False, True]
    store.forget(IMPI, None)
    assert store.challenged("n2") is None


def test_two_hundred_strangers_do_not_push_out_a_user_s_challenge(store: KemiStore) -> None:
    store.keep("victim", IMPI, IMPU, REALM, K_M)
    for number in range(200):
        store.keep(f"stranger{number}", IMPI, IMPU, REALM, K_M, "anywhere", f"stranger{number}")
    assert store.challenged("victim") is not None


def test_what_waits_is_bounded_for_each_user(store: KemiStore) -> None:
    store.keep("other", OTHER, IMPU, REALM, K_M)
    for number in range(MAX_PER_IMPI + 3):
        store.keep(f"n{number}", IMPI, IMPU, REALM, K_M, str(number))
    there = [store.challenged(f"n{number}") is not None for number in range(MAX_PER_IMPI + 3)]
    assert there == [False] * 3 + [True] * MAX_PER_IMPI
    assert store.challenged("other") is not None


def test_a_neighbour_pushes_out_no_more_than_he_may_have_himself(store: KemiStore) -> None:
    """From the user's own address: with one Call-ID, or with ever new ones for some seconds."""
    store.keep("victim", IMPI, IMPU, REALM, K_M, "here", "victim")
    for number in range(MAX_PER_CALL + 100):
        store.keep(f"again{number}", IMPI, IMPU, REALM, K_M, "here", "neighbour")
    assert sum(store.challenged(f"again{number}") is not None for number in range(MAX_PER_CALL + 100)) == MAX_PER_CALL
    store.keep("elsewhere", IMPI, IMPU, REALM, K_M, "there", "victim")
    for number in range(MAX_PER_PLACE - MAX_PER_CALL - 1):
        store.keep(f"n{number}", IMPI, IMPU, REALM, K_M, "here", str(number))
    assert store.challenged("victim") is not None
    store.keep("last", IMPI, IMPU, REALM, K_M, "here", "last")
    assert store.challenged("victim") is None
    assert store.challenged("elsewhere") is not None


def test_a_file_of_format_1_is_brought_up_to_date(tmp_path: Path, clock: Clock) -> None:
    """And one of before refuses it: it would take a key that is owed for an end."""
    opened(tmp_path, clock).close()
    with closing(sqlite3.connect(tmp_path / "kemi.db", isolation_level=None)) as connection:
        for index in ("owed_as_due_at", "owed_ticket", "challenge_of_call", "challenge_of_place"):
            connection.execute(f"DROP INDEX {index}")
        for table, column in (
            ("owed", "nonce"),
            ("owed", "service_info"),
            ("owed", "ticket"),
            ("challenge", "source"),
            ("challenge", "call_id"),
        ):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 1")
    store = opened(tmp_path, clock)
    assert store.keep(NONCE, IMPI, IMPU, REALM, K_M, "here", "call")
    assert store.owe(IMPI, AS_ID, REG, IMPU, "ticket", clock.now() + 600, nonce=NONCE) > 0
    store.close()
    with closing(sqlite3.connect(tmp_path / "kemi.db", isolation_level=None)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        with pytest.raises(StateError, match="has format 2, this keyferry knows 1"):
            claim(connection, tmp_path / "kemi.db")


def test_what_is_over_goes(store: KemiStore, clock: Clock, tmp_path: Path) -> None:
    store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    assert store.ask("t1", IMPI, IMPU)
    store.answer("t1", 'rspauth="1"')
    clock.at += TRANSACTION_LIFE + 1
    assert store.answer_of("t1") is None
    clock.at += PENDING_LIFE
    assert store.challenged(NONCE) is None
    assert store.ask("t2", IMPI, IMPU)  # sweeps
    with closing(sqlite3.connect(tmp_path / "kemi.db", isolation_level=None)) as connection:
        for table, rows in (("asked", 1), ("challenge", 0), ("answer", 0)):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (rows,)


def test_the_whole_is_bounded(tmp_path: Path, clock: Clock) -> None:
    store = opened(tmp_path, clock, max_rows=5)
    for number in range(9):
        clock.at += 1
        impi = Impi(f"u{number}@home1.net")
        store.keep(f"n{number}", impi, IMPU, REALM, K_M)
        if number == 0:
            store.authenticated("n0", impi, IMPU, REG, clock.now() + 600)
    clock.at += SWEEP_EVERY
    store.ask("t", IMPI, IMPU)
    assert [store.challenged(f"n{number}") is not None for number in range(9)] == [True] + [False] * 4 + [True] * 4  # who proved stays


def test_a_transaction_is_one_users(store: KemiStore) -> None:
    assert store.ask("t1", IMPI, IMPU)
    assert store.ask("t1", IMPI, IMPU)
    assert not store.ask("t1", OTHER, IMPU)
    assert store.asker("t1") == (IMPI, IMPU)
    assert store.asker("t2") is None


def test_sequence_numbers_rise_over_restarts_and_clocks_that_go_back(store: KemiStore, tmp_path: Path, clock: Clock) -> None:
    first = store.next_seq(IMPI, AS_ID, REG)
    assert first == int(clock.now() * 1000)
    clock.at -= 1000
    store.close()
    assert opened(tmp_path, clock).next_seq(IMPI, AS_ID, REG) == first + 1


@pytest.mark.parametrize(
    "change", ["impi = 'user2_private@home1.net'", "state = 1", "impu = 'sip:x@home1.net'", "expires_at = expires_at + 1"]
)
def test_a_row_that_was_changed_does_not_open(store: KemiStore, tmp_path: Path, change: str) -> None:
    store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    with closing(sqlite3.connect(tmp_path / "kemi.db", isolation_level=None)) as connection:
        connection.execute(f"UPDATE challenge SET {change}")
    with pytest.raises(SealError):
        store.challenged(NONCE)


def test_no_key_lies_in_the_file(store: KemiStore, tmp_path: Path) -> None:
    store.keep(NONCE, IMPI, IMPU, REALM, K_M)
    store.close()
    octets = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert NONCE.encode() in octets
    assert K_M.reveal() not in octets
    assert K_M.reveal().hex().encode() not in octets


def test_two_processes_do_not_make_the_file_at_once(tmp_path: Path, clock: Clock) -> None:
    """SQLite lets nobody wait who changes the journal's mode: one of Kamailio's workers was left without a store."""
    lock = os.open(tmp_path / "kemi.db.lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    other = threading.Thread(target=opened, args=(tmp_path, clock))
    other.start()
    other.join(0.05)
    waited = other.is_alive() and not (tmp_path / "kemi.db").exists()
    os.close(lock)
    other.join(60)
    assert waited
    assert (tmp_path / "kemi.db").exists()


def test_a_file_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path, clock: Clock) -> None:
    with closing(sqlite3.connect(tmp_path / "kemi.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("CREATE TABLE another (id INTEGER)")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(StateError):
            opened(tmp_path, clock)
    assert len(os.listdir("/proc/self/fd")) == before


def test_devices_are_bounded_for_each_user_and_all_are_known(store: KemiStore, clock: Clock) -> None:
    for number in range(MAX_DEVICES + 3):
        clock.at += 1
        for as_id in (AS_ID, AsId("other.home1.net")):
            store.next_seq(IMPI, as_id, Reg(f"{number:012}"))
    store.next_seq(OTHER, AS_ID, REG)
    assert store.devices(IMPI) == [f"{number:012}" for number in reversed(range(3, MAX_DEVICES + 3))]
    assert store.devices(OTHER) == [REG]


def test_sequence_numbers_are_bounded_in_all_and_the_oldest_goes(tmp_path: Path, clock: Clock) -> None:
    store = opened(tmp_path, clock, max_rows=5)
    for number in range(9):
        clock.at += 1
        store.next_seq(Impi(f"u{number}@home1.net"), AS_ID, REG)
    clock.at += SWEEP_EVERY
    store.ask("t", IMPI, IMPU)
    assert [bool(store.devices(Impi(f"u{number}@home1.net"))) for number in range(9)] == [False] * 4 + [True] * 5


def test_a_locked_file_is_waited_for_no_longer_than_a_ue_waits(store: KemiStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "kemi.db", isolation_level=None)) as connection:
        assert store._connection.execute("PRAGMA busy_timeout").fetchone() == (BUSY_MS,)
        store._connection.execute("PRAGMA busy_timeout = 0")
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError):
            store.ask("t", IMPI, IMPU)
