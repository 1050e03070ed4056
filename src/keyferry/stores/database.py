# SPDX-License-Identifier: Apache-2.0
"""One SQLite file with group commit (DESIGN §11).

The event loop's thread runs the statements, a thread of the database commits. Statements in the thread would hand the GIL
over at each of them: 30 hand-overs a registration, each against a busy loop. A commit is one call that waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from keyferry.errors import StoreError
from keyferry.stores.connection import BUSY_MS, CACHE_KIB, claim, connect

T = TypeVar("T")
Value: TypeAlias = str | bytes | int | float | None
Row: TypeAlias = tuple[Any, ...]

MAX_BATCH = 128
"""Writes in one transaction: at 40 us each the loop stands still for 5 ms, and more would not make fdatasync cheaper."""
MAX_QUEUED = 20_000
"""Writes that wait, about 20 MB: at 10,000 a second it is two seconds, more than any peer's patience is worth."""
NUDGE_AFTER = 0.001
"""Seconds after which the loop stands still for the thread, doubled each time. A loop that makes a system call every 100 us
gives the GIL up too briefly to be taken and each time begins the thread's 5 ms anew: it starved for 75 ms a commit."""
NUDGE = 0.0005
"""Seconds that the loop stands still: the thread takes up its work and fdatasync ends, on a disk that is worth its name."""


class _Write:
    """One write that waits: `work` runs in the transaction, `after` once it is durable."""

    __slots__ = ("after", "done", "problem", "result", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], object], after: Callable[[], None] | None, done: asyncio.Future[Any]) -> None:
        self.work = work
        self.after = after
        self.done = done
        self.result: object = None
        self.problem: BaseException | None = None


