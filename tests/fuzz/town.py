# SPDX-License-Identifier: Apache-2.0
"""A home network with two HSS processes over one store and two S-CSCFs, on a Cx that loses, holds back and repeats what it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from contract.faults import Fate, Faults, faulty
from keyferry.errors import CxError
from keyferry.ports import CxServing, DeregistrationReason
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.identity import AsId, Impi, Impu
from keyferry.roles.appserver import KeyAgent, Pusher
from keyferry.roles.hss import Hss
from keyferry.roles.icscf import Icscf
from keyferry.roles.scscf.as_notifier import AsNotifier, PushPolicy, TransportKey
from keyferry.roles.scscf.authenticator import Authenticator, AuthPolicy
from keyferry.roles.scscf.diagnosis import Diagnosis
from keyferry.roles.scscf.node import Scscf
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.roles.scscf.reg_event import RegEventNotifier, RegEventPolicy
from keyferry.roles.scscf.registrar import Registrar, RegistrarPolicy
from keyferry.stores.memory import MemoryRegistrationStore
from roles.home import NICKS, REALM, SIP_OF, XCAP, Home, RecordingKeys, Server, criterion, only_loopback, subscriber, transport_key
from roles.network import SeededRandom, settle

USERS: Final = ("alice", "bobby")
NAMES: Final = ("S1", "S2")


@dataclass(slots=True)
class Node:
    """One S-CSCF; its registrations outlive it."""

    nick: str
    registrations: MemoryRegistrationStore = field(default_factory=MemoryRegistrationStore)
    starts: int = 0
    registrar: Registrar = field(init=False)
    reg_event: RegEventNotifier = field(init=False)
    wire: Faults = field(init=False)
    rtrs: list[Fate] = field(default_factory=list)  # what becomes of the next RTRs

    @property
    def host(self) -> str:
        return f"scscf{self.nick[1:]}.home1.net"

    @property
    def uri(self) -> str:
        return f"sip:{self.host}"

    async def holds(self, impi: Impi) -> bool:
        return bool(await self.registrations.of_impi(impi))


@dataclass(slots=True)
class FaultyServing:
    """Implement ports.CxServing: an RTR is lost, or its answer."""

    node: Node
    inner: CxServing

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        fate = self.node.rtrs.pop(0) if self.node.rtrs else Fate.ANSWERED
        if fate in (Fate.ANSWERED, Fate.UNANSWERED):
            await self.inner.registration_termination(impi, impus, reason, info)
        if fate is Fate.UNANSWERED and reason is not DeregistrationReason.NEW_SERVER_ASSIGNED:
            self.node.wire.unheard = True  # the operator is told that it failed, and may say it again
        if fate is not Fate.ANSWERED:
            raise CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        await self.inner.push_profile(impi, user_data)


@dataclass(slots=True)
class Town(Home):
    """The network."""

    nodes: dict[str, Node] = field(default_factory=dict)
    hsss: list[Hss] = field(default_factory=list)
    asks: Faults = field(init=False)  # of the I-CSCF
    down: set[str] = field(default_factory=set)
    starts: int = 0  # of HSS processes

    def at(self, server_name: str) -> FaultyServing | None:
        """Implement ports.CxServings."""
        node = next((each for each in self.nodes.values() if each.uri == server_name), None)
        if node is None or node.nick in self.down:
            return None
        return FaultyServing(node, ScscfServing(node.registrar, node.reg_event.forget))

    def make_hss(self) -> Hss:
        self.starts += 1
        return Hss(
            self.subscribers, self.profiles, SeededRandom(f"hss{self.starts}"), self.log, self.counter, self.clock,
            scscfs=tuple(f"sip:scscf{place}.home1.net" for place in (1, 2)), servings=self,
        )  # fmt: skip

    def start_as(self, as_id: AsId) -> None:
        keys = RecordingKeys()
        pushers = {
            name: Pusher(name, REALM, {(as_id, "t1"): transport_key(as_id)}, frozenset({REALM}))
            for name in ("scscf1.home1.net", "scscf2.home1.net")
        }
        agent = KeyAgent(frozenset({as_id}), pushers, keys, self.clock, self.log, self.counter)
        self.servers[as_id] = Server(as_id, agent, keys)
        self.network.attach(NICKS[as_id], SIP_OF[as_id].partition(":")[2], lambda request, peer: self.servers[as_id].handle(request, peer))

    def start_scscf(self) -> None:
        self.hsss = [self.make_hss(), self.make_hss()]
        self.nodes = {nick: Node(nick) for nick in NAMES}
        for node in self.nodes.values():
            self.start_node(node)

    def start_node(self, node: Node) -> None:
        """Start an S-CSCF, or start it again: it has forgotten what was in memory."""
        node.starts += 1
        before = node.wire if node.starts > 1 else None
        cx, node.wire = faulty(self.hsss, node.host, self.clock)
        if before is not None:
            node.wire.held, node.wire.unheard = before.held, before.unheard
        sip = self.network.attach(node.nick, node.host, lambda request, peer: Scscf(node.registrar, node.reg_event).handle(request, peer))
        random = SeededRandom(f"{node.nick} {node.starts}")
        diagnosis = Diagnosis(self.clock, self.log, self.counter)
        notifier = AsNotifier(
            sip=sip, resolver=self.network, registrations=node.registrations, clock=self.clock, random=random, log=self.log,
            counter=self.counter, policy=push_policy(node), targets_of=lambda registration: node.registrar.targets_of(registration),
            told=diagnosis.push, sleep=self.clock.sleep, terminate=lambda impi, reg: node.registrar.network_deregister(impi, reg),
        )  # fmt: skip
        node.reg_event = RegEventNotifier(
            sip=sip, resolver=self.network, registrations=node.registrations, owner_of=node.registrations.of_impu, trusts=lambda _: True,
            clock=self.clock, random=random, log=self.log, counter=self.counter, policy=RegEventPolicy(node.uri), sleep=self.clock.sleep,
        )  # fmt: skip
        auth = AuthPolicy(realm=REALM, server_name=node.uri)
        node.registrar = Registrar(
            authenticator=Authenticator(cx, self.clock, auth, self.log, self.counter, diagnosis), notifier=notifier,
            registrations=node.registrations, cx=cx, clock=self.clock, random=random, log=self.log, counter=self.counter,
            policy=RegistrarPolicy(), changed=node.reg_event.changed, trusts=lambda peer: peer in self.trusted,
        )  # fmt: skip
        cx.done_late = node.registrar.tell_again
        if node.starts == 1:
            self.scscf, self.reg_event, self.diagnosis = node.registrar, node.reg_event, diagnosis

    async def restart(self, node: Node) -> None:
        """Kill -9 an S-CSCF, and start it."""
        await node.registrar.notifier.aclose()
        await node.registrar.reports.aclose()
        await node.reg_event.aclose()
        self.clock.time += 1.0
        self.start_node(node)
        await node.registrar.take_up()

    async def restart_hss(self, number: int) -> None:
        """Kill -9 an HSS process, and start it."""
        await self.hsss[number].aclose()
        self.hsss[number] = hss = self.make_hss()
        for wire in self.wires():
            wire.servers[number].hss = wire.servers[number].directory = hss

    def goes(self, node: Node) -> None:
        """Nobody reaches an S-CSCF any more."""
        self.down.add(node.nick)
        self.network.down(node.nick)

    def comes(self, node: Node) -> None:
        self.down.discard(node.nick)
        self.network.up(node.nick)

    def wires(self) -> list[Faults]:
        return [*(node.wire for node in self.nodes.values()), self.asks]

    async def sweep(self) -> None:
        for node in self.nodes.values():
            if node.nick not in self.down:
                await node.registrar.sweep()
        for hss in self.hsss:
            await hss.sweep()
        await settle()

    async def aclose(self) -> None:
        for hss in self.hsss:
            await hss.aclose()
        for node in self.nodes.values():
            await node.registrar.notifier.aclose()
            await node.registrar.reports.aclose()
            await node.reg_event.aclose()
        assert self.network.failures == []


def push_policy(node: Node) -> PushPolicy:
    return PushPolicy(
        scscf_uri=node.uri, scscf_name=node.host, as_ids={SIP_OF[as_id]: (as_id,) for as_id in SIP_OF},
        transport_keys={as_id: TransportKey("t1", Siv(transport_key(as_id))) for as_id in SIP_OF}, check_peer=only_loopback, push_wait=0.0,
    )  # fmt: skip


async def open_town() -> Town:
    node = Node("S1")
    town = Town(AuthPolicy(REALM, node.uri), RegistrarPolicy(), push_policy(node), {"default": [criterion(XCAP)]})
    cx, town.asks = faulty(town.hsss, "icscf.home1.net", town.clock)
    sip = town.network.attach("I", "icscf.home1.net", lambda request, peer: town.icscf.handle(request, peer))
    town.icscf = Icscf(cx, sip, town.network, node.uri, town.log, town.clock, town.counter)
    for user in USERS:
        await town.subscribers.add(subscriber(user))
    return town
