# SPDX-License-Identifier: Apache-2.0
"""A network to attack: a System on loopback, its users' phones, a hostile P-CSCF before it, and every message that passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from keyferry.client.http import open_http
from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.config import Config, Subscriber
from keyferry.errors import KeyferryError, ParseError
from keyferry.lab.attacks.middle import HostilePcscf, IscMiddleman, host_of
from keyferry.lab.demo import demo_config
from keyferry.lab.scratch import scratch
from keyferry.ports import SipEvent, SipHandler, SipPeer, UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, parse_impi, parse_impu
from keyferry.protocol.ims.keypush import Push, SealedPush, open_push, parse_service_info
from keyferry.protocol.ims.third_party import build_third_party_register, parse_third_party_register
from keyferry.protocol.sip.message import Request, build_message, parse_message
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System

XCAP = AsId("xcap.home1.net")
NOTES = AsId("notes.home1.net")
HOME = "home1.net"
SCSCF = "scscf1.home1.net"
ALICE, BOB = "alice", "bob"
ANSWER = 10.0  # seconds that an injected push may wait for its answer: long on loopback


class AttackClock(SystemClock):
    """The machine's time, which an attack can advance instead of waiting."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        """Return seconds since the epoch, UTC, and what the attack added."""
        return super().now() + self.ahead

    def monotonic(self) -> float:
        """Return seconds that never go back, and what the attack added."""
        return super().monotonic() + self.ahead


@dataclass(slots=True)
class Phone:
    """One device with its card; two devices of one user share `store`, as they share the sequence numbers."""

    user: str
    card: Isim
    client: UeClient
    clock: AttackClock  # this UE's own

    async def register(self) -> UeState | None:
        """Register; None if it did not succeed, whatever the reason."""
        try:
            return await self.client.register()
        except KeyferryError:
            return None

    async def has_keys(self) -> bool:
        """Tell whether the stored state has AS keys."""
        state = await self.client.state()
        return state is not None and state.k_m is not None


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from the ordinary network: DESIGN §5's four cells, and what the HSS says."""

    ue_release: int | None = 6
    scscf_release: int = 6
    notes_service_info: str | None = None


@dataclass(slots=True)
class Town:
    """What an attack has to do with."""

    system: System
    clock: AttackClock
    middle: HostilePcscf
    phones: dict[str, Phone]
    cards: dict[str, Isim]
    events: list[SipEvent]
    stack: AsyncExitStack
    setting: Setting
    http: list[tuple[AsId, str]] = field(default_factory=list)  # header values of Mt in clear
    _injected: int = 0

    @property
    def alice(self) -> Phone:
        """Return the victim's phone."""
        return self.phones[ALICE]

    def impi(self, user: str = ALICE) -> str:
        """Return a user's IMPI."""
        return f"{user}@{HOME}"

    def peer(self, role: str, name: str = "", proto: str = "udp") -> SipPeer:
        """Return where a function listens."""
        found = next(one for one in self.system.listeners if one.role == role and one.proto == proto and name in {"", one.name})
        return SipPeer("TCP" if proto == "tcp" else "UDP", found.host, found.port)

    def node(self, name: str, handler: SipHandler | None = None) -> SipNode:
        """Return a new SIP node of the attacker."""
        system = self.system
        node = SipNode(
            name=name, clock=self.clock, random=system.random, log=system.log, handler=handler, observer=self.events.append,
            counter=system.metrics,
        )  # fmt: skip
        self.stack.push_async_callback(node.aclose)
        return node

    async def phone(self, user: str, number: int = 1) -> Phone:
        """Return one more device of a user."""
        system, hop = self.system, self.middle.address
        profile = UeProfile(parse_impi(self.impi(user)), parse_impu(f"sip:{self.impi(user)}"), HOME, release=self.setting.ue_release)
        store = self.phones[user].client.store if user in self.phones else MemoryUeStore()
        client = await self.stack.enter_async_context(
            open_ue(profile, self.cards[user], pcscf=hop, store=store, clock=self.clock, random=system.random, log=system.log,
                    name=f"UE {user}{number}", observer=self.events.append)
        )  # fmt: skip
        client.ue.instance = f"urn:uuid:00000000-0000-4000-8000-{len(user):06d}{number:06d}"
        own = AttackClock()
        client.ue.clock = own
        return Phone(user, self.cards[user], client, own)

    # ---- ISC

    def pushes(self) -> list[tuple[Request, SealedPush]]:
        """Return what the S-CSCF sent to application servers, in order, retransmissions left out."""
        found = []
        for event in self.events:
            if event.node == "S-CSCF" and event.outgoing and not event.retransmission and isinstance(event.message, Request):
                info = parse_third_party_register(event.message).service_info if event.message.body else None
                block = parse_service_info(info) if info else None
                if isinstance(block, SealedPush):
                    found.append((event.message, block))
        return found

    def transport_key(self, as_id: AsId) -> Secret:
        """Return what seals the pushes to one AS; that AS and the S-CSCF hold it, and the judge."""
        return list(self.system.state.isc_keys(SCSCF, as_id).values())[-1]

    def opened(self) -> list[Push]:
        """Return every push of the S-CSCF, opened by the judge."""
        return [open_push(block, self.transport_key(block.as_id)) for _, block in self.pushes()]

    def info_of(self, as_id: AsId, place: int = -1) -> str:
        """Return the service-info of a push to an AS, as it was on the wire."""
        sent = [request for request, block in self.pushes() if block.as_id == as_id]
        return parse_third_party_register(sent[place]).service_info or ""

    async def inject(self, as_id: AsId, info: str | None, *, user: str = ALICE, expires: int = 600, scscf: str = SCSCF) -> int:
        """Send a third-party REGISTER to an AS from a socket of the attacker's; return the status, 0 if nothing came."""
        self._injected += 1
        request = build_third_party_register(
            server_name=f"sip:{as_id.replace('.', '-as.', 1)}", scscf_uri=f"sip:{scscf}", impu=f"sip:{self.impi(user)}", expires=expires,
            cseq=1, call_id=f"attack{self._injected}", from_tag="t", service_info=info,
        )  # fmt: skip
        to = self.peer("as", as_id, "tcp")
        reader, writer = await asyncio.open_connection(to.host, to.port)
        try:
            writer.write(build_message(request.prepending("Via", f"SIP/2.0/TCP 127.0.0.1:9;branch=z9hG4bKattack{self._injected}")))
            answer = parse_message(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER))
        except (TimeoutError, asyncio.IncompleteReadError, ParseError):
            return 0
        finally:
            writer.close()
        return 0 if isinstance(answer, Request) else answer.status

    async def between_isc(self, as_id: AsId) -> IscMiddleman:
        """Put a middleman between the S-CSCF and an AS."""
        middleman = IscMiddleman(self.peer("as", as_id))
        system, node = self.system, self.node("ISC middleman", middleman.handle)
        middleman.sip = node
        own = (await node.listen("127.0.0.1", 0))[0]
        server = next(one for one in system.servers if one.as_id == as_id)
        system.resolver.serve(host_of(server.settings.sip_uri), own.host, own.port)
        return middleman

    # ---- Mt

    async def status(self, state: UeState, as_id: AsId = XCAP, user: str = ALICE) -> int:
        """Return how the AS's HTTPS door answers a UE's state that asks for a user's document."""
        port = next(one.port for one in self.system.listeners if one.proto == "https" and one.name == as_id)
        path = f"/simservs.ngn.etsi.org/users/sip:{self.impi(user)}/simservs.xml" if as_id == XCAP else "/"
        url = f"https://{as_id}:{port}{path}"
        hosts = {str(as_id): "127.0.0.1"}
        async with open_http(state, url, ca=self.system.pki.ca_file, hosts=hosts, random=self.system.random, waits=()) as client:
            response = await client.get(url)
            for message in (response.request, response):
                self.http += [(as_id, value) for name, value in message.headers.items() if "auth" in name]
            return response.status_code

    async def opens(self, state: UeState, as_id: AsId = XCAP) -> bool:
        """Tell whether a state's key is known at the AS: anything but 401."""
        return await self.status(state, as_id) != 401

    def count(self, name: str, reason: str = "") -> float:
        """Return a counter of the system."""
        return self.system.metrics.value(name, reason)


