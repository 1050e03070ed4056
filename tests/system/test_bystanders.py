# SPDX-License-Identifier: Apache-2.0
"""What one user does, and what the others notice of it, over real sockets (DESIGN §11)."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from keyferry.client.ue import UeClient
from keyferry.errors import RegistrationFailed
from keyferry.ports import SipPeer
from keyferry.protocol.ims.registration import MAX_CONTACT
from keyferry.protocol.sip.message import Request, Response, build_message
from keyferry.transports.sip_node import SipNode
from system.bystanders import NUMBER, Bystanders, crowded
from system.serving import serving, shedding
from system.test_overload import Flood

DEVICES = 16  # of one user (RegistrarPolicy.max_devices)
STRANGE = 70  # challenges that a neighbour has between a user's challenge and his answer, each of a Call-ID of its own


@pytest.mark.parametrize("gm", [False, True], ids=["in-clear", "over-esp"])
async def test_ten_bystanders_register_where_nobody_attacks(tmp_path: Path, gm: bool) -> None:
    """The measure itself."""
    strikes = 0

    async def attack() -> None:
        nonlocal strikes
        strikes += 1
        await asyncio.sleep(0.001)

    lab = crowded(tmp_path)
    with serving(lab.serve, lab.state) as served:
        async with Bystanders(lab, served, gm).opened() as bystanders:
            await bystanders.register_under(attack)
        assert strikes > 1
        assert served.health()["registrations"] == NUMBER


class Padding:
    """A UE's way to the P-CSCF on which its answer to a challenge becomes a message of so many octets."""

    def __init__(self, client: UeClient, name: str, octets: int) -> None:
        node = client.ue.sip
        assert isinstance(node, SipNode)
        self.node, self.name, self.octets = node, name, octets
        self.statuses: list[int] = []

    async def send(self, request: Request, hop: SipPeer, **_: object) -> Response:
        if 'nonce=""' not in (request.get("Authorization") or 'nonce=""'):
            left = self.octets - len(build_message(request))
            while left > len(self.name) + 4:
                value = "x" * min(8_000, left - len(self.name) - 4)
                request = request.with_headers((*request.headers, (self.name, value)))
                left -= len(self.name) + 4 + len(value)
        response = await self.node.send(request, hop)
        self.statuses.append(response.status)
        return response


@pytest.mark.parametrize("copied", [False, True], ids=["header", "whole-copy"])
async def test_a_register_that_makes_our_push_too_large_holds_up_nobody_elses(tmp_path: Path, copied: bool) -> None:
    """What we cannot send says nothing of the AS (TS 24.229 §5.4.1.7)."""

    def edit(text: str) -> str:
        return text.replace('app = "notes"', 'app = "notes"\ninclude_register_request = true') if copied else text

    lab = crowded(tmp_path, edit, more=1)
    with serving(lab.serve, lab.state) as served:
        async with Bystanders(lab, served).opened() as bystanders, bystanders.ue(NUMBER) as attacker:
            way = attacker.ue.sip = Padding(attacker, "User-Agent" if copied else "P-Access-Network-Info", 65_050)

            async def attack() -> None:
                await attacker.register()

            await bystanders.register_under(attack)
        assert set(way.statuses) == {401, 200}


class LongContact:
    """A UE's way to the P-CSCF on which its Contact gets a display name of so many characters."""

    def __init__(self, client: UeClient, character: str, number: int) -> None:
        node = client.ue.sip
        assert isinstance(node, SipNode)
        self.node, self.character, self.number = node, character, number
        self.statuses: list[int] = []

    async def send(self, request: Request, hop: SipPeer, **_: object) -> Response:
        contact = request.get("Contact") or ""
        name = self.character * (self.number - len(contact) - 3)
        response = await self.node.send(request.replacing("Contact", f'"{name}" {contact}'), hop)
        self.statuses.append(response.status)
        return response


class Overtaken:
    """A UE's way to the P-CSCF on which somebody at its address asks for challenges in its name before it answers its own."""

    def __init__(self, client: UeClient, neighbour: SipNode) -> None:
        node = client.ue.sip
        assert isinstance(node, SipNode)
        self.node, self.neighbour, self.statuses = node, neighbour, list[int]()

    async def send(self, request: Request, hop: SipPeer, **_: object) -> Response:
        response = await self.node.send(request, hop)
        if response.status == 401:
            for _number in range(STRANGE):
                strange = await self.neighbour.send(request.replacing("Call-ID", f"strange{len(self.statuses)}@127.0.0.1"), hop)
                self.statuses.append(strange.status)
        return response


@pytest.mark.parametrize("gm", [False, True], ids=["in-clear", "over-esp"])
async def test_a_neighbour_who_is_challenged_in_anothers_name_locks_him_not_out(tmp_path: Path, gm: bool) -> None:
    """Anybody behind the same address gets a challenge without a key, so one ends nothing of another attempt."""
    lab = crowded(tmp_path, more=1)
    with serving(lab.serve, lab.state) as served:
        async with Bystanders(lab, served, gm=gm).opened() as bystanders, bystanders.ue(NUMBER) as attacker:
            node = attacker.ue.sip
            assert isinstance(node, SipNode)
            ways = []
            for client in bystanders.clients:
                way = client.ue.sip = Overtaken(client, node)
                ways.append(way)
            await bystanders.register_all()
        assert {status for way in ways for status in way.statuses} == {401}
        assert all(len(way.statuses) >= STRANGE for way in ways)


@pytest.mark.parametrize(("character", "status"), [("\u20ac", 400), ("x", 200)], ids=["octets-over-characters", "ascii"])
async def test_sixteen_devices_with_the_longest_contacts_hold_up_nobody(tmp_path: Path, character: str, status: int) -> None:
    """Their lengths are octets (RFC 3261 §7.3.1), so a 200 that lists all of them fits the connection of I- and S-CSCF."""
    lab = crowded(tmp_path, more=1)
    async with AsyncExitStack() as stack:
        served = stack.enter_context(serving(lab.serve, lab.state))
        bystanders = await stack.enter_async_context(Bystanders(lab, served).opened())
        ways = []
        for number in range(DEVICES):
            device = await stack.enter_async_context(bystanders.ue(NUMBER, device=number))
            way = device.ue.sip = LongContact(device, character, MAX_CONTACT)
            ways.append((device, way))
        turns = itertools.cycle(ways)

        async def attack() -> None:
            for device, _ in itertools.islice(turns, DEVICES if not ways[-1][1].statuses else 1):
                with suppress(RegistrationFailed):
                    await device.register()

        await bystanders.register_under(attack)
        assert {each for _, way in ways for each in way.statuses} - {401} == {status}


async def test_who_is_registered_over_esp_registers_again_and_leaves_in_a_flood_of_first_registers(tmp_path: Path) -> None:
    """RFC 3261 §21.5.4: 503 is for those who have nothing here yet."""
    lab = crowded(tmp_path, shedding)
    with serving(lab.serve, lab.state) as served:
        flood = Flood(served.port("pcscf", proto="udp"))
        async with Bystanders(lab, served, gm=True).opened() as bystanders:
            await bystanders.register_all()
            flood.begin()
            try:
                async with asyncio.timeout(60):
                    while not flood.refused:
                        await asyncio.sleep(0.01)
                await bystanders.register_all()
                for client in bystanders.clients:
                    await client.deregister()
            finally:
                flood.end()
        assert len(flood.refused) > NUMBER
        assert served.health()["registrations"] == 0
