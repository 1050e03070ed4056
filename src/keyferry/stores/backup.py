# SPDX-License-Identifier: Apache-2.0
"""A copy of what a state directory cannot get again: subscribers, documents, transport keys, certificates, what user ids are made with.

Registrations, K_M and pushed keys are left out. They come again with each phone's next authentication, and an old copy of them would
do harm: keys that were ended would live again, and first nonces that were used could be used once more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from keyferry.errors import StateError, StoreError
from keyferry.stores.state_dir import StateDir

LASTING: Final = ("hss.db", "as-*.db")
"""Databases of which a copy is of use."""
PASSING: Final = ("held_set", "held_key", "held_impu", "key_store", "key_store_began", "first_nonce", "given_vector", "ended_registration")
"""Tables of pushed keys: without them a restored AS is one that lost its keys, so that it gets them again (DESIGN §6). And what the HSS
keeps for scripts of Kamailios: it is of some minutes."""
FILES: Final = ("version", "user-ids", "ca.pem", "isc", "ipsec", "pki")


def back_up(state: StateDir, target: Path) -> list[str]:
    """Copy to a new directory, mode 0700, while others may serve; return what it holds.

    The KEK is not among it: what is sealed and what opens it are kept apart. A copy that fails, or is broken off, leaves nothing behind.
    Raises StateError, StoreError.
    """
    place = target.resolve()
    if any(place.is_relative_to(state.root.resolve() / name) for name in FILES):
        raise StateError(str(target), "is within what is to be copied", "Name a new directory elsewhere")
    try:
        target.mkdir(mode=0o700)
    except FileExistsError as problem:
        raise StateError(str(target), "is there already", "Name a new directory") from problem
    except OSError as problem:
        raise _unwritable(target, problem) from problem
    try:
        _copy(state.root, target)
    except BaseException as problem:
        shutil.rmtree(target, ignore_errors=True)  # transport keys and certificates' private keys are in it
        if isinstance(problem, OSError):
            raise _unwritable(target, problem) from problem
        raise
    return sorted(entry.relative_to(target).as_posix() for entry in target.rglob("*") if entry.is_file())


def _copy(root: Path, target: Path) -> None:
    for name in FILES:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("*.new", "*.lock"))
        elif source.exists():
            shutil.copy2(source, target / name)
    for path in sorted({path for pattern in LASTING for path in root.glob(pattern)}):
        _copy_database(path, target / path.name)


def _unwritable(target: Path, problem: OSError) -> StateError:
    what = problem.strerror or "not every file of the state can be copied"  # of several in shutil.Error, which has no number
    return StateError(str(target), f"cannot be written: {what}", "Check its owner, its mode and the disk")


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database as of one moment, other processes writing on (sqlite.org, online backup)."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(source, timeout=30)) as old, contextlib.closing(sqlite3.connect(target)) as new:
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")
            for table in PASSING:
                new.execute(f"DROP TABLE IF EXISTS {table}")
            new.commit()
            new.execute("VACUUM")  # or the dropped rows' octets would stay in the file
    except sqlite3.Error as problem:
        raise StoreError(f"{source.name}: {problem}") from problem
