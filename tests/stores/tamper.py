# SPDX-License-Identifier: Apache-2.0
"""What somebody who can write the database file does."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any


def execute(path: Path, sql: str, *arguments: object) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(sql, arguments).fetchall()


def columns(path: Path, table: str) -> list[str]:
    return [row[1] for row in execute(path, f"PRAGMA table_info({table})")]
