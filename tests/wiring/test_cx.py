# SPDX-License-Identifier: Apache-2.0
"""What the file says of Cx over Diameter is what the nodes do."""

from __future__ import annotations

import asyncio
from pathlib import Path

from keyferry.config import Config
from keyferry.config.cx import Cx
from keyferry.config.cx import Hss as Settings
from keyferry.ports import ServerAssignment
from keyferry.ports.scripts import GivenVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi
from keyferry.roles.cx_client import DiameterCx
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.cx import HELLO, start_cx_client, start_cx_server
from keyferry.wiring.hss import start_hss
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Services
from roles.home import subscriber


class SetBack(SystemClock):
    """Of a machine whose clock was set back by an hour."""

    @staticmethod
    def now() -> float:
        return SystemClock.now() - 3600


async def test_times_and_bounds_are_those_of_the_file(tmp_path: Path) -> None:
    """The HSS and who asks it, in one process over a real connection."""
    hss = Settings(listen_diameter="127.0.0.1:0", connections=3, peers=["scscf1.home1.net"])
    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        services = Services(Config(hss=hss, cx=Cx(watchdog=7.5)), state, SystemClock(), SystemRandom(), StructLog("none"), Metrics())
        async with services.exit:
            servings = await start_cx_server(services, (parts := await start_hss(services)).hss, parts.scripts)
            (door,) = services.listeners
            services.config = Config(hss=hss, cx=Cx(watchdog=7.5, timeout=3.0, peers=[f"aaa://{door.host}:{door.port}"]))
            asking = await start_cx_client(services, "SCSCF1.home1.net", "scscf")
            await asking.node.ready()
            served, context = servings.asker.context, asking.node.context  # type: ignore[attr-defined]
            assert (served.limits.connections, served.timers.watchdog, served.timers.capabilities) == (3, 7.5, HELLO)
            assert context.timers.watchdog == 7.5
            assert isinstance(asking.cx, DiameterCx)
            assert asking.cx.timeout == 3.0
            assert [peer.origin_host for peer in asking.node.connected()] == ["hss.home1.net"]


async def test_an_end_is_carried_out_though_the_s_cscf_s_clock_was_set_back_before_it_started_again(tmp_path: Path) -> None:
    """RFC 6733 §8.8: its Session-Ids go on rising, and the HSS believes what they say of the order."""
    alice, server_name = subscriber("alice"), "sip:scscf1.home1.net"
    impu, random = alice.impus[0].impu, SystemRandom()
    with open_state(tmp_path / "hss", random=random) as there, open_state(tmp_path / "scscf", random=random) as here:
        home = Config(hss=Settings(listen_diameter="127.0.0.1:0", peers=["scscf1.home1.net"]))
        services = Services(home, there, SystemClock(), random, StructLog("none"), Metrics())
        async with services.exit:
            parts = await start_hss(services)
            await parts.subscribers.add(alice)
            await start_cx_server(services, parts.hss, parts.scripts)
            (door,) = services.listeners
            config = Config(cx=Cx(peers=[f"aaa://{door.host}:{door.port}"]))

            async def tell(assignment: ServerAssignment, clock: SystemClock) -> None:
                asking = Services(config, here, clock, random, StructLog("none"), Metrics())
                async with asking.exit:
                    cx, node, _ = await start_cx_client(asking, "scscf1.home1.net", "scscf")
                    await node.ready()
                    await cx.server_assignment(alice.impi, impu, server_name, assignment)

            await tell(ServerAssignment.REGISTRATION, SystemClock())
            assert (await parts.subscribers.assignment(alice.impi)).serving == server_name
            await tell(ServerAssignment.USER_DEREGISTRATION, SetBack())
            assert (await parts.subscribers.assignment(alice.impi)).serving is None


async def test_xres_that_proves_nothing_any_more_goes_from_the_disk_at_the_start(tmp_path: Path) -> None:
    clock = SystemClock()
    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        services = Services(Config(hss=Settings(listen_diameter="127.0.0.1:0")), state, clock, SystemRandom(), StructLog("none"), Metrics())
        async with services.exit:
            parts = await start_hss(services)
            given = GivenVector(Impi("u@home1.net"), Secret(bytes(8)), clock.now() - 1)
            await parts.scripts.keep("n", given, 0.0)
            await start_cx_server(services, parts.hss, parts.scripts)
            async with asyncio.timeout(60):
                while parts.scripts.given("n") is not None:
                    await asyncio.sleep(0.001)
