# SPDX-License-Identifier: Apache-2.0
"""How every SQLite connection is opened, and which files are ours (DESIGN §11)."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

from keyferry.errors import StateError

FORMAT = 1
"""PRAGMA user_version of a file: one number for the tables of all stores."""
APPLICATION = 0x6B66_7279
"""PRAGMA application_id: "kfry", so that `file` and a careless `--state` can tell."""
BUSY_MS = 5_000
"""Milliseconds to wait for another process's transaction, in the thread; the command line's are short."""
CHECKPOINT_PAGES = 8_000
"""32 MB of WAL: rewriting hot pages once a checkpoint instead of once a commit doubles throughput with random keys."""
CACHE_KIB = 65_536
"""Page cache of the writer; the reader has a quarter."""


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


def claim(connection: sqlite3.Connection, path: Path, version: int = FORMAT, oldest: int = FORMAT) -> None:
    """Mark a new file as ours, of a format; files from the `oldest` format on are taken, and the caller brings them up to date.

    Raises StateError if another program or another version made it.
    """
    (application,), (found,) = (
        connection.execute("PRAGMA application_id").fetchone(),
        connection.execute("PRAGMA user_version").fetchone(),
    )
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and application in {0, APPLICATION} and found in {0, version}:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {version}")
    elif application != APPLICATION:
        raise StateError(str(path), "is the database of another program", "Choose another state directory")
    elif not oldest <= found <= version:
        raise StateError(str(path), f"has format {found}, this keyferry knows {version}", "Use the keyferry that wrote it, or start empty")
