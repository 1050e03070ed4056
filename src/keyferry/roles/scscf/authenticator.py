# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: challenges and their answers (TS 24.229 §5.4.1.2, Release 17; TS 33.203 §6.1; DESIGN §4, §5)."""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass, field
from typing import NamedTuple

from keyferry.errors import CxError, DigestRejected, ParseError
from keyferry.ports import Clock, Counter, CxClient, Log, Registration, Resync
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Credentials, aka_nonce, decode_base64, parse_aka_nonce
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.bare_nonce import BareNonces
from keyferry.protocol.ims.challenges import PendingChallenges
from keyferry.protocol.ims.keys import AccessKeys, access_keys, application_master_key
from keyferry.protocol.ims.marker import MARKER_OCTETS, build_marker
from keyferry.protocol.ims.registration import (
    PendingChallenge,
    RegisterView,
    ReleaseInfo,
    build_aka_challenge,
    check_answer,
    marker_for,
    masks,
)
from keyferry.protocol.ims.verdicts import Analysis, Reason, Verdict, because
from keyferry.roles.scscf.diagnosis import Diagnosis


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    """How this S-CSCF authenticates."""

    realm: str
    server_name: str  # our SIP URI, as the HSS knows us
    release: int = 6  # 5 behaves as a Release 5 S-CSCF: no marker, raw keys, no push
    release_info: ReleaseInfo = "always"
    marker_octets: int = MARKER_OCTETS  # 4…64; more than 4 only tries how peers take a long nonce
    mask: bool = True
    reg_await_auth: float = 240.0  # seconds, TS 24.229 §5.4.1.2.1


class Proven(NamedTuple):
    """A REGISTER whose answer verified."""

    k_m: Secret | None  # None: raw keys, nothing will be pushed
    masked: bool
    rspauth: str | None
    qop: str | None
    held: Registration | None = None  # what stays as it is, where the REGISTER needed no challenge


class Challenged(NamedTuple):
    """A REGISTER that is to be challenged (again): the WWW-Authenticate value, which holds keys for the P-CSCF."""

    www_authenticate: str


