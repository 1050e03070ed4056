# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.2.1, §6.1.3.1, §8.1: which S-CSCFs have to do with a user, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keyferry.errors import CxError
from keyferry.ports import Assignment, DeregistrationReason, OwedTermination, ToldEnd
from keyferry.roles.hss_assignment import (
    LATE,
    MAX_OWED,
    challenged,
    concluded,
    delivered,
    ended,
    registered,
    serving_names,
    terminated,
    unproven,
)

A, B, C = "sip:a.home1.net", "sip:b.home1.net", "sip:c.home1.net"
NOBODY, AT_A, AT_B = Assignment(), Assignment(A, A), Assignment(B, B)
MOVING = Assignment(B, A)  # registered at A, challenged by B
NAMES = st.sampled_from((A, B, C))
NEW, END = DeregistrationReason.NEW_SERVER_ASSIGNED, DeregistrationReason.PERMANENT_TERMINATION


def owed(server_name: str, reason: DeregistrationReason = NEW, since: float = 7.0) -> OwedTermination:
    return OwedTermination(server_name, reason, "", since)


@pytest.mark.parametrize(
    ("found", "by", "after"),
    [
        (NOBODY, A, AT_A), (Assignment(A), A, AT_A), (AT_A, A, AT_A), (MOVING, A, AT_A),
        (MOVING, B, Assignment(B, B, (owed(A),))),
        (Assignment(A, C, (owed(A, since=1.0), owed(B, since=1.0))), A, Assignment(A, A, (owed(B, since=1.0), owed(C)))),
    ],
)  # fmt: skip
def test_a_registration(found: Assignment, by: str, after: Assignment) -> None:
    """§6.1.2.1."""
    assert registered(found, by, 7.0) == after


@pytest.mark.parametrize("found", [AT_A, Assignment(A), Assignment(A, C)])
def test_who_has_not_challenged_takes_nobody_over(found: Assignment) -> None:
    """§8.1."""
    with pytest.raises(CxError) as caught:
        registered(found, B, 7.0)
    assert (caught.value.code, caught.value.server_name, caught.value.experimental) == (5005, A, True)


def test_what_one_user_owes_is_bounded_and_the_oldest_gives_way() -> None:
    found = NOBODY
    for number in range(2 * MAX_OWED):
        found = registered(found._replace(server_name=f"sip:{number}"), f"sip:{number}", float(number))
    assert [each.server_name for each in found.owed] == [f"sip:{number}" for number in range(MAX_OWED - 1, 2 * MAX_OWED - 1)]


@pytest.mark.parametrize(
    ("found", "by", "after"),
    [
        (AT_A, A, NOBODY), (AT_A, B, AT_A), (MOVING, A, Assignment(B)), (MOVING, B, MOVING), (Assignment(A), A, NOBODY),
        (NOBODY, A, NOBODY),
        (Assignment(B, B, (owed(A), owed(C))), A, Assignment(B, B, (owed(C),))),
        (Assignment(A, B, (owed(A),)), A, Assignment(A, B)),
    ],
)  # fmt: skip
def test_an_end(found: Assignment, by: str, after: Assignment) -> None:
    """§6.1.2.1: TIMEOUT_, USER_, ADMINISTRATIVE_DEREGISTRATION."""
    assert ended(found, by) == after


def test_an_end_that_is_told_late_takes_no_challenge_back() -> None:
    """A registration that is over at B since long; meanwhile the user was at A, and is back: B has challenged, and registers him."""
    assert registered(ended(MOVING, B), B, 7.0) == Assignment(B, B, (owed(A),))


@pytest.mark.parametrize(
    ("found", "by", "after"),
    [(AT_A, A, AT_A), (MOVING, A, MOVING), (MOVING, B, AT_A), (Assignment(A), A, NOBODY), (Assignment(A), B, Assignment(A))],
)
def test_who_proves_nothing(found: Assignment, by: str, after: Assignment) -> None:
    """§6.1.2.1: AUTHENTICATION_FAILURE, AUTHENTICATION_TIMEOUT."""
    assert unproven(found, by) == after


