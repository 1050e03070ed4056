# SPDX-License-Identifier: Apache-2.0
"""DESIGN §11: what strangers make us remember."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.bounded_groups import Bound, BoundedGroups

Item = tuple[int, int]  # a group, and one around it

INNER, OUTER = 2, 3


def groups() -> BoundedGroups[int, Item]:
    return BoundedGroups((Bound(lambda each: each, INNER), Bound(lambda each: each[1], OUTER)))


def test_the_oldest_of_a_full_group_goes_and_of_no_other() -> None:
    held = groups()
    for name, item in enumerate([(1, 1), (2, 2), (1, 1)]):
        assert held.add(name, item) == []
    assert held.add(3, (1, 1)) == [(1, 1)]
    assert (0 in held, 1 in held, 2 in held, 3 in held) == (False, True, True, True)
    assert held.group(1, 1) == [(1, 1), (1, 1)]


def test_what_is_popped_makes_room() -> None:
    held = groups()
    for name in range(INNER):
        held.add(name, (1, 1))
    assert held.pop(0) == (1, 1)
    assert held.pop(0) is None
    assert held.add(9, (1, 1)) == []
    assert (len(held), held.size(0, (1, 1)), held.size(0, (7, 7))) == (2, 2, 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 1)), max_size=50))
def test_no_group_is_ever_larger_and_nothing_is_lost_but_what_is_returned(steps: list[tuple[bool, int, int]]) -> None:
    held, alive = groups(), dict[int, Item]()
    for name, (removes, first, second) in enumerate(steps):
        if removes:
            oldest = next(iter(alive), -1)
            assert held.pop(oldest) == alive.pop(oldest, None)
            continue
        gone = held.add(name, (first, second))
        alive[name] = (first, second)
        for item in gone:
            del alive[next(each for each, known in alive.items() if known == item)]
        assert list(held) == list(alive.values())
        assert held.size(0, (first, second)) <= INNER
        assert held.size(1, second) <= OUTER
    for name in list(alive):
        held.pop(name)
    assert held._groups[0][1] == held._groups[1][1] == {}  # an empty group is no memory
