# SPDX-License-Identifier: Apache-2.0
"""One SQLite file with group commit (DESIGN §11).

The event loop's thread runs the statements, a thread of the database commits. Statements in the thread would hand the GIL
over at each of them: 30 hand-overs a registration, each against a busy loop. A commit is one call that waits for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from keyferry.errors import StateError, StoreError

T = TypeVar("T")
Value: TypeAlias = str | bytes | int | float | None
Row: TypeAlias = tuple[Any, ...]

FORMAT = 1
"""PRAGMA user_version of a file: one number for the tables of all stores."""
APPLICATION = 0x6B66_7279
"""PRAGMA application_id: "kfry", so that `file` and a careless `--state` can tell."""
MAX_BATCH = 128
"""Writes in one transaction: at 40 us each the loop stands still for 5 ms, and more would not make fdatasync cheaper."""
MAX_QUEUED = 20_000
"""Writes that wait, about 20 MB: at 10,000 a second it is two seconds, more than any peer's patience is worth."""
BUSY_MS = 5_000
"""Milliseconds to wait for another process's transaction, in the thread; the command line's are short."""
CHECKPOINT_PAGES = 8_000
"""32 MB of WAL: rewriting hot pages once a checkpoint instead of once a commit doubles throughput with random keys."""
CACHE_KIB = 65_536
"""Page cache of the writer; the reader has a quarter."""

SWITCH_INTERVAL = 50e-6
"""Seconds a thread waits before it claims the GIL. At Python's 5 ms a loop that makes a system call every 100 us lets the
commit thread starve: each call gives the GIL up, too briefly to be taken, and begins the 5 ms anew (measured: 75 ms a commit)."""


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

        Lowers the process's switch interval to SWITCH_INTERVAL. Raises StateError if the file is not ours or of another format.
        """
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        self.path = path
        self._busy_ms = busy_ms
        self._queue: deque[_Write] = deque()
        self._batch: list[_Write] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = False  # from the first write queued until nothing is queued and nothing is being committed
        self._waiting = self._committing = False  # what the thread is doing
        self._outcome: BaseException | None = None  # of the last commit
        self._closed = False
        self._foreign = 0
        self._writer = connect(path, CACHE_KIB)
        try:
            _prepare(self._writer, path)
            self.ensure(schema)
            self._writer.execute("PRAGMA busy_timeout = 0")  # the loop's thread never waits for a lock
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
        """Run the statements of a schema; before the first write."""
        if not schema:
            return
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for statement in schema:
                self._writer.execute(statement)
            self._writer.execute("COMMIT")
        except sqlite3.Error as problem:
            _roll_back(self._writer)
            raise StoreError(f"{self.path.name}: {problem}") from problem

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
            self._jobs.put(self._wait_for_lock)
        else:
            self._execute()

    def _execute(self) -> None:
        """Run what is queued in the open transaction and let the thread commit it."""
        if self._closed:
            return
        self._waiting = False
        self._perform()
        self._committing = True
        self._jobs.put(self._commit)

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
        self._waiting = self._committing = False
        batch, self._batch = self._batch, []
        outcome, self._outcome = self._outcome, None
        for write in batch:
            _answer(write, write.problem or (_lost(self.path, outcome) if outcome else None))
        if not self._closed and self._loop is not None:
            self._loop.call_soon(self._flush)

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


def connect(path: Path, cache_kib: int = 2_048) -> sqlite3.Connection:
    """Open a connection as all of ours are: WAL, every commit on the disk, no implicit transactions.

    Raises StateError.
    """
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        # two threads never use a connection at the same time, so the check of sqlite3 is off
        connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False, cached_statements=256)
    except (OSError, sqlite3.Error) as problem:
        raise _unusable(path, problem) from problem
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        for setting in (
            "synchronous = FULL",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            f"cache_size = -{cache_kib}",
            "secure_delete = FAST",
            "temp_store = MEMORY",
            "foreign_keys = OFF",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {setting}")
    except sqlite3.Error as problem:
        connection.close()
        raise _unusable(path, problem) from problem
    return connection


def _unusable(path: Path, problem: Exception) -> StateError:
    return StateError(str(path), f"cannot be opened: {problem}", "Restore it from a backup, or move it away to start empty")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Claim a new file, refuse one that another program or another version made."""
    (application,), (version,) = (
        connection.execute("PRAGMA application_id").fetchone(),
        connection.execute("PRAGMA user_version").fetchone(),
    )
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and application in {0, APPLICATION} and version in {0, FORMAT}:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    elif application != APPLICATION:
        raise StateError(str(path), "is the database of another program", "Choose another state directory")
    elif version != FORMAT:
        raise StateError(str(path), f"has format {version}, this keyferry knows {FORMAT}", "Use the keyferry that wrote it, or start empty")


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
