# SPDX-License-Identifier: Apache-2.0
"""DESIGN §4: bare nonces for stacks that reject a marker."""

from __future__ import annotations

from keyferry.protocol.identity import Impi, reg_of
from keyferry.protocol.ims.bare_nonce import KNOWN_FOR, SUSPECTED_FOR, BareNonces

ALICE, EVE = Impi("alice@home1.net"), Impi("eve@home1.net")
PHONE, TABLET = reg_of("<urn:uuid:1>"), reg_of("<urn:uuid:2>")


def test_a_failure_makes_one_challenge_of_that_device_bare() -> None:
    bare = BareNonces()
    bare.failed(ALICE, PHONE, 0.0)
    assert [bare.take(ALICE, TABLET, 1.0), bare.take(EVE, PHONE, 1.0)] == [False, False]
    assert [bare.take(ALICE, PHONE, 1.0), bare.take(ALICE, PHONE, 1.0)] == [True, False]


def test_a_failure_is_forgotten_after_ten_minutes() -> None:
    bare = BareNonces()
    bare.failed(ALICE, PHONE, 0.0)
    assert not bare.take(ALICE, PHONE, SUSPECTED_FOR)


def test_a_right_answer_is_remembered_for_a_day() -> None:
    bare = BareNonces()
    bare.proven(ALICE, PHONE, 0.0)
    assert all(bare.take(ALICE, PHONE, now) for now in (1.0, KNOWN_FOR - 1))
    assert not bare.take(ALICE, PHONE, KNOWN_FOR)
    assert len(bare) == 0


def test_failures_of_others_displace_no_right_answer_and_fill_no_memory() -> None:
    bare = BareNonces(suspects=10, known=2)
    bare.proven(ALICE, PHONE, 0.0)
    for number in range(1000):
        bare.failed(EVE, reg_of(f"<urn:uuid:{number}>"), 1.0)
    assert len(bare) == 11
    assert bare.take(ALICE, PHONE, 2.0)


def test_the_oldest_right_answer_goes_first() -> None:
    bare = BareNonces(known=2)
    for user in ("a", "b", "a", "c"):
        bare.proven(Impi(f"{user}@home1.net"), PHONE, 0.0)
    assert [bare.take(Impi(f"{user}@home1.net"), PHONE, 1.0) for user in "abc"] == [True, False, True]
