# SPDX-License-Identifier: Apache-2.0
"""A peer that lives and answers nothing is asked again after ever longer pauses, with one request."""

from __future__ import annotations

from keyferry.transports.diameter_trust import TRIAL_FIRST, TRIAL_MOST, Trust


def test_a_peer_is_trusted_until_it_leaves_a_request_unanswered() -> None:
    trust = Trust()
    assert trust.holds(0.0, waiting=10_000)
    trust.failed(100.0)
    assert trust.doubted
    assert not trust.holds(100.0, waiting=0)


def test_the_trial_is_one_request_and_its_answer_ends_all_doubt() -> None:
    trust = Trust()
    trust.failed(100.0)
    assert not trust.holds(100.0 + TRIAL_FIRST - 0.1, waiting=0)
    assert trust.holds(100.0 + TRIAL_FIRST, waiting=0)
    assert not trust.holds(100.0 + TRIAL_FIRST, waiting=1)
    trust.answered(131.0)
    assert not trust.doubted
    assert trust.holds(131.0, waiting=1)


def test_what_was_sent_along_makes_no_pause_longer_and_the_next_trial_does() -> None:
    trust, now = Trust(), 0.0
    for pause in (30.0, 60.0, 120.0, 240.0, 240.0, TRIAL_MOST):
        for _ in range(50):
            trust.failed(now)
        assert not trust.holds(now + pause - 0.1, waiting=0)
        now += pause
        assert trust.holds(now, waiting=0)