class Database:
    """Read and write one SQLite file from one event loop; other processes may use the file at the same time."""

    def __init__(self, path: Path, schema: Sequence[str] = (), *, busy_ms: int = BUSY_MS) -> None:
        """Open, creating what is missing, and run the statements of `schema` (each `CREATE … IF NOT EXISTS`).

        Raises StateError if the file is not ours or of another format.
        """
        self.path = path
        self._busy_ms = busy_ms
        self._queue: deque[_Write] = deque()
        self._batch: list[_Write] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = False  # from the first write queued until nothing is queued and nothing is being committed
        self._waiting = self._committing = False  # what the thread is doing
        self._outcome: BaseException | None = None  # of the last commit
        self._done = threading.Lock()  # held while the thread has something to do
        self._nudger: asyncio.TimerHandle | None = None
        self._closed = False
        self._foreign = 0
        self._writer = connect(path, CACHE_KIB)
        try:
            claim(self._writer, path)
            self.ensure(schema)
            self._reader = connect(path, CACHE_KIB // 4)
        except BaseException:
            self._writer.close()
            raise
        self._reader_version, self._writer_version = _version(self._reader), _version(self._writer)
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"commit {path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ensure(self, schema: Sequence[str]) -> None:
        """Run the statements of a schema, after whatever another process is writing; before the first write."""
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
            self._writer.execute("BEGIN IMMEDIATE")
            for statement in schema:
                self._writer.execute(statement)
            self._writer.execute("COMMIT")
        except sqlite3.Error as problem:
            _roll_back(self._writer)
            raise StoreError(f"{self.path.name}: {problem}") from problem
        finally:
            self._writer.execute("PRAGMA busy_timeout = 0")  # the loop's thread never waits for a lock

    # ---- reading

    def read(self, sql: str, arguments: Sequence[Value] = ()) -> list[Row]:
        """Return what is committed, at once: for a few rows by an index.

        Raises StoreError.
        """
        if self._closed:
            raise StoreError("the database is closed")
        try:
            return self._reader.execute(sql, arguments).fetchall()
        except (sqlite3.Error, UnicodeError, OverflowError) as problem:
            raise _mapped(self.path, problem) from problem

    async def scan(self, sql: str, arguments: Sequence[Value] = ()) -> list[Row]:
        """Return what is committed, in another thread: for a whole table.

        Raises StoreError.
        """
        if self._closed:
            raise StoreError("the database is closed")
        return await asyncio.to_thread(_scan, self.path, sql, tuple(arguments))

    def foreign_generation(self) -> int:
        """Return a number that changes when another process has written; a cache of this process asks before it answers.

        The reader sees our own commits too, so a change there is looked up on the writer, which sees others' only. While the
        thread commits the writer is not ours: what came before was noted at the beginning, nobody else can commit now, and
        what comes after will be looked up again. Raises StoreError.
        """
        try:
            version = _version(self._reader)
            if version != self._reader_version and not self._committing:
                if self._waiting:  # for the very process that has just written
                    self._foreign += 1
                else:
                    self._note_foreign()
                self._reader_version = version
        except sqlite3.Error as problem:
            raise _mapped(self.path, problem) from problem
        return self._foreign

    def _note_foreign(self) -> None:
        version = _version(self._writer)
        if version != self._writer_version:
            self._writer_version = version
            self._foreign += 1

    # ---- writing

    async def write(self, work: Callable[[sqlite3.Connection], T], after: Callable[[], None] | None = None) -> T:
        """Run `work` in a transaction with whatever else is waiting, and return its result once that is on the disk.

        `work` runs in the loop's thread, in a savepoint of its own: what it raises comes out here and undoes only itself.
        `after`, which must not raise, runs when that is durable, even if the waiter was cancelled. Raises StoreError.
        """
        if self._closed:
            raise StoreError("the database is closed")
        if len(self._queue) >= MAX_QUEUED:
            raise StoreError(f"{self.path.name}: {MAX_QUEUED} writes are waiting already")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._busy:
                raise StoreError("the database is in use by another event loop")
            self._loop = loop
        done: asyncio.Future[T] = loop.create_future()
        self._queue.append(_Write(work, after, done))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._flush)  # after every task that is ready now: their writes come along
        return await done

    def _flush(self) -> None:
        if self._closed:
            return
        if not self._queue:
            self._busy = False
            return
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            self._waiting = True
            self._hand_over(self._wait_for_lock)
        else:
            self._execute()

    def _execute(self) -> None:
        """Run what is queued in the open transaction and let the thread commit it."""
        if self._closed:
            return
        self._rest()
        self._perform()
        self._committing = True
        self._hand_over(self._commit)

    def _perform(self) -> None:
        self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
        lost: BaseException | None = None
        try:
            self._note_foreign()
            for write in self._batch:
                _perform(self._writer, self.path, write)
                if not self._writer.in_transaction:  # disk full, I/O error, no memory: SQLite has undone everything
                    lost = write.problem
                    break
        except sqlite3.Error as problem:
            _roll_back(self._writer)
            lost = problem
        except BaseException as problem:  # an interrupt: whoever runs the loop shall have it
            _roll_back(self._writer)
            lost = problem
            raise
        finally:
            if lost is not None:
                for write in self._batch:
                    write.problem = write.problem or _lost(self.path, lost)

    def _hand_over(self, job: Callable[[], None]) -> None:
        self._done.acquire()
        self._jobs.put(job)
        self._nudge_later(NUDGE_AFTER)

    def _nudge_later(self, seconds: float) -> None:
        if self._loop is not None:
            self._nudger = self._loop.call_later(seconds, self._nudge, seconds)

    def _nudge(self, waited: float) -> None:
        """Give the GIL to the thread for long enough that it can take it."""
        if self._done.acquire(timeout=NUDGE):
            self._done.release()
        else:
            self._nudge_later(2 * waited)

    def _commit(self) -> None:
        self._outcome = self._end()
        self._call(self._finish)

    def _end(self) -> BaseException | None:
        if not self._writer.in_transaction:
            return None
        try:
            self._writer.execute("COMMIT")
        except sqlite3.Error as problem:
            _roll_back(self._writer)
            return problem
        return None

    def _finish(self) -> None:
        """Answer the waiters of a transaction that is over, and begin the next after the tasks that they wake."""
        self._rest()
        batch, self._batch = self._batch, []
        outcome, self._outcome = self._outcome, None
        for write in batch:
            _answer(write, write.problem or (_lost(self.path, outcome) if outcome else None))
        if not self._closed and self._loop is not None:
            self._loop.call_soon(self._flush)

    def _rest(self) -> None:
        self._waiting = self._committing = False
        if self._nudger is not None:
            self._nudger.cancel()

    def _refuse(self, problem: BaseException) -> None:
        """Answer every waiter that no transaction could be begun."""
        self._batch = list(self._queue)
        self._queue.clear()
        self._outcome = problem
        self._finish()

    # ---- the thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _wait_for_lock(self) -> None:
        problem: sqlite3.Error | None = None
        try:
            self._writer.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            problem = error
        self._writer.execute("PRAGMA busy_timeout = 0")
        self._call(lambda: self._refuse(problem) if problem is not None else self._execute())

    def _call(self, back: Callable[[], None]) -> None:
        self._done.release()
        if self._loop is None or self._closed:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(back)

    # ---- the end

    def close(self) -> None:
        """Commit what is queued, answer the waiters, close; a few milliseconds."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join()
        if self._batch:
            self._finish()
        self._writer.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
        while self._queue:
            try:
                if not self._writer.in_transaction:
                    self._writer.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as problem:
                self._refuse(problem)
            else:
                self._perform()
                self._outcome = self._end()
                self._finish()
        self._reader.close()
        self._writer.close()


def octets(text: str) -> bytes:
    """Encode what a peer sent: it may be no UTF-8, and TEXT columns hold nothing else."""
    return text.encode("utf-8", "surrogateescape")


def text(octets: bytes) -> str:
    """Decode, reverse of `octets`."""
    return octets.decode("utf-8", "surrogateescape")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


def _scan(path: Path, sql: str, arguments: tuple[Value, ...]) -> list[Row]:
    with contextlib.closing(connect(path)) as connection:
        try:
            return connection.execute(sql, arguments).fetchall()
        except sqlite3.Error as problem:
            raise _mapped(path, problem) from problem


def _perform(connection: sqlite3.Connection, path: Path, write: _Write) -> None:
    try:
        connection.execute("SAVEPOINT one")
        write.result = write.work(connection)
        connection.execute("RELEASE one")
    except (sqlite3.Error, UnicodeError, OverflowError) as problem:
        write.problem = _mapped(path, problem)
        write.problem.__cause__ = problem
        _undo(connection)
    except Exception as problem:  # it belongs to the waiter, whatever it is
        write.problem = problem
        _undo(connection)


def _undo(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
    except sqlite3.Error:
        _roll_back(connection)


def _roll_back(connection: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _answer(write: _Write, problem: BaseException | None) -> None:
    if problem is None and write.after is not None:
        write.after()
    if write.done.done():  # cancelled
        return
    with contextlib.suppress(RuntimeError):  # its loop is closed
        if problem is None:
            write.done.set_result(write.result)
        else:
            write.done.set_exception(problem)


def _mapped(path: Path, problem: BaseException) -> StoreError:
    # SQLite's own words name tables and columns, never a value; Python's conversion errors quote the value
    return StoreError(f"{path.name}: {problem if isinstance(problem, sqlite3.Error) else 'a value cannot be stored'}")


def _lost(path: Path, problem: BaseException | None) -> StoreError:
    lost = StoreError(f"{path.name}: nothing was stored: {problem}")
    lost.__cause__ = problem
    return lost
