# SPDX-License-Identifier: Apache-2.0
"""An S-CSCF's reg event notifier and its subscribers, over `network`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from keyferry.ports import Registration, SipPeer
from keyferry.protocol.identity import Impi, Impu, Reg
from keyferry.protocol.ims.ifc import ApplicationServer, InitialFilterCriteria
from keyferry.protocol.ims.reginfo import RegInfo, build_reginfo, parse_reginfo
from keyferry.protocol.ims.subscribe import SubscriptionState, build_accepted, build_notify, parse_notify, parse_subscribe
from keyferry.protocol.ims.subscription import State, Subscription
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.reg_event_subscriber import RegEventSubscriber, RegNews, SubscriberProfile
from keyferry.roles.scscf.reg_document import ContactNews
from keyferry.roles.scscf.reg_event import RegEventNotifier, RegEventPolicy
from keyferry.stores.memory import MemoryRegistrationStore
from roles.network import FakeClock, Network, RecordingCounter, RecordingLog, SeededRandom, settle

ALICE = Impi("alice@home1.net")
SIP, TEL, BARRED = Impu("sip:alice@home1.net"), Impu("tel:+15550510"), Impu("sip:hidden@home1.net")
SCSCF = "sip:scscf1.home1.net"
PCSCF = "sip:pcscf1.visited1.net"
AS = "sip:as1.home1.net"
EXPIRES = 3600.0  # seconds, of a registration


def profile(*, impus: Sequence[tuple[Impu, bool]] = ((BARRED, True), (SIP, False), (TEL, False)), impi: Impi = ALICE) -> bytes:
    criterion = InitialFilterCriteria(0, None, ApplicationServer(AS))
    return build_user_profile(UserProfile(impi, (ServiceProfile(tuple(impus), (criterion,)),)))


def registration(reg: str, now: float, *, contact: str = "", **changes: Any) -> Registration:
    made = Registration(
        impi=ALICE, reg=Reg(reg), impu=SIP, contact=contact or f'<sip:alice@{reg}.net>;+sip.instance="<urn:{reg}>";q=0.5;audio',
        path=(f"<{PCSCF};lr>",), call_id="c", cseq=1, realm="home1.net", expires_at=now + EXPIRES, aka_time=now, key_not_before=now,
        release=6, k_m=None, user_data=profile(),
    )  # fmt: skip
    return made._replace(**changes)


@dataclass(slots=True)
class Subscriber:
    """One node that watches; `seen` is what its callback got."""

    name: str
    role: RegEventSubscriber
    seen: list[RegNews] = field(default_factory=list)

    @property
    def events(self) -> list[tuple[str, str, str]]:
        """Return what was told and not yet looked at: identity, address, event."""
        changes = [change for news in self.seen for change in news.changes]
        found: list[tuple[str, str, str]] = [(change.aor, change.contact.uri, change.contact.event) for change in changes]
        self.seen.clear()
        return found


@dataclass(slots=True)
class Home:
    """S with a store, and whoever subscribes."""

    policy: RegEventPolicy
    clock: FakeClock = field(default_factory=FakeClock)
    random: SeededRandom = field(default_factory=SeededRandom)
    log: RecordingLog = field(default_factory=RecordingLog)
    counter: RecordingCounter = field(default_factory=RecordingCounter)
    network: Network = field(default_factory=Network)
    store: MemoryRegistrationStore = field(default_factory=MemoryRegistrationStore)
    subscribers: list[Subscriber] = field(default_factory=list)
    untrusted: set[str] = field(default_factory=set)
    notifier: RegEventNotifier = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start the notifier, or start it again with nothing in its memory."""
        sip = self.network.attach("S", "scscf1.home1.net", lambda request, peer: self.handle(request, peer))
        self.notifier = RegEventNotifier(
            sip=sip, resolver=self.network, registrations=self.store, owner_of=self.owner_of, trusts=self.trusts, clock=self.clock,
            random=self.random, log=self.log, counter=self.counter, policy=self.policy, sleep=self.clock.sleep,
        )  # fmt: skip

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        # A P-CSCF would assert the identity that its UE prefers; here nobody stands between.
        preferred = request.get("P-Preferred-Identity")
        if preferred is not None:
            request = request.without("P-Preferred-Identity").replacing("P-Asserted-Identity", preferred)
        return await self.notifier.handle_subscribe(request, peer)

    async def owner_of(self, impu: Impu) -> Impi | None:
        return ALICE if impu in {SIP, TEL, BARRED} else Impi("nobody@home1.net") if impu == "sip:nobody@home1.net" else None

    def trusts(self, peer: SipPeer) -> bool:
        return all(peer != self.network.peer(name) for name in self.untrusted)

    def subscriber(self, name: str, host: str, uri: str, *, asserts: bool = True, **settings: Any) -> Subscriber:
        sip = self.network.attach(name, host, None)
        role = RegEventSubscriber(
            sip=sip, profile=SubscriberProfile(uri, f"sip:{host}", asserts, **settings), on_news=lambda news: made.seen.append(news),
            clock=self.clock, random=self.random, log=self.log, counter=self.counter, resolver=self.network,
        )  # fmt: skip
        made = Subscriber(name, role)
        self.network.attach(name, host, lambda request, peer: made.role.handle_notify(request, peer))
        self.subscribers.append(made)
        return made

    def ue(self, **settings: Any) -> Subscriber:
        return self.subscriber("UE", "ue.net", SIP, asserts=False, **settings)

    async def watch(self, subscriber: Subscriber, resource: str = SIP, expires: int | None = None) -> None:
        await subscriber.role.subscribe(resource, self.network.peer("S"), expires=expires)
        await settle()

    async def registrations(self) -> Sequence[Registration]:
        return await self.store.of_impi(ALICE)

    async def put(self, *registrations: Registration, rest: bool = True, **events: ContactNews) -> None:
        """Do as the registrar does: commit, then tell."""
        before = await self.registrations()
        for each in registrations:
            await self.store.commit(each, ())
        await self._tell(before, events, rest)

    async def take(self, *regs: str, rest: bool = True, **events: ContactNews) -> None:
        before = await self.registrations()
        for reg in regs:
            await self.store.remove(ALICE, Reg(reg), ())
        await self._tell(before, events, rest)

    async def _tell(self, before: Sequence[Registration], events: dict[str, ContactNews], rest: bool) -> None:
        told = {Reg(reg): news for reg, news in events.items()}
        await self.notifier.changed(ALICE, before, await self.registrations(), told)
        if rest:
            await settle()

    def notifies(self, receiver: str = "UE") -> list[Request]:
        return [each for each in self.network.sent("S", receiver) if isinstance(each, Request)]

    def documents(self, receiver: str = "UE") -> list[RegInfo]:
        return [parse_reginfo(each.body) for each in self.notifies(receiver)]

    def states(self, receiver: str = "UE") -> list[str]:
        return [parse_notify(each).state.state for each in self.notifies(receiver)]