class TestOrder:
    """Copies of a request may be carried out minutes later, by another HSS."""

    def test_an_end_that_was_asked_for_before_the_registration_is_refused_while_it_may_be_a_late_copy(self) -> None:
        found = registered(NOBODY, A, 7.0, 5)
        assert found == Assignment(A, A, (), 5, 7.0)
        with pytest.raises(CxError) as caught:
            ended(found, A, 7.0 + LATE - 1, 4)
        assert (caught.value.code, caught.value.experimental) == (5012, False)
        for now, order in ((7.0 + LATE, 4), (8.0, 6), (8.0, 5)):
            assert ended(found, A, now, order) == NOBODY._replace(ended=ToldEnd(A, order, now))

    def test_a_clock_that_was_set_back_keeps_no_end_out_until_it_is_as_late_again(self) -> None:
        assert ended(registered(NOBODY, A, 1_000_000.0, 5), A, 7.0, 4)[:2] == (None, None)

    @pytest.mark.parametrize(("of_registration", "of_end"), [(0, 4), (5, 0), (0, 0)])
    def test_where_it_is_not_known_an_end_ends(self, of_registration: int, of_end: int) -> None:
        assert ended(registered(NOBODY, A, 7.0, of_registration), A, 8.0, of_end)[:2] == (None, None)

    def test_a_registration_that_was_asked_for_before_the_end_is_refused_while_it_may_be_a_late_copy(self) -> None:
        found = ended(registered(NOBODY, A, 7.0, 5), A, 8.0, 9)
        with pytest.raises(CxError) as caught:
            registered(found, A, 8.0 + LATE - 1, 5)
        assert (caught.value.code, caught.value.experimental) == (5012, False)
        assert registered(found, A, 9.0, 10) == Assignment(A, A, (), 10, 9.0)
        assert registered(found, A, 8.0 + LATE, 5).serving == registered(found, A, 7.5, 5).serving == A

    def test_another_s_cscf_has_an_order_of_its_own(self) -> None:
        assert registered(ended(registered(NOBODY, A, 7.0, 5), A, 8.0, 9), B, 9.0, 2) == Assignment(B, B, (), 2, 9.0)

    def test_who_was_challenged_since_may_register_whatever_the_order(self) -> None:
        found = challenged(ended(registered(NOBODY, A, 7.0, 5), A, 8.0, 9), A, again=False)
        assert registered(found, A, 9.0, 3) == Assignment(A, A, (), 3, 9.0)

    def test_it_is_that_of_the_one_that_serves(self) -> None:
        found = registered(registered(NOBODY, A, 7.0, 5)._replace(server_name=B), B, 8.0, 2)
        assert found == Assignment(B, B, (owed(A, since=8.0),), 2, 8.0)
        assert ended(found, A, 9.0) == found._replace(owed=())

    def test_an_end_that_comes_late_takes_no_rtr_back_that_a_later_registration_is_owed(self) -> None:
        found = registered(registered(NOBODY, A, 7.0, 5)._replace(server_name=B), B, 8.0, 2)
        assert ended(found, A, 9.0, 4) == found
        assert ended(found._replace(server_name=A), A, 9.0, 4) == found._replace(server_name=A)

    def test_it_comes_back_with_a_registration_that_was_not_ended(self) -> None:
        before = registered(NOBODY, A, 7.0, 5)
        found = terminated(before, END, "", 9.0)
        assert (found[:2], found.order) == ((None, None), 0)
        assert concluded(found, before, found.owed, ()) == before
        assert concluded(found, before, found.owed, (A,)) == NOBODY


def test_the_one_that_serves_comes_first() -> None:
    assert serving_names(B, A) == (A, B)
    assert (serving_names(A, A), serving_names(A, None), serving_names(None, None)) == ((A,), (A,), ())


