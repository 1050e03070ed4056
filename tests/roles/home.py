# SPDX-License-Identifier: Apache-2.0
"""A home network put together in memory: UE, P-CSCF, I-CSCF, S-CSCF, HSS and application servers over `network`."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from keyferry.errors import KeyferryError, TransportError
from keyferry.ports import KeyRecord, PendingPush, Registration, SipPeer, SubscribedImpu, Subscriber, UeState
from keyferry.protocol.aka import AkaName, Usim, algorithm_of
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg, reg_of
from keyferry.protocol.ims.ifc import ApplicationServer, InitialFilterCriteria, OnMethod, ServicePointTrigger, TriggerPoint
from keyferry.protocol.ims.keypush import Push, PushOutcome
from keyferry.protocol.ims.keys import as_key, key_id
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.appserver import KeyAgent, Pusher
from keyferry.roles.hss import Hss
from keyferry.roles.icscf import Icscf
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.scscf.as_notifier import AsNotifier, PushPolicy, TransportKey
from keyferry.roles.scscf.authenticator import Authenticator, AuthPolicy
from keyferry.roles.scscf.diagnosis import Diagnosis
from keyferry.roles.scscf.node import Scscf
from keyferry.roles.scscf.reg_event import RegEventNotifier, RegEventPolicy
from keyferry.roles.scscf.registrar import Registrar, RegistrarPolicy
from keyferry.roles.ue import Ue, UeProfile
from keyferry.stores.memory import MemoryKeyStore, MemoryRegistrationStore, MemorySubscriberStore
from roles.network import FakeClock, Network, RecordingCounter, RecordingLog, SeededRandom, settle

REALM = "home1.net"
SCSCF = "sip:scscf1.home1.net"
XCAP = AsId("xcap.home1.net")
NOTES = AsId("notes.home1.net")
SIP_OF = {XCAP: "sip:as1.home1.net", NOTES: "sip:as2.home1.net"}
NICKS = {XCAP: "AS1", NOTES: "AS2"}
ON_REGISTER = TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnMethod("REGISTER")),))


def key_of(label: str, octets: int) -> Secret:
    """Make a key that belongs to a name."""
    return Secret(hashlib.shake_128(label.encode()).digest(octets))


def subscriber(
    user: str, *, algorithm: AkaName = "milenage", impus: tuple[SubscribedImpu, ...] = (), profile: str = "default"
) -> Subscriber:
    own = impus or (SubscribedImpu(Impu(f"sip:{user}@{REALM}")), SubscribedImpu(Impu(f"tel:+1555{sum(user.encode()):04}")))
    opc = key_of(f"opc-{user}", 16 if algorithm == "milenage" else 32)
    return Subscriber(Impi(f"{user}@{REALM}"), own, algorithm, key_of(f"k-{user}", 16), opc, b"\x80\x00", profile)


def criterion(as_id: AsId = XCAP, *, priority: int = 0, trigger: TriggerPoint | None = ON_REGISTER, **server: Any) -> InitialFilterCriteria:
    return InitialFilterCriteria(priority, trigger, ApplicationServer(SIP_OF[as_id], **server))


class RecordingKeys(MemoryKeyStore):
    """A key store that keeps every push it was asked to apply."""

    def __init__(self) -> None:
        super().__init__()
        self.pushes: list[Push] = []

    async def apply(self, push: Push, *, pusher: str, realm: str, now: float) -> PushOutcome:
        self.pushes.append(push)
        return await super().apply(push, pusher=pusher, realm=realm, now=now)


@dataclass(slots=True)
class Server:
    """One application server; `answers` are given first, instead of its own."""

    as_id: AsId
    agent: KeyAgent
    keys: RecordingKeys
    answers: list[int] = field(default_factory=list)

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        return make_response(request, self.answers.pop(0)) if self.answers else await self.agent.handle(request, peer)


@dataclass(slots=True)
class Home:
    """The network of home1.net."""

    auth: AuthPolicy
    registrar_policy: RegistrarPolicy
    push_policy: PushPolicy
    profiles: dict[str, Sequence[InitialFilterCriteria]]
    clock: FakeClock = field(default_factory=FakeClock)
    random: SeededRandom = field(default_factory=SeededRandom)
    log: RecordingLog = field(default_factory=RecordingLog)
    counter: RecordingCounter = field(default_factory=RecordingCounter)
    network: Network = field(default_factory=Network)
    subscribers: MemorySubscriberStore = field(default_factory=MemorySubscriberStore)
    registrations: MemoryRegistrationStore = field(default_factory=MemoryRegistrationStore)
    servers: dict[AsId, Server] = field(default_factory=dict)
    trusted: set[SipPeer] = field(default_factory=set)  # whose `integrity-protected` the S-CSCF believes
    hss: Hss = field(init=False)
    pcscf: Pcscf = field(init=False)
    icscf: Icscf = field(init=False)
    scscf: Registrar = field(init=False)
    reg_event: RegEventNotifier = field(init=False)
    diagnosis: Diagnosis = field(init=False)

    def __post_init__(self) -> None:
        self.hss = Hss(self.subscribers, self.profiles, self.random, self.log, self.counter, self.clock)
        for as_id in (XCAP, NOTES):
            self.start_as(as_id)
        self.start_scscf()
        network = self.network
        icscf = network.attach("I", "icscf.home1.net", lambda request, peer: self.icscf.handle(request, peer))
        self.icscf = Icscf(
            self.hss, icscf, network, SCSCF, self.log, self.clock, self.counter,
            refused=lambda impi, problem, status: self.diagnosis.cx(impi, problem, status, "I-CSCF"),
        )  # fmt: skip
        pcscf = network.attach("P", "pcscf1.visited1.net", lambda request, peer: self.pcscf.handle(request, peer))
        self.pcscf = Pcscf(
            pcscf,
            network,
            "sip:pcscf1.visited1.net",
            "sip:icscf.home1.net",
            "visited1.net",
            self.clock,
            self.random,
            self.log,
            self.counter,
        )

    def start_as(self, as_id: AsId) -> None:
        """Start an AS, or start it again with nothing in its memory."""
        keys = RecordingKeys()
        pusher = Pusher("scscf1.home1.net", REALM, {(as_id, "t1"): transport_key(as_id)}, frozenset({REALM}))
        agent = KeyAgent(frozenset({as_id}), {pusher.name: pusher}, keys, self.clock, self.log, self.counter)
        self.servers[as_id] = Server(as_id, agent, keys)
        self.network.attach(NICKS[as_id], SIP_OF[as_id].partition(":")[2], lambda request, peer: self.servers[as_id].handle(request, peer))

    def start_scscf(self) -> None:
        """Start the S-CSCF, or start it again: its challenges are gone, its registrations are not."""
        sip = self.network.attach("S", "scscf1.home1.net", lambda request, peer: Scscf(self.scscf, self.reg_event).handle(request, peer))
        self.diagnosis = Diagnosis(self.clock, self.log, self.counter, self.hss)
        notifier = AsNotifier(
            sip=sip, resolver=self.network, registrations=self.registrations, clock=self.clock, random=self.random, log=self.log,
            counter=self.counter, policy=self.push_policy, targets_of=lambda registration: self.scscf.targets_of(registration),
            told=self.diagnosis.push, sleep=self.clock.sleep, terminate=lambda impi, reg: self.scscf.network_deregister(impi, reg),
        )  # fmt: skip
        self.reg_event = RegEventNotifier(
            sip=sip, resolver=self.network, registrations=self.registrations, owner_of=self.registrations.of_impu, trusts=lambda _: True,
            clock=self.clock, random=self.random, log=self.log, counter=self.counter, policy=RegEventPolicy(SCSCF), sleep=self.clock.sleep,
        )  # fmt: skip
        self.scscf = Registrar(
            authenticator=Authenticator(self.hss, self.clock, self.auth, self.log, self.counter, self.diagnosis), notifier=notifier,
            registrations=self.registrations, cx=self.hss, clock=self.clock, random=self.random, log=self.log, counter=self.counter,
            policy=self.registrar_policy, changed=self.reg_event.changed, trusts=lambda peer: peer in self.trusted,
        )  # fmt: skip

    async def restart_scscf(self) -> None:
        await self.scscf.notifier.aclose()
        await self.scscf.reports.aclose()
        self.start_scscf()

    async def aclose(self) -> None:
        await self.scscf.notifier.aclose()
        await self.scscf.reports.aclose()
        await self.reg_event.aclose()
        assert self.network.failures == []

    def device(self, user: str = "alice", number: int = 1, **profile: Any) -> Device:
        return Device(self, user, number, profile)

    async def registration(self, device: Device) -> Registration | None:
        return await self.registrations.get(device.impi, device.reg)

    async def owed(self) -> list[PendingPush]:
        return list(await self.registrations.pending())

    async def key_of(self, device: Device, as_id: AsId = XCAP) -> KeyRecord | None:
        """Return the AS's record of the key that the device would use."""
        name = device.key_id(as_id)
        return None if name is None else await self.servers[as_id].keys.lookup(name, as_id, self.clock.now())

    async def keys_at(self, as_id: AsId = XCAP) -> int:
        return await self.servers[as_id].keys.count(self.clock.now())


