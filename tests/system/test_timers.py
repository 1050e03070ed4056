# SPDX-License-Identifier: Apache-2.0
"""Who gives up first: RFC 3261 §17.1.2 (timer F), RFC 4321 §1.1; TS 24.229 §5.3.1.3. Real sockets, and a clock that moves by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec import structs

from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.config import Subscriber
from keyferry.errors import RegistrationFailed
from keyferry.lab.demo import demo_config
from keyferry.ports import SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.roles.icscf import ANSWER_WITHIN
from keyferry.roles.pcscf import proxy as pcscf
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Role
from keyferry.wiring.system import System
from transports.sipkit import FakeClock, UdpPeer, patiently

HOME = "home1.net"
K, OPC = Secret(b"k" * 16), Secret(b"o" * 16)


@dataclass(slots=True)
class Network:
    """A P-CSCF, maybe an I-CSCF, and a machine behind them that is dead."""

    system: System
    clock: FakeClock
    dead: UdpPeer

    async def refused(self, client: UeClient) -> RegistrationFailed:
        """Register, and let time pass until the hop before the dead one gives up."""
        asked = asyncio.ensure_future(client.register())
        await patiently(self.dead.request())
        self.clock.time += ANSWER_WITHIN if "icscf" in self.system.roles else pcscf.ANSWER_WITHIN
        for node in self.system.services.nodes.values():
            node.tick()
        with pytest.raises(RegistrationFailed) as refused:
            await patiently(asked)
        return refused.value


@pytest.fixture(params=[("icscf", True), ("icscf", False), ("pcscf", True), ("pcscf", False)], ids=lambda param: f"{param[0]}-{param[1]}")
async def network(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Network]:
    """Behind the P- and I-CSCF, or behind the P-CSCF, there is nobody who answers."""
    last, warnings = request.param
    roles: list[Role] = ["pcscf", "icscf", "hss"] if last == "icscf" else ["pcscf"]
    random, clock = SystemRandom(), FakeClock()
    config = demo_config("short", [Subscriber(impi=f"a@{HOME}", impus=[f"sip:a@{HOME}"], k=K, opc=OPC)], "off")
    if warnings:  # else as it is if nothing is said
        config = structs.replace(config, network=structs.replace(config.network, warnings=True))
    with UdpPeer() as dead, open_state(tmp_path / "state", random=random) as state:
        uri = f"sip:127.0.0.1:{dead.hop.port}"
        if "icscf" in roles:
            config = structs.replace(config, icscf=structs.replace(config.icscf, scscf=uri))
        else:
            config = structs.replace(
                config, pcscf=structs.replace(config.pcscf, icscf=uri), cx=structs.replace(config.cx, peers=["aaa://h"])
            )
        system = System(config, state, clock, random, StructLog("none"), Metrics(), roles)
        await system.start()
        try:
            yield Network(system, clock, dead)
        finally:
            await system.stop()


async def test_the_ue_is_told_that_somebody_did_not_answer_and_in_a_laboratory_who(network: Network) -> None:
    """Each hop gives up before the one that asked it would, which waits for 32 s, or 30; names inside are nobody's business."""
    udp = next(each for each in network.system.listeners if (each.role, each.proto) == ("pcscf", "udp"))
    async with open_ue(
        UeProfile(parse_impi(f"a@{HOME}"), parse_impu(f"sip:a@{HOME}"), HOME), Isim("milenage", K, OPC),
        pcscf=SipPeer("UDP", udp.host, udp.port), store=MemoryUeStore(), clock=network.clock, random=SystemRandom(), log=StructLog("none"),
    ) as client:  # fmt: skip
        refused = await network.refused(client)
    dead = f"127.0.0.1:{network.dead.hop.port}"
    whose = (
        f"icscf.home1.net: S-CSCF {dead}: no answer in 28 s" if "icscf" in network.system.roles else f": I-CSCF {dead}: no answer in 30 s"
    )
    assert refused.status == 504
    if network.system.config.network.warnings:
        assert whose in str(refused)
    else:
        assert str(refused).startswith("the network answered 504 Server Time-out")
        assert not [name for name in ("CSCF", "icscf", dead) if name in str(refused)]
