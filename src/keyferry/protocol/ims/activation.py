# SPDX-License-Identifier: Apache-2.0
"""When a UE may use AS keys: DESIGN §5 step 5, invariant S2 (*ours*)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from keyferry.errors import DigestRejected, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Challenge, Credentials, check_rspauth, hash_a1, parse_authentication_info
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.keys import AccessKeys, access_keys, application_master_key
from keyferry.protocol.ims.marker import Marker
from keyferry.protocol.ims.registration import AKA_ALGORITHM, MIN_MASKED_RES, has_amf_bit

AmfBit: TypeAlias = Literal["ignored", "required"]
ProofBy: TypeAlias = Literal["scscf", "as"]
"""Who proves to the UE that its keys are good: the S-CSCF alone; or, where that promises no rspauth, each AS over HTTP (DESIGN §10)."""
MAX_ANSWER_TIME = 32.0  # seconds from sending SM7 to its 2xx; 64*T1 of RFC 3261
NO_MARKER: Final = (
    "the S-CSCF shows no release marker, so AS keys are not available here: it is Release 5, or a Kamailio whose HSS has no `release` "
    "of 6 or later for this subscriber or not the S-CSCF in `hss.marker_for`"
)
"""Why there are no keys where the nonce carries nothing; a UE cannot tell the two from each other."""


@dataclass(frozen=True, slots=True)
class AkaRun:
    """What one AKA run at the UE yielded, up to SM7. CK, IK live no longer than this object."""

    impi: Impi
    challenge: Challenge
    rand: bytes
    marker: Marker | None
    stated_release: int | None
    res: Secret
    ck: Secret
    ik: Secret
    amf: bytes = bytes(2)  # of AUTN, under its MAC

    @property
    def masked(self) -> bool:
        """Tell whether Gm shall use CK', IK' (DESIGN §5 step 3)."""
        return self.stated_release is not None and self.marker is not None and self.marker.access_keys

    def gm_keys(self) -> AccessKeys:
        """Return the keys for Gm."""
        return access_keys(self.ck, self.ik, self.rand, self.impi) if self.masked else AccessKeys(self.ck, self.ik)


@dataclass(frozen=True, slots=True)
class Activation:
    """The outcome: K_M, or why there is none."""

    k_m: Secret | None
    refused_because: str
    rspauth: bool  # it verified, whether or not keys were activated


def activate(
    run: AkaRun, answer: Credentials, *, home_realm: str, authentication_info: list[str], elapsed: float, amf_bit: AmfBit = "ignored",
    rspauth: ProofBy = "scscf",
) -> Activation:  # fmt: skip
    """Decide after the 2xx whether this run yields AS keys; never later (S2).

    `answer` is what SM7 carried, `authentication_info` every such header of the 2xx, `elapsed` seconds since SM7 was sent. With `rspauth`
    "as" a marker with flags 3 is enough: who uses the keys then has to see the AS prove them, over a verified certificate.
    """
    proven = _rspauth_verifies(run, answer, authentication_info)
    left_to_as = rspauth == "as" and run.marker is not None and not run.marker.rspauth
    reason = _refusal(run, answer, home_realm=home_realm, elapsed=elapsed, proven=proven, left_to_as=left_to_as)
    if not reason and amf_bit == "required" and not has_amf_bit(run.amf):
        reason = "AUTN's AMF does not say that the HSS meant this authentication for AS keys"
    if reason:
        return Activation(None, reason, proven)
    return Activation(application_master_key(run.ck, run.ik, run.rand, run.impi), "", proven)


def _refusal(run: AkaRun, answer: Credentials, *, home_realm: str, elapsed: float, proven: bool, left_to_as: bool) -> str:
    if run.stated_release is None:
        return "this UE states no release, so the network ferries no keys (Release 5 behaviour)"
    if run.marker is None:
        return NO_MARKER
    marker = run.marker
    checks = (
        (marker.access_keys and marker.as_keys, "the S-CSCF's marker does not promise keys for this authentication"),
        (marker.rspauth or left_to_as, "the S-CSCF's marker does not promise rspauth, which this UE wants: see ue.rspauth"),
        (len(run.res) >= MIN_MASKED_RES, "RES is shorter than 8 octets"),
        ("auth" in run.challenge.qop and answer.qop == "auth", "qop auth was not offered and used"),
        (run.challenge.realm == home_realm, "the challenge is not from the home realm"),
        (elapsed <= MAX_ANSWER_TIME, "the 2xx came too late"),
        (proven or left_to_as, "the 2xx carries no rspauth that verifies: the S-CSCF did not prove itself"),
    )
    return next((reason for passed, reason in checks if not passed), "")


def _rspauth_verifies(run: AkaRun, answer: Credentials, authentication_info: list[str]) -> bool:
    if len(authentication_info) != 1:
        return False
    try:
        info = parse_authentication_info(authentication_info[0])
        check_rspauth(info, hash_a1(AKA_ALGORITHM, answer.username, answer.realm, run.res), answer, algorithm=AKA_ALGORITHM)
    except (ParseError, DigestRejected):
        return False
    return True
