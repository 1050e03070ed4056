# SPDX-License-Identifier: Apache-2.0
"""docs/kamailio.md: who was ended where, for as long as somebody may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from keyferry.errors import CxError
from keyferry.ports import CxServing, DeregistrationReason
from keyferry.ports.scripts import ScriptStore
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.cx_ended import EndedBook, NotingServings
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.scripts import SqliteScriptStore
from keyferry.transports.clock import SystemRandom

HOST, IMPI = "scscf1.home1.net", Impi("u@home1.net")


class Clock:
    """Time that a test moves."""

    at = 1000.0

    def now(self) -> float:
        """Return it."""
        return self.at

    def monotonic(self) -> float:
        """Return it, too."""
        return self.at


class Serving:
    """An S-CSCF that does as it is told, or not."""

    fails = False

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.takes: Callable[[], None] = lambda: None

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        """End, or refuse."""
        self.asked.append((impi, impus, reason, info))
        self.takes()
        if self.fails:
            raise CxError(5012, "DIAMETER_UNABLE_TO_COMPLY")

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        """Take it."""
        self.asked.append((impi, user_data))

    def at(self, server_name: str) -> CxServing | None:
        """Be everywhere but at one."""
        return None if "away" in server_name else self


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path) -> Iterator[ScriptStore]:
    """The HSS's."""
    with Database(tmp_path / "hss.db") as database:
        yield SqliteScriptStore(database, Keyring({b"kek1": Secret(bytes(64))}, b"kek1", random=SystemRandom()))


async def test_an_rtr_that_was_answered_is_noted(store: ScriptStore) -> None:
    book, serving = EndedBook(Clock(), store), Serving()
    servings = NotingServings(serving, book, {HOST})
    found = servings.at("sip:SCSCF1.home1.net:6060")
    assert found is not None
    await found.push_profile(IMPI, b"x")
    assert list(book.since(HOST, 0)) == []
    await found.registration_termination(IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "why")
    assert [end.impi for end in book.since(HOST, 0)] == [IMPI]
    assert serving.asked == [(IMPI, b"x"), (IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "why")]
    assert servings.at("sip:away.home1.net") is None
    assert servings.at("no uri") is serving
    assert servings.at("sip:scscf2.home1.net") is serving  # one of ours erases its keys itself


async def test_an_rtr_that_kamailio_did_not_take_is_noted_as_of_when_it_was_sent(store: ScriptStore) -> None:
    """Who registers while it is waited for keeps the new key, whoever else is ended meanwhile."""
    clock, serving = Clock(), Serving()
    book = EndedBook(clock, store)
    serving.fails = True
    serving.takes = lambda: setattr(clock, "at", clock.at + 10)
    found = NotingServings(serving, book, {HOST}).at("sip:scscf1.home1.net:6060")
    assert found is not None
    await book.note(HOST, Impi("v@home1.net"), clock.at + 5)
    with pytest.raises(CxError):
        await found.registration_termination(IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "")
    _, end = book.since(HOST, 0)
    assert (end.at, end.impi) == (1_000_000, IMPI)
    serving.fails = False
    await found.registration_termination(IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "")
    assert [(end.at, end.impi) for end in book.since(HOST, end.place)] == [(1_020_000, IMPI)]
