# SPDX-License-Identifier: Apache-2.0
"""Each clause of TS 24.229 and TS 29.228, and section of RFC 4475, that the conformance page says is met has its test, titled by it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from docs.console import ROOT
from protocol.sip.torture import messages

DOCUMENT = "TS 24.229"
CLAUSE = r"\d+[A-Z]?(?:\.\d+[A-Z]?)*"
STATUSES = {"yes", "no", "differs"}


class Row(NamedTuple):
    """A row of a table of the page."""

    clauses: tuple[str, ...]
    what: str
    status: str
    why: str

    @property
    def files(self) -> list[str]:
        """Return the tests that it names."""
        return re.findall(r"`(tests/[\w/]+\.py)`", self.why)


def rows(document: str) -> Iterator[Row]:
    """Yield the rows of the sections about a document."""
    for section in (ROOT / "docs" / "conformance.md").read_text("utf-8").split("\n## ")[1:]:
        if not section.startswith(document):
            continue
        for line in section.splitlines():
            if line.startswith("| §"):
                clause, what, status, why = (cell.strip() for cell in line.strip("|").split("|"))
                yield Row(tuple(re.findall(rf"§({CLAUSE})", clause)), what, status, why)


@cache
def titles(file: str) -> tuple[str, tuple[str, ...]]:
    """Return a file's docstring, and those of its tests and of classes of tests."""
    tree = ast.parse((ROOT / Path(file)).read_text("utf-8"))
    found = [
        ast.get_docstring(node) or ""
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name.lower().startswith("test")
    ]
    return ast.get_docstring(tree) or "", tuple(found)


def cites(clause: str, file: str, document: str = DOCUMENT) -> bool:
    """Tell whether a test of a file is titled by a clause; the document may be named once, at the top of the file."""
    about, found = titles(file)
    very = re.compile(rf"§{re.escape(clause)}(?![0-9A-Z]|\.\d)")
    return any(very.search(title) and (document in title or document in about) for title in found)


ROWS = list(rows(DOCUMENT))
CX = [row for row in rows("TS 29.228") if row.status == "yes"]
TORTURE = list(rows("RFC 4475"))
MESSAGES = frozenset(one.section for one in messages())
ALL_MESSAGES = {"tests/protocol/sip/test_torture.py", "tests/transports/test_torture.py"}  # they go through every message, with its section


def test_the_page_is_read() -> None:
    """A table of another form would pass unread."""
    assert len(ROWS) > 40
    assert len(CX) > 5
    assert {row.status for row in ROWS} == STATUSES
    assert all(row.clauses for row in ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.status != "no"], ids=lambda row: f"{row.clauses[0]} {row.what[:50]}")
def test_each_clause_has_a_test_that_is_titled_by_it(row: Row) -> None:
    """STYLE: titles are clauses."""
    assert row.files, "no test is named"
    for clause in row.clauses:
        assert any(cites(clause, file) for file in row.files), f"no test in {', '.join(row.files)} cites {DOCUMENT} §{clause}"


@pytest.mark.parametrize("row", CX, ids=lambda row: f"{row.clauses[0]} {row.what[:50]}")
def test_each_clause_of_cx_that_is_met_has_a_test_in_every_file_named(row: Row) -> None:
    """TS 29.228."""
    assert row.files, "no test is named"
    for file in row.files:
        assert any(cites(clause, file, "TS 29.228") for clause in row.clauses), f"no test in {file} cites TS 29.228 {row.clauses}"


@pytest.mark.parametrize("row", [row for row in TORTURE if row.status != "no"], ids=lambda row: f"{row.clauses[0]} {row.what[:50]}")
def test_each_torture_message_has_a_test(row: Row) -> None:
    """RFC 4475 §3: a message of torture.toml, or a test that cites the section."""
    assert row.files, "no test is named"
    for section in row.clauses:
        through_all = section in MESSAGES and ALL_MESSAGES & set(row.files)
        assert through_all or any(cites(section, file, "RFC 4475") for file in row.files), f"nothing for §{section}"


def test_every_torture_message_is_on_the_page_and_every_section_of_the_rfc() -> None:
    """RFC 4475, its table of contents."""
    listed = [section for row in TORTURE for section in row.clauses]
    assert len(listed) == len(set(listed))
    assert set(listed) >= MESSAGES
    valid, invalid = ([f"3.1.{part}.{number}" for number in range(1, last + 1)] for part, last in ((1, 13), (2, 19)))
    assert sorted(listed) == sorted([*valid, *invalid, "3.2.1", *(f"3.3.{number}" for number in range(1, 16)), "3.4.1"])


@pytest.mark.parametrize(
    ("title", "cited"),
    [
        ('"""TS 24.229 §5.4.1.2."""', True),
        ('"""TS 24.229 §5.4.1.1, §5.4.1.2: both."""', True),
        ('"""TS 24.229 §5.4.1.2.1."""', False),
        ('"""TS 24.229 §5.4.1.2F."""', False),
        ('"""TS 33.203 §5.4.1.2."""', False),
        ('"""It works."""', False),
    ],
)
def test_only_the_very_clause_counts(title: str, cited: bool, tmp_path: Path) -> None:
    """§5.4.1.2 is not §5.4.1.2.1."""
    file = tmp_path / "test_it.py"
    file.write_text(f'"""What."""\ndef test_it():\n    {title}\n')
    assert cites("5.4.1.2", str(file)) is cited