@asynccontextmanager
async def open_home(*regs: str, **policy: Any) -> AsyncIterator[Home]:
    """Open a home network where Alice is registered from these devices."""
    home = Home(RegEventPolicy(SCSCF, **policy))
    for reg in regs:
        await home.store.commit(registration(reg, home.clock.now()), ())
    try:
        yield home
    finally:
        await home.notifier.aclose()
        for subscriber in home.subscribers:
            await subscriber.role.aclose()
        assert home.network.failures == []


async def watched(home: Home, **profile: Any) -> Subscriber:
    ue = home.ue(**profile)
    await home.watch(ue)
    return ue


async def pass_time(home: Home, subscriber: Subscriber, seconds: float, times: int = 1) -> None:
    for _ in range(times):
        await home.clock.advance(seconds)
        await subscriber.role.sweep()
        await settle()


def known(subscriber: Subscriber) -> dict[str, set[str]]:
    info = subscriber.role.info(SIP)
    return {} if info is None else {aor.aor: {contact.uri for contact in aor.contacts} for aor in info.registrations}


class Notifier:
    """A notifier by hand: it grants what it is asked for, unless a test says how to answer."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.requests: list[Request] = []
        self.answers: list[int | Callable[[Request], Response]] = []
        self.sip = home.network.attach("S", "scscf1.home1.net", self.answer)
        self.cseq = 0

    async def answer(self, request: Request, peer: SipPeer) -> Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if not isinstance(answer, int):
            return answer(request)
        if answer != 200:
            return make_response(request, answer, headers=(("Min-Expires", "900"),) if answer == 423 else ())
        return build_accepted(request, local_tag="theirs", contact="sip:scscf1.home1.net", expires=3600)

    def asked(self) -> list[int]:
        return [parse_subscribe(each).expires for each in self.requests]

    def notify(self, version: int | None = None, state: str = "active", document: str = "full", **more: Any) -> Request:
        """Build the next NOTIFY in the dialog of the last SUBSCRIBE, without a body where no version is given."""
        self.cseq += 1
        view = parse_subscribe(self.requests[-1])
        subscription = Subscription(
            state=State.ACTIVE, call_id=view.call_id, local_uri=SIP, local_tag="theirs", remote_uri=SIP, remote_tag=view.from_tag,
            remote_target=view.contact, route_set=(), cseq=self.cseq, remote_cseq=-1, event_id=None, expires_at=0.0, version=-1,
        )  # fmt: skip
        body = None if version is None else build_reginfo(RegInfo(version, document))  # type: ignore[arg-type]
        return build_notify(subscription, contact="sip:scscf1.home1.net", state=SubscriptionState(state, **more), body=body)

    async def send(self, request: Request) -> int:
        response = await self.sip.send(request, self.home.network.peer("UE"))
        await settle()
        return response.status


async def by_hand(home: Home, **profile: Any) -> tuple[Subscriber, Notifier]:
    notifier = Notifier(home)
    return await watched(home, **profile), notifier