def transport_key(as_id: AsId) -> Secret:
    return key_of(f"isc-{as_id}", 64)


@asynccontextmanager
async def open_home(
    *,
    criteria: Sequence[InitialFilterCriteria] | None = None,
    subscribers: Sequence[Subscriber] = (),
    auth: dict[str, Any] | None = None,
    push: dict[str, Any] | None = None,
    registrar: dict[str, Any] | None = None,
) -> AsyncIterator[Home]:
    """Open a home network with Alice and Bob, one criterion for each of two AS, and whatever differs from the defaults."""
    policy = PushPolicy(
        scscf_uri=SCSCF, scscf_name="scscf1.home1.net", as_ids={SIP_OF[as_id]: (as_id,) for as_id in SIP_OF},
        transport_keys={as_id: TransportKey("t1", Siv(transport_key(as_id))) for as_id in SIP_OF}, check_peer=only_loopback, push_wait=10.0,
    )  # fmt: skip
    home = Home(
        auth=AuthPolicy(realm=REALM, server_name=SCSCF, **(auth or {})),
        registrar_policy=RegistrarPolicy(**(registrar or {})),
        push_policy=replace(policy, **(push or {})),
        profiles={"default": [criterion(XCAP), criterion(NOTES, priority=1)] if criteria is None else criteria},
    )
    for one in subscribers or (subscriber("alice"), subscriber("bobby")):
        await home.subscribers.add(one)
    try:
        yield home
    finally:
        await home.aclose()


