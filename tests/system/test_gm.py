# SPDX-License-Identifier: Apache-2.0
"""Gm under ESP, over real sockets: TS 33.203 §7; DESIGN §5 step 3, §9."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec import structs

from keyferry.client.ue import Isim, UeClient, http_credentials, open_ue
from keyferry.config import Subscriber
from keyferry.errors import RegistrationFailed
from keyferry.lab.demo import demo_config
from keyferry.lab.raw_keys import raw_keys
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.protocol.ims.gm_association import State
from keyferry.protocol.ims.security_agreement import parse_mechanisms
from keyferry.protocol.sip.headers import parse_name_addr
from keyferry.protocol.sip.message import Request
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.esp_sas import EspSas
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System

HOME = "home1.net"
K, OPC = Secret(b"k" * 16), Secret(b"o" * 16)
PATIENCE = 60.0  # seconds
LOG = StructLog("none")


@dataclass(slots=True)
class Visited:
    """A network whose P-CSCF demands protection, and what its functions and UEs sent and got."""

    system: System
    events: list[SipEvent] = field(default_factory=list)

    @property
    def at_pcscf(self) -> list[str]:
        """What came in at the P-CSCF from the UE, each with its transport."""
        return [f"{event.peer.transport} {event.message.method}" for event in self._from_ue if isinstance(event.message, Request)]

    @property
    def requests(self) -> list[Request]:
        """The same, the messages."""
        return [event.message for event in self._from_ue if isinstance(event.message, Request)]

    @property
    def _from_ue(self) -> list[SipEvent]:
        return [event for event in self.events if event.node == "P-CSCF" and not event.outgoing]

    @property
    def sas(self) -> EspSas:
        assert self.system.pcscf is not None
        assert self.system.pcscf.security is not None
        gm = self.system.pcscf.security.gm
        assert isinstance(gm, EspSas)
        return gm

    @property
    def states(self) -> list[State]:
        return [tunnel.association.state for tunnel in self.sas._tunnels.values()]

    def hop(self, proto: str) -> SipPeer:
        found = next(one for one in self.system.listeners if one.role == "pcscf" and one.proto == proto)
        return SipPeer("UDP", found.host, found.port)

    def rejected(self, reason: str) -> float:
        return self.system.metrics.value("esp_rejected", reason)

    @asynccontextmanager
    async def ue(self, *, protected: bool = True, gm: SipPeer | None = None) -> AsyncIterator[UeClient]:
        profile = UeProfile(parse_impi(f"a@{HOME}"), parse_impu(f"sip:a@{HOME}"), HOME)
        hop = gm or (self.hop("esp") if protected else None)
        async with open_ue(
            profile, Isim("milenage", K, OPC), pcscf=self.hop("udp"), store=MemoryUeStore(), clock=SystemClock(), random=SystemRandom(),
            log=LOG, gm=hop, observer=self.events.append,
        ) as client:  # fmt: skip
            yield client


@asynccontextmanager
async def network(tmp_path: Path, reauth_age: float) -> AsyncIterator[Visited]:
    """Serve with Gm protected; `reauth_age` 0 challenges every REGISTER."""
    random, events = SystemRandom(), list[SipEvent]()
    subscribers = [Subscriber(impi=f"a@{HOME}", impus=[f"sip:a@{HOME}"], k=K, opc=OPC)]
    with open_state(tmp_path / "state", random=random, exclusive=True) as state:
        config = demo_config("short", subscribers, "required")
        config = structs.replace(
            config,
            scscf=structs.replace(config.scscf, reauth_age=reauth_age),
        )
        system = System(config, state, SystemClock(), random, LOG, Metrics(), observer=events.append)
        await system.start()
        try:
            yield Visited(system, events)
        finally:
            await system.stop()


@pytest.fixture
async def visited(tmp_path: Path) -> AsyncIterator[Visited]:
    async with network(tmp_path, 0.0) as opened:
        yield opened


async def test_a_protected_re_register_keeps_its_keys_and_needs_no_challenge(tmp_path: Path) -> None:
    """DESIGN §5 step 6; TS 24.229 §5.4.1.2.2: the association proves who asks."""
    async with network(tmp_path, 43_200.0) as visited, visited.ue() as client:
        state = await client.register()
        again = await client.register()
        assert visited.at_pcscf == ["UDP REGISTER", "ESP REGISTER", "ESP REGISTER"]
        assert (again.k_m, again.gm_keys, again.masked, again.rspauth) == (state.k_m, state.gm_keys, True, True)
        assert again.cseq == state.cseq + 1
        assert again.expires_at > state.expires_at - 2  # the network grants whole seconds
        credentials = http_credentials(again, visited.system.servers[0].as_id)
        keys = visited.system.servers[0].keys
        assert await keys.lookup(credentials.username, credentials.as_id, visited.system.clock.now()) is not None


class Relay:
    """Somebody on the path between UE and P-CSCF."""

    def __init__(self, to: SipPeer) -> None:
        self.packets: list[bytes] = []  # of the UE
        self.lose: Callable[[bytes], bool] = lambda packet: False  # of the P-CSCF's
        self._to, self._ue = (to.host, to.port), ("", 0)
        self.front, self.back = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for sock in (self.front, self.back):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.front, self._from_ue)
        loop.add_reader(self.back, self._from_pcscf)

    @property
    def hop(self) -> SipPeer:
        return SipPeer("UDP", *self.front.getsockname())

    def inject(self, packet: bytes) -> None:
        self.back.sendto(packet, self._to)

    def close(self) -> None:
        for sock in (self.front, self.back):
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def _from_ue(self) -> None:
        packet, self._ue = self.front.recvfrom(65_536)
        self.packets.append(packet)
        self.inject(packet)

    def _from_pcscf(self) -> None:
        packet, _ = self.back.recvfrom(65_536)
        if not self.lose(packet):
            self.front.sendto(packet, self._ue)


async def until(wanted: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not wanted():
            await asyncio.sleep(0.01)  # real sockets: nobody else says when


async def test_registration_re_registration_and_de_registration(visited: Visited) -> None:
    """TS 24.229 §5.1.1.2.2, §5.1.1.4, §5.1.1.5: only SM1 of the first is in clear; then every set makes way for the next."""
    async with visited.ue() as client:
        state = await client.register()
        assert (state.masked, state.k_m is not None) == (True, True)
        assert visited.at_pcscf == ["UDP REGISTER", "ESP REGISTER"]
        first, second = visited.requests
        assert (first.get("Require"), first.get("Proxy-Require"), first.get("Security-Verify")) == ("sec-agree", "sec-agree", None)
        offered = parse_mechanisms(first.all("Security-Client"))
        assert parse_sip_uri(parse_name_addr(first.get("Contact") or "").uri).port == offered[0].port_s
        assert (second.all("Security-Client"), bool(second.get("Security-Verify"))) == (first.all("Security-Client"), True)
        assert visited.states == [State.ESTABLISHED]
        again = await client.register()
        assert again.gm_keys != state.gm_keys
        assert visited.at_pcscf[2:] == ["ESP REGISTER", "ESP REGISTER"]
        assert visited.states == [State.IN_USE, State.ESTABLISHED]
        pcscf = visited.system.pcscf
        assert pcscf is not None
        assert again.gm_keys is not None
        assert pcscf.fingerprint(again.impi, again.contact) == again.gm_keys.fingerprint()
        await client.deregister()
        assert visited.at_pcscf[4:] == ["ESP REGISTER", "ESP REGISTER"]
        assert pcscf.gm_keys == {}
    assert visited.rejected("icv") == 0


async def test_a_ue_with_ck_and_ik_against_ck_prime_and_ik_prime_gets_no_sip_through(visited: Visited) -> None:
    async with visited.ue() as client:
        task = asyncio.ensure_future(raw_keys(client).register())
        await until(lambda: visited.rejected("icv"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert visited.at_pcscf == ["UDP REGISTER"]
    assert visited.states == [State.TEMPORARY]


async def test_what_a_middleman_replays_or_forges_reaches_no_sip(visited: Visited) -> None:
    relay = Relay(visited.hop("esp"))
    try:
        async with visited.ue(gm=relay.hop) as client:
            await client.register()
            seen = list(visited.at_pcscf)
            packet = next(each for each in relay.packets if len(each) > 1)
            relay.inject(packet)
            await until(lambda: visited.rejected("replay") == 1)
            relay.inject(packet[:7] + bytes((packet[7] + 1,)) + packet[8:])
            await until(lambda: visited.rejected("icv") == 1)
            relay.inject(b"REGISTER sip:home1.net SIP/2.0\r\n\r\n")
            await until(lambda: visited.rejected("spi") == 1)
            relay.inject(b"\xff")
            await until(lambda: visited.system.metrics.value("esp_dropped", "keep-alive") >= 1)
            assert visited.at_pcscf == seen
            assert b"REGISTER" not in b"".join(relay.packets)
            await client.deregister()  # and the set still works
    finally:
        relay.close()


async def test_a_200_that_is_lost_is_sent_again_under_the_same_set(visited: Visited) -> None:
    """RFC 3261 §17.2.2: the retransmission is a new ESP packet, the transaction the same."""
    relay, lost = Relay(visited.hop("esp")), list[bytes]()
    relay.lose = lambda packet: len(lost) == 0 and not lost.append(packet)  # type: ignore[func-returns-value]
    try:
        async with visited.ue(gm=relay.hop) as client:
            assert (await client.register()).k_m is not None
    finally:
        relay.close()
    assert len(lost) == 1
    assert visited.at_pcscf == ["UDP REGISTER", "ESP REGISTER", "ESP REGISTER"]
    assert len([one for one in visited.events if one.node == "I-CSCF" and not one.outgoing and isinstance(one.message, Request)]) == 2
    assert visited.states == [State.IN_USE]  # the retransmission came over it after the 200


async def test_a_ue_without_security_agreement_is_told_what_is_missing(visited: Visited) -> None:
    """RFC 3329 §2.3.1."""
    async with visited.ue(protected=False) as client:
        with pytest.raises(RegistrationFailed, match="421"):
            await client.register()
