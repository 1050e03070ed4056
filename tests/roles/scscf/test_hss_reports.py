# SPDX-License-Identifier: Apache-2.0
"""What the HSS is told of ends, in bounded number, and again where it was away (TS 29.228 §6.1.2.1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from keyferry.errors import CxError, SealError
from keyferry.ports import ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.scscf.hss_reports import AT_ONCE, HssReports
from roles.network import FakeClock, RecordingCounter, RecordingLog, settle

IMPU = Impu("sip:a@home1.net")
END, FAILURE, TIMEOUT = (
    ServerAssignment.TIMEOUT_DEREGISTRATION,
    ServerAssignment.AUTHENTICATION_FAILURE,
    ServerAssignment.AUTHENTICATION_TIMEOUT,
)


class Told:
    """An HSS that is told; `away` and `refusing` say how it fails."""

    def __init__(self) -> None:
        self.clock, self.log, self.counter = FakeClock(), RecordingLog(), RecordingCounter()
        self.reports = HssReports(self.tell, self.clock, self.clock.sleep, self.log, self.counter)
        self.seen: list[tuple[Impi, ServerAssignment]] = []
        self.tries: list[float] = []
        self.away = False
        self.refusing: set[Impi] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = self.most = 0

    async def tell(self, impi: Impi, impu: Impu, assignment: ServerAssignment) -> None:
        self.tries.append(self.clock.monotonic())
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if self.away:
            raise CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")
        if impi in self.refusing:
            raise CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")
        self.seen.append((impi, assignment))

    def owe(self, count: int, assignment: ServerAssignment = END) -> None:
        for number in range(count):
            self.reports.owe(Impi(f"user{number}@home1.net"), IMPU, assignment)


@pytest_asyncio.fixture(name="told")
async def told_fixture() -> AsyncIterator[Told]:
    made = Told()
    yield made
    await made.reports.aclose()


async def test_all_are_told_a_few_at_a_time(told: Told) -> None:
    told.gate.clear()
    told.owe(500)
    await settle()
    assert told.under_way == AT_ONCE
    told.gate.set()
    await settle()
    assert (len(told.seen), told.most, len(told.reports)) == (500, AT_ONCE, 0)
    assert told.counter["scscf_hss_reports", "told"] == 500


async def test_an_hss_that_is_away_is_tried_with_one_after_ever_longer_pauses_and_then_told_all(told: Told) -> None:
    told.away = True
    told.owe(100)
    await settle()
    first = len(told.tries)
    assert first <= AT_ONCE
    for pause in (1, 2, 4, 8, 16, 30, 30):
        await told.clock.advance(pause - 0.5)
        assert len(told.tries) == first
        await told.clock.advance(0.5)
        await settle()
        first += 1
        assert len(told.tries) == first
        told.owe(100)  # nor is it tried for new ones
        await settle()
    assert len(told.tries) == first
    assert told.log.warnings == ["hss-report-waits"] * told.log.warnings.count("hss-report-waits")
    assert len(told.log.warnings) <= AT_ONCE
    told.away = False
    await told.clock.advance(30)
    await settle()
    assert (len(told.reports), {impi for impi, _ in told.seen}) == (0, {Impi(f"user{number}@home1.net") for number in range(100)})
    told.owe(1)
    await settle()
    assert len(told.seen) == 101  # at once again


async def test_what_it_refuses_is_not_said_again_and_keeps_no_other_waiting(told: Told) -> None:
    told.refusing.add(Impi("user0@home1.net"))
    told.owe(2)
    await settle()
    await told.clock.advance(60)
    assert [impi for impi, _ in told.seen] == ["user1@home1.net"]
    assert told.log.fields("hss-report-refused")["problem"] == "DIAMETER_ERROR_USER_UNKNOWN"


async def test_a_row_that_does_not_open_keeps_no_other_waiting(told: Told) -> None:
    async def failing(impi: Impi, impu: Impu, assignment: ServerAssignment) -> None:
        raise SealError("the seal does not open in this row")

    told.reports.tell = failing
    told.owe(3)
    await settle()
    assert (len(told.reports), told.counter["scscf_hss_reports", "refused"]) == (0, 3)


async def test_a_fault_of_ours_costs_one_report_and_its_words_are_not_logged(told: Told) -> None:
    """It may quote what it stumbled over."""

    async def failing(impi: Impi, impu: Impu, assignment: ServerAssignment) -> None:
        told.tries.append(0.0)
        raise ValueError("0123456789abcdef")

    told.reports.tell = failing
    told.owe(3)
    await settle()
    assert (len(told.tries), len(told.reports), told.counter["scscf_hss_reports", "refused"]) == (3, 0, 3)
    assert told.log.fields("hss-report-refused")["problem"] == "ValueError"
    assert "0123" not in str(told.log.events)
    told.reports.tell = told.tell
    told.owe(1)
    await settle()
    assert len(told.seen) == 1


async def test_of_one_user_the_last_counts_but_no_failure_hides_an_end(told: Told) -> None:
    told.owe(1, FAILURE)
    told.owe(1, END)
    told.owe(1, TIMEOUT)
    await settle()
    assert [assignment for _, assignment in told.seen] == [END]
    told.owe(1, FAILURE)
    told.owe(1, TIMEOUT)
    await settle()
    assert [assignment for _, assignment in told.seen] == [END, TIMEOUT]


async def test_no_more_are_owed_than_may_be(told: Told) -> None:
    told.reports.max_owed = 10
    told.owe(15)
    assert len(told.reports) == 10
    await settle()
    assert [impi for impi, _ in told.seen] == [f"user{number}@home1.net" for number in range(5, 15)]
    assert told.counter["scscf_hss_reports", "dropped"] == 5


async def test_closing_ends_what_is_under_way(told: Told) -> None:
    told.gate.clear()
    told.owe(3)
    await settle()
    await told.reports.aclose()
    assert told.seen == []


async def test_an_end_that_could_not_be_told_is_not_replaced_by_a_failure_that_came_meanwhile(told: Told) -> None:
    told.away = True
    told.owe(1)
    await settle()
    told.gate.clear()
    await told.clock.advance(1)
    told.owe(1, FAILURE)
    told.gate.set()
    await settle()
    told.away = False
    await told.clock.advance(2)
    assert [assignment for _, assignment in told.seen] == [END]


async def test_an_end_is_not_replaced_by_word_of_a_registration_that_was_before_it(told: Told) -> None:
    """The HSS has carried out an earlier end late, and the user has left again since."""
    again = ServerAssignment.RE_REGISTRATION
    for kinds, said in (((END, again), END), ((again, END), END), ((FAILURE, again), again), ((again, TIMEOUT), again)):
        for kind in kinds:
            told.owe(1, kind)
        await settle()
        assert told.seen[-1][1] is said
    assert len(told.seen) == 4


async def test_who_asks_learns_of_an_end_that_is_still_to_be_told_or_is_being_told(told: Told) -> None:
    user, other = Impi("user0@home1.net"), Impi("user1@home1.net")
    told.gate.clear()
    told.owe(1)
    assert (told.reports.end_of(user), told.reports.end_of(other)) == ((IMPU, END), None)
    await settle()
    assert (told.under_way, told.reports.end_of(user)) == (1, (IMPU, END))
    told.owe(1, FAILURE)
    assert told.reports.end_of(user) == (IMPU, END)
    told.away = True
    told.gate.set()
    await settle()
    assert told.reports.end_of(user) == (IMPU, END)
    told.away = False
    await told.clock.advance(1)
    assert told.reports.end_of(user) is None
    told.gate.clear()
    told.owe(1, FAILURE)
    assert told.reports.end_of(user) is None
    told.gate.set()


async def test_after_closing_nothing_is_begun(told: Told) -> None:
    """The sockets close later, and a REGISTER may still come."""
    await told.reports.aclose()
    told.owe(1)
    await settle()
    assert told.tries == []
