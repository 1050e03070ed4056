# SPDX-License-Identifier: Apache-2.0
"""A test of real time is tried again where the machine stood still, and nowhere else."""

from __future__ import annotations

from math import inf

import pytest

from steady import ATTEMPTS, beating, steady


class Failing:
    """A test that fails so many times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            pytest.fail("no") if self.calls % 2 else self._wrong()

    def _wrong(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(("slack", "times", "calls", "fails"), [(inf, 1, 1, True), (0.0, 3, 4, False), (0.0, 99, ATTEMPTS, True)])
async def test_what_fails_is_tried_again_only_on_a_machine_that_stood_still(slack: float, times: int, calls: int, fails: bool) -> None:
    """With no slack every machine does."""
    one, other = Failing(times), Failing(times)

    async def waits() -> None:
        other()

    for tried in (steady(slack)(lambda: one()), steady(slack)(waits)):
        try:
            done = tried()
            if done is not None:
                await done
        except (AssertionError, pytest.fail.Exception):
            assert fails
        else:
            assert not fails
    assert (one.calls, other.calls) == (calls, calls)


def test_time_that_the_process_did_not_get_is_counted() -> None:
    """A sum in C lets no other thread run, as a collection of garbage does."""
    with beating() as heart:
        while heart.lost < 0.02:
            sum(range(5_000_000))
    assert heart.lost >= 0.02
