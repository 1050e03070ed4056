# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.5, DESIGN §10: rspauth for a nonce that this HSS gave, for the right answer to it, once."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from keyferry.errors import DigestRejected
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import AuthenticationInfo, Credentials, aka_nonce, build_credentials, check_rspauth, hash_a1, respond
from keyferry.protocol.identity import Impi
from keyferry.roles.cx_rspauth import LIFE, RspauthBook
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.scripts import SqliteScriptStore
from keyferry.transports.clock import SystemRandom

IMPI, REALM, XRES, MARKER = Impi("u@home1.net"), "home1.net", Secret(bytes(range(8))), b"3G\x06\x07"
HA1 = hash_a1("AKAv1-MD5", IMPI, REALM, XRES)


class Clock:
    """Time that a test moves."""

    at = 0.0

    def now(self) -> float:
        """Return it."""
        return self.at

    monotonic = now


def vector(number: int) -> AuthVector:
    """Return one."""
    return AuthVector(rand=bytes([number]) * 16, autn=bytes(16), xres=XRES, ck=Secret(bytes(16)), ik=Secret(bytes(16)))


def answer(number: int = 1, **changes: Any) -> Credentials:
    """Return the right answer to a vector's challenge, then changed."""
    nonce, uri = aka_nonce(vector(number).rand, bytes(16), MARKER), "sip:home1.net"
    response = respond("AKAv1-MD5", HA1, method="REGISTER", uri=uri, nonce=nonce, qop="auth", nc="00000001", cnonce="c" * 16)
    right = Credentials(IMPI, REALM, nonce, uri, response, "AKAv1-MD5", "c" * 16, qop="auth", nc="00000001")
    return dataclasses.replace(right, **changes)


@pytest.fixture(name="clock")
def clock_fixture() -> Clock:
    """Time."""
    return Clock()


@pytest.fixture(name="process")
def process_fixture(tmp_path: Path, clock: Clock) -> Iterator[Callable[[], RspauthBook]]:
    """Start a process of the HSS."""
    with ExitStack() as stack:

        def start() -> RspauthBook:
            database = stack.enter_context(Database(tmp_path / "hss.db"))
            return RspauthBook(clock, SqliteScriptStore(database, Keyring({b"kek1": Secret(bytes(64))}, b"kek1", random=SystemRandom())))

        yield start


@pytest.fixture(name="book")
async def book_fixture(process: Callable[[], RspauthBook]) -> RspauthBook:
    """A book that knows the first vector."""
    book = process()
    await book.remember(IMPI, vector(1), MARKER)
    return book


@pytest.mark.parametrize("other", [False, True])
async def test_the_right_answer_gets_it_once_from_this_process_or_another(
    book: RspauthBook, process: Callable[[], RspauthBook], other: bool
) -> None:
    asked = process() if other else book
    rspauth = await asked.prove(build_credentials(answer()))
    check_rspauth(AuthenticationInfo(rspauth, "auth", "c" * 16, "00000001"), HA1, answer(), algorithm="AKAv1-MD5")
    for each in (book, asked, process()):
        with pytest.raises(DigestRejected):
            await each.prove(build_credentials(answer()))


async def test_what_proves_nothing_any_more_is_not_kept(book: RspauthBook, clock: Clock) -> None:
    clock.at = LIFE - 1
    await book.sweep()
    assert book.store.given(answer().nonce) is not None
    clock.at = LIFE
    await book.sweep()
    assert book.store.given(answer().nonce) is None


async def test_of_two_who_ask_at_once_one_gets_it(book: RspauthBook, process: Callable[[], RspauthBook]) -> None:
    asked = (book, process(), book, process())
    found = await asyncio.gather(*[each.prove(build_credentials(answer())) for each in asked], return_exceptions=True)
    assert [type(each) for each in found if not isinstance(each, str)] == [DigestRejected] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"response": "0" * 32},
        {"username": "v@home1.net"},
        {"realm": "x"},
        {"uri": "sip:x"},
        {"cnonce": "d" * 16},
        {"nonce": "AAAA"},
        {"nc": "x"},
    ],
)
async def test_any_other_answer_gets_nothing_and_spends_nothing(book: RspauthBook, changes: dict[str, Any]) -> None:
    with pytest.raises(DigestRejected):
        await book.prove(build_credentials(answer(**changes)))
    assert await book.prove(build_credentials(answer()))


async def test_what_is_no_authorization_is_refused(book: RspauthBook) -> None:
    for text in ("", "Digest", "Basic x", 'Digest username="u"'):
        with pytest.raises(DigestRejected):
            await book.prove(text)
    with pytest.raises(DigestRejected):
        await book.prove(build_credentials(dataclasses.replace(answer(), qop=None, nc=None, cnonce=None)))


async def test_it_is_bounded_in_time(book: RspauthBook, clock: Clock) -> None:
    clock.at += LIFE
    with pytest.raises(DigestRejected):
        await book.prove(build_credentials(answer()))


def test_it_prints_no_secret(book: RspauthBook) -> None:
    given = book.store.given(answer().nonce)
    assert given is not None
    assert given.xres == XRES
    assert XRES.reveal().hex() not in repr(given) + repr(book)