@asynccontextmanager
async def open_town(setting: Setting) -> AsyncIterator[Town]:
    """Start a network for one attack in a temporary state directory."""
    random, clock, log = SystemRandom(), AttackClock(), StructLog("none")
    cards = {user: Isim("milenage", Secret(random.octets(16)), Secret(random.octets(16))) for user in (ALICE, BOB)}
    events: list[SipEvent] = []
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(scratch("attack"))
        state = stack.enter_context(open_state(Path(folder) / "state", random=random, exclusive=True))
        config = _config(setting, cards)
        system = System(config, state, clock, random, log, Metrics(), roles=_ROLES, observer=events.append)
        stack.push_async_callback(system.stop)
        await system.start()
        town = Town(system, clock, HostilePcscf(), {}, cards, events, stack, setting)
        await _put_between(town)
        for user in (ALICE, BOB):
            town.phones[user] = await town.phone(user)
        yield town


_ROLES: tuple[Literal["pcscf", "icscf", "scscf", "as"], ...] = ("pcscf", "icscf", "scscf", "as")


def _config(setting: Setting, cards: dict[str, Isim]) -> Config:
    subscribers = [
        Subscriber(impi=f"{user}@{HOME}", impus=[f"sip:{user}@{HOME}", f"tel:+1555010{place}"], k=card.k, opc=card.opc)
        for place, (user, card) in enumerate(cards.items())
    ]
    config = demo_config("short", subscribers)
    servers = [
        msgspec.structs.replace(one, service_info=setting.notes_service_info) if one.as_id == NOTES else one
        for one in config.application_servers
    ]
    scscf = msgspec.structs.replace(config.scscf, release=setting.scscf_release)
    return msgspec.structs.replace(config, scscf=scscf, application_servers=servers)


async def _put_between(town: Town) -> None:
    """Start the P-CSCF that the phones of this town use."""
    system, middle = town.system, town.middle
    node = town.node("hostile P-CSCF", middle.handle)
    middle.sip = node
    middle.pcscf = Pcscf(
        sip=middle, resolver=system.resolver, uri="sip:pcscf9.visited1.net", icscf=system.config.pcscf.icscf, clock=town.clock,
        random=system.random, visited_network="visited1.net", log=system.log, counter=system.metrics,
    )  # fmt: skip
    middle.address = (await node.listen("127.0.0.1", 0))[0]
