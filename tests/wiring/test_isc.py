# SPDX-License-Identifier: Apache-2.0
"""Which transport key seals and which ones open, before, during and after a rotation (DESIGN §6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keyferry.protocol.identity import AsId
from keyferry.stores.isc_keys import LOOK, LiveIscKeys, retire_isc, rotate_isc
from keyferry.stores.state_dir import StateDir, open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.isc import OpeningKeys, SealingKeys
from keyferry.wiring.observability import StructLog

S, A, B = "scscf1.home1.net", AsId("xcap.home1.net"), AsId("notes.home1.net")


class StandingClock:
    """A clock that moves by hand."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with open_state(tmp_path / "state", random=SystemRandom()) as opened:
        yield opened


def test_no_moment_of_a_rotation_has_a_seal_that_does_not_open(state: StateDir) -> None:
    """The S-CSCF looks once a second, the application server also when it does not know a kid."""
    ours, theirs, log = StandingClock(), StandingClock(), StructLog("none")
    sealing = SealingKeys({A: LiveIscKeys(state, S, A, ours, log)})
    opening = OpeningKeys(A, LiveIscKeys(state, S, A, theirs, log))

    def sealed_and_opened() -> str:
        kid, siv = sealing[A]
        assert sealing[A].siv is siv  # setting it up costs as much as a seal
        assert (A, kid) in opening
        return kid

    assert (sealed_and_opened(), len(opening), list(sealing), len(sealing)) == ("t1", 1, [A], 1)
    rotate_isc(state)
    assert sealed_and_opened() == "t1"
    ours.time += LOOK
    assert sealed_and_opened() == "t2"
    assert list(opening) == [(A, "t1"), (A, "t2")]
    retire_isc(state, state.isc_file(S, A).stat().st_mtime + 60)
    ours.time += LOOK
    assert sealed_and_opened() == "t2"
    theirs.time += LOOK
    assert list(opening) == [(A, "t2")]
    assert opening.get((A, "t1")) is None


def test_another_as_and_another_kid_have_no_key(state: StateDir) -> None:
    live = LiveIscKeys(state, S, A, StandingClock(), StructLog("none"))
    assert [OpeningKeys(A, live).get(place) for place in ((B, "t1"), (A, "t9"))] == [None, None]
    assert B not in SealingKeys({A: live})
