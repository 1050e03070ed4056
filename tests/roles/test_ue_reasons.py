# SPDX-License-Identifier: Apache-2.0
"""Why a UE could not register, in its own words (TS 33.102 §6.3.3; docs/errors.md)."""

from __future__ import annotations

import pytest

from keyferry.protocol.aka import algorithm_of
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.ims.autn_trial import explain_autn
from roles.test_ue import ALICE, Bench, challenge, fails, ladder, status, vector


async def test_a_network_that_refuses_after_a_wrong_mac_is_told_with_the_reason() -> None:
    """The card knows what the network cannot: which input its MAC was made of."""
    other = algorithm_of("milenage", ALICE.k, derive_opc(ALICE.k, ALICE.opc))
    bench = Bench(challenge(vector(1, other)), status(403))
    bench.ue.explain = lambda rand, autn: explain_autn("milenage", ALICE.k, ALICE.opc, rand, autn)
    problem = await fails(bench)
    assert problem.reasons == ("op-for-opc",)
    assert str(problem).startswith("the network answered 403 Forbidden: one side takes OP where the other takes OPc: the network uses")
    assert problem.remedy in str(problem)
    assert bench.log.fields("autn-mac-wrong")["because"] == problem.why


async def test_a_doubt_that_the_network_got_over_is_no_reason() -> None:
    """A refusal of a right answer has its reason in the network."""
    bench = Bench(*ladder(seq=40), challenge(vector(8)), challenge(vector(41)), status(403))
    state = await bench.register()
    problem = await fails(bench, state)
    assert problem.reasons == ("refused",)
    assert "keyferry failures" in problem.remedy
    assert bench.log.warnings == ["autn-sqn-not-fresh"]


async def test_other_failures_have_no_reason() -> None:
    problem = await fails(Bench(status(500)))
    assert (problem.reasons, str(problem)) == ((), "the network answered 500 Server Internal Error")


@pytest.mark.parametrize(
    ("warning", "said"),
    [
        (
            '399 icscf.home1.net "S-CSCF scscf1.home1.net: no answer in 28 s"',
            " (icscf.home1.net: S-CSCF scscf1.home1.net: no answer in 28 s)",
        ),
        ('370 [::1]:5060 "a \\"b\\"", 399 other "c"', ' ([::1]:5060: a "b")'),
        ('399 h "\U0001f4a9\u202e\x80[31m"', " (h: \U0001f4a9??[31m)"),
        ("not a warning", ""),
    ],
)
async def test_what_the_network_warns_of_is_said_with_the_refusal(warning: str, said: str) -> None:
    """RFC 3261 §20.43: for people, whose terminal takes no orders from a network."""
    problem = await fails(Bench(status(504, ("Warning", warning))))
    assert str(problem) == f"the network answered 504 Server Time-out{said}"
