# SPDX-License-Identifier: Apache-2.0
"""Lines that strangers can cause: the first few in full, the others as a number."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.repeats import Repeated, Repeats

REST = ("rest",)


def test_the_first_few_of_a_kind_are_in_full_and_the_others_a_number() -> None:
    repeats = Repeats(full=2, window=60)
    assert [repeats.take(("a",), REST, 100.0 + now, now) for now in (0, 1, 2, 3, 59)] == [True, True, False, False, False]
    assert repeats.take(("b",), REST, 150.0, 50)
    assert repeats.next_at == 60
    assert repeats.over(59.9) == []
    assert repeats.over(60) == [Repeated(("a",), 3, 102.0, 159.0)]
    assert (repeats.over(60), repeats.next_at) == ([], math.inf)


def test_a_new_window_begins_with_the_next_line_after_the_end() -> None:
    repeats = Repeats(full=1, window=60)
    assert [repeats.take(("a",), REST, now, now) for now in (0, 1, 60)] == [True, False, True]
    assert repeats.next_at == -math.inf
    assert repeats.over(60) == [Repeated(("a",), 1, 1, 1)]


def test_what_nobody_fetches_is_not_lost_and_does_not_grow() -> None:
    """A writer that stands still: the window goes on until it comes."""
    repeats = Repeats(full=1, kinds=4, window=60)
    told = [repeats.take((str(number % 9),), REST, number, number) for number in range(6000)]
    assert len(repeats._seen) + len(repeats._over) <= 2 * 5
    counted = repeats.over(6000) + repeats.over(6000)
    assert sum(told) + sum(repeated.number for repeated in counted) == 6000


def test_more_kinds_than_are_told_apart_are_counted_together() -> None:
    repeats = Repeats(full=1, kinds=3)
    for number in range(1000):
        repeats.take((str(number),), REST, number, 0)
    assert repeats.over(0, final=True) == [Repeated(REST, 996, 4, 999)]


def test_lines_in_full_are_bounded_whatever_their_kinds() -> None:
    repeats = Repeats(full=5, all_full=7, kinds=100)
    assert sum(repeats.take((str(number % 50),), REST, number, 0) for number in range(1000)) == 7


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.booleans()), max_size=200),
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9),
)  # fmt: skip
def test_nothing_is_lost(steps: list[tuple[int, int, bool]], full: int, kinds: int, all_full: int) -> None:
    """Each line is in full, or in exactly one count, whatever comes when, and whoever fetches when."""
    repeats, now, told, counted = Repeats(full=full, kinds=kinds, all_full=all_full), 0, 0, 0
    for name, passed, fetched in steps:
        now += passed
        told += repeats.take((str(name),), REST, now, now)
        if fetched:
            counted += sum(repeated.number for repeated in repeats.over(now))
    counted += sum(repeated.number for repeated in repeats.over(now, final=True))
    assert told + counted == len(steps)
