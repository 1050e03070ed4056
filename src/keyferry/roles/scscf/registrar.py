# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: registration, de-registration, expiry (TS 24.229 §5.4.1, Release 17; DESIGN §5 step 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from keyferry.errors import CxError, ParseError
from keyferry.ports import (
    Clock,
    Counter,
    CxClient,
    Log,
    PendingPush,
    RandomSource,
    Registration,
    RegistrationStore,
    ServerAssignment,
    SipPeer,
)
from keyferry.protocol.digest import AuthenticationInfo, build_authentication_info
from keyferry.protocol.identity import AsId, Impu
from keyferry.protocol.ims.ifc import ApplicationServer, RegistrationType, SessionCase, matching
from keyferry.protocol.ims.registration import IntervalTooBrief, RegisterView, granted, granted_contact, key_not_after, read_register
from keyferry.protocol.ims.user_profile import UserProfile, parse_user_profile
from keyferry.protocol.sip.message import Request, Response, build_message, check_request, make_response
from keyferry.roles.scscf.as_notifier import AsNotifier, AsTarget, select_targets
from keyferry.roles.scscf.authenticator import Authenticator, Challenged, Proven, Refused

EXPIRY_BATCH = 500  # registrations ended per sweep; more wait for the next


@dataclass(frozen=True, slots=True)
class RegistrarPolicy:
    """What this registrar grants."""

    min_expires: int = 60  # seconds
    max_expires: int = 600_000  # seconds


@lru_cache(maxsize=4096)
def profile_of(user_data: bytes) -> UserProfile:
    """Parse User-Data; the cache spares the second parse of one registration and every one of its refreshes."""
    return parse_user_profile(user_data)


