# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: notifier of the reg event package (TS 24.229 §5.4.2.1, Release 17; RFC 3680; RFC 6665 §4.2).

Subscriptions live in memory: after a restart a refresh gets 481 and the subscriber makes a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from keyferry.errors import KeyferryError, ParseError, ProtectionUnmet, RemoteProtocolError, TransportError
from keyferry.ports import Clock, Counter, Log, PeerCheck, RandomSource, Registration, RegistrationStore, Resolver, SipClient, SipPeer
from keyferry.protocol.identity import Impi, Impu, Reg, parse_impu
from keyferry.protocol.ims.agenda import Agenda
from keyferry.protocol.ims.ifc import InitialFilterCriteria
from keyferry.protocol.ims.reginfo import ACTIVE_EVENTS, REGINFO_BODY, ContactEvent, RegInfo, diff, settled
from keyferry.protocol.ims.registration import IntervalTooBrief, granted
from keyferry.protocol.ims.subscribe import (
    REG_EVENT,
    SubscribeView,
    SubscriptionState,
    accept_subscription,
    build_accepted,
    build_notify,
    parse_subscribe,
    refreshed_by,
)
from keyferry.protocol.ims.subscription import (
    NOTIFIER,
    Input,
    State,
    Subscription,
    Watcher,
    advance,
    authorised,
    notify_outcome,
)
from keyferry.protocol.ims.user_profile import UserProfile, criteria_of, parse_user_profile
from keyferry.protocol.sip.message import Request, Response, make_response, refuse_method
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.scscf.reg_document import ContactNews, News, ProfileOf, body_of, document_of, event_of, impus_of, news_of, with_news

MAX_SUBSCRIPTIONS = 200_000  # of all users; a user has three: its own, its P-CSCF's, an AS's
MAX_PER_WATCHER = 16  # of one subscriber to one user, so that nobody crowds out another; the oldest goes
RETRY_FIRST = 2.0  # seconds after a NOTIFY that failed without ending the subscription; doubled each time
MAX_RETRIES = 3
EXPIRY_BATCH = 500  # subscriptions ended per sweep; more wait for the next
NOT_AUTHORISED = "rejected"  # why a subscription ended (RFC 6665 §4.1.3): who has it may not be told any more
ACCEPTABLE = frozenset({REGINFO_BODY, "application/*", "*/*"})


@dataclass(frozen=True, slots=True)
class RegEventPolicy:
    """What this notifier grants, and how it tells."""

    scscf_uri: str  # Contact of the 200 and of NOTIFYs
    min_expires: int = 60  # seconds; RFC 6665 §4.2.1.1 lets it be at most 3600
    max_expires: int = 600_000  # seconds
    partial: bool = False  # TS 24.229 §5.4.2.1.2 wants full state in every NOTIFY; RFC 3680 §4.7 would send what changed
    max_subscriptions: int = MAX_SUBSCRIPTIONS
    max_per_watcher: int = MAX_PER_WATCHER
    shared_ifc: Mapping[int, Sequence[InitialFilterCriteria]] = field(default_factory=dict)  # by SharedIFCSetID


@dataclass(slots=True, eq=False)
class _Held:
    """One subscription with what it is still owed."""

    subscription: Subscription
    impi: Impi
    watcher: Watcher
    sent: RegInfo | None = None  # what the subscriber took last; None: nobody knows
    whole: bool = True  # the next document is a full one
    news: News = field(default_factory=dict)
    due: bool = False
    reason: str = ""  # why it ended
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        return self.subscription.local_tag


