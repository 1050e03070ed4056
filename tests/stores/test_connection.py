# SPDX-License-Identifier: Apache-2.0
"""Which files are ours, and how they are opened (DESIGN §11)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.stores import connection as module
from keyferry.stores.database import Database
from stores.tamper import execute


def test_the_file_is_private_and_the_log_is_synced(database: Database) -> None:
    assert database.path.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(module.connect(database.path)) as connection:
        settings = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    execute(tmp_path / "other.db", "CREATE TABLE theirs (x)")
    with pytest.raises(StateError, match="another program"):
        Database(tmp_path / "other.db")


def test_another_format_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "new.db").close()
    execute(tmp_path / "new.db", "PRAGMA user_version = 9")
    with pytest.raises(StateError, match="format 9"):
        Database(tmp_path / "new.db")


def test_a_first_start_that_was_interrupted_is_no_other_format(tmp_path: Path) -> None:
    execute(tmp_path / "half.db", f"PRAGMA application_id = {module.APPLICATION}")
    Database(tmp_path / "half.db").close()
    Database(tmp_path / "half.db").close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, although it is long enough to be asked" * 20)
    with pytest.raises(StateError, match="cannot be opened"):
        Database(tmp_path / "text.db")


def test_a_place_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be opened"):
        Database(tmp_path / "nowhere" / "x.db")
