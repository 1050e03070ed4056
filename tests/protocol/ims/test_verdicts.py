# SPDX-License-Identifier: Apache-2.0
"""The reasons of a failed registration (docs/errors.md)."""

from __future__ import annotations

from keyferry.protocol.ims.verdicts import ADVICE, Analysis, Reason, Verdict, because


def test_every_reason_has_a_text_and_a_remedy() -> None:
    assert set(ADVICE) == set(Reason)
    assert all(advice.says and advice.remedy for advice in ADVICE.values())


def test_two_reasons_may_hold_together_or_be_alternatives() -> None:
    realm, res, uri = Verdict(Reason.REALM, '"a" was hashed'), Verdict(Reason.RES), Verdict(Reason.URI)
    both = Analysis(((realm, res), (realm, uri)))
    assert both.reasons == (Reason.REALM, Reason.RES, Reason.URI)
    realm_text = 'the realm is not the one of the challenge: "a" was hashed'
    assert both.text == f"{realm_text}; and {ADVICE[Reason.RES].says}; or {realm_text}; and {ADVICE[Reason.URI].says}"
    assert both.remedy == "; ".join(ADVICE[reason].remedy for reason in both.reasons)
    assert because(Reason.HSS, "x").text == "the HSS refused or failed: x"
