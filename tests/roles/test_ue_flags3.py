# SPDX-License-Identifier: Apache-2.0
"""DESIGN §10: a UE at an S-CSCF that promises no rspauth, as its settings say."""

from __future__ import annotations

from dataclasses import replace

from roles.test_ue import FULL, Bench, ladder


async def test_keys_may_be_left_to_each_as_to_prove_and_pin_nothing() -> None:
    """DESIGN §10."""
    three = replace(FULL, rspauth=False)
    assert (await Bench(*ladder(marker=three, proof=False)).register()).k_m is None
    state = await Bench(*ladder(marker=three, proof=False), rspauth="as").register()
    assert (state.k_m is not None, state.rspauth, state.masked, state.pinned) == (True, False, True, ())


async def test_a_network_that_proved_flags_7_may_not_leave_the_proof_to_each_as_later() -> None:
    bench = Bench(*ladder(), *ladder(seq=2, marker=replace(FULL, rspauth=False), proof=False), rspauth="as")
    state = await bench.register(await bench.register())
    assert state.k_m is None
    assert state.no_keys_because == "downgraded: the S-CSCF no longer promises rspauth"
    assert bench.log.warnings == ["downgraded"]


async def test_flags_3_pin_nothing_where_the_s_cscf_proves_itself_by_accident() -> None:
    """DESIGN §4: flags 7 are pinned, which promise it; who has promised nothing may leave it out the next time."""
    three = replace(FULL, rspauth=False)
    bench = Bench(*ladder(marker=three), *ladder(seq=2, marker=three, proof=False), rspauth="as")
    first = await bench.register()
    assert (first.rspauth, first.pinned) == (True, ())
    second = await bench.register(first)
    assert (second.k_m is not None, second.rspauth, second.no_keys_because) == (True, False, "")
