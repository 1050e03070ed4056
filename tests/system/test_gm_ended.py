# SPDX-License-Identifier: Apache-2.0
"""The network ends a registration under ESP: TS 24.229 §5.2.5.2, TS 29.228 §6.1.3. Real sockets, the HSS over Diameter."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec import structs

from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.config import Subscriber
from keyferry.lab.demo import demo_config
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.protocol.ims.gm_association import OVERLAP
from keyferry.protocol.sip.message import Request, Response
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Role
from keyferry.wiring.system import System
from loopback import free_port

HOME = "home1.net"
IMPI, IMPU = f"a@{HOME}", f"sip:a@{HOME}"
K, OPC = Secret(b"k" * 16), Secret(b"o" * 16)
DEVICES = 5
PATIENCE = 60.0  # seconds
LOG = StructLog("none")
HSS: list[Role] = ["hss", "admin"]
ELSEWHERE: list[Role] = ["pcscf", "icscf", "scscf", "as"]
TRIES = ("SUBSCRIBE", "MESSAGE", "REGISTER")
"""What an ended device may send over its security associations."""


class Ahead(SystemClock):
    """The machine's clock, and how far a test has put it on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return SystemClock.now() + self.seconds

    def monotonic(self) -> float:
        return SystemClock.monotonic() + self.seconds


@dataclass(slots=True)
class Visited:
    """A network that demands protection of Gm and watches registrations; its HSS is another system."""

    system: System
    hss: System
    clock: Ahead
    events: list[SipEvent] = field(default_factory=list)
    store: MemoryUeStore = field(default_factory=MemoryUeStore)  # one card, one SQN

    def count(self, name: str, *reasons: str) -> float:
        return sum(self.system.metrics.value(name, reason) for reason in reasons)

    def reached_core(self) -> list[str]:
        """Return the Call-IDs of requests that I-CSCF and S-CSCF have got from the P-CSCF."""
        arrived = [each.message for each in self.events if each.node in {"I-CSCF", "S-CSCF"} and not each.outgoing]
        return [each.get("Call-ID") or "" for each in arrived if isinstance(each, Request)]

    @asynccontextmanager
    async def ue(self, number: int) -> AsyncIterator[UeClient]:
        hops = {one.proto: SipPeer("UDP", one.host, one.port) for one in self.system.listeners if one.role == "pcscf"}
        async with open_ue(
            UeProfile(parse_impi(IMPI), parse_impu(IMPU), HOME), Isim("milenage", K, OPC), pcscf=hops["udp"], gm=hops["esp"],
            store=self.store, clock=SystemClock(), random=SystemRandom(), log=LOG,
            instance=f"urn:uuid:00000000-0000-4000-8000-{number:012d}",
        ) as client:  # fmt: skip
            yield client

    async def terminate(self) -> None:
        """Let the HSS end all registrations of the subscriber, by an RTR."""
        port = next(one.port for one in self.hss.listeners if one.role == "admin")

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            try:
                body, headers = json.dumps({"reason": "permanent-termination"}), {"Content-Type": "application/json"}
                connection.request("POST", f"/subscribers/{IMPI}/terminate", body, headers)
                response = connection.getresponse()
                return response.status, response.read().decode()
            finally:
                connection.close()

        status, body = await asyncio.to_thread(ask)
        assert (status, json.loads(body)["told"]) == (200, True), body

    async def until(self, wanted: int, name: str, *reasons: str, seconds: float = PATIENCE) -> bool:
        """Wait until something was counted so often; tell whether it was."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.count(name, *reasons) < wanted:
                    await asyncio.sleep(0.01)  # real sockets: nobody else says when
        return self.count(name, *reasons) >= wanted


@asynccontextmanager
async def network(folder: Path) -> AsyncIterator[Visited]:
    random, clock, events = SystemRandom(), Ahead(), list[SipEvent]()
    config = demo_config("short", [Subscriber(impi=IMPI, impus=[IMPU], k=K, opc=OPC)], "required")
    where = f"127.0.0.1:{free_port()}"
    config = structs.replace(
        config, pcscf=structs.replace(config.pcscf, reg_event=True), hss=structs.replace(config.hss, listen_diameter=where),
        cx=structs.replace(config.cx, peers=[f"aaa://{where}"]),
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        started = []
        for name, roles in (("hss", HSS), ("others", ELSEWHERE)):
            state = stack.enter_context(open_state(folder / name, random=random, exclusive=True))
            system = System(config, state, clock, random, LOG, Metrics(), roles, observer=events.append)
            stack.push_async_callback(system.stop)
            await system.start()
            started.append(system)
        yield Visited(started[1], started[0], clock, events)


@pytest.fixture
async def visited(tmp_path: Path) -> AsyncIterator[Visited]:
    async with network(tmp_path) as opened:
        yield opened


def request_of(client: UeClient, number: int, method: str) -> Request:
    """Return a request that the device begins; its Call-ID names it."""
    credentials = f'Digest username="{IMPI}", realm="{HOME}", nonce="", uri="sip:{HOME}", response=""'
    more = [("Authorization", credentials), ("Expires", "600")] if method == "REGISTER" else [("Event", "reg")]
    headers = (
        ("Max-Forwards", "70"), ("From", f"<{IMPU}>;tag={number}"), ("To", f"<{IMPU}>"), ("Call-ID", f"{method}-{number}"),
        ("CSeq", f"1 {method}"), ("Contact", client.ue._contact()), *more,
    )  # fmt: skip
    return Request(method, f"sip:{HOME}" if method == "REGISTER" else IMPU, headers)


async def sent(client: UeClient, number: int, method: str) -> Response:
    """Send over the security associations that the device believes to have."""
    assert client.ue.security is not None
    protected, hop = client.ue.security.outgoing(request_of(client, number, method))
    assert hop.transport == "ESP"
    return await client.ue.sip.send(protected, hop)


async def test_after_an_rtr_none_of_five_devices_over_esp_reaches_the_core(visited: Visited) -> None:
    """What they begin is refused at once, while their security associations drain; then nothing passes these any more."""
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(visited.ue(number)) for number in range(DEVICES)]
        for client in devices:
            await client.register()
        assert await visited.until(1, "scscf_subscriptions", "pcscf")
        assert (await sent(devices[0], DEVICES, "SUBSCRIBE")).status == 200
        assert visited.reached_core()[-1] == f"SUBSCRIBE-{DEVICES}"

        await visited.terminate()
        all_ended = await visited.until(DEVICES, "pcscf_ended", "rejected", "expired", seconds=10)
        before = len(visited.reached_core())
        statuses = {method: [(await sent(each, number, method)).status for number, each in enumerate(devices)] for method in TRIES}
        assert visited.reached_core()[before:] == []
        assert statuses == {"SUBSCRIBE": DEVICES * [403], "MESSAGE": DEVICES * [405], "REGISTER": DEVICES * [504]}
        assert all_ended

        visited.clock.seconds += OVERLAP + 1
        trying = [asyncio.ensure_future(sent(each, number + DEVICES, "REGISTER")) for number, each in enumerate(devices)]
        try:
            assert await visited.until(DEVICES, "esp_rejected", "spi")
        finally:
            for each in trying:
                each.cancel()
            await asyncio.gather(*trying, return_exceptions=True)
        assert visited.reached_core()[before:] == []
