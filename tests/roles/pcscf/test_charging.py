# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.2.2.1, RFC 7315 §4.6: icid-values of REGISTERs."""

from __future__ import annotations

import pytest

from keyferry.protocol.identity import Reg
from keyferry.protocol.ims.gm_association import REG_AWAIT_AUTH
from keyferry.roles.pcscf.bindings import Device
from keyferry.roles.pcscf.charging import Icids
from roles.network import FakeClock, SeededRandom

ALICE, BOB = (Device(f"{name}@home1.net", Reg("reg")) for name in ("alice", "bob"))


@pytest.fixture
def icids() -> Icids:
    return Icids(FakeClock(), SeededRandom(), limit=3)


def test_the_answer_to_a_challenge_belongs_to_its_registration_once(icids: Icids) -> None:
    first = icids.of(ALICE, [])
    icids.challenged(ALICE, ["nonce"], first)
    second = icids.of(ALICE, ["nonce"])
    assert (second.registration, first.number, second.number) == (first.registration, 1, 2)
    assert icids.of(ALICE, ["nonce"]).registration != first.registration  # a re-registration that repeats its old nonce is another one


def test_a_second_challenge_stays_with_the_first(icids: Icids) -> None:
    """A synchronisation failure takes three REGISTERs."""
    first = icids.of(ALICE, [])
    icids.challenged(ALICE, ["one"], first)
    second = icids.of(ALICE, ["one"])
    icids.challenged(ALICE, ["two"], second)
    assert str(icids.of(ALICE, ["two"])) == f"{first.registration}-3"


def test_another_device_that_names_the_nonce_is_not_of_the_registration(icids: Icids) -> None:
    first = icids.of(ALICE, [])
    icids.challenged(ALICE, ["nonce"], first)
    assert icids.of(BOB, ["nonce"]).registration != first.registration
    assert icids.of(ALICE, ["nonce"]).registration == first.registration


def test_what_nobody_answers_is_forgotten_in_time_and_by_number(icids: Icids) -> None:
    """Anybody can cause challenges."""
    first = icids.of(ALICE, [])
    for number in range(5):
        icids.challenged(ALICE, [f"nonce{number}"], first)
    assert len(icids._awaited) == 3
    assert icids.of(ALICE, ["nonce1"]).registration != first.registration
    assert isinstance(icids.clock, FakeClock)
    icids.clock.time += REG_AWAIT_AUTH + 1
    assert icids.of(ALICE, ["nonce4"]).registration != first.registration
    icids.challenged(ALICE, ["new"], first)
    assert len(icids._awaited) == 1
