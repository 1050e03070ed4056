# SPDX-License-Identifier: Apache-2.0
"""RFC 6665 §4.1.2, §4.2.1: when subscriptions want to be looked at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.ims.agenda import Agenda


def test_the_earliest_comes_first_and_only_once() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("b", 2.0)
    agenda.put("a", 1.0)
    agenda.put("c", 9.0)
    assert agenda.due(0.5, 10) == []
    assert agenda.due(5.0, 10) == ["a", "b"]
    assert agenda.due(5.0, 10) == []
    assert len(agenda) == 1


def test_a_time_that_was_moved_or_dropped_does_not_come() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", 1.0)
    agenda.put("a", 3.0)
    agenda.put("b", 1.0)
    agenda.drop("b")
    agenda.drop("never")
    assert agenda.due(2.0, 10) == []
    assert agenda.due(3.0, 10) == ["a"]


def test_a_batch_is_bounded_and_the_rest_stays() -> None:
    agenda: Agenda[str] = Agenda()
    for number in range(5):
        agenda.put(str(number), float(number))
    assert agenda.due(9.0, 2) == ["0", "1"]
    assert agenda.due(9.0, 9) == ["2", "3", "4"]


def test_moving_one_time_for_ever_costs_no_memory() -> None:
    agenda: Agenda[str] = Agenda()
    for number in range(10_000):
        agenda.put("a", 1e9 - number)
    assert len(agenda._heap) < 40


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 20))), max_size=60), st.integers(0, 20))
def test_what_is_due_is_what_was_put_last(steps: list[tuple[str, int | None]], now: int) -> None:
    agenda: Agenda[str] = Agenda()
    model: dict[str, float] = {}
    for key, when in steps:
        if when is None:
            agenda.drop(key)
            model.pop(key, None)
        else:
            agenda.put(key, float(when))
            model[key] = float(when)
    assert set(agenda.due(float(now), 99)) == {key for key, when in model.items() if when <= now}