def only_loopback(peer: SipPeer) -> None:
    if not peer.host.startswith("127."):
        raise TransportError(str(peer), "not on this machine")


class Device:
    """A UE with its own card; it keeps its state as the client library does."""

    def __init__(self, home: Home, user: str, number: int, profile: dict[str, Any]) -> None:
        known: AkaName = profile.pop("algorithm", "milenage")
        own = subscriber(user, algorithm=known)
        self.home = home
        self.name = f"{user}{number}"
        self.impi = own.impi
        self.instance = f"urn:uuid:{user}-{number}"
        self.reg: Reg = reg_of(f"<{self.instance}>")
        self.state: UeState | None = None
        host = f"{self.name}.visited1.net".lower()
        self.sip = home.network.attach(self.name, host, None)
        usim = Usim(profile.pop("card", None) or algorithm_of(known, own.k, own.opc))
        settings: dict[str, Any] = {"impi": own.impi, "impu": own.impus[0].impu, "home_domain": REALM, **profile}
        self.ue = Ue(
            profile=UeProfile(**settings), usim=usim, sip=self.sip, pcscf=home.network.peer("P"), contact_uri=f"sip:{user}@{host}",
            instance=self.instance, clock=home.clock, random=home.random, log=home.log,
        )  # fmt: skip

    async def register(self) -> UeState:
        return await self._kept(lambda: self.ue.register(self.state))

    async def deregister(self) -> UeState:
        assert self.state is not None
        before = self.state
        return await self._kept(lambda: self.ue.deregister(before))

    async def _kept(self, procedure: Callable[[], Any]) -> UeState:
        try:
            state: UeState = await procedure()
        except KeyferryError:
            if self.state is not None:
                self.state = replace(self.state, seq_ms=self.ue.usim.seq_ms, k_m=None, expires_at=0.0, no_keys_because="the last failed")
            raise
        self.state = state
        await settle()
        return state

    def k_as(self, as_id: AsId = XCAP) -> Secret | None:
        return as_key(self.state.k_m, as_id) if self.state is not None and self.state.k_m is not None else None

    def key_id(self, as_id: AsId = XCAP) -> KeyId | None:
        k_as = self.k_as(as_id)
        return None if k_as is None else key_id(k_as, REALM)
