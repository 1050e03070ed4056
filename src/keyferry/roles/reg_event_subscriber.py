# SPDX-License-Identifier: Apache-2.0
"""Subscriber to the reg event package: UE, P-CSCF or AS (TS 24.229 §5.1.1.3, §5.2.3, §5.7.1.1, Release 17; RFC 3680 §4; RFC 6665 §4.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from keyferry.errors import KeyferryError, LocalProtocolError, ProtectionUnmet, RemoteProtocolError
from keyferry.ports import Clock, Counter, Log, PeerCheck, RandomSource, Resolver, SipClient, SipPeer
from keyferry.protocol.ims.agenda import Agenda
from keyferry.protocol.ims.reginfo import REGINFO_BODY, ContactChange, RegInfo, apply, changes, parse_reginfo, shifted
from keyferry.protocol.ims.subscribe import REG_EVENT, NotifyView, accepted_by, build_subscribe, noticed_by, parse_notify
from keyferry.protocol.ims.subscription import (
    SUBSCRIBER,
    TIMER_N,
    Input,
    State,
    Subscription,
    advance,
    check_order,
    may_come_back,
    refresh_after,
    refresh_outcome,
    resubscribe_after,
)
from keyferry.protocol.sip.headers import parse_expires
from keyferry.protocol.sip.message import Request, Response, make_response, refuse_method
from keyferry.protocol.sip.uri import parse_sip_uri

MAX_SUBSCRIPTIONS = 200_000  # a P-CSCF has one a user
RETRY_FIRST = 1.0  # seconds before a new try; doubled up to RETRY_MOST
RETRY_MOST = 300.0
LASTED = 300.0  # seconds after which a subscription counts as a success, and the doubling begins anew
DRIFT = 64  # seconds by which `expires` may move because a NOTIFY was long under way: no news
SWEEP_BATCH = 500  # subscriptions taken up per sweep; more wait for the next

_NOTIFIED = {"active": Input.NOTIFIED_ACTIVE, "terminated": Input.NOTIFIED_TERMINATED}


class RegNews(NamedTuple):
    """What the network said of a resource."""

    resource: str
    info: RegInfo  # what holds now; `expires` are points in time, seconds since the epoch
    changes: tuple[ContactChange, ...]  # likewise; at least once each
    ended: str | None = None  # why there is no subscription any more, and no new one will be made


@dataclass(frozen=True, slots=True)
class SubscriberProfile:
    """Who subscribes."""

    uri: str  # From: the user's default IMPU, or our own SIP URI
    contact: str  # the SIP URI where NOTIFYs reach us
    asserts: bool  # we are in the trust domain, P-CSCF or AS: P-Asserted-Identity; a UE: P-Preferred-Identity
    expires: int = 600_000  # seconds to ask for (§5.1.1.3)
    max_subscriptions: int = MAX_SUBSCRIPTIONS


@dataclass(slots=True, eq=False)
class _Watched:
    """One resource that is watched."""

    resource: str
    hop: SipPeer
    route: tuple[str, ...]
    asked: int  # seconds
    subscription: Subscription
    info: RegInfo
    since: float
    pause: float = RETRY_FIRST
    busy: bool = False  # a SUBSCRIBE is under way
    again: bool = False  # and another is wanted after it
    leaving: bool = False  # we unsubscribe
    left: bool = False  # and were answered: only the last NOTIFY is missing


@dataclass(slots=True)
class RegEventSubscriber:
    """Keep subscriptions alive and hand on what NOTIFYs say.

    `on_news` is called once per NOTIFY that tells something, and must not wait: it starts a task for what takes time.
    """

    sip: SipClient
    profile: SubscriberProfile
    on_news: Callable[[RegNews], None]
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    resolver: Resolver | None = None  # None: every request goes to the hop of `subscribe`, the UE's P-CSCF
    check: PeerCheck | None = None  # what every transmission of a SUBSCRIBE has to satisfy
    _watched: dict[str, _Watched] = field(default_factory=dict)  # by resource
    _by_tag: dict[str, _Watched] = field(default_factory=dict)  # by our tag, one a subscription
    _agenda: Agenda[str] = field(default_factory=Agenda)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def count(self) -> int:
        """How many resources are watched."""
        return len(self._watched)

    def watches(self, resource: str) -> bool:
        """Tell whether a resource is watched, and not about to be left."""
        watched = self._watched.get(resource)
        return watched is not None and not watched.leaving

    def info(self, resource: str) -> RegInfo | None:
        """Return what holds for a resource, `expires` being points in time; None before the first NOTIFY."""
        watched = self._watched.get(resource)
        return None if watched is None or watched.info.version < 0 else watched.info

    async def subscribe(self, resource: str, hop: SipPeer, route: tuple[str, ...] = (), expires: int | None = None) -> None:
        """Watch a resource, a public identity; `route` are name-addrs to preload, `expires` in seconds. A watched one is refreshed.

        Where `check` stops it, it is sent when it no longer does.
        Raises RemoteProtocolError with the status of a refusal, TransportError, LocalProtocolError where there are too many.
        """
        asked = self.profile.expires if expires is None else expires
        watched = self._watched.get(resource)
        if watched is not None and watched.leaving:
            self._forget(watched)
            watched = None
        if watched is None:
            if len(self._watched) >= self.profile.max_subscriptions:
                raise LocalProtocolError("more subscriptions than this node may have")
            blank = RegInfo(-1, "full")
            watched = _Watched(resource, hop, route, asked, self._blank(resource, route), blank, self.clock.now())
            self._watched[resource] = self._by_tag[watched.subscription.local_tag] = watched
            try:
                await self._send_subscribe(watched)
            except ProtectionUnmet as problem:  # nothing was sent, as nothing would be by a retransmission: later
                self._failed(watched, str(problem))
                return
            except KeyferryError:
                if watched.subscription.state in {State.ACTIVE, State.PENDING}:
                    return  # the answer was lost, but a NOTIFY says it all
                self._forget(watched)
                raise
            if watched.again:
                await self._take_up(watched)
        else:
            watched.hop, watched.route, watched.asked = hop, route, asked
            await self._take_up(watched)

    async def unsubscribe(self, resource: str) -> None:
        """Stop watching; what the last NOTIFY says is not handed on (RFC 6665 §4.1.2.3)."""
        watched = self._watched.get(resource)
        if watched is None:
            return
        watched.leaving, watched.asked = True, 0
        if watched.subscription.remote_tag and watched.subscription.state is not State.TERMINATED:
            await self._take_up(watched)
        else:
            self._forget(watched)

    def abandon(self, resource: str) -> None:
        """Stop watching without a word: the notifier that has it is gone, or learns at its next NOTIFY."""
        watched = self._watched.get(resource)
        if watched is not None:
            self._forget(watched)

    async def handle_notify(self, request: Request, peer: SipPeer) -> Response:
        """Answer a NOTIFY that the node has checked."""
        del peer
        if request.method != "NOTIFY":
            return refuse_method(request, "NOTIFY")
        view = parse_notify(request)
        watched = self._by_tag.get(view.to_tag)
        if watched is None or not _matches(watched.subscription, view):
            return make_response(request, 481)
        if view.event != REG_EVENT or view.event_id != watched.subscription.event_id:
            return make_response(request, 489, headers=(("Allow-Events", REG_EVENT),))
        if view.body and view.media_type != REGINFO_BODY:
            return make_response(request, 415, headers=(("Accept", REGINFO_BODY),))
        if check_order(watched.subscription, view.cseq):
            self._take(watched, view, parse_reginfo(view.body) if view.body else None)
        return make_response(request, 200)

    async def sweep(self) -> int:
        """Refresh subscriptions before they end, make lost ones anew; return how many were taken up."""
        keys = self._agenda.due(self.clock.now(), SWEEP_BATCH)
        for resource in keys:
            self._spawn(self._take_up(self._watched[resource]))
        return len(keys)

    async def aclose(self) -> None:
        """Stop; the network keeps the subscriptions until they end."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- NOTIFY

    def _take(self, watched: _Watched, view: NotifyView, document: RegInfo | None) -> None:
        now = self.clock.now()
        subscription = noticed_by(watched.subscription, view, now=now)
        # RFC 6665 §4.1.2.4: a state we do not know is pending
        subscription = advance(SUBSCRIBER, subscription, _NOTIFIED.get(view.state.state, Input.NOTIFIED_PENDING))
        news: tuple[ContactChange, ...] = ()
        if document is not None and document.version > subscription.version:
            if document.state == "full" or document.version == subscription.version + 1 > 0:
                document = shifted(document, int(now))
                news = changes(watched.info, document, tolerance=DRIFT)
                watched.info = apply(document, watched.info)
                subscription = replace(subscription, version=document.version)
            else:  # RFC 3680 §4.7: a NOTIFY was lost, only a full document helps
                self.counter.count("reg_event_gaps")
                watched.again = True
        watched.subscription = subscription
        ended = self._terminated(watched, view) if subscription.state is State.TERMINATED else None
        if watched.again and not watched.busy and subscription.state is not State.TERMINATED:
            self._spawn(self._take_up(watched))
        elif subscription.state is not State.TERMINATED:
            self._plan(watched)
        if (news or ended is not None) and not watched.leaving:
            self.on_news(RegNews(watched.resource, watched.info, news, ended))

    def _terminated(self, watched: _Watched, view: NotifyView) -> str | None:
        """Forget the subscription, or plan a new one (RFC 6665 §4.1.3); return the reason if it is over."""
        pause = resubscribe_after(view.state.reason, view.state.retry_after)
        if pause is None or watched.leaving:
            self._forget(watched)
            return view.state.reason or ""
        self._retry(watched, pause)
        return None

    # ---- SUBSCRIBE

    async def _take_up(self, watched: _Watched) -> None:
        """Do what is due: refresh, or begin anew after an end; one SUBSCRIBE at a time."""
        if self._watched.get(watched.resource) is not watched:
            return
        if watched.busy:
            watched.again = True
            return
        now = self.clock.now()
        if watched.left:
            self._forget(watched)  # the last NOTIFY was lost
            return
        if not watched.leaving and self._is_over(watched, now):
            self._renew(watched, now)
        watched.again = False
        try:
            await self._send_subscribe(watched)
        except RemoteProtocolError as problem:
            self._refused(watched, problem)
        except KeyferryError as problem:
            self._failed(watched, str(problem))
        if watched.again:
            await self._take_up(watched)

    def _is_over(self, watched: _Watched, now: float) -> bool:
        """Tell whether the subscription was ended, or ran out, or timer N did."""
        subscription = watched.subscription
        if subscription.state is State.TERMINATED:
            return True
        if subscription.state is State.NOTIFY_WAIT and now >= watched.since + TIMER_N:
            self.log.warning("no-notify", resource=watched.resource)
            watched.subscription = advance(SUBSCRIBER, subscription, Input.TIMER_N)
        elif subscription.state is not State.NOTIFY_WAIT and now >= subscription.expires_at:
            watched.subscription = advance(SUBSCRIBER, subscription, Input.EXPIRED)
        return watched.subscription.state is State.TERMINATED

    def _renew(self, watched: _Watched, now: float) -> None:
        """Begin a new subscription; what is known stays, for the comparison with what the new one says."""
        del self._by_tag[watched.subscription.local_tag]
        watched.subscription = self._blank(watched.resource, watched.route)
        self._by_tag[watched.subscription.local_tag] = watched
        watched.since = now

    def _blank(self, resource: str, route: tuple[str, ...]) -> Subscription:
        tag = self.random.octets(12).hex()
        return Subscription(
            state=State.NOTIFY_WAIT, call_id=f"{self.random.octets(12).hex()}@{parse_sip_uri(self.profile.contact).host}",
            local_uri=self.profile.uri, local_tag=tag, remote_uri=resource, remote_tag="", remote_target=resource, route_set=route, cseq=0,
            remote_cseq=-1, event_id=None, expires_at=0.0, version=-1,
        )  # fmt: skip

    async def _send_subscribe(self, watched: _Watched) -> None:
        """Send one SUBSCRIBE, or two where the first asked for too little; raises what speaks against it."""
        watched.busy, asked = True, watched.asked
        try:
            response = await self._request(watched, asked)
            if response.status == 423 and asked and not watched.leaving:
                asked = watched.asked = max(asked + 1, parse_expires(response.get("Min-Expires") or ""))
                response = await self._request(watched, asked)
        finally:
            watched.busy = False
        subscription = watched.subscription
        if subscription.state is State.TERMINATED:
            return  # its last NOTIFY was faster
        outcome = refresh_outcome(response.status)
        if outcome is not Input.REFRESHED:
            raise RemoteProtocolError(f"the SUBSCRIBE was answered {response.status}", status=response.status)
        now = self.clock.now()
        watched.subscription = advance(SUBSCRIBER, accepted_by(subscription, response, now=now, asked=asked), outcome)
        if watched.leaving and asked == 0:
            watched.left = True
            self._agenda.put(watched.resource, now + TIMER_N)
        else:
            self._plan(watched)

    async def _request(self, watched: _Watched, asked: int) -> Response:
        watched.subscription = replace(watched.subscription, cseq=watched.subscription.cseq + 1)
        subscription = watched.subscription
        name = "P-Asserted-Identity" if self.profile.asserts else "P-Preferred-Identity"
        request = build_subscribe(
            subscription, contact=self.profile.contact, expires=asked, identity=(name, f"<{self.profile.uri}>")
        )  # fmt: skip
        hop = watched.hop
        if self.resolver is not None and subscription.remote_tag:
            hop = self.resolver.resolve(parse_sip_uri(subscription.next_hop))
        return await self.sip.send(request, hop, check=self.check)

    def _refused(self, watched: _Watched, problem: RemoteProtocolError) -> None:
        """Judge an answer that is no 2xx: the subscription may live on, be made anew, or be over."""
        outcome = refresh_outcome(problem.status)
        alive = watched.subscription.state in {State.ACTIVE, State.PENDING} and watched.subscription.expires_at > self.clock.now()
        if watched.leaving:
            self._forget(watched)
        elif outcome is Input.SUBSCRIBE_FAILED and (alive or may_come_back(problem.status)):
            self._failed(watched, problem.problem)
        elif may_come_back(problem.status):
            watched.subscription = advance(SUBSCRIBER, watched.subscription, Input.SUBSCRIBE_REFUSED)
            self._retry(watched, 0.0)
        else:
            self._forget(watched)
            self.log.warning("subscription-over", resource=watched.resource, problem=problem.problem)
            self.on_news(RegNews(watched.resource, watched.info, (), f"refused {problem.status}"))

    def _failed(self, watched: _Watched, problem: str) -> None:
        """Try again later; what there is of the subscription stays until its end (RFC 6665 §4.1.2.2)."""
        self.log.warning("subscribe-failed", resource=watched.resource, problem=problem)
        if watched.leaving:
            self._forget(watched)
            return
        if watched.subscription.state is State.NOTIFY_WAIT:
            watched.subscription = advance(SUBSCRIBER, watched.subscription, Input.SUBSCRIBE_REFUSED)
        self._retry(watched, 0.0)

    # ---- plans

    def _plan(self, watched: _Watched) -> None:
        """Set the time of the next SUBSCRIBE: the refresh, or the end of timer N."""
        if watched.leaving or self._watched.get(watched.resource) is not watched:
            return
        now, subscription = self.clock.now(), watched.subscription
        when = now + refresh_after(max(0.0, subscription.expires_at - now))
        self._agenda.put(watched.resource, min(when, watched.since + TIMER_N) if subscription.state is State.NOTIFY_WAIT else when)

    def _retry(self, watched: _Watched, pause: float) -> None:
        """Plan a new try: after `pause` seconds at least, and ever later while none of them lasts."""
        if self._watched.get(watched.resource) is not watched:
            return  # its last NOTIFY was faster than the failure
        now = self.clock.now()
        if now - watched.since >= LASTED:
            watched.pause = RETRY_FIRST
        self._agenda.put(watched.resource, now + max(pause, watched.pause))
        watched.pause = min(2 * watched.pause, RETRY_MOST)

    def _forget(self, watched: _Watched) -> None:
        self._by_tag.pop(watched.subscription.local_tag, None)
        if self._watched.get(watched.resource) is watched:
            self._agenda.drop(watched.resource)
            del self._watched[watched.resource]

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _matches(subscription: Subscription, view: NotifyView) -> bool:
    """Tell whether a NOTIFY belongs to a subscription: its first one brings the notifier's tag (RFC 6665 §4.4.1)."""
    if view.call_id != subscription.call_id or subscription.state is State.TERMINATED:
        return False
    return subscription.remote_tag in {"", view.from_tag}
