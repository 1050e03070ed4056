# SPDX-License-Identifier: Apache-2.0
"""HSS: authorization, vectors, server assignment, and what it asks of an S-CSCF (TS 29.228 §6, Release 17; TS 33.102 annex C)."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from keyferry.errors import AutsRejected, CxError, KeyferryError
from keyferry.ports import (
    Assignment,
    Clock,
    Counter,
    CxServing,
    CxServings,
    DeregistrationReason,
    Log,
    OwedTermination,
    RandomSource,
    Resync,
    ServerAssignment,
    SubscribedImpu,
    SubscriberStore,
    Subscription,
)
from keyferry.protocol.aka import DELTA, AkaAlgorithm, AuthVector, algorithm_of, generate_vector, split_sqn, sqn_of, verify_auts
from keyferry.protocol.digest import parse_aka_nonce
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.autn_trial import explain_auts
from keyferry.protocol.ims.ifc import InitialFilterCriteria
from keyferry.protocol.ims.registration import with_amf_bit
from keyferry.protocol.ims.response_trial import WrongAnswer, explain_response, key_passwords
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization, ranked
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from keyferry.protocol.ims.verdicts import Analysis
from keyferry.roles.hss_assignment import challenged, concluded, delivered, ended, registered, serving_names, terminated, unproven

IND_COUNT = 32  # TS 33.102 annex C.3: five bits
SEQ_RESERVE = 64  # values one durable write allows; a crash skips at most these, far under Delta = 2^28
MAX_COUNTERS = 65_536  # subscribers whose SEQ is held in memory; the others start again from the stored ceiling
OWED_AGAIN = 30.0  # seconds after which an RTR that nobody took is sent again: whoever owed it has had its answer by then, or is gone
OWED_FOR = 604_800.0  # seconds that an RTR is kept: a registration that no REGISTER renews has ended by itself, in 600,000 s at the latest
OWED_BATCH = 500  # RTRs read at a time; where an S-CSCF refuses one, the next have to wait for the next sweep
SCSCFS_AT_ONCE = 16  # S-CSCFs that a sweep sends RTRs to at a time: one that does not answer must not keep the others waiting
OWED_AT_ONCE = 20  # of these, sent together: one that is not answered in its time holds up no other
MAX_UNANSWERED = 3  # attempts: Kamailio leaves a RTR for a user who is not registered there, any more, unanswered

FAILURES = {ServerAssignment.AUTHENTICATION_FAILURE, ServerAssignment.AUTHENTICATION_TIMEOUT}
ENDS = {
    ServerAssignment.TIMEOUT_DEREGISTRATION, ServerAssignment.USER_DEREGISTRATION, ServerAssignment.ADMINISTRATIVE_DEREGISTRATION,
}  # fmt: skip
USER_UNKNOWN = 5001
TOO_MUCH_DATA = 5008
NO_ANSWER = 3002
UNREACHABLE = {NO_ANSWER, 3004}  # UNABLE_TO_DELIVER, TOO_BUSY: true for the next RTR, too


def user_unknown() -> CxError:
    """TS 29.229 §6.2.2.1."""
    return CxError(USER_UNKNOWN, "DIAMETER_ERROR_USER_UNKNOWN")


def identities_dont_match() -> CxError:
    """TS 29.229 §6.2.2.2."""
    return CxError(5002, "DIAMETER_ERROR_IDENTITIES_DONT_MATCH")


def identity_not_registered() -> CxError:
    """TS 29.229 §6.2.2.3."""
    return CxError(5003, "DIAMETER_ERROR_IDENTITY_NOT_REGISTERED")


def unable_to_deliver() -> CxError:
    """RFC 6733 §7.1.3: the S-CSCF assigned cannot be reached from here."""
    return CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")


def unable_to_comply() -> CxError:
    """RFC 6733 §7.1.5."""
    return CxError(5012, "DIAMETER_UNABLE_TO_COMPLY")


@dataclass(slots=True)
class _Counter:
    """SEQ_HE of one subscriber: the last value used, and the one up to which the store durably lets this process go."""

    seq: int
    ceiling: int
    anew: bool = False  # the card is so far behind that what was reserved is of no use
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class Hss:
    """Answer Cx from a SubscriberStore; embedded in process it is itself the CxClient port."""

    subscribers: SubscriberStore
    profiles: Mapping[str, Sequence[InitialFilterCriteria]]
    random: RandomSource
    log: Log
    counter: Counter
    clock: Clock
    max_counters: int = MAX_COUNTERS
    scscfs: Sequence[str] = ()  # SIP URIs of the S-CSCFs that users are spread over; none: the I-CSCF knows one
    shared_ifc_sets: Mapping[str, Sequence[int]] = field(default_factory=dict)  # SharedIFCSetIDs of a profile, besides its criteria
    amf_bit: bool = False  # say in AUTN that a vector will be masked (DESIGN §4)
    servings: CxServings | None = None  # how to reach an S-CSCF; None: not at all
    _former: set[asyncio.Task[None]] = field(default_factory=set)  # words to S-CSCFs that serve a user no longer
    _counters: OrderedDict[Impi, _Counter] = field(default_factory=OrderedDict)
    _changing: Tally[Impi] = field(default_factory=Tally)  # whose assignment is being written
    _want_impus: set[str] = field(default_factory=set)  # S-CSCFs that leave a RTR without public identities unanswered
    _unanswered: Tally[tuple[Impi, str]] = field(default_factory=Tally)  # attempts to tell an S-CSCF that is there
    _telling: set[tuple[Impi, str]] = field(default_factory=set)  # S-CSCFs that are being sent an RTR for a user

    async def user_authorization(
        self, impi: Impi, impu: Impu, visited_network: str, kind: AuthorizationType = AuthorizationType.REGISTRATION
    ) -> UserAuthorization:
        """UAR (§6.1.1). Roaming is allowed everywhere: there is no list of visited networks. Every S-CSCF has the same capabilities."""
        del visited_network
        server_name = (await self._subscription(impi, impu)).server_name
        if kind is AuthorizationType.DE_REGISTRATION and server_name is None:
            raise identity_not_registered()
        if server_name is None or kind is AuthorizationType.REGISTRATION_AND_CAPABILITIES:
            return UserAuthorization(None, ranked(impi, self.scscfs))
        return UserAuthorization(server_name)

    async def location_info(self, impu: Impu) -> str:
        """LIR (§6.1.4): return the S-CSCF that serves a user; there are no services for users who are not registered."""
        impi = await self.subscribers.of_impu(impu)
        if impi is None:
            raise user_unknown()
        subscription = await self._subscription(impi, impu)
        for server_name in serving_names(subscription.server_name, subscription.serving):
            return server_name
        raise identity_not_registered()

    async def multimedia_auth(
        self, impi: Impi, impu: Impu, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        """MAR (§6.3): return one vector with a SEQ never used before, after a resynchronisation if AUTS proves one."""
        found = await self.subscribers.for_vector(impi)
        if found is None:
            raise user_unknown()
        subscriber, assigned, reserved = found
        _check_pair(subscriber.impus, impu)
        algorithm = algorithm_of(subscriber.algorithm, subscriber.k, subscriber.opc)
        at_once = assigned == server_name and impi not in self._changing
        if not at_once:
            await self._reassign(impi, lambda found: challenged(found, server_name, again=resync is not None))
        if resync is not None:
            await self._resynchronise(impi, algorithm, resync)
        seq = await self._next_seq(impi, reserved if at_once and resync is None else None)
        self.counter.count("hss_vectors")
        amf = with_amf_bit(subscriber.amf) if masked and self.amf_bit else subscriber.amf
        return generate_vector(algorithm, self.random.octets(16), sqn_of(seq, seq % IND_COUNT), amf)

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment, *, order: int = 0) -> bytes:
        """SAR (§6.1.2): assign the S-CSCF and return the user's profile, or end the assignment (ports.OrderedCx)."""
        subscription = await self._subscription(impi, impu)
        if assignment in ENDS:
            return await self._unassign(impi, server_name, order)
        if assignment in FAILURES:
            await self._reassign(impi, lambda found: unproven(found, server_name))
            return b""
        if assignment is ServerAssignment.NO_ASSIGNMENT:
            if server_name not in {subscription.server_name, subscription.serving}:
                self.log.warning("profile-refused", impi=impi, server=server_name, assigned=subscription.server_name)
                raise unable_to_comply()
            return self._user_data(impi, subscription)
        if subscription.server_name == subscription.serving == server_name and impi not in self._changing:
            return self._user_data(impi, subscription)
        await self._assign(impi, server_name, order)
        # Of now: whoever changed the profile meanwhile may have found nobody to bring it to.
        return self._user_data(impi, await self._known(impi))

    async def _unassign(self, impi: Impi, server_name: str, order: int) -> bytes:
        now = self.clock.now()
        try:
            await self._reassign(impi, lambda found: ended(found, server_name, now, order))
        except CxError:
            self.log.warning("end-came-late", impi=impi, server=server_name)
            raise
        return b""

    async def _assign(self, impi: Impi, server_name: str, order: int) -> None:
        now = self.clock.now()
        try:
            before, after = await self._reassign(impi, lambda found: registered(found, server_name, now, order))
        except CxError as problem:
            kind = "already-registered" if problem.experimental else "registration-came-late"
            self.log.warning(kind, impi=impi, server=server_name, assigned=problem.server_name)
            raise
        for owed in after.owed:
            if owed not in before.owed:
                self._release(impi, owed)

    async def _reassign(self, impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
        """Change an assignment after whatever is being written of it, so that requests take effect in the order in which they came."""
        self._changing[impi] += 1
        try:
            return await self.subscribers.reassign(impi, change)
        finally:
            self._changing[impi] -= 1
            if not self._changing[impi]:
                del self._changing[impi]

    async def identities(self, impi: Impi | None, impus: Sequence[Impu]) -> tuple[Impi, Impu]:
        """Return whom a SAR names (ports.CxDirectory)."""
        found = impi
        if found is None:
            found = await self.subscribers.of_impu(impus[0]) if impus else None
        subscription = None if found is None else await self.subscribers.subscription(found)
        if found is None or subscription is None:
            raise user_unknown()
        for impu in impus:
            _check_pair(subscription.impus, impu)
        return found, impus[0] if impus else subscription.impus[0].impu

    async def release(self, impi: Impi) -> int | None:
        """Return the release of a user's UE as provisioned (ports.CxDirectory)."""
        subscription = await self.subscribers.subscription(impi)
        return None if subscription is None else subscription.release

    # ---- what an S-CSCF is asked

    async def update_profile(self, impi: Impi) -> str | None:
        """PPR (§6.2.2): bring a user's profile to the S-CSCF assigned; return its name, None where nobody is registered to whom it matters.

        Raises CxError: 5001 for a user who is unknown here, 5012 for a profile that is not configured, 3002 where the S-CSCF cannot be
        reached, and what it answers. The profile comes with the next SAR all the same.
        """
        subscription = await self._known(impi)
        while servers := serving_names(subscription.server_name, subscription.serving):
            if subscription.profile not in self.profiles:
                raise unable_to_comply()
            took, problems = await self._push_to(servers, impi, subscription)
            sent, subscription = subscription, await self._known(impi)
            if problems:
                raise problems[0]
            if subscription == sent:
                return took[0] if took else None
            # Another change came meanwhile, and its PPR may have been the faster one.
        return None

    async def terminate(self, impi: Impi, reason: DeregistrationReason, info: str = "") -> str | None:
        """RTR (§6.1.3): end a user's registrations; return the name of the S-CSCF that did, None where there was none.

        Raises CxError: 5001 for a user who is unknown here, 3002 where an S-CSCF cannot be reached, and what one answers; that one stays
        assigned then. If we end in between, the RTR is sent again after the next start.
        """
        await self._known(impi)
        now = self.clock.now()
        before, after = await self._reassign(impi, lambda found: terminated(found, reason, info, now))
        names = serving_names(before.server_name, before.serving)
        ours = [each for each in after.owed if each.server_name in names]
        for owed in after.owed:
            if owed not in ours:
                self._release(impi, owed)
        told: list[str] = []
        try:
            problems = [problem for problem in await asyncio.gather(*[self._end(impi, each, told) for each in ours]) if problem is not None]
        finally:
            await self._reassign(impi, lambda found: concluded(found, before, ours, told))
        if problems:
            raise problems[0]
        if names:
            self.log.info("registration-termination", impi=impi, servers=names, reason=reason.name)
        return names[0] if names else None

    async def sweep(self) -> None:
        """Send RTRs that S-CSCFs have not taken: they were away, or we ended in between. Raises StoreError."""
        now = self.clock.now()
        owing = await self.subscribers.owing()
        if any(oldest < now - OWED_FOR for oldest in owing.values()):
            count = await self.subscribers.forget_owed(now - OWED_FOR)
            self.log.warning("s-cscf-never-told", users=count)
            self.counter.count("hss_terminations", "given-up")
        here = [name for name in sorted(owing) if self.servings is not None and self.servings.at(name) is not None]
        for start in range(0, len(here), SCSCFS_AT_ONCE):
            await asyncio.gather(*[self._catch_up(name, now - OWED_AGAIN) for name in here[start : start + SCSCFS_AT_ONCE]])

    async def _catch_up(self, server_name: str, before: float) -> None:
        """Send an S-CSCF the RTRs that are older, as long as it takes them."""
        while await self._catch_up_some(server_name, before):
            pass

    async def _catch_up_some(self, server_name: str, before: float) -> bool:
        """Send an S-CSCF some of the RTRs that are older; return whether it took each, and there may be more."""
        owed = [each for each in await self.subscribers.owed_to(server_name, OWED_BATCH) if each[1].since <= before]
        whole = len(owed) == OWED_BATCH and not any((impi, server_name) in self._telling for impi, _ in owed)
        for start in range(0, len(owed), OWED_AT_ONCE):
            problems = await asyncio.gather(*[self._tell(impi, each) for impi, each in owed[start : start + OWED_AT_ONCE]])
            whole = whole and not any(problems)
            if all(problem is not None and problem.code in UNREACHABLE for problem in problems):
                break
        return whole

    async def aclose(self) -> None:
        """Leave unsaid what S-CSCFs were not told yet."""
        for task in tuple(self._former):
            task.cancel()
        await asyncio.gather(*self._former, return_exceptions=True)

    async def _push_to(self, servers: Sequence[str], impi: Impi, subscription: Subscription) -> tuple[list[str], list[CxError]]:
        """Send a PPR to each, whatever the others answer; return who took it, and what became of the others."""
        took, problems = [], []
        for name in servers:
            try:
                if await self._push(impi, name, subscription):
                    took.append(name)
            except CxError as problem:
                problems.append(_of(problem, name))
        return took, problems

    async def _push(self, impi: Impi, server_name: str, subscription: Subscription) -> bool:
        """Send one PPR; false if nobody is registered there, so that the profile comes with the SAR."""
        try:
            await self._serving(server_name).push_profile(impi, self._user_data(impi, subscription))
        except CxError as problem:
            if _says(problem, USER_UNKNOWN):
                return False
            if _says(problem, TOO_MUCH_DATA):  # §6.2.2.1: another S-CSCF may have room for it
                await self.terminate(impi, DeregistrationReason.SERVER_CHANGE, "the user profile is too large")
            raise
        self.log.info("profile-pushed", impi=impi, server=server_name, profile=subscription.profile)
        return True

    def _serving(self, server_name: str) -> CxServing:
        found = self.servings.at(server_name) if self.servings is not None else None
        if found is None:
            raise unable_to_deliver()
        return found

    async def _end(self, impi: Impi, owed: OwedTermination, told: list[str]) -> CxError | None:
        """Send one RTR; return what the S-CSCF, then not among `told`, refuses it with."""
        try:
            await self._ask_to_end(impi, owed)
        except CxError as problem:
            if not _says(problem, USER_UNKNOWN):  # who is unknown there has nothing left to end
                self.counter.count("hss_terminations", "not-told")
                self.log.info("s-cscf-not-told", impi=impi, server=owed.server_name, reason=owed.reason.name, problem=str(problem))
                return _of(problem, owed.server_name)
        told.append(owed.server_name)
        self.counter.count("hss_terminations", "told")
        return None

    async def _ask_to_end(self, impi: Impi, owed: OwedTermination) -> None:
        """Name the private identity alone (§6.1.3.1), which ends what is of public identities that the user has no more, too.

        With NEW_SERVER_ASSIGNED public identities are wanted (table 6.1.3.1). Kamailio 5.6 wants them always, and answers nothing without.
        """
        serving = self._serving(owed.server_name)
        if owed.reason is not DeregistrationReason.NEW_SERVER_ASSIGNED and owed.server_name not in self._want_impus:
            try:
                return await serving.registration_termination(impi, (), owed.reason, owed.info)
            except CxError as problem:
                if problem.experimental or problem.code != NO_ANSWER:
                    raise
        impus = [subscribed.impu for subscribed in (await self._known(impi)).impus]
        await serving.registration_termination(impi, impus, owed.reason, owed.info)
        if owed.reason is not DeregistrationReason.NEW_SERVER_ASSIGNED:
            self._want_impus.add(owed.server_name)

    def _release(self, impi: Impi, owed: OwedTermination) -> None:
        """Tell the former S-CSCF that another serves the user now; in its own time, as that one may be waiting for our answer."""
        task = asyncio.get_running_loop().create_task(self._tell_former(impi, owed))
        self._former.add(task)
        task.add_done_callback(self._former.discard)

    async def _tell_former(self, impi: Impi, owed: OwedTermination) -> None:
        try:
            await self._tell(impi, owed)
        except KeyferryError as problem:  # our store's: a sweep comes by
            self.log.warning("s-cscf-not-told", impi=impi, server=owed.server_name, problem=str(problem))

    async def _tell(self, impi: Impi, owed: OwedTermination) -> CxError | None:
        """Send an RTR that is still owed, and owe it no more if it was taken; return what it was refused with."""
        key = impi, owed.server_name
        if key in self._telling:
            return None
        self._telling.add(key)
        try:
            if owed not in (await self.subscribers.assignment(impi)).owed:
                return None  # the user is back there
            problem = await self._end(impi, owed, [])
            if problem is None or self._is_in_vain(key, problem):
                self._unanswered.pop(key, None)
                await self._reassign(impi, lambda found: delivered(found, owed))
            return problem
        finally:
            self._telling.discard(key)

    def _is_in_vain(self, key: tuple[Impi, str], problem: CxError) -> bool:
        """Count what a S-CSCF that is there does not answer."""
        impi, server_name = key
        if problem.experimental or problem.code != NO_ANSWER or self.servings is None or self.servings.at(server_name) is None:
            return False
        self._unanswered[key] += 1
        if len(self._unanswered) > self.max_counters:
            self._unanswered.clear()
        if self._unanswered[key] < MAX_UNANSWERED:
            return False
        self.log.warning("s-cscf-never-told", impi=impi, server=server_name)
        self.counter.count("hss_terminations", "given-up")
        return True

    async def explain_answer(self, answer: WrongAnswer) -> Analysis | None:
        """Try the usual mistakes with K (ports.CxAnalyst); nothing but a verdict is returned."""
        subscriber = await self.subscribers.get(answer.impi)
        if subscriber is None:
            return None
        return explain_response(answer, key_passwords(subscriber.algorithm, subscriber.k, subscriber.opc, answer))

    async def explain_auts(self, impi: Impi, nonce: str, auts: bytes, earlier: Sequence[str]) -> Analysis | None:
        """Say what an AUTS tells (ports.CxAnalyst); SEQ stays as it is."""
        subscriber = await self.subscribers.get(impi)
        if subscriber is None:
            return None
        asked, rands = parse_aka_nonce(nonce), [parse_aka_nonce(each).rand for each in earlier]
        return explain_auts(subscriber.algorithm, subscriber.k, subscriber.opc, asked.rand, asked.autn, auts, rands)

    async def _subscription(self, impi: Impi, impu: Impu) -> Subscription:
        subscription = await self._known(impi)
        _check_pair(subscription.impus, impu)
        return subscription

    async def _known(self, impi: Impi) -> Subscription:
        subscription = await self.subscribers.subscription(impi)
        if subscription is None:
            raise user_unknown()
        return subscription

    async def _next_seq(self, impi: Impi, reserved: int | None) -> int:
        """Return a SEQ that nobody has used, whatever other processes have the same store; `reserved` is what it says now, if known."""
        counter = await self._counter(impi)
        known = reserved if not counter.turn.locked() else None
        async with counter.turn:
            # Where another process has reserved values, what is left of ours is below what the card may have seen by now.
            others = (await self.subscribers.seq(impi) if known is None else known) != counter.ceiling
            if others or counter.anew or counter.seq >= counter.ceiling:
                first = await self.subscribers.reserve_seq(impi, counter.seq + 1, SEQ_RESERVE, anew=counter.anew)
                counter.seq, counter.ceiling, counter.anew = first - 1, first + SEQ_RESERVE - 1, False
            counter.seq += 1
            return counter.seq

    async def _counter(self, impi: Impi) -> _Counter:
        counter = self._counters.get(impi)
        if counter is None:
            ceiling = await self.subscribers.seq(impi)
            counter = self._counters.setdefault(impi, _Counter(ceiling, ceiling))
            if len(self._counters) > self.max_counters:
                self._forget_oldest()
        self._counters.move_to_end(impi)
        return counter

    def _forget_oldest(self) -> None:
        impi, counter = self._counters.popitem(last=False)
        if counter.turn.locked():  # its write is under way: what the store says is still too low to start again from
            self._counters[impi] = counter

    async def _resynchronise(self, impi: Impi, algorithm: AkaAlgorithm, resync: Resync) -> None:
        """TS 33.102 §6.3.5: SEQ moves only if MAC-S verifies and the UE would refuse our next value."""
        try:
            seq_ms, _ = split_sqn(verify_auts(algorithm, resync.rand, resync.auts))
        except AutsRejected as problem:
            self.counter.count("hss_auts_rejected")
            self.log.warning("auts-rejected", impi=impi)
            raise unable_to_comply() from problem
        counter = await self._counter(impi)
        async with counter.turn:
            self.log.info("resynchronised", impi=impi, seq_he=counter.seq, seq_ms=seq_ms, distance=seq_ms - counter.seq)
            if counter.seq < seq_ms or counter.seq - seq_ms >= DELTA:
                counter.anew = seq_ms < counter.seq
                counter.seq = seq_ms
        self.counter.count("hss_resynchronisations")

    def _user_data(self, impi: Impi, subscription: Subscription) -> bytes:
        if subscription.profile not in self.profiles:  # the user can register, and has no services
            self.counter.count("hss_profile_unknown")
            self.log.warning("profile-unknown", impi=impi, profile=subscription.profile)
        criteria = tuple(self.profiles.get(subscription.profile, ()))
        impus = tuple([(subscribed.impu, subscribed.barred) for subscribed in subscription.impus])
        profile = ServiceProfile(impus=impus, criteria=criteria, shared_ifc_sets=tuple(self.shared_ifc_sets.get(subscription.profile, ())))
        return build_user_profile(UserProfile(impi=impi, profiles=(profile,)))


def _check_pair(impus: Sequence[SubscribedImpu], impu: Impu) -> None:
    if all(subscribed.impu != impu for subscribed in impus):
        raise identities_dont_match()


def _says(problem: CxError, code: int) -> bool:
    """Tell whether an S-CSCF says this of Cx: as codes of the base protocol the numbers are of faults in the message."""
    return problem.experimental and problem.code == code


def _of(problem: CxError, server_name: str) -> CxError:
    """Return the same, with the S-CSCF that it came from."""
    return CxError(problem.code, problem.name, server_name=server_name)
