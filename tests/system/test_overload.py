# SPDX-License-Identifier: Apache-2.0
"""A flood of first REGISTERs at the process that serves (RFC 3261 §21.5.4; DESIGN §11)."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import threading
from pathlib import Path
from tempfile import mkdtemp

from keyferry.client.ue import Isim, open_ue
from keyferry.config import load_ue_config
from keyferry.ports import SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.protocol.sip.message import Request, Response, parse_message
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.observability import StructLog
from steady import steady
from system.serving import Lab, Served, make_lab, serving, shedding, until

PORTION, PAUSE = 60, 0.01
"""REGISTERs, and seconds between two portions: 6,000 a second, several times what a process of two cores can challenge."""
LIMIT = 60.0  # seconds until a flooded process must have refused something
VICTIM = "user2_private@home1.net"


class Flood:
    """A stranger who sends first REGISTERs without end, and reads what he gets."""

    def __init__(self, port: int) -> None:
        self.refused: list[Response] = []
        self.answered: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,))
        self._branches = itertools.count()

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def sent(self) -> int:
        return next(self._branches)

    def _run(self, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", port))
            while not self._ended.wait(PAUSE):
                for number in itertools.islice(self._branches, PORTION):
                    sock.send(first_register(sock.getsockname()[1], number))
                try:
                    while True:
                        self._take(parse_message(sock.recv(65_536, socket.MSG_DONTWAIT)))
                except BlockingIOError:
                    pass

    def _take(self, message: object) -> None:
        assert isinstance(message, Response)
        self.answered.add(message.status)
        if message.status == 503 and message.get("Retry-After"):
            self.refused.append(message)


def first_register(port: int, number: int) -> bytes:
    """A REGISTER that answers no challenge, in the name of a subscriber that exists."""
    return (
        f"REGISTER sip:home1.net SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bKflood{number};rport\r\nMax-Forwards: 70\r\n"
        f"From: <sip:user2_public1@home1.net>;tag={number}\r\nTo: <sip:user2_public1@home1.net>\r\nCall-ID: flood{number}\r\n"
        f"CSeq: 1 REGISTER\r\nContact: <sip:user2_public1@127.0.0.1:{port}>\r\nExpires: 600\r\n"
        f'Authorization: Digest username="{VICTIM}", realm="home1.net", nonce="", uri="sip:home1.net", response=""\r\n'
        "Content-Length: 0\r\n\r\n"
    ).encode()


class Interrupted:
    """A UE's way to the P-CSCF on which a flood begins between challenge and answer."""

    def __init__(self, node: SipNode, flood: Flood) -> None:
        self.node, self.flood = node, flood
        self.statuses: list[int] = []

    async def send(self, request: Request, hop: SipPeer, **_: object) -> Response:
        if self.statuses:
            self.flood.begin()
            async with asyncio.timeout(LIMIT):
                while not self.flood.refused:
                    await asyncio.sleep(0.01)
        response = await self.node.send(request, hop)
        self.statuses.append(response.status)
        return response


async def register(lab: Lab, served: Served, flood: Flood) -> list[int]:
    """Register the UE of examples/, flooded from its challenge on; return what it was answered."""
    settings = load_ue_config(lab.ue).ue
    profile = UeProfile(parse_impi(settings.impi), parse_impu(settings.impu), settings.home_domain)
    isim = Isim("milenage", settings.k, settings.opc or Secret(b""))
    async with open_ue(
        profile, isim, pcscf=SipPeer("UDP", "127.0.0.1", served.port("pcscf", proto="udp")), store=MemoryUeStore(), clock=SystemClock(),
        random=SystemRandom(), log=StructLog("none"),
    ) as client:  # fmt: skip
        node = client.ue.sip
        assert isinstance(node, SipNode)
        way = client.ue.sip = Interrupted(node, flood)
        try:
            state = await client.register()
        finally:
            flood.end()
        assert state.k_m is not None, state.no_keys_because
        return way.statuses


def shed(served: Served) -> int:
    """Return what /metrics says was refused."""
    found = re.search(r'^keyferry_sip_shed_total\{reason="initial"\} ([0-9.e+]+)', served.admin("/metrics")[1], re.MULTILINE)
    return int(float(found[1])) if found else 0


@steady(0.05)  # the UE's own first REGISTER is refused, too, where the processor was away
def test_a_flooded_network_refuses_first_registers_and_completes_second_ones(tmp_path: Path) -> None:
    """RFC 3261 §21.5.4: 503 with Retry-After; whoever was challenged before gets in, and the operator sees it."""
    lab = make_lab(Path(mkdtemp(dir=tmp_path)), shedding)
    with serving(lab.serve, lab.state) as served:
        flood = Flood(served.port("pcscf", proto="udp"))
        assert asyncio.run(register(lab, served, flood)) == [401, 200]
        assert {5 <= int(response.get("Retry-After") or "") <= 10 for response in flood.refused} == {True}
        assert served.health()["registrations"] == 1
        assert shed(served) >= len(flood.refused)
        assert 'keyferry_sip_overload_total{reason="begun"}' in served.admin("/metrics")[1]
        until(lambda: "sip-overload-ended" in served.log.read_text(), seconds=LIMIT, what="the end of the overload in the log")
        assert "sip-overload-begun" in served.log.read_text()


def test_an_operator_may_switch_it_off(tmp_path: Path) -> None:
    """`network.overload`: nobody is refused, however long he waits."""
    lab = make_lab(tmp_path, lambda text: text.replace("[network]", '[network]\noverload = "off"'))
    with serving(lab.serve, lab.state) as served:
        flood = Flood(served.port("pcscf", proto="udp"))
        flood.begin()
        try:
            until(lambda: 401 in flood.answered and flood.sent > 20_000, seconds=LIMIT, what="a challenge, and 20,000 REGISTERs")
        finally:
            flood.end()
        assert shed(served) == 0
        assert "sip-overload-begun" not in served.log.read_text()