@dataclass(frozen=True, slots=True)
class Registrar:
    """Answer REGISTERs: challenge, verify, commit, push, and only then 200."""

    authenticator: Authenticator
    notifier: AsNotifier
    registrations: RegistrationStore
    cx: CxClient
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    policy: RegistrarPolicy

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer one request; the S-CSCF here is a registrar and nothing else."""
        del peer
        check_request(request)
        if request.method != "REGISTER":
            return make_response(request, 405, headers=(("Allow", "REGISTER"),))
        view = read_register(request)
        try:
            grant = granted(view.expires, minimum=self.policy.min_expires, maximum=self.policy.max_expires)
            outcome = await self.authenticator.authenticate(view)
            match outcome:
                case Challenged():
                    return make_response(request, 401, headers=(("WWW-Authenticate", outcome.www_authenticate),), to_tag=self._tag())
                case Refused():
                    return make_response(request, 403, to_tag=self._tag())
                case Proven() if grant == 0:
                    return await self._deregister(request, view, outcome)
                case Proven():
                    return await self._register(request, view, outcome, grant)
        except IntervalTooBrief as problem:
            return make_response(request, 423, headers=(("Min-Expires", str(problem.minimum)),), to_tag=self._tag())
        except CxError as problem:
            self.log.warning("cx-error", impi=view.impi, impu=view.impu, cx=problem.name)
            return make_response(request, 403 if problem.code in {5001, 5002, 5004} else 504, to_tag=self._tag())

    async def sweep(self) -> int:
        """End registrations whose time is over (§5.4.1.4 by expiry) and take up owed pushes; return how many ended."""
        self.authenticator.challenges.sweep(self.clock.now())
        ended = await self.registrations.expired(self.clock.now(), EXPIRY_BATCH)
        for registration in ended:
            await self._end(registration, ServerAssignment.TIMEOUT_DEREGISTRATION, _expiry_request(registration))
            self.log.info("registration-expired", impi=registration.impi, reg=registration.reg)
        await self.notifier.resume()
        return len(ended)

    def targets_of(self, registration: Registration) -> list[AsTarget]:
        """Return the application servers of a stored registration, for a delivery that was interrupted."""
        servers = self._servers(
            registration.user_data, _expiry_request(registration), (RegistrationType.INITIAL_REGISTRATION, RegistrationType.RE_REGISTRATION)
        )
        return select_targets(servers, self.notifier.policy, None, None)

    async def _register(self, request: Request, view: RegisterView, proven: Proven, grant: int) -> Response:
        now = self.clock.now()
        previous = await self.registrations.get(view.impi, view.reg)
        assignment = ServerAssignment.RE_REGISTRATION if previous else ServerAssignment.REGISTRATION
        server_name = self.authenticator.policy.server_name
        user_data = await self.cx.server_assignment(view.impi, view.impu, server_name, assignment)
        profile = profile_of(user_data)
        if profile.ignored:
            self.log.warning("user-profile-partly-ignored", impi=view.impi, left_out=profile.ignored)
        if profile.profile_of(view.impu) is None:
            raise ParseError("User-Data", "does not hold the public identity that registers", status=500)
        registration = Registration(
            impi=view.impi, reg=view.reg, impu=view.impu, contact=view.contact, path=view.path, call_id=view.call_id, cseq=view.cseq,
            realm=self.authenticator.policy.realm, expires_at=now + grant, aka_time=now, key_not_before=now, release=view.release,
            k_m=proven.k_m, user_data=user_data,
        )  # fmt: skip
        response = self._ok(request, view, proven, profile, grant)
        kind = RegistrationType.RE_REGISTRATION if previous else RegistrationType.INITIAL_REGISTRATION
        targets = select_targets(
            self._servers(user_data, request, (kind,)), self.notifier.policy, build_message(request), build_message(response)
        )
        owed = await self._owe(registration, targets, had_keys=previous is not None and previous.k_m is not None)
        # DESIGN §5 step 4, in this order: durable, then the pushes, then the 200.
        await self.registrations.commit(registration, [push for push, _ in owed])
        await self.notifier.notify(owed, registration)
        self.counter.count("scscf_registrations", "re" if previous else "initial")
        self.log.info("registered", impi=view.impi, impu=view.impu, reg=view.reg, masked=proven.masked, expires=grant, pushes=len(owed))
        return response

    async def _deregister(self, request: Request, view: RegisterView, proven: Proven) -> Response:
        """§5.4.1.4: end one device's registration, or with `Contact: *` each of the IMPI's."""
        for registration in await self.registrations.of_impi(view.impi):
            if view.every_contact or registration.reg == view.reg:
                await self._end(registration, ServerAssignment.USER_DEREGISTRATION, request)
                self.log.info("deregistered", impi=view.impi, reg=registration.reg)
        self.counter.count("scscf_registrations", "ended")
        return make_response(request, 200, headers=_authentication_info(view, proven), to_tag=self._tag())

    async def _end(self, registration: Registration, assignment: ServerAssignment, request: Request) -> None:
        others = [other for other in await self.registrations.of_impi(registration.impi) if other.reg != registration.reg]
        servers = self._servers(registration.user_data, request, (RegistrationType.DE_REGISTRATION,))
        targets = select_targets(servers, self.notifier.policy, None, None)
        told = {(target.server_name, target.as_id) for target in targets}
        # Keys end with the registration even where the operator's criteria do not ask for de-registrations.
        targets += [
            target for target in self.targets_of(registration) if target.as_id and (target.server_name, target.as_id) not in told
        ]  # fmt: skip
        give_up_at = max(registration.expires_at, self.clock.now()) + 120
        owed = [(await self._pending(registration, target, erase=True, give_up_at=give_up_at), target) for target in targets]
        await self.registrations.remove(registration.impi, registration.reg, [push for push, _ in owed])
        await self.notifier.notify(owed, None)
        if not others:
            try:
                await self.cx.server_assignment(registration.impi, registration.impu, self.authenticator.policy.server_name, assignment)
            except CxError as problem:  # the user may be gone from the HSS; the registration ends all the same
                self.log.warning("cx-error", impi=registration.impi, cx=problem.name)

    async def _owe(self, registration: Registration, targets: Sequence[AsTarget], *, had_keys: bool) -> list[tuple[PendingPush, AsTarget]]:
        give_up_at = registration.expires_at
        if registration.k_m is not None:
            give_up_at = key_not_after(
                expires_at=registration.expires_at, aka_time=registration.aka_time, key_max_age=self.notifier.policy.key_max_age
            )
        owed = []
        for target in targets:
            # S1: raw keys never make a push. An empty set still goes where a key of an earlier authentication may lie.
            takes_block = registration.k_m is not None or had_keys
            told = target if takes_block else target._replace(as_id=AsId(""))
            owed.append((await self._pending(registration, told, erase=False, give_up_at=give_up_at), told))
        return owed

    async def _pending(self, registration: Registration, target: AsTarget, *, erase: bool, give_up_at: float) -> PendingPush:
        return PendingPush(
            impi=registration.impi,
            as_id=target.as_id,
            reg=registration.reg,
            seq=await self.notifier.next_seq(registration.impi, target.as_id, registration.reg),
            erase=erase,
            server_name=target.server_name,
            impu=_to(registration, target),
            give_up_at=give_up_at,
        )

    def _servers(
        self, user_data: bytes, request: Request, kinds: Sequence[RegistrationType]
    ) -> list[tuple[ApplicationServer, tuple[Impu, ...]]]:
        """Return each matching AS with the non-barred IMPUs whose service profile has a matching criterion for it (DESIGN §6)."""
        found: dict[str, tuple[ApplicationServer, tuple[Impu, ...]]] = {}
        for service in profile_of(user_data).profiles:
            usable = tuple(impu for impu, barred in service.impus if not barred)
            for kind in kinds:
                for criterion in matching(
                    service.criteria, request, session_case=SessionCase.ORIGINATING, registration_type=kind, registered=True
                ):
                    server = criterion.application_server
                    _, before = found.get(server.server_name, (server, ()))
                    found[server.server_name] = (server, tuple(dict.fromkeys((*before, *usable))))
        return list(found.values())

    def _ok(self, request: Request, view: RegisterView, proven: Proven, profile: UserProfile, grant: int) -> Response:
        """§5.4.1.2.2F: Path as received, Service-Route, P-Associated-URI with the default identity first."""
        associated = ", ".join(f"<{impu}>" for impu in profile.impus)
        headers = [
            *(("Path", value) for value in view.path),
            ("Service-Route", f"<{self.authenticator.policy.server_name.replace('sip:', 'sip:orig@', 1)};lr>"),
            *((("P-Associated-URI", associated),) if associated else ()),
            ("Contact", granted_contact(view.contact, grant)),
            *_authentication_info(view, proven),
        ]
        return make_response(request, 200, headers=tuple(headers), to_tag=self._tag())

    def _tag(self) -> str:
        return self.random.octets(6).hex()


def _authentication_info(view: RegisterView, proven: Proven) -> tuple[tuple[str, str], ...]:
    """Prove the S-CSCF to the UE (RFC 3310 §3.5; DESIGN §5 step 5): only where a qop was used."""
    if proven.rspauth is None or view.credentials is None:
        return ()
    info = AuthenticationInfo(rspauth=proven.rspauth, qop=proven.qop, cnonce=view.credentials.cnonce, nc=view.credentials.nc)
    return (("Authentication-Info", build_authentication_info(info)),)


def _expiry_request(registration: Registration) -> Request:
    """Make the REGISTER that an expiry stands for, for the filter criteria (§5.4.1.5)."""
    return Request("REGISTER", f"sip:{registration.realm}", (("To", f"<{registration.impu}>"), ("Expires", "0")))


def _to(registration: Registration, target: AsTarget) -> Impu:
    """§5.4.1.7: the identity that registered, or a non-barred one of the set if that is barred."""
    return registration.impu if registration.impu in target.impus or not target.impus else target.impus[0]
