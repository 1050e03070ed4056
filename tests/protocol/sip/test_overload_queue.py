# SPDX-License-Identifier: Apache-2.0
"""The overload control in front of a queue, in simulated time: what it costs when there is much to do, and when there is not."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from dataclasses import dataclass

import pytest

from keyferry.protocol.sip.overload import OverloadControl, OverloadPolicy

FIRST, SECOND, REFUSAL = 0.0004, 0.001, 0.00003  # seconds of work
CAPACITY = 1 / (FIRST + SECOND)  # registrations a second
BACK = 0.001  # seconds until a challenged UE answers
LENGTH = 10.0  # seconds
T1 = 0.5  # seconds (RFC 3261 §17.1.2.2)


@dataclass(slots=True)
class Outcome:
    """What became of the registrations offered."""

    offered: int = 0
    done: int = 0
    refused: int = 0
    longest: float = 0.0  # seconds that a REGISTER waited


def offered(chance: random.Random, rate: float) -> list[tuple[float, bool]]:
    """Return when REGISTERs arrive, and whether each is a first one: all of these are."""
    times = itertools.accumulate(chance.expovariate(rate) for _ in itertools.count())
    return [(at, True) for at in itertools.takewhile(lambda at: at < LENGTH, times)]


def run(factor: float, *, stall: float = 0.0) -> Outcome:
    """Offer `factor` times the capacity to one server that, once a second, stands still for up to `stall` seconds."""
    chance, control, outcome = random.Random(1), OverloadControl(OverloadPolicy()), Outcome()
    arrivals = offered(chance, factor * CAPACITY)
    outcome.offered, now, still, queue = len(arrivals), 0.0, 1.0, deque[tuple[float, bool]]()
    while arrivals or queue:
        if not queue and arrivals[0][0] > now:
            control.observe(0.0, 0, now)
            now = arrivals[0][0]
        if stall and now > still:
            now += chance.uniform(0.0, stall)
            still = now + chance.expovariate(1.0)
        while arrivals and arrivals[0][0] <= now:
            at, first = heapq.heappop(arrivals)
            if first and control.shedding:
                outcome.refused += 1
                now += REFUSAL
            else:
                queue.append((at, first))
        if queue:
            since, first = queue.popleft()
            outcome.longest = max(outcome.longest, now - since)
            control.observe(now - since, 0, now)
            now += FIRST if first else SECOND
            if first:
                heapq.heappush(arrivals, (now + BACK, False))
            else:
                outcome.done += now < LENGTH
    return outcome


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_over_capacity_nine_tenths_of_it_get_done_and_nothing_is_sent_twice(factor: float) -> None:
    """DESIGN §11: first REGISTERs are refused before anybody waits for T1."""
    outcome = run(factor)
    assert outcome.done > 0.9 * CAPACITY * LENGTH
    assert outcome.longest < T1
    assert outcome.done + outcome.refused > 0.99 * outcome.offered


@pytest.mark.parametrize(("factor", "stall"), [(0.8, 0.0), (0.5, 0.25)])
def test_under_capacity_nobody_is_refused_though_the_machine_stands_still_now_and_then(factor: float, stall: float) -> None:
    """OverloadPolicy.patience, ease: a laptop has other things to do."""
    outcome = run(factor, stall=stall)
    assert outcome.refused == 0
    assert outcome.longest >= stall / 2
