# SPDX-License-Identifier: Apache-2.0
"""What one user does, and what the others notice of it, over real sockets (DESIGN §11)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyferry.client.ue import UeClient
from keyferry.ports import SipPeer
from keyferry.protocol.sip.message import Request, Response, build_message
from keyferry.transports.sip_node import SipNode
from system.bystanders import NUMBER, Bystanders, crowded
from system.serving import serving


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
