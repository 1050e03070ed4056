# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5 step 5, invariant S2: a UE has AS keys only if every one of its conditions holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import (
    AuthenticationInfo,
    Challenge,
    Credentials,
    build_authentication_info,
    hash_a1,
    rspauth_of,
)
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.activation import MAX_ANSWER_TIME, Activation, AkaRun, activate
from keyferry.protocol.ims.keys import AccessKeys, access_keys, application_master_key
from keyferry.protocol.ims.marker import Marker

ALICE = Impi("alice@home1.net")
REALM = "home1.net"
CK, IK, RES, RAND = Secret(b"c" * 16), Secret(b"i" * 16), Secret(b"r" * 8), b"R" * 16
FULL = Marker(6, access_keys=True, as_keys=True, rspauth=True)
RUN = AkaRun(ALICE, Challenge(REALM, "nonce", "AKAv1-MD5", qop=("auth",)), RAND, FULL, 6, RES, CK, IK)
ANSWER = Credentials(ALICE, REALM, "nonce", "sip:home1.net", "0" * 32, "AKAv1-MD5", "c" * 32, qop="auth", nc="00000001")


def proof(answer: Credentials = ANSWER, res: Secret = RES, **changes: Any) -> str:
    """Return the Authentication-Info that a S-CSCF with `res` gives for `answer`."""
    ha1 = hash_a1("AKAv1-MD5", answer.username, answer.realm, res)
    given = {"rspauth": rspauth_of(ha1, answer, algorithm="AKAv1-MD5"), "qop": answer.qop, "cnonce": answer.cnonce, "nc": answer.nc}
    return build_authentication_info(AuthenticationInfo(**{**given, **changes}))


def outcome(run: AkaRun = RUN, answer: Credentials = ANSWER, info: list[str] | None = None, elapsed: float = 0.2) -> Activation:
    found = [proof(answer, run.res)] if info is None else info
    return activate(run, answer, home_realm=REALM, authentication_info=found, elapsed=elapsed)


def test_all_conditions_together_yield_the_master_key() -> None:
    done = outcome()
    assert done.k_m == application_master_key(CK, IK, RAND, ALICE)
    assert done.refused_because == ""
    assert done.rspauth


def test_the_last_moment_is_in_time() -> None:
    assert outcome(elapsed=MAX_ANSWER_TIME).k_m is not None


Change = Callable[[AkaRun], AkaRun]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: replace(run, stated_release=None), "states no release"),
        (lambda run: replace(run, marker=None), "no release marker"),
        (lambda run: replace(run, marker=replace(FULL, access_keys=False)), "does not promise"),
        (lambda run: replace(run, marker=replace(FULL, as_keys=False)), "does not promise"),
        (lambda run: replace(run, marker=replace(FULL, rspauth=False)), "does not promise"),
        (lambda run: replace(run, res=Secret(b"r" * 7)), "shorter than 8"),
        (lambda run: replace(run, challenge=replace(run.challenge, qop=())), "qop auth"),
        (lambda run: replace(run, challenge=replace(run.challenge, qop=("auth-int",))), "qop auth"),
        (lambda run: replace(run, challenge=replace(run.challenge, realm="visited1.net")), "home realm"),
    ],
)  # fmt: skip
def test_each_condition_of_the_run_is_needed(change: Change, reason: str) -> None:
    """The proof of the S-CSCF is right in every row: only the one condition fails."""
    done = outcome(change(RUN))
    assert done.k_m is None
    assert reason in done.refused_because
    assert done.rspauth


def test_qop_must_have_been_used_not_only_offered() -> None:
    bare = replace(ANSWER, qop=None, nc=None, cnonce=None)
    done = outcome(answer=bare)
    assert done.k_m is None
    assert "qop auth" in done.refused_because


def test_a_late_2xx_yields_nothing() -> None:
    done = outcome(elapsed=MAX_ANSWER_TIME + 0.01)
    assert done.k_m is None
    assert "too late" in done.refused_because