class TestTermination:
    """§6.1.3.1."""

    def test_everybody_who_may_have_the_user_is_owed_one(self) -> None:
        found = terminated(MOVING._replace(owed=(owed(C), owed(B))), END, "", 9.0)
        assert found == Assignment(None, None, (owed(C), owed(B, END, 9.0), owed(A, END, 9.0)))
        assert terminated(NOBODY, END, "", 9.0) == NOBODY

    @pytest.mark.parametrize(
        ("told", "after"),
        [((A, B), NOBODY), ((A,), Assignment(B)), ((B,), AT_A), ((), MOVING)],
    )
    def test_who_was_not_told_has_the_user_as_before(self, told: tuple[str, ...], after: Assignment) -> None:
        found = terminated(MOVING._replace(owed=(owed(C),)), END, "", 9.0)
        assert concluded(found, MOVING, found.owed[1:], told) == after._replace(owed=(owed(C),))

    def test_what_was_owed_before_is_owed_again(self) -> None:
        before = Assignment(B, A, (owed(B),))
        found = terminated(before, END, "", 9.0)
        assert concluded(found, before, found.owed, ()) == before
        assert concluded(found, before, found.owed, (B,)) == AT_A

    def test_where_another_has_the_user_by_now_the_rest_is_told_later(self) -> None:
        found = terminated(MOVING, END, "", 9.0)
        back = registered(found, C, 10.0)
        assert concluded(back, MOVING, found.owed, (B,)) == Assignment(C, C, (owed(A, END, 9.0),))
        assert concluded(registered(found, A, 10.0), MOVING, found.owed, (B,)) == AT_A

    def test_one_that_the_user_has_left_since_does_not_get_him_back(self) -> None:
        found = terminated(AT_A, END, "", 9.0)
        left = ended(registered(registered(found, A, 10.0)._replace(server_name=C), C, 11.0), C)
        assert left == concluded(left, AT_A, found.owed, ()) == Assignment(None, None, (owed(A, since=11.0),))


def test_an_rtr_that_was_taken_is_owed_no_more_and_a_later_one_is() -> None:
    assert delivered(AT_B._replace(owed=(owed(A), owed(C))), owed(A)) == AT_B._replace(owed=(owed(C),))
    assert delivered(AT_B._replace(owed=(owed(A, since=8.0),)), owed(A)).owed == (owed(A, since=8.0),)


class Steps(RuleBasedStateMachine):
    """Any order of what S-CSCFs and operators do; several terminations may wait for their answers."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.now = NOBODY, 0.0
        self.waiting: list[tuple[Assignment, tuple[OwedTermination, ...]]] = []

    @rule(name=NAMES)
    def mar(self, name: str) -> None:
        self.found = self.found._replace(server_name=name)

    @rule(name=NAMES)
    def sar(self, name: str) -> None:
        self.now += 1
        before = self.found
        try:
            self.found = registered(before, name, self.now)
        except CxError:
            assert name not in before[:2]
            return
        assert self.found[:2] == (name, name)
        left = {before.serving, *(each.server_name for each in before.owed)} - {None, name}
        assert {each.server_name for each in self.found.owed} == left  # nobody who may have the user is forgotten

    @rule(name=NAMES, end=st.sampled_from([ended, unproven]))
    def leave(self, name: str, end: Callable[[Assignment, str], Assignment]) -> None:
        self.found = end(self.found, name)
        assert end is unproven or self.found.serving != name

    @rule(reason=st.sampled_from(DeregistrationReason))
    def terminate(self, reason: DeregistrationReason) -> None:
        self.now += 1
        before, names = self.found, serving_names(*self.found[:2])
        self.found = terminated(before, reason, "", self.now)
        self.waiting.append((before, tuple([each for each in self.found.owed if each.server_name in names])))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def conclude(self, data: st.DataObject) -> None:
        before, ours = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        told = data.draw(st.lists(st.sampled_from([each.server_name for each in ours]), unique=True)) if ours else []
        self.found = concluded(self.found, before, ours, told)

    @precondition(lambda self: self.found.owed)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        self.found = delivered(self.found, data.draw(st.sampled_from(self.found.owed)))

    @invariant()
    def each_s_cscf_has_one_part(self) -> None:
        """A store keeps one row for each; and who serves is assigned unless another challenges."""
        names = [each.server_name for each in self.found.owed]
        assert len(set(names)) == len(names)
        assert self.found.serving not in names
        assert self.found.serving is None or self.found.server_name is not None


TestSteps = Steps.TestCase
TestSteps.settings = settings(max_examples=150, stateful_step_count=30)


@pytest.mark.parametrize(("assigned", "again", "after"), [(None, False, B), (A, False, B), (None, True, B), (A, True, A), (B, True, B)])
def test_a_challenge(assigned: str | None, again: bool, after: str) -> None:
    assert challenged(Assignment(assigned, A), B, again=again) == Assignment(after, A)
