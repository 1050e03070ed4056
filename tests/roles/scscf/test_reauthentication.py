# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.6: who must authenticate again, bounded."""

from __future__ import annotations

from keyferry.protocol.identity import Impi, reg_of
from keyferry.roles.scscf.reauthentication import ONCE_IN, Reauthentications

REG = reg_of("<urn:uuid:1>")
USERS = [Impi(f"{letter}@home1.net") for letter in "abc"]


def test_what_is_remembered_is_bounded_and_the_oldest_goes() -> None:
    held = Reauthentications(most=2)
    for impi in USERS:
        held.require(impi, REG)
        assert held.first(impi, REG, 0.0)
    assert [held.is_required(impi, REG) for impi in USERS] == [False, True, True]
    assert [held.first(impi, REG, 1.0) for impi in reversed(USERS)] == [False, False, True]


def test_a_lost_capability_counts_once_a_day() -> None:
    held = Reauthentications()
    assert [held.first(USERS[0], REG, now) for now in (0.0, ONCE_IN - 1, ONCE_IN)] == [True, False, True]


def test_an_authentication_ends_the_demand() -> None:
    held = Reauthentications()
    held.require(USERS[0], REG)
    held.done(USERS[0], REG)
    held.done(USERS[1], REG)
    assert not held.is_required(USERS[0], REG)
