# SPDX-License-Identifier: Apache-2.0
"""The machine's time and chance."""

from __future__ import annotations

from keyferry.transports.clock import SystemClock, SystemRandom


def test_the_clock_tells_both_times() -> None:
    """ports.Clock."""
    clock = SystemClock()
    assert clock.now() > 1_700_000_000
    first = clock.monotonic()
    assert clock.monotonic() >= first


def test_octets_are_as_many_as_asked_and_not_the_same() -> None:
    """ports.RandomSource."""
    random = SystemRandom()
    assert len(random.octets(32)) == 32
    assert random.octets(16) != random.octets(16)
