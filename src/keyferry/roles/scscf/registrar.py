# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: registration, de-registration, expiry (TS 24.229 §5.4.1, Release 17; DESIGN §5 step 4)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from keyferry.errors import CxError, KeyferryError, ParseError, StoreError
from keyferry.ports import (
    Clock,
    Counter,
    CxClient,
    Log,
    OwedEnd,
    PendingPush,
    RandomSource,
    Registration,
    RegistrationStore,
    ServerAssignment,
    SipPeer,
)
from keyferry.protocol.digest import AuthenticationInfo, build_authentication_info
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.ifc import InitialFilterCriteria, RegistrationType
from keyferry.protocol.ims.registration import IntervalTooBrief, RegisterView, granted, integrity_protected, read_register
from keyferry.protocol.ims.user_profile import UserProfile
from keyferry.protocol.sip.message import Request, Response, make_response, refuse_method, unsupported_tags
from keyferry.roles.cx_status import is_unreached, status_of
from keyferry.roles.scscf.as_notifier import AsNotifier, AsTarget, select_targets
from keyferry.roles.scscf.authenticator import Authenticator, Challenged, Proven, Refused
from keyferry.roles.scscf.bindings import check_order, contacts_of, fitting, held_of, is_of, may_stay, with_device
from keyferry.roles.scscf.hss_reports import ENDS, FAILURES, HssReports
from keyferry.roles.scscf.owing import Owing, expiry_request, profile_of
from keyferry.roles.scscf.reauthentication import Reauthentications
from keyferry.roles.scscf.reg_document import ContactNews
from keyferry.roles.scscf.turns import Turns

Changed: TypeAlias = Callable[
    [Impi, Sequence[Registration], Sequence[Registration], Mapping[Reg, ContactNews] | None], Coroutine[object, object, None]
]
EndEvent: TypeAlias = Literal["deactivated", "rejected", "probation"]
SUPPORTED = ("path", "sec-agree")  # the second is for the P-CSCF; a registrar behind one that leaves it in place loses nothing
REAUTH_WITHIN = 60  # seconds that a UE has to authenticate again (§5.4.1.6)
OWED_FOR = 604_800.0  # seconds that an end is owed: as long as the HSS owes an RTR: no registration of that time can be left
EXPIRY_BATCH = 500  # registrations ended per sweep; more wait for the next
REPORT_BATCH = 500  # users per sweep whose unanswered challenge the HSS is told of; of more it learns with their next attempt


@dataclass(frozen=True, slots=True)
class RegistrarPolicy:
    """What this registrar grants."""

    min_expires: int = 60  # seconds
    max_expires: int = 600_000  # seconds
    max_devices: int = 16  # of one IMPI; a phone without an instance id that changes its address counts as a new one
    associated: Literal["combined", "separate"] = "combined"  # P-Associated-URI: one header with a list, or one per identity
    reauth_age: float = 43_200.0  # seconds after its AKA run that a protected re-REGISTER needs no challenge; 0: never
    shared_ifc: Mapping[int, Sequence[InitialFilterCriteria]] = field(default_factory=dict)  # by SharedIFCSetID


