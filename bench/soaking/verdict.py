# SPDX-License-Identifier: Apache-2.0
"""What the figures of a soak mean: memory over the lives of the processes, failures that a kill explains, criteria that hold or do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from soaking.network import Life, Process
from soaking.phones import Failure

WARM_UP = 150.0  # seconds of each life that are not looked at: nonces are remembered for up to 128 s, and other caches fill meanwhile
ENOUGH = 120.0  # seconds of looked-at life, all together, below which nothing is said about growth
MAX_SLOPE = 1_000_000.0  # octets a minute: at 100 registrations/s it is 170 octets each; what allocators do is less after a while
GRACE = 2.0  # seconds after a restart in which an answer may still be an answer to what was lost


class Growth(NamedTuple):
    """The memory of one part of the network."""

    lives: int
    looked_at: float  # seconds
    slope: float | None  # octets a minute within the lives, all of them together; None: too short to say
    first: int  # octets when the first life was warm
    last: int  # at the very end
    most: int


class Criterion(NamedTuple):
    """One thing that must be so."""

    name: str
    holds: bool
    figures: str


def growth(lives: Sequence[Life]) -> Growth:
    """Fit one slope to every life after its warm-up, each with a level of its own (least squares)."""
    squares = products = looked_at = 0.0
    warm_sizes: list[int] = []
    for life in lives:
        warm = [(age, size) for age, size in life.samples if age >= WARM_UP]
        if len(warm) < 2:
            continue
        warm_sizes += [size for _, size in warm]
        looked_at += warm[-1][0] - warm[0][0]
        age_mean = sum(age for age, _ in warm) / len(warm)
        size_mean = sum(size for _, size in warm) / len(warm)
        squares += sum((age - age_mean) ** 2 for age, _ in warm)
        products += sum((age - age_mean) * (size - size_mean) for age, size in warm)
    slope = products / squares * 60 if looked_at >= ENOUGH and squares else None
    everything = [size for life in lives for _, size in life.samples] or [0]
    return Growth(len(lives), looked_at, slope, (warm_sizes or everything)[0], everything[-1], max(everything))


def is_refusal(failure: Failure) -> bool:
    """Tell whether overload control told the UE to come later."""
    return " 503 " in failure.why


def unexplained(failures: Iterable[Failure], network: Process) -> list[Failure]:
    """Return the failures that began and ended while the network was there."""
    return [one for one in failures if not network.was_away(one.began - GRACE, one.ended)]