@pytest.mark.parametrize(
    "info",
    [
        [],
        ["not a list of parameters"],
        [proof(), proof()],
        [proof(res=Secret(b"s" * 8))],
        [proof(nc="00000002")],
        [proof(cnonce="d" * 32)],
        [proof(qop="auth-int")],
        [proof(rspauth=None)],
        [proof(replace(ANSWER, nonce="nonce of another 401"))],
        [proof(replace(ANSWER, uri="sip:other.net"))],
        [proof() + ", " + proof()],
        ['nextnonce="n"'],
    ],
    ids=[
        "none", "unreadable", "two headers", "another RES", "other nc", "other cnonce", "other qop", "no rspauth", "other nonce",
        "other uri", "two in one", "nextnonce alone",
    ],
)  # fmt: skip
def test_rspauth_must_verify_for_this_very_answer(info: list[str]) -> None:
    done = outcome(info=info)
    assert done.k_m is None
    assert "did not prove itself" in done.refused_because
    assert not done.rspauth


THREE = replace(FULL, rspauth=False)


@pytest.mark.parametrize(
    ("marker", "info", "activated"),
    [(THREE, [], True), (THREE, [proof()], True), (FULL, [proof()], True), (FULL, [], False), (replace(THREE, as_keys=False), [], False)],
    ids=["flags 3", "flags 3 and a proof", "flags 7", "flags 7 without a proof", "no promise of keys"],
)
def test_the_proof_may_be_left_to_each_as_where_the_marker_promises_none(marker: Marker, info: list[str], activated: bool) -> None:
    """DESIGN §10: an S-CSCF that promises rspauth has to give it all the same."""
    run = replace(RUN, marker=marker)
    done = activate(run, ANSWER, home_realm=REALM, authentication_info=info, elapsed=0.2, rspauth="as")
    assert (done.k_m is not None) is activated
    assert done.rspauth is bool(info)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: replace(run, stated_release=None), lambda run: replace(run, res=Secret(b"r" * 7)),
        lambda run: replace(run, challenge=replace(run.challenge, qop=())),
        lambda run: replace(run, challenge=replace(run.challenge, realm="visited1.net")),
    ],
)  # fmt: skip
def test_every_other_condition_is_needed_then_too(change: Change) -> None:
    run = change(replace(RUN, marker=THREE))
    assert activate(run, ANSWER, home_realm=REALM, authentication_info=[], elapsed=0.2, rspauth="as").k_m is None
    late = replace(RUN, marker=THREE)
    assert activate(late, ANSWER, home_realm=REALM, authentication_info=[], elapsed=MAX_ANSWER_TIME + 1, rspauth="as").k_m is None


def test_a_nextnonce_beside_the_proof_is_ignored() -> None:
    """DESIGN §5 step 5: SIP nextnonce is ignored."""
    assert outcome(info=[proof(nextnonce="another")]).k_m is not None


@pytest.mark.parametrize(
    ("run", "masked"),
    [
        (RUN, True),
        (replace(RUN, stated_release=None), False),
        (replace(RUN, marker=None), False),
        (replace(RUN, marker=replace(FULL, access_keys=False)), False),
        (replace(RUN, marker=replace(FULL, as_keys=False, rspauth=False)), True),
    ],
)
def test_gm_uses_masked_keys_if_stated_and_promised(run: AkaRun, masked: bool) -> None:
    """DESIGN §5 step 3."""
    assert run.masked is masked
    assert run.gm_keys() == (access_keys(CK, IK, RAND, ALICE) if masked else AccessKeys(CK, IK))


@pytest.mark.parametrize(("amf", "activated"), [(b"\x80\x01", True), (b"\x80\x00", False), (b"\x00\x03", True), (b"\x01\x80", False)])
def test_a_ue_may_want_the_amf_bit(amf: bytes, activated: bool) -> None:
    """DESIGN §4; TS 33.102 annex H: bit 15 is the last one."""
    run = replace(RUN, amf=amf)
    done = activate(run, ANSWER, home_realm=REALM, authentication_info=[proof()], elapsed=0.1, amf_bit="required")
    assert (done.k_m is not None) is activated
    assert ("AMF" in done.refused_because) is not activated
    assert activate(run, ANSWER, home_realm=REALM, authentication_info=[proof()], elapsed=0.1).k_m is not None