class Refused(NamedTuple):
    """A REGISTER that is refused with 403; the reason is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Challenge every REGISTER, verify every answer, derive K_M for masked vectors and forget CK, IK at the 401."""

    cx: CxClient
    clock: Clock
    policy: AuthPolicy
    log: Log
    counter: Counter
    diagnosis: Diagnosis
    challenges: PendingChallenges = field(default_factory=PendingChallenges)
    bare: BareNonces = field(default_factory=BareNonces)
    _asking: Tally[Impi] = field(default_factory=Tally)  # MARs under way

    async def authenticate(self, view: RegisterView) -> Proven | Challenged | Refused:
        """Decide about one REGISTER. Raises CxError."""
        credentials = view.credentials
        if credentials is None or not (credentials.response or credentials.auts or credentials.nonce):
            return await self._challenge(view)
        pending = self.challenges.take(credentials.nonce, self.clock.now())
        if pending is None or pending.impi != view.impi:
            # After a restart, an eviction or reg-await-auth: the UE did nothing wrong, so it gets a new challenge.
            self.counter.count("scscf_challenge_unknown")
            self._suspect(view)  # or it echoes only part of the nonce
            self.diagnosis.unknown_nonce(view, credentials.nonce)
            return await self._challenge(view)
        if credentials.auts is not None:
            return await self._resynchronise(view, pending, credentials.auts)
        return await self._verify(view, pending, credentials)

    def awaits(self, view: RegisterView) -> bool:
        """Tell whether a REGISTER answers a challenge, rightly or not."""
        credentials = view.credentials
        return credentials is not None and (credentials.auts is not None or credentials.nonce in self.challenges)

    def is_challenging(self, impi: Impi) -> bool:
        """Tell whether a challenge of a user waits for its answer, or is being made: the HSS has assigned the user to us for it."""
        return bool(self._asking[impi] or self.challenges.of_impi(impi))

    async def _vector(self, view: RegisterView, resync: Resync | None, *, meant: bool) -> AuthVector:
        self._asking[view.impi] += 1
        try:
            return await self.cx.multimedia_auth(view.impi, view.impu, self.policy.server_name, resync, masked=meant)
        finally:
            self._asking[view.impi] -= 1
            if not self._asking[view.impi]:
                del self._asking[view.impi]

    async def _verify(self, view: RegisterView, pending: PendingChallenge, credentials: Credentials) -> Proven | Refused:
        try:
            rspauth = check_answer(pending, credentials)
        except DigestRejected as problem:
            return self._refuse(view, await self.diagnosis.wrong_response(view, pending, credentials), problem.problem)
        if pending.bare and view.release is None:
            self.bare.proven(pending.impi, pending.reg, self.clock.now())
        self.challenges.supersede(pending, None if view.every_contact else view.reg)
        if view.release is not None and not pending.masked and self.policy.release >= 6 and self.policy.mask:
            self.counter.count("scscf_capability_lost")
            self.log.warning("release-stated-after-raw-challenge", impi=view.impi, reg=view.reg)
        self.counter.count("scscf_authenticated", "masked" if pending.masked else "raw")
        return Proven(pending.k_m, pending.masked, rspauth, credentials.qop)

    def _suspect(self, view: RegisterView) -> None:
        """DESIGN §4: the next challenge may be one that this stack can read."""
        if view.release is None and not view.every_contact:
            self.bare.failed(view.impi, view.reg, self.clock.now())

    def _refuse(self, view: RegisterView, analysis: Analysis, problem: str = "") -> Refused:
        self._suspect(view)
        self.counter.count("scscf_authentication_failed")
        self.diagnosis.note(view, analysis, 403, problem)
        return Refused(f"{analysis.text} ({problem})" if problem else analysis.text)

    async def _resynchronise(self, view: RegisterView, pending: PendingChallenge, auts_text: str) -> Challenged | Refused:
        """§5.4.1.2.3: AUTS counts for the outstanding RAND only, and once in a row."""
        try:
            auts = decode_base64(auts_text)
        except ParseError:
            auts = b""
        if len(auts) != 14:
            return self._refuse(view, because(Reason.AUTS, "auts is not 14 octets of base64"))
        analysis = await self.diagnosis.synchronisation(view, pending, auts)
        if pending.after_resync:
            again = Verdict(Reason.RESYNC_LOOP)
            return self._refuse(view, Analysis(tuple((again, *cause) for cause in analysis.causes)))
        try:
            challenged = await self._challenge(view, Resync(parse_aka_nonce(pending.nonce).rand, auts))
        except CxError as problem:
            wrong = because(Reason.AUTS) if analysis.reasons == (Reason.SQN,) else analysis
            return self._refuse(view, wrong, f"the HSS refused the resynchronisation: {problem.name}")
        self.diagnosis.note(view, analysis, 401)
        return challenged

    async def _challenge(self, view: RegisterView, resync: Resync | None = None) -> Challenged:
        """§5.4.1.2.1, DESIGN §5 steps 1 and 2: one AV, in exactly one 401."""
        policy = self.policy
        meant = policy.mask and policy.release >= 6 and view.release is not None
        vector = await self._vector(view, resync, meant=meant)
        masked = masks(stated=view.release, own_release=policy.release, policy=policy.mask, xres=vector.xres)
        marker = marker_for(masked=masked, stated=view.release, own_release=policy.release, release_info=policy.release_info)
        bare = marker is not None and view.release is None and self.bare.take(view.impi, view.reg, self.clock.now())
        if bare:
            marker = None
            self.counter.count("scscf_bare_challenges")
        pending = PendingChallenge(
            nonce=aka_nonce(vector.rand, vector.autn, build_marker(marker, policy.marker_octets) if marker else b""),
            impi=view.impi,
            impu=view.impu,
            reg=view.reg,
            source=view.source,
            realm=policy.realm,
            masked=masked,
            xres=vector.xres,
            k_m=application_master_key(vector.ck, vector.ik, vector.rand, view.impi) if masked else None,
            expires_at=self.clock.now() + policy.reg_await_auth,
            after_resync=resync is not None,
            bare=bare,
            call_id=view.call_id,
        )
        self.challenges.put(pending)
        self.diagnosis.challenged(view, pending.nonce, policy.realm)
        self.counter.count("scscf_challenges", "masked" if masked else "raw")
        keys = _keys_for_pcscf(vector, view, masked=masked)
        return Challenged(build_aka_challenge(pending, keys.ck, keys.ik))


def _keys_for_pcscf(vector: AuthVector, view: RegisterView, *, masked: bool) -> AccessKeys:
    if masked:
        return access_keys(vector.ck, vector.ik, vector.rand, view.impi)
    return AccessKeys(vector.ck, vector.ik)
