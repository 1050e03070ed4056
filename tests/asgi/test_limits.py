# SPDX-License-Identifier: Apache-2.0
"""Failures are counted per source, and against nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from keyferry.asgi.limits import CHALLENGES, NAMES, UNKNOWN, FailureLimits, Failures, bucket_name
from keyferry.errors import ConfigError

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def test_a_burst_then_a_rate() -> None:
    failures = Failures(FailureLimits(burst=3, per_second=0.5))
    assert [failures.failed(A, 0.0)[0] for _ in range(4)] == [True, True, True, False]
    assert failures.failed(A, 0.5) == (False, 1.5)
    assert [failures.failed(A, 2.0)[0] for _ in range(2)] == [True, False]
    assert [failures.failed(A, 1000.0)[0] for _ in range(4)] == [True, True, True, False]
    assert failures.failed(B, 1000.0) == (True, 0.0)


def test_a_clock_that_stands_still_or_goes_back_gives_no_tokens() -> None:
    failures = Failures(FailureLimits(burst=1))
    assert failures.failed(A, 10.0)[0]
    assert not failures.failed(A, 5.0)[0]


async def test_over_the_limit_a_few_at_a_time_are_looked_into_and_the_others_wait() -> None:
    """So a right answer from behind the same NAT is still admitted."""
    failures = Failures(FailureLimits(burst=1, per_second=0.001, at_once=2))
    assert failures.lane(A, 0.0) is None
    failures.failed(A, 0.0)
    assert failures.lane(B, 0.0) is None
    lane = failures.lane(A, 0.0)
    assert lane is not None
    order, done = [], [asyncio.Event() for _ in range(5)]

    async def look(number: int) -> None:
        async with lane:
            order.append(number)
            await done[number].wait()

    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(look(number)) for number in range(5)]
        await turn()
        assert (order, failures.lane(A, 0.0)) == ([0, 1], lane)
        waiting[2].cancel()  # its client went away
        done[0].set()
        await turn()
        assert order == [0, 1, 3]
        waiting[1].cancel()
        await turn()
        assert (order, lane.used) == ([0, 1, 3, 4], 2)
        for event in done:
            event.set()
    assert lane.used == 0
    assert failures.lane(A, 2000.0) is None  # not over it any more


def test_an_event_loop_that_is_gone_leaves_no_lane() -> None:
    """Test clients and WSGI servers run a loop for each request."""
    failures = Failures(FailureLimits(burst=1, per_second=0.001, at_once=1))
    failures.failed(A, 0.0)

    async def crowd() -> None:
        async def look() -> None:
            lane = failures.lane(A, 0.0)
            assert lane is not None
            async with lane:
                await turn()

        await asyncio.gather(look(), look(), look())

    asyncio.run(crowd())
    asyncio.run(crowd())


async def turn() -> None:
    """Let every task go on as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_over_the_limit_each_name_has_some_challenges_left() -> None:
    """A neighbour with a key that is gone needs one; whoever guesses on under one name gets none."""
    failures = Failures(FailureLimits(burst=1, per_second=0.5))
    assert [failures.may_be_challenged(A, b"forger", 0.0) for _ in range(CHALLENGES + 1)] == [True] * CHALLENGES + [False]
    assert failures.may_be_challenged(A, b"neighbour", 0.0)
    assert failures.may_be_challenged(B, b"forger", 0.0)
    assert [failures.may_be_challenged(A, b"forger", 2.0) for _ in range(2)] == [True, False]


def test_the_names_are_bounded() -> None:
    failures = Failures(FailureLimits())
    for number in range(NAMES + 10):
        failures.may_be_challenged(A, b"%d" % number, 0.0)
    assert len(failures._names.held) == NAMES


def test_the_table_is_bounded_and_forgives_the_oldest() -> None:
    failures = Failures(FailureLimits(burst=1, per_second=0.001, sources=2))
    for source in (A, B, A, C):
        failures.failed(source, 0.0)
    assert not failures.failed(A, 0.0)[0]
    assert failures.failed(B, 0.0)[0]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_subscriber_has_one_ipv4_address_or_a_whole_64(address: str, name: str) -> None:
    assert bucket_name(address) == name


@pytest.mark.parametrize("wrong", [{"burst": 0}, {"per_second": 0}, {"per_second": float("inf")}, {"at_once": 0}, {"sources": 0}])
def test_limits_that_let_nobody_in_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FailureLimits"):
        FailureLimits(**wrong)
