# SPDX-License-Identifier: Apache-2.0
"""docs/kamailio.md: who was ended where, for as long as somebody may ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from keyferry.errors import CxError
from keyferry.ports import CxServing, DeregistrationReason
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.cx_ended import LIFE, MAX_ENDS, MAX_TOLD, EndedBook, NotingServings

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


def test_ends_are_told_in_their_order_to_whom_they_concern() -> None:
    book = EndedBook(Clock())
    for number in range(3):
        book.note(HOST, Impi(f"u{number}@home1.net"), 1000.0)
    book.note("other.home1.net", IMPI, 1000.0)
    told = book.since(HOST, 0)
    assert told == [(1_000_000 + number, f"u{number}@home1.net") for number in range(3)]
    assert book.since(HOST, told[1][0]) == told[2:]
    assert book.since(HOST, told[2][0]) == []


def test_ends_are_bounded_and_grow_old() -> None:
    clock = Clock()
    book = EndedBook(clock)
    for _ in range(MAX_ENDS + 5):
        book.note(HOST, IMPI, clock.at)
    assert len(book._ends) == MAX_ENDS
    assert len(book.since(HOST, 0)) == MAX_TOLD
    clock.at += LIFE + 60
    book.note(HOST, IMPI, clock.at)
    assert len(book._ends) == 1


async def test_an_rtr_that_was_answered_is_noted() -> None:
    book, serving = EndedBook(Clock()), Serving()
    servings = NotingServings(serving, book, {HOST})
    found = servings.at("sip:SCSCF1.home1.net:6060")
    assert found is not None
    await found.push_profile(IMPI, b"x")
    assert book.since(HOST, 0) == []
    await found.registration_termination(IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "why")
    assert [impi for _, impi in book.since(HOST, 0)] == [IMPI]
    assert serving.asked == [(IMPI, b"x"), (IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "why")]
    assert servings.at("sip:away.home1.net") is None
    assert servings.at("no uri") is serving
    assert servings.at("sip:scscf2.home1.net") is serving  # one of ours erases its keys itself


async def test_an_rtr_that_kamailio_did_not_take_is_noted_as_of_when_it_was_sent() -> None:
    """Who registers while it is waited for keeps the new key."""
    clock, serving = Clock(), Serving()
    book = EndedBook(clock)
    serving.fails = True
    serving.takes = lambda: setattr(clock, "at", clock.at + 10)
    found = NotingServings(serving, book, {HOST}).at("sip:scscf1.home1.net:6060")
    assert found is not None
    with pytest.raises(CxError):
        await found.registration_termination(IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "")
    assert book.since(HOST, 0) == [(1_000_000, IMPI)]
    serving.fails = False
    await found.registration_termination(IMPI, (), DeregistrationReason.PERMANENT_TERMINATION, "")
    assert book.since(HOST, 1_000_000) == [(1_020_000, IMPI)]
