# SPDX-License-Identifier: Apache-2.0
"""unix(7): who may ask is what the kernel says; one line in, one line out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keyferry.errors import DigestRejected, StateError
from keyferry.transports.rspauth_server import MAX_LINE, RspauthServer


class Book:
    """Counts and logs nothing that matters."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, str]] = []

    def count(self, name: str, reason: str = "") -> None:
        """Count."""
        self.counted.append((name, reason))

    def info(self, event: str, **fields: object) -> None:
        """Log."""

    warning = info


async def prove(authorization: str) -> str:
    """Know one answer."""
    if authorization != "right":
        raise DigestRejected("wrong")
    return "abc"


@asynccontextmanager
async def listening(path: Path, users: set[int]) -> AsyncIterator[Book]:
    """Listen."""
    book = Book()
    server = RspauthServer(prove, users, book, book)
    await server.listen(path)
    try:
        yield book
    finally:
        await server.aclose()


async def ask(path: Path, question: bytes) -> bytes:
    """Ask, and return all that comes."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(question)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_the_right_answer_is_answered(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", {os.geteuid()}) as book:
        assert json.loads(await ask(tmp_path / "s", b'{"authorization": "right"}\n')) == {"rspauth": "abc"}
        assert "error" in json.loads(await ask(tmp_path / "s", b'{"authorization": "x"}\n'))
        assert book.counted == [("hss_rspauth", "proven"), ("hss_rspauth", "rejected")]
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("question", [b"\n", b"x\n", b"[]\n", b"[" * 16_000 + b"\n", b'{"authorization": 1}\n', b"\xff\n"])
async def test_what_is_no_question_is_told_so(tmp_path: Path, question: bytes) -> None:
    async with listening(tmp_path / "s", {os.geteuid()}):
        assert json.loads(await ask(tmp_path / "s", question)) == {"error": "not a question"}


async def test_a_user_who_is_not_listed_gets_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", {os.geteuid() + 1}) as book:
        assert await ask(tmp_path / "s", b'{"authorization": "right"}\n') == b""
        assert book.counted == [("hss_rspauth", "refused")]


async def test_a_question_without_end_is_cut_off(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", {os.geteuid()}) as book:
        assert await ask(tmp_path / "s", b"x" * (4 * MAX_LINE)) == b""
        assert ("hss_rspauth", "broken") in book.counted


async def test_who_was_ended_is_told(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    def ended(scscf: str, since: int) -> list[tuple[int, int, str]]:
        asked.append((scscf, since))
        return [(5, 4, "u@home1.net")]

    server = RspauthServer(prove, {os.geteuid()}, Book(), Book(), ended)
    await server.listen(tmp_path / "s")
    assert json.loads(await ask(tmp_path / "s", b'{"ended": "s1", "since": 4}\n')) == {"ended": [[5, 4, "u@home1.net"]]}
    for bad in (
        b'{"ended": "s1"}\n',
        b'{"ended": "s1", "since": []}\n',
        b'{"ended": "s1", "since": "x"}\n',
        b'{"ended": "s1", "since": 1e999}\n',
    ):
        assert json.loads(await ask(tmp_path / "s", bad)) == {"error": "not a question"}
    assert asked == [("s1", 4)]
    await server.aclose()


async def test_others_cannot_even_connect(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", {os.geteuid()}):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    server = RspauthServer(prove, {os.geteuid()}, Book(), Book(), group=os.getegid())
    await server.listen(tmp_path / "s")
    found = (tmp_path / "s").stat()
    assert (found.st_mode & 0o777, found.st_gid) == (0o660, os.getegid())
    await server.aclose()


async def test_two_cannot_listen_at_one_place(tmp_path: Path) -> None:
    async with listening(tmp_path / "s", {os.geteuid()}):
        with pytest.raises(StateError):
            await RspauthServer(prove, set(), Book(), Book()).listen(tmp_path / "s")
