# SPDX-License-Identifier: Apache-2.0
"""Group commit: what is acknowledged is on the disk, and one write harms no other (DESIGN §11)."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keyferry.errors import StoreError
from keyferry.stores import database as module
from keyferry.stores.database import Database
from stores.tamper import execute

SCHEMA = ("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, v BLOB UNIQUE NOT NULL)",)
Work = Callable[[sqlite3.Connection], int | None]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "test.db", SCHEMA) as database:
        yield database


def insert(value: object) -> Work:
    return lambda connection: connection.execute("INSERT INTO t (v) VALUES (?)", (value,)).lastrowid


def stored(path: Path) -> list[object]:
    return [value for (value,) in execute(path, "SELECT v FROM t ORDER BY id")]


class TestWriting:
    async def test_what_is_acknowledged_is_seen_by_others(self, database: Database) -> None:
        assert await database.write(insert(b"a")) == 1
        assert stored(database.path) == [b"a"]
        assert database.read("SELECT v FROM t") == [(b"a",)]
        assert await database.scan("SELECT v FROM t WHERE v = ?", (b"a",)) == [(b"a",)]

    async def test_writes_that_wait_share_a_transaction(self, database: Database) -> None:
        before = database.foreign_generation()
        with contextlib.closing(sqlite3.connect(database.path)) as other:
            (old,) = other.execute("PRAGMA data_version").fetchone()
            await asyncio.gather(*[database.write(insert(number)) for number in range(50)])
            assert other.execute("PRAGMA data_version").fetchone() == (old + 1,)
        assert stored(database.path) == list(range(50))
        assert database.foreign_generation() == before

    async def test_writes_that_come_while_one_is_committed_go_next(self, database: Database) -> None:
        async def chain(start: int) -> None:
            for number in range(start, start + 20):
                await database.write(insert(number))

        await asyncio.gather(*[chain(start) for start in range(0, 400, 20)])
        assert sorted(stored(database.path)) == list(range(400))  # type: ignore[type-var]

    async def test_a_large_group_is_cut(self, database: Database) -> None:
        await asyncio.gather(*[database.write(insert(number)) for number in range(3 * module.MAX_BATCH)])
        assert len(stored(database.path)) == 3 * module.MAX_BATCH

    async def test_a_write_sees_those_before_it(self, database: Database) -> None:
        count: Work = lambda connection: connection.execute("SELECT count(*) FROM t").fetchone()[0]  # noqa: E731
        outcomes = await asyncio.gather(*[database.write(work) for work in (insert(1), count, insert(2), count)])
        assert outcomes == [1, 1, 2, 2]

    async def test_a_write_that_fails_undoes_only_itself(self, database: Database) -> None:
        def half(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO t (v) VALUES ('half')")
            raise LookupError

        outcomes = await asyncio.gather(
            *[database.write(work) for work in (insert(1), half, insert(1), insert("\udcff"), insert(2**64), insert(2))],
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes] == [int, LookupError, StoreError, StoreError, StoreError, int]
        assert stored(database.path) == [1, 2]

    async def test_what_python_cannot_convert_is_not_quoted(self, database: Database) -> None:
        with pytest.raises(StoreError) as refusal:
            await database.write(insert("secret\udcff"))
        assert "secret" not in str(refusal.value)

    async def test_a_loop_that_never_rests_does_not_starve_the_thread(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        """It lets the thread have the GIL: without that a commit took 75 ms. Here each waits for it."""
        loop, near, far = asyncio.get_running_loop(), *socket.socketpair()
        nudge, end, nudged = database._nudge, database._end, threading.Event()

        def nudges(waited: float) -> None:
            nudged.set()
            nudge(waited)

        def ends() -> BaseException | None:
            if not nudged.wait(60):
                return StoreError("nobody let the thread have the GIL")
            nudged.clear()
            return end()

        monkeypatch.setattr(database, "_nudge", nudges)
        monkeypatch.setattr(database, "_end", ends)

        async def work_and_call() -> None:
            while True:
                until = loop.time() + 100e-6
                while loop.time() < until:
                    pass
                near.send(far.recv(1) if far.recv(1, socket.MSG_PEEK) else b"")
                await asyncio.sleep(0)

        with near, far:
            near.send(b"x")
            busy = asyncio.ensure_future(work_and_call())
            for number in range(20):
                await database.write(insert(number))
            busy.cancel()
        assert stored(database.path) == list(range(20))

    async def test_after_runs_once_the_write_is_durable_even_if_nobody_waits(self, database: Database) -> None:
        seen: list[object] = []
        waiter = asyncio.ensure_future(database.write(insert(1), after=lambda: seen.extend(stored(database.path))))
        await asyncio.sleep(0)
        waiter.cancel()
        await database.write(insert(2))
        assert seen[0] == 1

    async def test_after_does_not_run_for_a_write_that_failed(self, database: Database) -> None:
        seen: list[int] = []
        with pytest.raises(StoreError):
            await database.write(insert(None), after=lambda: seen.append(1))
        assert seen == []

    async def test_too_many_that_wait_are_refused(self, database: Database) -> None:
        waiters = [asyncio.ensure_future(database.write(insert(number))) for number in range(module.MAX_QUEUED + 1)]
        outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert isinstance(outcomes[-1], StoreError)
        assert not any(isinstance(outcome, BaseException) for outcome in outcomes[:-1])

    async def test_an_interrupt_in_a_write_loses_the_group_and_nothing_else(self, tmp_path: Path) -> None:
        def interrupt(connection: sqlite3.Connection) -> None:
            raise KeyboardInterrupt

        class Interruptible(Database):
            def _flush(self) -> None:  # an event loop lets it through to the one who runs it
                with contextlib.suppress(KeyboardInterrupt):
                    super()._flush()

        with Interruptible(tmp_path / "interrupted.db", SCHEMA) as database:
            waiters = [asyncio.ensure_future(database.write(work)) for work in (insert(1), interrupt, insert(2))]
            for _ in range(3):
                await asyncio.sleep(0)
            database.close()
            outcomes = await asyncio.gather(*waiters, return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        assert stored(tmp_path / "interrupted.db") == []


class TestFailures:
    async def test_a_full_disk_fails_each_waiter_and_the_next_write_goes_on(self, database: Database) -> None:
        await database.write(insert(b"first"))
        await database.write(lambda connection: connection.execute("PRAGMA max_page_count = 8").fetchall())
        outcomes = await asyncio.gather(*[database.write(insert(bytes([number]) * 9_000)) for number in range(5)], return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes[-3:])
        await database.write(lambda connection: connection.execute("PRAGMA max_page_count = 100000").fetchall())
        await database.write(insert(b"last"))
        lost = [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
        assert len(stored(database.path)) == 2 + len(outcomes) - len(lost)

    async def test_a_commit_that_fails_fails_each_waiter_and_the_next_write_goes_on(self, database: Database) -> None:
        await database.write(insert(b"first"))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        wal = database.path.with_name("test.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal + 100, hard))
        try:
            outcomes = await asyncio.gather(*[database.write(insert(number)) for number in range(5)], return_exceptions=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert [str(outcome) for outcome in outcomes] == [str(outcomes[0])] * 5
        assert isinstance(outcomes[0], StoreError) and "nothing was stored" in str(outcomes[0])
        await database.write(insert(b"last"))
        assert stored(database.path) == [b"first", b"last"]

    async def test_a_transaction_that_sqlite_ends_is_lost_for_all_in_it(self, database: Database) -> None:
        def end(connection: sqlite3.Connection) -> None:
            connection.execute("ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")

        outcomes = await asyncio.gather(*[database.write(work) for work in (insert(1), end, insert(2))], return_exceptions=True)
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        assert await database.write(insert(3)) == 1

    async def test_a_savepoint_that_cannot_be_undone_loses_the_group(self, database: Database) -> None:
        def release(connection: sqlite3.Connection) -> None:
            connection.execute("RELEASE one")
            raise LookupError

        outcomes = await asyncio.gather(*[database.write(work) for work in (insert(1), release, insert(2))], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StoreError, LookupError, StoreError]
        assert stored(database.path) == []

    async def test_another_processs_transaction_is_waited_for(self, database: Database) -> None:
        with contextlib.closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writes = [asyncio.ensure_future(database.write(insert(number))) for number in range(3)]
            loop = asyncio.get_running_loop()
            until, turns = loop.time() + 0.02, 0
            while loop.time() < until:
                await asyncio.sleep(0)
                turns += 1
            assert turns > 100  # the loop goes on
            assert not any(write.done() for write in writes)
            other.execute("COMMIT")
            await asyncio.gather(*writes)
        assert stored(database.path) == [0, 1, 2]

    async def test_a_start_waits_for_another_processs_transaction(self, database: Database) -> None:
        with contextlib.closing(sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            ends = threading.Timer(0.05, other.execute, ("COMMIT",))
            ends.start()
            database.ensure(("CREATE TABLE IF NOT EXISTS u (x)",))
            ends.join()
            other.execute("BEGIN IMMEDIATE")
            (waits,) = database._writer.execute("PRAGMA busy_timeout").fetchone()
            assert waits == 0  # from then on the thread waits, not the loop
        assert database.read("SELECT x FROM u") == []

    async def test_a_transaction_that_does_not_end_is_a_store_error(self, tmp_path: Path) -> None:
        with (
            Database(tmp_path / "busy.db", SCHEMA, busy_ms=10) as database,
            contextlib.closing(sqlite3.connect(tmp_path / "busy.db", isolation_level=None)) as other,
        ):
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await database.write(insert(1))
            left = asyncio.ensure_future(database.write(insert(1)))
            await asyncio.sleep(0)
            database.close()
            with pytest.raises(StoreError, match="locked"):
                await left

    async def test_a_wrong_statement_is_a_store_error(self, database: Database) -> None:
        with pytest.raises(StoreError):
            database.read("SELECT nothing FROM nowhere")
        with pytest.raises(StoreError):
            await database.scan("SELECT nothing FROM nowhere")
        with pytest.raises(StoreError):
            database.read("SELECT ?", ("\udcff",))
        with pytest.raises(StoreError):
            database.ensure(("CREATE TABLE u (x)", "CREATE nonsense"))
        assert database.read("SELECT name FROM sqlite_master WHERE name = 'u'") == []


class TestClosing:
    async def test_closing_commits_what_is_queued(self, tmp_path: Path) -> None:
        database = Database(tmp_path / "closed.db", SCHEMA)
        writes = [asyncio.ensure_future(database.write(insert(number))) for number in range(300)]
        for _ in range(4):  # some are being committed, some are queued
            await asyncio.sleep(0)
        late = [asyncio.ensure_future(database.write(insert(number))) for number in range(300, 310)]
        await asyncio.sleep(0)
        database.close()
        database.close()
        assert await asyncio.gather(*writes, *late) == list(range(1, 311))
        assert len(stored(tmp_path / "closed.db")) == 310

    async def test_a_closed_database_says_so(self, database: Database) -> None:
        database.close()
        with pytest.raises(StoreError, match="closed"):
            await database.write(insert(1))
        with pytest.raises(StoreError, match="closed"):
            database.read("SELECT 1")
        with pytest.raises(StoreError, match="closed"):
            await database.scan("SELECT 1")
        with pytest.raises(StoreError, match="closed"):
            database.foreign_generation()

    async def test_closing_before_the_first_flush_is_enough(self, tmp_path: Path) -> None:
        database = Database(tmp_path / "closed.db", SCHEMA)
        write = asyncio.ensure_future(database.write(insert(1)))
        await asyncio.sleep(0)
        database.close()
        assert await write == 1

    def test_a_loop_that_is_gone_loses_nothing_that_was_queued(self, tmp_path: Path) -> None:
        with Database(tmp_path / "loops.db", SCHEMA) as database:

            async def leave() -> None:
                waiter = asyncio.ensure_future(database.write(insert(1)))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                del waiter

            asyncio.run(leave())
        assert stored(tmp_path / "loops.db") == [1]

    def test_one_loop_after_another_may_use_it(self, tmp_path: Path) -> None:
        with Database(tmp_path / "loops.db", SCHEMA) as database:
            for number in range(3):
                asyncio.run(database.write(insert(number)))
        assert stored(tmp_path / "loops.db") == [0, 1, 2]

    async def test_two_loops_at_once_may_not(self, database: Database) -> None:
        first = asyncio.ensure_future(database.write(insert(1)))
        await asyncio.sleep(0)
        problems: list[BaseException] = []

        def other() -> None:
            try:
                asyncio.run(database.write(insert(2)))
            except StoreError as problem:
                problems.append(problem)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert await first == 1
        assert len(problems) == 1
