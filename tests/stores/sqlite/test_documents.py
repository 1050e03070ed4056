# SPDX-License-Identifier: Apache-2.0
"""Documents in SQLite: the contract, and two writers that expect the same document."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.ports import Document
from keyferry.stores.database import Database
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from stores.contract import DocumentContract, RefusalError, anything


@pytest.fixture
def store(database: Database) -> SqliteDocumentStore:
    return SqliteDocumentStore(database)


class TestSqliteDocuments(DocumentContract):
    """The contract."""


async def test_of_two_writers_that_expect_the_same_document_one_wins(store: SqliteDocumentStore) -> None:
    """RFC 4825 §8.5: no lost update."""
    await store.put("a", "o", "p", Document(b"0", "0"), expect=anything)

    def unchanged(stored: Document | None) -> None:
        if stored != Document(b"0", "0"):
            raise RefusalError

    outcomes = await asyncio.gather(
        *[store.put("a", "o", "p", Document(b"%d" % number, str(number)), expect=unchanged) for number in range(1, 4)],
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [bool, RefusalError, RefusalError]
    assert await store.get("a", "o", "p") == Document(b"1", "1")
