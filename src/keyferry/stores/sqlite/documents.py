# SPDX-License-Identifier: Apache-2.0
"""Whole XCAP documents in SQLite (RFC 4825; DESIGN §8): the user's data, stored as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from keyferry.ports import Document
from keyferry.stores.database import Database, octets

SCHEMA = (
    # names are octets: a path may be any that percent-decoding yields
    "CREATE TABLE IF NOT EXISTS document ("
    " id INTEGER PRIMARY KEY, auid BLOB NOT NULL, owner BLOB NOT NULL, path BLOB NOT NULL, etag TEXT NOT NULL, body BLOB NOT NULL,"
    " UNIQUE (owner, auid, path))",
)
_WHERE = "WHERE owner = ? AND auid = ? AND path = ?"


class SqliteDocumentStore:
    """Implement ports.DocumentStore."""

    def __init__(self, database: Database) -> None:
        database.ensure(SCHEMA)
        self._database = database

    async def get(self, auid: str, owner: str, path: str) -> Document | None:
        """Return a document."""
        rows = self._database.read(f"SELECT body, etag FROM document {_WHERE}", _name(auid, owner, path))  # noqa: S608
        return Document(*rows[0]) if rows else None

    async def put(self, auid: str, owner: str, path: str, document: Document, *, expect: Callable[[Document | None], None]) -> bool:
        """Store; true if it is new. `expect` sees what is stored, inside the transaction, and raises to refuse."""
        name = _name(auid, owner, path)

        def work(connection: sqlite3.Connection) -> bool:
            old = _stored(connection, name)
            expect(old)
            connection.execute(
                "INSERT INTO document (owner, auid, path, etag, body) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (owner, auid, path) DO UPDATE SET etag = excluded.etag, body = excluded.body",
                (*name, document.etag, document.body),
            )
            return old is None

        return await self._database.write(work)

    async def delete(self, auid: str, owner: str, path: str, *, expect: Callable[[Document | None], None]) -> bool:
        """Delete; false if there was none. `expect` as in `put`."""
        name = _name(auid, owner, path)

        def work(connection: sqlite3.Connection) -> bool:
            expect(_stored(connection, name))
            return connection.execute(f"DELETE FROM document {_WHERE}", name).rowcount > 0  # noqa: S608

        return await self._database.write(work)


def _stored(connection: sqlite3.Connection, name: tuple[bytes, bytes, bytes]) -> Document | None:
    row = connection.execute(f"SELECT body, etag FROM document {_WHERE}", name).fetchone()  # noqa: S608
    return None if row is None else Document(*row)


def _name(auid: str, owner: str, path: str) -> tuple[bytes, bytes, bytes]:
    return (octets(owner), octets(auid), octets(path))