@dataclass(slots=True)
class RegEventNotifier:
    """Keep subscriptions to users' registration state and send NOTIFYs, never two at a time to one subscription."""

    sip: SipClient
    resolver: Resolver
    registrations: RegistrationStore
    owner_of: Callable[[Impu], Awaitable[Impi | None]]  # whose identity is it?
    trusts: Callable[[SipPeer], bool]  # may this peer assert identities? (RFC 3325 §5)
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    policy: RegEventPolicy
    profile_of: ProfileOf = parse_user_profile
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    check: PeerCheck | None = None  # what every transmission of a NOTIFY has to satisfy
    _held: dict[str, _Held] = field(default_factory=dict)  # by our tag
    _of_impi: dict[Impi, dict[str, _Held]] = field(default_factory=dict)
    _events: dict[Impi, dict[Reg, ContactEvent]] = field(default_factory=dict)  # only while somebody subscribes
    _agenda: Agenda[str] = field(default_factory=Agenda)

    @property
    def count(self) -> int:
        """How many subscriptions there are."""
        return len(self._held)

    async def handle_subscribe(self, request: Request, peer: SipPeer) -> Response:
        """Answer a SUBSCRIBE that the node has checked (§5.4.2.1.1); a full NOTIFY follows the 200 at once."""
        if request.method != "SUBSCRIBE":
            return refuse_method(request, "SUBSCRIBE")
        if not self.trusts(peer):
            return self._refused(request, "untrusted")
        view = parse_subscribe(request)
        if view.event != REG_EVENT:
            return make_response(request, 489, headers=(("Allow-Events", REG_EVENT),))
        if view.accept and not ACCEPTABLE.intersection(view.accept):
            return make_response(request, 406, headers=(("Accept", REGINFO_BODY),))
        try:
            expires = granted(view.expires, minimum=self.policy.min_expires, maximum=self.policy.max_expires)
        except IntervalTooBrief as problem:
            return make_response(request, 423, headers=(("Min-Expires", str(problem.minimum)),))
        return self._refresh(request, view, expires) if view.to_tag else await self._subscribe(request, view, expires)

    async def changed(
        self, impi: Impi, before: Sequence[Registration], after: Sequence[Registration], events: Mapping[Reg, ContactNews] | None = None
    ) -> None:
        """Tell subscribers that a user's registrations changed; it returns before any NOTIFY is answered.

        To be called right after the store has it. `before` and `after` are every device's registrations, or at least those of the
        device that changed; `events` names what the two do not show: `deactivated`, `rejected`, `probation`, `shortened`.
        Raises LocalProtocolError for an event that does not go with `after`.
        """
        held = self._of_impi.get(impi)
        if not held:
            return
        told = events or {}
        self._end_strangers(impi, after)
        news = news_of(before, after, told, self.profile_of, self.clock.now())
        if not self._remember(impi, before, after, told) and not news:
            return
        for each in held.values():
            each.news.update(news)
            self._schedule(each)

    def forget(self, impi: Impi) -> None:
        """Drop a user's subscriptions without a word: another S-CSCF serves the user now (TS 29.228 §6.1.3)."""
        for held in list(self._of_impi.get(impi, {}).values()):
            if held.task is not None:
                held.task.cancel()
            self._forget(held)

    async def sweep(self) -> int:
        """End subscriptions whose time is over, with a last NOTIFY (RFC 6665 §4.2.2); return how many."""
        ended = 0
        for key in self._agenda.due(self.clock.now(), EXPIRY_BATCH):
            held = self._held[key]
            if held.subscription.state is State.ACTIVE:
                self._end(held, Input.EXPIRED, "timeout")
                ended += 1
        return ended

    async def aclose(self) -> None:
        """Stop sending."""
        tasks = [held.task for held in self._held.values() if held.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- subscriptions

    async def _subscribe(self, request: Request, view: SubscribeView, expires: int) -> Response:
        impu = _impu(view.resource)
        impi = None if impu is None else await self.owner_of(impu)
        registrations = () if impi is None else await self.registrations.of_impi(impi)
        if impi is None or not registrations:
            return make_response(request, 480)  # step 0: no binding
        watcher = self._watcher(view, registrations)
        if watcher is None or impu not in impus_of(registrations, self.profile_of):
            return self._refused(request, "not-authorised")
        self._make_room(impi, watcher)
        if len(self._held) >= self.policy.max_subscriptions:
            self.counter.count("scscf_subscriptions_refused", "full")
            return make_response(request, 503, headers=(("Retry-After", "60"),))
        tag = self.random.octets(12).hex()
        held = _Held(accept_subscription(view, local_tag=tag, expires_at=self.clock.now() + expires), impi, watcher)
        self._held[tag] = held
        self._of_impi.setdefault(impi, {})[tag] = held
        self.counter.count("scscf_subscriptions", watcher.kind)
        self.log.info("subscribed", impi=impi, watcher=watcher.kind, name=watcher.name, expires=expires)
        self._renewed(held, expires)
        return build_accepted(request, local_tag=tag, contact=self.policy.scscf_uri, expires=expires)

    def _refresh(self, request: Request, view: SubscribeView, expires: int) -> Response:
        held = self._held.get(view.to_tag)
        known = None if held is None else held.subscription
        if (
            held is None
            or known is None
            or known.state is State.TERMINATED
            or _dialog(known) != (view.call_id, view.from_tag, view.event_id)
        ):
            return make_response(request, 481)
        held.subscription = refreshed_by(known, view, expires_at=self.clock.now() + expires)
        held.whole = True  # RFC 6665 §4.2.1.2: a refresh is answered with the complete state
        self._renewed(held, expires)
        return build_accepted(request, local_tag=view.to_tag, contact=self.policy.scscf_uri, expires=expires)

    def _renewed(self, held: _Held, expires: int) -> None:
        if expires == 0:
            self._end(held, Input.UNSUBSCRIBED, "timeout")  # an unsubscription, or a fetch (RFC 6665 §4.4.3)
        else:
            held.subscription = advance(NOTIFIER, held.subscription, Input.REFRESHED)
            self._agenda.put(held.key, held.subscription.expires_at)
            self._schedule(held)

    def _watcher(self, view: SubscribeView, registrations: Sequence[Registration]) -> Watcher | None:
        profiles = [self.profile_of(registration.user_data) for registration in registrations]
        return authorised(
            view.asserted,
            impus=impus_of(registrations, self.profile_of),
            paths=[path for registration in registrations for path in registration.path],
            servers={server for profile in profiles for server in self._servers(profile)},
        )

    def _servers(self, profile: UserProfile) -> list[str]:
        every = [criterion for service in profile.profiles for criterion in criteria_of(service, self.policy.shared_ifc)]
        return [criterion.application_server.server_name for criterion in every]

    def _end_strangers(self, impi: Impi, after: Sequence[Registration]) -> None:
        """End the subscriptions of application servers that the user's profile no longer names (§5.4.2.1.1 step 1; RFC 6665 §4.2.2)."""
        if not after:
            return
        servers = {server for registration in after for server in self._servers(self.profile_of(registration.user_data))}
        for held in self._of_impi[impi].values():
            if held.watcher.kind == "as" and held.watcher.name not in servers and held.subscription.state is State.ACTIVE:
                self._end(held, Input.RESOURCE_GONE, NOT_AUTHORISED)

    def _make_room(self, impi: Impi, watcher: Watcher) -> None:
        """Forget a subscriber's oldest subscription, in silence: nobody may pile up NOTIFYs that are not answered."""
        same = [held for held in self._of_impi.get(impi, {}).values() if held.watcher == watcher]
        if len(same) >= self.policy.max_per_watcher:
            self.counter.count("scscf_subscriptions", "crowded-out")
            if same[0].task is not None:
                same[0].task.cancel()
            self._forget(same[0])

    def _refused(self, request: Request, reason: str) -> Response:
        self.counter.count("scscf_subscriptions_refused", reason)
        self.log.warning("subscription-refused", reason=reason)
        return make_response(request, 403)

    def _end(self, held: _Held, what: Input, reason: str) -> None:
        held.subscription = advance(NOTIFIER, held.subscription, what)
        held.reason = reason
        self._schedule(held)

    def _forget(self, held: _Held) -> None:
        self._agenda.drop(held.key)
        self._held.pop(held.key, None)
        of_impi = self._of_impi.get(held.impi, {})
        of_impi.pop(held.key, None)
        if not of_impi:
            self._of_impi.pop(held.impi, None)
            self._events.pop(held.impi, None)

    def _remember(self, impi: Impi, before: Sequence[Registration], after: Sequence[Registration], told: Mapping[Reg, ContactNews]) -> bool:
        """Note what happened to the devices that are registered; tell whether anything did."""
        memory = self._events.setdefault(impi, {})
        old = {registration.reg: registration for registration in before}
        happened = False
        for registration in after:
            news, previous = told.get(registration.reg), old.pop(registration.reg, None)
            if news is not None and news.event in ACTIVE_EVENTS:
                memory[registration.reg] = news.event
            elif previous != registration:
                memory[registration.reg] = event_of(previous, registration)
            else:
                continue
            happened = True
        for reg in old:
            memory.pop(reg, None)
        return happened

    # ---- NOTIFY

    def _schedule(self, held: _Held) -> None:
        """Send what is due once the NOTIFY under way is answered; what changes meanwhile goes together."""
        held.due = True
        if held.task is None:
            held.task = asyncio.get_running_loop().create_task(self._run(held))

    async def _run(self, held: _Held) -> None:
        failures = 0
        try:
            while held.due and self._held.get(held.key) is held:
                held.due = False
                last = held.subscription.state is State.TERMINATED
                outcome = await self._notify(held)
                if outcome is Input.NOTIFY_FAILED and failures < MAX_RETRIES:
                    failures += 1
                    await self.sleep(RETRY_FIRST * 2 ** (failures - 1))
                    held.due = True
                elif last or outcome in {Input.NOTIFY_REFUSED, Input.NOTIFY_TIMEOUT}:
                    break
        except KeyferryError as problem:
            self.log.warning("notify-failed", impi=held.impi, problem=str(problem))
        finally:
            held.task = None
            if held.subscription.state is State.TERMINATED:
                self._forget(held)

    async def _notify(self, held: _Held) -> Input:
        """Send one NOTIFY with what holds now and what ended since the last (§5.4.2.1.2)."""
        registrations = await self.registrations.of_impi(held.impi)
        now = self.clock.now()
        info = document_of(registrations, self._events.get(held.impi, {}), self.profile_of)
        if not registrations and held.subscription.state is State.ACTIVE:
            held.subscription = advance(NOTIFIER, held.subscription, Input.RESOURCE_GONE)
            held.reason = "noresource"
        news, held.news = held.news, {}
        document = with_news(info, news)
        version = held.subscription.version + 1
        held.subscription = replace(held.subscription, cseq=held.subscription.cseq + 1, version=version)
        shown = document if held.sent is None or held.whole or not self.policy.partial else diff(held.sent, document)
        told = held.reason != NOT_AUTHORISED
        body = body_of(replace(shown, version=version), now) if told else None
        if body is None and told:
            self.log.warning("reginfo-too-large", impi=held.impi)
        held.sent, held.whole = None, False
        outcome = await self._send(held, _state_of(held, now), body)
        held.subscription = advance(NOTIFIER, held.subscription, outcome)
        if outcome is Input.NOTIFY_TAKEN:
            held.sent = settled(document)
        else:
            held.news = news | held.news
        return outcome

    async def _send(self, held: _Held, state: SubscriptionState, body: bytes | None) -> Input:
        request = build_notify(held.subscription, contact=self.policy.scscf_uri, state=state, body=body)
        hop: SipPeer | None = None
        try:
            hop = self.resolver.resolve(parse_sip_uri(held.subscription.next_hop))
            outcome = notify_outcome((await self.sip.send(request, hop, check=self.check)).status)
        except TransportError as problem:
            outcome = Input.NOTIFY_FAILED if isinstance(problem, ProtectionUnmet) or await self._is_stopped(hop) else Input.NOTIFY_TIMEOUT
        except RemoteProtocolError:
            outcome = Input.NOTIFY_REFUSED
        self.counter.count("scscf_notifies", outcome.name.removeprefix("NOTIFY_").lower())
        if outcome is not Input.NOTIFY_TAKEN:
            self.log.warning("notify-not-taken", impi=held.impi, watcher=held.watcher.kind, outcome=outcome.name)
        return outcome

    async def _is_stopped(self, hop: SipPeer | None) -> bool:
        """Tell whether the policy stops what goes there: while it does, nobody can say that the subscriber is gone."""
        try:
            pending = None if hop is None or self.check is None else self.check(hop)
            if pending is not None:
                await pending
        except ProtectionUnmet:
            return True
        return False


def _impu(uri: str) -> Impu | None:
    try:
        return parse_impu(uri)
    except ParseError:
        return None


def _dialog(subscription: Subscription) -> tuple[str, str, str | None]:
    return subscription.call_id, subscription.remote_tag, subscription.event_id


def _state_of(held: _Held, now: float) -> SubscriptionState:
    if held.subscription.state is State.TERMINATED:
        return SubscriptionState("terminated", reason=held.reason)
    return SubscriptionState("active", expires=max(0, int(held.subscription.expires_at - now)))
