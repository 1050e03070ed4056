# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6, delivery: an AS that does not answer is not hammered, and has what it is owed soon after it is back."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.roles.scscf.as_gate import CLOSED_MOST, RETRY_FIRST, TOGETHER, AsGate
from roles.network import FakeClock, settle


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gate(clock: FakeClock) -> AsGate:
    return AsGate(clock, clock.sleep)


class Senders:
    """Who waits at a gate; each sends for as long as the test says."""

    def __init__(self, gate: AsGate) -> None:
        self.gate = gate
        self.inside: list[int] = []
        self.ends: dict[int, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def come(self, count: int) -> None:
        for _ in range(count):
            number = len(self.tasks)
            self.ends[number] = asyncio.Event()
            self.tasks.append(asyncio.ensure_future(self._send(number)))

    async def _send(self, number: int) -> None:
        async with self.gate.turn():
            self.inside.append(number)
            await self.ends[number].wait()
            self.inside.remove(number)

    async def end(self, *numbers: int) -> None:
        for number in numbers:
            self.ends[number].set()
        await settle()

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_one_is_let_in_after_the_pause_and_the_others_once_it_was_answered(clock: FakeClock, gate: AsGate) -> None:
    gate.failed()
    senders = Senders(gate)
    senders.come(3)
    await settle()
    assert senders.inside == []
    await clock.advance(RETRY_FIRST)
    assert senders.inside == [0]
    gate.answered()
    await settle()
    assert senders.inside == [0, 1, 2]
    await senders.end(0, 1, 2)


async def test_the_next_is_let_in_after_a_longer_pause_up_to_the_bound(clock: FakeClock, gate: AsGate) -> None:
    gate.failed()
    senders = Senders(gate)
    senders.come(5)
    times = []
    for number in range(5):
        while number not in senders.inside:
            await clock.advance(0.25)
        times.append(clock.monotonic() - 1_000)
        gate.failed()
        await senders.end(number)
    assert times == [0.5, 1.5, 3.5, 5.5, 7.5]


async def test_who_has_nothing_to_send_any_more_passes_the_turn_on(clock: FakeClock, gate: AsGate) -> None:
    gate.failed()
    senders = Senders(gate)
    senders.come(2)
    await clock.advance(RETRY_FIRST)
    await senders.end(0)
    assert senders.inside == [1]
    await senders.end(1)


async def test_failures_of_what_was_sent_before_the_pause_do_not_make_it_longer(clock: FakeClock, gate: AsGate) -> None:
    for _ in range(100):
        gate.failed()
    senders = Senders(gate)
    senders.come(1)
    await clock.advance(RETRY_FIRST)
    assert senders.inside == [0]
    await senders.end(0)


async def test_those_who_waited_go_in_bounded_number(gate: AsGate) -> None:
    gate.failed()
    senders = Senders(gate)
    senders.come(TOGETHER + 10)
    await settle()
    gate.answered()
    await settle()
    assert len(senders.inside) == TOGETHER
    await senders.end(0, 1)
    assert len(senders.inside) == TOGETHER
    await senders.leave()


async def test_one_that_is_cancelled_while_it_waits_or_sends_leaves_no_turn_behind(clock: FakeClock, gate: AsGate) -> None:
    gate.failed()
    senders = Senders(gate)
    senders.come(3)
    await settle()
    senders.tasks[0].cancel()
    await clock.advance(RETRY_FIRST)
    assert senders.inside == [1]
    senders.tasks[1].cancel()
    await settle()
    assert senders.inside[-1] == 2
    await senders.end(2)


async def test_a_sign_of_life_ends_the_pause(clock: FakeClock, gate: AsGate) -> None:
    gate.failed(after=20.0)
    senders = Senders(gate)
    senders.come(1)
    await clock.advance(1)
    assert senders.inside == []
    gate.try_now()
    await settle()
    assert senders.inside == [0]
    await senders.end(0)
    gate.answered()
    gate.try_now()
    assert gate.is_open


async def test_after_a_sign_of_life_the_long_pause_does_not_come_back(clock: FakeClock, gate: AsGate) -> None:
    """An attempt that fails then is followed by the next one after the first pause, not after what was asked for before."""
    gate.failed(after=20.0)
    senders = Senders(gate)
    senders.come(2)
    await clock.advance(1)
    gate.try_now()
    await settle()
    gate.failed()
    await senders.end(0)
    assert senders.inside == []
    await clock.advance(RETRY_FIRST)
    assert senders.inside == [1]
    await senders.end(1)


async def test_nobody_can_ask_for_a_longer_pause_than_the_bound(clock: FakeClock, gate: AsGate) -> None:
    gate.failed(after=1e9)
    senders = Senders(gate)
    senders.come(1)
    await clock.advance(CLOSED_MOST)
    assert senders.inside == [0]
    await senders.end(0)


async def test_closing_ends_the_timer(clock: FakeClock, gate: AsGate) -> None:
    gate.failed()
    senders = Senders(gate)
    senders.come(1)
    await settle()
    gate.close()
    gate.close()
    await clock.advance(60)
    assert senders.inside == []
    await senders.leave()
