# SPDX-License-Identifier: Apache-2.0
"""One coarse timer for many deadlines."""

from __future__ import annotations

import asyncio

from keyferry.transports.clock import SystemClock
from keyferry.transports.deadlines import GRANULARITY, Deadlines
from transports.sipkit import FakeClock, patiently


async def test_deadlines_fire_in_order_and_never_early() -> None:
    """A deadline may be late by the granularity."""
    clock = FakeClock()
    deadlines = Deadlines(clock)
    fired: list[str] = []
    deadlines.after(2.0, lambda: fired.append("two"))
    deadlines.after(1.0, lambda: fired.append("one"))
    deadlines.after(1.0, lambda: fired.append("one more"))
    deadlines.after(1.5, lambda: fired.append("cancelled")).cancel()
    clock.time += 0.99
    assert deadlines.run() == 0
    clock.time += 0.01 + GRANULARITY
    assert deadlines.run() == 2
    assert fired == ["one", "one more"]
    clock.time += 5.0
    assert deadlines.run() == 1
    assert fired == ["one", "one more", "two"]
    deadlines.close()


async def test_the_loop_fires_them_by_itself() -> None:
    """The real clock, the shortest deadline."""
    deadlines = Deadlines(SystemClock())
    fired = asyncio.Event()
    deadlines.after(60.0, lambda: None)
    deadlines.after(0.0, fired.set)
    await patiently(fired.wait())
    deadlines.close()


async def test_a_callback_that_fails_does_not_take_the_others_with_it() -> None:
    """Each transaction has its own deadline."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context["exception"]))
    clock = FakeClock()
    deadlines = Deadlines(clock)
    fired: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    deadlines.after(0.0, fail)
    deadlines.after(0.0, lambda: fired.append(1))
    clock.time += 1
    assert deadlines.run() == 2
    assert fired == [1]
    assert isinstance(problems[0], ZeroDivisionError)


async def test_a_callback_may_set_a_new_deadline() -> None:
    """Timer E sets timer E."""
    clock = FakeClock()
    deadlines = Deadlines(clock)
    fired: list[float] = []

    def again() -> None:
        fired.append(clock.time)
        if len(fired) < 3:
            deadlines.after(1.0, again)

    deadlines.after(1.0, again)
    for _ in range(5):
        clock.time += 1.0 + GRANULARITY
        deadlines.run()
    assert len(fired) == 3


async def test_nothing_fires_after_close() -> None:
    """A closed node is silent."""
    clock = FakeClock()
    deadlines = Deadlines(clock)
    deadlines.after(1.0, lambda: None)
    deadlines.close()
    deadlines.after(1.0, lambda: None)
    clock.time += 5
    deadlines.close()
    assert deadlines.run() == 0
