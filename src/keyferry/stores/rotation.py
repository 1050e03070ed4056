# SPDX-License-Identifier: Apache-2.0
"""A new key-encryption key: every sealed row again, then the old keys go (DESIGN §3)."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from keyferry.errors import SealError, StoreError
from keyferry.stores.connection import connect
from keyferry.stores.sealing import KID_OCTETS, Keyring, SealedColumn
from keyferry.stores.sqlite import keys, ledger, registrations, scripts, subscribers, ue
from keyferry.stores.state_dir import StateDir

SEALED_COLUMNS: tuple[SealedColumn, ...] = (subscribers.KEYS, registrations.K_M, keys.KEYS, ledger.STATE, ue.STATE, scripts.XRES)
BATCH = 500
"""Rows in one transaction: little is done again after a crash, and the WAL stays small."""


def rotate(state: StateDir) -> dict[str, int]:
    """Seal every row again under a new KEK and forget the old ones; return how many rows of which "database:table".

    The new KEK is on the disk before the first row needs it, and the old ones go after the last row has left them: a crash
    at any point leaves a state that opens, and another rotation ends the work. Raises StateError if another process uses
    the state, SealError if a row does not open: then no KEK is dropped.
    """
    counts: dict[str, int] = {}
    with state.alone():
        kid, kek = state.new_kek()
        state.write_keks({**state.keks, kid: kek})
        keyring = state.keyring
        for path in state.databases():
            with contextlib.closing(connect(path)) as connection:
                try:
                    _rotate_database(connection, path, keyring, counts)
                except sqlite3.Error as problem:
                    raise StoreError(f"{path.name}: {problem}") from problem
        state.write_keks({kid: kek})
    return counts


def _rotate_database(connection: sqlite3.Connection, path: Path, keyring: Keyring, counts: dict[str, int]) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for column in SEALED_COLUMNS:
        if column.table in tables:
            counts[f"{path.name}:{column.table}"] = _rotate_column(connection, path, keyring, column)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _rotate_column(connection: sqlite3.Connection, path: Path, keyring: Keyring, column: SealedColumn) -> int:
    count, last = 0, -1
    select = (
        f"SELECT id, {column.column}, {', '.join(column.bound)} FROM {column.table}"  # noqa: S608
        f" WHERE id > ? AND substr({column.column}, 1, {KID_OCTETS}) <> ? ORDER BY id LIMIT {BATCH}"
    )
    update = f"UPDATE {column.table} SET {column.column} = ? WHERE id = ?"  # noqa: S608
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            rows = connection.execute(select, (last, keyring.current)).fetchall()
            for identifier, sealed, *values in rows:
                connection.execute(update, (column.seal(keyring, column.open(keyring, sealed, values), values), identifier))
                last = identifier
            connection.execute("COMMIT")
        except SealError as problem:
            connection.execute("ROLLBACK")
            where = f"{path.name}: row {identifier} of {column.table}"
            raise SealError(f"{where} does not open; no key was dropped. Delete that row, then rotate again") from problem
        count += len(rows)
        if len(rows) < BATCH:
            return count
