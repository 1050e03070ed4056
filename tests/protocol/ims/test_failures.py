# SPDX-License-Identifier: Apache-2.0
"""The book of failures and the budget of analyses are bounded (*ours*)."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.failures import MAX_PROBLEM, EarlierNonces, Failure, FailureBook, TrialBudget
from keyferry.protocol.ims.verdicts import Reason, because

A, B = Impi("a@home1.net"), Impi("b@home1.net")
FIRST = Failure(1.0, "S-CSCF", A, because(Reason.MAC), status=403)


def test_the_same_failure_again_counts_up_and_is_the_newest() -> None:
    book = FailureBook()
    book.note(FIRST)
    book.note(replace(FIRST, at=2.0, analysis=because(Reason.REALM)))
    book.note(replace(FIRST, at=3.0))
    assert [(one.at, one.analysis.reasons[0], one.count) for one in book.of_impi(A)] == [(3.0, Reason.MAC, 2), (2.0, Reason.REALM, 1)]
    assert book.last(1) == [replace(FIRST, at=3.0, count=2)]
    assert book.of_impi(B) == []


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 6))))
def test_the_book_stays_within_its_bounds_and_keeps_the_newest(noted: list[tuple[str, int]]) -> None:
    """A user's own bound first, then that of all."""
    book = FailureBook(most=10, per_user=3)
    for at, (user, status) in enumerate(noted):
        book.note(replace(FIRST, at=float(at), impi=Impi(user), status=status))
        assert len(book) <= 10
        assert len(book.of_impi(Impi(user))) <= 3
        assert book.last(1)[0].at == at
    assert sorted(one.at for user in "abcdef" for one in book.of_impi(Impi(user))) == sorted(one.at for one in book.last())


def test_what_is_over_can_be_forgotten() -> None:
    book = FailureBook()
    book.note(FIRST)
    book.note(replace(FIRST, server="sip:as1"))
    book.forget(A, lambda failure: failure.server == "sip:as1")
    assert book.last() == [FIRST]
    book.forget(A, lambda failure: True)
    book.forget(B, lambda failure: True)
    assert len(book) == 0


def test_what_a_peer_says_is_cut() -> None:
    book = FailureBook()
    book.note(replace(FIRST, problem="x" * 10_000))
    assert len(book.last()[0].problem) == MAX_PROBLEM


def test_earlier_nonces_are_the_newest_few_of_the_newest_users() -> None:
    nonces = EarlierNonces(users=2, each=3)
    for number in range(5):
        nonces.put(A, f"n{number}")
    assert nonces.of_impi(A) == ("n4", "n3", "n2")
    assert nonces.of_impi(A, but="n4") == ("n3", "n2")
    nonces.put(B, "b")
    nonces.put(Impi("c"), "c")
    assert nonces.of_impi(A) == ()
    assert len(nonces) == 2


def test_a_user_is_analysed_once_in_a_while_and_all_together_a_few_times_a_second() -> None:
    """A failed login must not buy CPU time."""
    budget = TrialBudget(a_second=3, every=2.0, users=4)
    assert budget.take(A, 100.0)
    assert not budget.take(A, 101.9)
    assert budget.take(A, 102.0)
    assert [budget.take(Impi(f"u{number}"), 200.0 + number / 100) for number in range(5)] == [True, True, True, False, False]
    assert budget.take(Impi("u4"), 201.1)
    for number in range(20):
        budget.take(Impi(f"v{number}"), 300.0 + number)
    assert len(budget) == 4


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3))))
def test_never_more_than_the_budget_in_any_of_its_seconds(asked: list[tuple[float, int]]) -> None:
    budget = TrialBudget(a_second=2, every=1.0)
    taken = [(now, user) for now, user in sorted(asked) if budget.take(Impi(str(user)), now)]
    for start, _ in taken:  # two windows of one second can touch, so twice the number
        assert sum(start <= now < start + 1.0 for now, _ in taken) <= 4
    for user in range(4):
        mine = [now for now, who in taken if who == user]
        assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(mine))
