# SPDX-License-Identifier: Apache-2.0
"""A process that stood still knows it, whoever looks first; tests/system/test_diameter.py stops one."""

from __future__ import annotations

from keyferry.transports.pulse import GRACE, Pulse
from transports.sipkit import FakeClock, Tallies


async def test_who_stood_still_says_so_for_a_moment_and_once() -> None:
    clock, log = FakeClock(), Tallies()
    pulse = Pulse(clock, log, 2.5)
    for _ in range(10):
        clock.time += 2.0
        await pulse.beat()
        assert not pulse.stood_still()
    clock.time += 2.6
    assert pulse.stood_still()
    clock.time += GRACE / 2
    await pulse.beat()
    assert pulse.stood_still()
    clock.time += GRACE / 2
    assert not pulse.stood_still()
    assert log.events == [("stood-still", {"seconds": 2.6})]


async def test_it_is_seen_where_the_timer_comes_first_too() -> None:
    clock = FakeClock()
    pulse = Pulse(clock, Tallies(), 2.5)
    clock.time += 60
    await pulse.beat()
    assert pulse.stood_still()