def trusts_nobody(peer: SipPeer) -> bool:
    """Believe nobody's `integrity-protected`: what holds where Gm is not protected."""
    del peer
    return False


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
    trusts: Callable[[SipPeer], bool] = trusts_nobody  # whose word on `integrity-protected` counts
    changed: Changed | None = None  # whom to tell of what the store has: the reg event notifier
    reauthentications: Reauthentications = field(default_factory=Reauthentications)
    turns: Turns = field(default_factory=Turns)
    owing: Owing = field(init=False)
    reports: HssReports = field(init=False)

    def __post_init__(self) -> None:
        """Prepare what works out the pushes, and what tells the HSS."""
        object.__setattr__(self, "reports", HssReports(self._report, self.clock, self.notifier.sleep, self.log, self.counter))
        object.__setattr__(self, "owing", Owing(self.notifier, self.clock, self.policy.shared_ifc))

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer one request that the node has checked; the S-CSCF here is a registrar and nothing else."""
        misplaced = self._misplaced(request)
        if misplaced is not None:
            return misplaced
        view = read_register(request)
        try:
            grant = granted(view.expires, minimum=self.policy.min_expires, maximum=self.policy.max_expires)
            answer = await self._unchallenged(request, view, grant) if integrity_protected(view) and self.trusts(peer) else None
            if answer is not None:
                return answer
            outcome = await self.authenticator.authenticate(view)
            match outcome:
                case Challenged():
                    return make_response(request, 401, headers=(("WWW-Authenticate", outcome.www_authenticate),), to_tag=self._tag())
                case Refused():
                    self.reports.owe(view.impi, view.impu, ServerAssignment.AUTHENTICATION_FAILURE)
                    return make_response(request, 403, to_tag=self._tag())
                case Proven():
                    async with self.turns.turn(view.impi):
                        return await (self._register(request, view, outcome, grant) if grant else self._deregister(request, view, outcome))
        except IntervalTooBrief as problem:
            return make_response(request, 423, headers=(("Min-Expires", str(problem.minimum)),), to_tag=self._tag())
        except CxError as problem:
            self.authenticator.diagnosis.cx(view.impi, problem, status_of(problem))
            return make_response(request, status_of(problem), to_tag=self._tag())

    def _misplaced(self, request: Request) -> Response | None:
        """Refuse what no registrar does, and extensions that this one does not know (RFC 3261 §10.3 step 2)."""
        if request.method != "REGISTER":
            return refuse_method(request, "REGISTER")
        unknown = unsupported_tags(request, "Require", SUPPORTED)
        if unknown:
            return make_response(request, 420, headers=(("Unsupported", ", ".join(unknown)),), to_tag=self._tag())
        return None

    async def network_deregister(
        self, impi: Impi, reg: Reg | None = None, event: EndEvent = "deactivated", retry_after: int | None = None, *,
        impus: Collection[Impu] = (), assignment: ServerAssignment = ServerAssignment.ADMINISTRATIVE_DEREGISTRATION,
    ) -> int:  # fmt: skip
        """End one device's registration, or each of the user's, by the network's will (§5.4.1.5); return how many.

        `deactivated` asks the UE to register anew, `rejected` not to, `probation` to do so after `retry_after` seconds. With `impus` only
        those whose implicit registration set holds one of them; NO_ASSIGNMENT does not tell the HSS.
        """
        async with self.turns.turn(impi):
            ending = [each for each in await self.registrations.of_impi(impi) if reg in {None, each.reg} and is_of(each, impus)]
            for registration in ending:
                news = ContactNews(event, retry_after if event == "probation" else None)
                await self._end(registration, assignment, expiry_request(registration), wait=False, news=news)
                self.counter.count("scscf_registrations", "network-ended")
                self.log.info("network-deregistered", impi=impi, reg=registration.reg, kind=event)
        return len(ending)

    async def shorten(self, impi: Impi, reg: Reg | None = None, seconds: int = REAUTH_WITHIN) -> int:
        """Give one device, or each of the user's, `seconds` to authenticate again (§5.4.1.6); return how many were told.

        No push: what the AS holds ends with the registration, or is replaced by the new authentication's keys.
        """
        async with self.turns.turn(impi):
            now, told = self.clock.now(), 0
            for registration in await self.registrations.of_impi(impi):
                if reg not in {None, registration.reg} or registration.expires_at <= now:
                    continue
                shorter = registration._replace(expires_at=min(registration.expires_at, now + seconds))
                self.reauthentications.require(impi, registration.reg)
                await self.registrations.commit(shorter, [])
                await self.tell(impi, [registration], [shorter], {registration.reg: ContactNews("shortened")})
                self.log.info("reauthentication-asked", impi=impi, reg=registration.reg, seconds=seconds)
                told += 1
        return told

    async def tell(
        self,
        impi: Impi,
        before: Sequence[Registration],
        after: Sequence[Registration],
        events: Mapping[Reg, ContactNews] | None = None,
    ) -> None:
        """Tell who watches a user of what the store has; that it fails is nothing to who registers."""
        if self.changed is None:
            return
        try:
            await self.changed(impi, before, after, events)
        except KeyferryError as problem:
            self.log.warning("reg-event-not-told", impi=impi, problem=str(problem))

    def _until_masked(self, grant: int, view: RegisterView, proven: Proven, now: float) -> int:
        """DESIGN §5 step 4: a UE that states a release, after a raw challenge, authenticates again soon; once, for it may stay so."""
        policy = self.authenticator.policy
        lost = view.release is not None and not proven.masked and policy.mask and policy.release >= 6
        if not lost or not self.reauthentications.first(view.impi, view.reg, now):
            return grant
        self.reauthentications.require(view.impi, view.reg)
        return min(grant, max(REAUTH_WITHIN, self.policy.min_expires))

    async def _unchallenged(self, request: Request, view: RegisterView, grant: int) -> Response | None:
        """§5.4.1.2.2, §5.4.1.4: answer what came protected and needs no new AKA run, with the keys it has; None: it does need one."""
        if self.authenticator.awaits(view):
            return None
        async with self.turns.turn(view.impi):
            now = self.clock.now()
            held = await self.registrations.get(view.impi, view.reg)
            if held is None or not may_stay(held, view, now, reauth_age=self.policy.reauth_age):
                return None
            if grant and self.reauthentications.is_required(view.impi, view.reg):
                return None
            proven = Proven(held.k_m, held.k_m is not None, None, None, held)
            if not grant:
                return await self._deregister(request, view, proven)
            if self._bounded(grant, proven, held.aka_time, now) < self.policy.min_expires:
                return None  # its keys are at their end
            return await self._register(request, view, proven, grant)

    def _bounded(self, grant: int, proven: Proven, aka_time: float, now: float) -> int:
        """Return the seconds that may be granted.

        A registration that outlived its keys would leave a user who believes to have some (DESIGN §5 step 6: then challenge).
        """
        return grant if proven.k_m is None else min(grant, int(aka_time + self.notifier.policy.key_max_age - now))

    async def sweep(self) -> int:
        """End registrations whose time is over (§5.4.1.4 by expiry) and take up owed pushes; return how many ended.

        It waits neither for the HSS nor for who does: a user whose REGISTER is under way is looked at by the next sweep.
        """
        unanswered = {challenge.impi: challenge for challenge in self.authenticator.challenges.sweep(self.clock.now())}
        for impi, challenge in list(unanswered.items())[:REPORT_BATCH]:
            self.authenticator.diagnosis.unanswered(challenge)
            self.reports.owe(impi, challenge.impu, ServerAssignment.AUTHENTICATION_TIMEOUT)
        ended = 0
        for over in await self.registrations.expired(self.clock.now(), EXPIRY_BATCH):
            if self.turns.is_taken(over.impi):
                continue
            try:
                async with self.turns.turn(over.impi):
                    ended += await self._expire(over)
            except KeyferryError as problem:  # one row that cannot be read
                self.log.warning("expiry-failed", impi=over.impi, reg=over.reg, problem=str(problem))
        await self.notifier.resume()
        return ended

    async def _report(self, impi: Impi, impu: Impu, assignment: ServerAssignment) -> None:
        """Let the HSS free a user who is registered no more, or whose registration came to nothing (§5.4.1.2.1, §5.4.1.2.3, §5.4.1.4).

        Not while a device of the user is registered, nor, for the latter, being challenged: a stranger who answers wrongly must not end
        those. All else is said as it is by now. Raises CxError.
        """
        async with self.turns.turn(impi):
            registered = bool(await self.registrations.of_impi(impi))
            if assignment in FAILURES and (registered or self.authenticator.is_challenging(impi)):
                return
            if registered:
                await self._tell_hss(impi, impu, ServerAssignment.RE_REGISTRATION)
                await self._owe_no_end(impi)
            else:
                again = assignment is ServerAssignment.RE_REGISTRATION
                await self._tell_hss(impi, impu, ServerAssignment.TIMEOUT_DEREGISTRATION if again else assignment)

    def tell_again(self, impi: Impi, impu: Impu) -> None:
        """Tell the HSS whether a user is registered: it has done late what was asked before."""
        self.reports.owe(impi, impu, ServerAssignment.RE_REGISTRATION)

    async def _tell_hss(self, impi: Impi, impu: Impu, assignment: ServerAssignment) -> None:
        """SAR of which no profile is wanted; an end is owed until the HSS has judged. Raises CxError."""
        judged = False
        try:
            await self.cx.server_assignment(impi, impu, self.authenticator.policy.server_name, assignment)
            judged = True
        except CxError as problem:
            judged = not is_unreached(problem)
            raise
        finally:
            if judged and assignment in ENDS:
                await self._owe_no_end(impi)

    async def _owe_no_end(self, impi: Impi) -> None:
        try:
            await self.registrations.end_told(impi)
        except KeyferryError as problem:  # it is told once more after the next start, and changes nothing
            self.log.warning("owed-end-stays", impi=impi, problem=str(problem))

    async def take_up(self) -> None:
        """Owe the HSS again what it was not told of before we ended. Raises StoreError."""
        old = await self.registrations.forget_ends(self.clock.now() - OWED_FOR)
        if old:
            self.log.warning("owed-ends-too-old", users=old)
            self.counter.count("scscf_hss_reports", "dropped")
        for end in await self.registrations.owed_ends():
            self.reports.owe(end.impi, end.impu, end.assignment)

    async def _end_first(self, impi: Impi) -> None:
        """Tell the HSS of the end of a user who is back, before it hears of that.

        Copies of what it has not answered may be carried out late: then what it knows of the registration must be younger.
        """
        owed = self.reports.end_of(impi)
        if owed is None:
            return
        try:
            await self._tell_hss(impi, *owed)
        except CxError as problem:
            if is_unreached(problem):
                raise
        self.reports.owe_no_end(impi)

    async def _expire(self, over: Registration) -> int:
        registration = await self.registrations.get(over.impi, over.reg)
        if registration is None or registration.expires_at > self.clock.now():
            return 0  # while this waited for its turn, it ended or was renewed
        await self._end(registration, ServerAssignment.TIMEOUT_DEREGISTRATION, expiry_request(registration), wait=False)
        self.log.info("registration-expired", impi=registration.impi, reg=registration.reg)
        return 1

    def targets_of(self, registration: Registration) -> list[AsTarget]:
        """Return the application servers of a stored registration, for a delivery that was interrupted."""
        return self.owing.targets_of(registration)

    async def owe_again(
        self, impi: Impi, reg: Reg, server_name: str, as_id: AsId, *, unless_pushed: bool = False
    ) -> tuple[PendingPush, AsTarget, Registration] | None:
        """Owe an AS one device's keys once more, durably; None where there are none for it, or `unless_pushed` and they were before."""
        async with self.turns.turn(impi):
            registration = await self.registrations.get(impi, reg)
            if registration is None or registration.k_m is None or registration.expires_at <= self.clock.now():
                return None
            if unless_pushed and await self.registrations.last_seq(impi, as_id, reg):
                return None
            targets = [each for each in self.targets_of(registration) if (each.server_name, each.as_id) == (server_name, as_id)]
            owed = await self.owing.owe(registration, targets, had_keys=True)
            if not owed:
                return None
            await self.registrations.commit(registration, [owed[0][0]])
            return *owed[0], registration

    async def _register(self, request: Request, view: RegisterView, proven: Proven, grant: int) -> Response:
        """Register, or let the HSS free a user whom it may have assigned to us to no avail: its answer was lost, or our store is full."""
        try:
            return await self._assigned(request, view, proven, grant)
        except KeyferryError as problem:
            judged = isinstance(problem, CxError) and not is_unreached(problem)
            if not judged and not await self.registrations.of_impi(view.impi):
                await self._owe_end(view.impi, view.impu)
            raise

    async def _owe_end(self, impi: Impi, impu: Impu) -> None:
        """Owe the HSS the end of what it may have assigned, durably where the store can."""
        self.reports.owe(impi, impu, ServerAssignment.TIMEOUT_DEREGISTRATION)
        try:
            await self.registrations.owe_end(OwedEnd(impi, impu, ServerAssignment.TIMEOUT_DEREGISTRATION, self.clock.now()))
        except StoreError as problem:
            self.log.warning("end-not-kept", impi=impi, problem=str(problem))

    async def _assigned(self, request: Request, view: RegisterView, proven: Proven, grant: int) -> Response:
        now = self.clock.now()
        aka_time = now if proven.held is None else proven.held.aka_time
        grant = self._bounded(grant, proven, aka_time, now)
        if proven.held is None:
            self.reauthentications.done(view.impi, view.reg)
            grant = self._until_masked(grant, view, proven, now)
        devices = await self.registrations.of_impi(view.impi)
        previous = held_of(devices, view.reg)
        check_order(previous, view)
        if previous is None:
            devices = await self._make_room(devices, view)
        if not devices:
            await self._end_first(view.impi)
        assignment = ServerAssignment.RE_REGISTRATION if previous else ServerAssignment.REGISTRATION
        server_name = self.authenticator.policy.server_name
        user_data = await self.cx.server_assignment(view.impi, view.impu, server_name, assignment)
        profile = profile_of(user_data)
        self.alarm_of(view.impi, profile)
        if profile.profile_of(view.impu) is None:
            raise ParseError("User-Data", "does not hold the public identity that registers", status=500)
        registration = Registration(
            impi=view.impi, reg=view.reg, impu=view.impu, contact=view.contact, path=view.path, call_id=view.call_id, cseq=view.cseq,
            realm=self.authenticator.policy.realm if proven.held is None else proven.held.realm, expires_at=now + grant,
            aka_time=aka_time, key_not_before=aka_time, release=view.release, k_m=proven.k_m, user_data=user_data,
        )  # fmt: skip
        response = fitting(self._ok(request, view, proven, profile, with_device(devices, registration)))
        kind = RegistrationType.RE_REGISTRATION if previous else RegistrationType.INITIAL_REGISTRATION
        targets = select_targets(self.owing.servers(user_data, request, (kind,)), self.notifier.policy, request, response)
        owed = await self.owing.owe(registration, targets, had_keys=previous is not None and previous.k_m is not None)
        if previous is not None and previous.user_data != user_data:
            owed += await self.owing.owe_gone(previous, registration)
        # DESIGN §5 step 4, in this order: durable, then the pushes, then the 200.
        await self.registrations.commit(registration, [push for push, _ in owed])
        await self.notifier.notify(owed, registration)
        await self.tell(view.impi, devices, with_device(devices, registration))
        self.counter.count("scscf_registrations", "re" if previous else "initial")
        self.log.info(
            "registered",
            impi=view.impi,
            impu=view.impu,
            reg=view.reg,
            masked=proven.masked,
            challenged=proven.held is None,
            expires=grant,
            pushes=len(owed),
        )
        return response

    def alarm_of(self, impi: Impi, profile: UserProfile) -> None:
        """Say what of a profile has no effect: what cannot be understood, and sets that this S-CSCF was not given."""
        if profile.ignored:
            self.log.warning("user-profile-partly-ignored", impi=impi, left_out=profile.ignored)
        unknown = {number for service in profile.profiles for number in service.shared_ifc_sets} - self.policy.shared_ifc.keys()
        if unknown:
            self.counter.count("scscf_shared_ifc_unknown")
            self.log.warning("shared-ifc-unknown", impi=impi, sets=sorted(unknown))

    async def _make_room(self, devices: Sequence[Registration], view: RegisterView) -> Sequence[Registration]:
        """End the device that would expire first if the user has MAX_DEVICES: one that names itself anew each time fills no store."""
        if len(devices) < self.policy.max_devices:
            return devices
        oldest = min(devices, key=lambda registration: registration.expires_at)
        await self._end(oldest, ServerAssignment.NO_ASSIGNMENT, expiry_request(oldest), wait=False)
        self.counter.count("scscf_registrations", "displaced")
        self.log.warning("device-displaced", impi=view.impi, reg=oldest.reg, by=view.reg, call_id=view.call_id)
        return [each for each in devices if each.reg != oldest.reg]

    async def _deregister(self, request: Request, view: RegisterView, proven: Proven) -> Response:
        """§5.4.1.4: end one device's registration, or with `Contact: *` each of the IMPI's."""
        devices = await self.registrations.of_impi(view.impi)
        ending = [each for each in devices if view.every_contact or each.reg == view.reg]
        for registration in ending:
            check_order(registration, view)  # of all before any: the request fails whole
        left = contacts_of([each for each in devices if each not in ending], self.clock.now())
        response = fitting(make_response(request, 200, headers=(*left, *_authentication_info(view, proven)), to_tag=self._tag()))
        for registration in ending:
            await self._end(registration, ServerAssignment.USER_DEREGISTRATION, request)
            self.log.info("deregistered", impi=view.impi, reg=registration.reg)
        self.counter.count("scscf_registrations", "ended")
        return response

    async def _end(
        self,
        registration: Registration,
        assignment: ServerAssignment,
        request: Request,
        *,
        wait: bool = True,
        news: ContactNews | None = None,
    ) -> None:
        owed = await self.owing.owe_end(registration, request)
        tells = assignment is not ServerAssignment.NO_ASSIGNMENT
        end = OwedEnd(registration.impi, registration.impu, assignment, self.clock.now()) if tells else None
        await self.registrations.remove(registration.impi, registration.reg, [push for push, _ in owed], end)
        began = self.clock.monotonic()
        begun = self.notifier.begin(owed, None)  # first: an HSS that is away keeps no key alive
        self.reauthentications.done(registration.impi, registration.reg)
        left = await self.registrations.of_impi(registration.impi)
        await self.tell(registration.impi, [*left, registration], left, {registration.reg: news} if news else None)
        if tells and not left:
            await self._unassign(registration, assignment)
        if wait:
            await self.notifier.wait_for(begun, began)

    async def _unassign(self, registration: Registration, assignment: ServerAssignment) -> None:
        """Tell the HSS that the user's last registration has ended: before the 200 where there is one, else when it has time."""
        impi, impu = registration.impi, registration.impu
        if assignment is ServerAssignment.TIMEOUT_DEREGISTRATION:
            self.reports.owe(impi, impu, assignment)
            return
        try:
            await self._tell_hss(impi, impu, assignment)
        except CxError as problem:  # the user may be gone from the HSS; the registration ends all the same
            self.log.warning("cx-error", impi=impi, cx=problem.name)
            if is_unreached(problem):
                self.reports.owe(impi, impu, assignment)
        except StoreError as problem:  # of an HSS in this process
            self.log.warning("cx-error", impi=impi, cx=str(problem))
            self.reports.owe(impi, impu, assignment)

    def _ok(self, request: Request, view: RegisterView, proven: Proven, profile: UserProfile, devices: Sequence[Registration]) -> Response:
        """§5.4.1.2.2F: Path as received, Service-Route, P-Associated-URI with the default identity first, every binding."""
        associated = [f"<{impu}>" for impu in profile.impus]
        if self.policy.associated == "combined" and associated:
            associated = [", ".join(associated)]
        headers = [
            *(("Path", value) for value in view.path),
            ("Service-Route", f"<{self.authenticator.policy.server_name.replace('sip:', 'sip:orig@', 1)};lr>"),
            *(("P-Associated-URI", value) for value in associated),
            *contacts_of(devices, self.clock.now(), view.reg),
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
