# SPDX-License-Identifier: Apache-2.0
"""A UE whose card another process has used since this object was made (TS 33.102 annex C)."""

from __future__ import annotations

from dataclasses import replace

from roles.test_ue import Bench, accept, challenge, ladder, vector


async def test_what_the_card_accepted_for_another_process_is_not_accepted_again() -> None:
    """TS 33.102 annex C.2.1: the state says more than this object has seen."""
    bench = Bench(*ladder())
    mine = await bench.register()
    theirs = replace(mine, contact="<sip:alice@192.0.2.9>", seq_ms=(0, 1, 2, *(0,) * 29))
    assert (bench.ue.is_of(mine), bench.ue.is_of(theirs)) == (True, False)
    bench.steps += [challenge(vector(2)), challenge(vector(3)), accept(vector(3))]
    after = await bench.register(theirs)
    assert bench.credentials(-2).auts is not None
    assert after.seq_ms == (0, 1, 2, 3, *(0,) * 28)
