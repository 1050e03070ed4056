# SPDX-License-Identifier: Apache-2.0
"""A whole network with the policy `ipsec`, over real sockets, and a charon that says what the test wants (DESIGN §6).

tests/interop/test_ipsec.py has strongSwan's, and looks at the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from keyferry.client.ue import Isim, UeClient, open_ue
from keyferry.config import Ipsec, Subscriber
from keyferry.config.ipsec import child_of, identity_of
from keyferry.lab.demo import demo_config
from keyferry.ports import SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.protocol.vici import Section
from keyferry.roles.scscf.reg_event import RegEventNotifier
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from transports.vicikit import Charon, charon, sa

K, OPC = Secret(b"k" * 16), Secret(b"o" * 16)
LOG = StructLog("none")
SCSCF, SERVER = "127.0.0.2", "127.0.0.3"
NOTIFYING = RegEventNotifier._run.__qualname__


@dataclass
class Running:
    """The network, its one phone, and charon."""

    system: System
    metrics: Metrics
    client: UeClient
    charon: Charon
    outgoing: Section  # the security association as the S-CSCF's charon has it
    incoming: Section  # as the application server's

    def says(self, *sas: Section) -> None:
        """Have charon say this, and that something happened."""
        self.charon.sas = list(sas)
        self.charon.say("child-updown")

    async def keys(self) -> int:
        server = self.system.servers[0]
        return (await server.keys.span(self.system.clock.now(), server.as_id)).keys

    async def all_told(self) -> None:
        """Wait for the end of every NOTIFY under way: one that went while the security association was there proves nothing."""
        await _until(lambda: not [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == NOTIFYING])

    async def until(self, name: str, reason: str, count: int) -> None:
        await _until(lambda: self.metrics.value(name, reason) >= count)


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(folder: Path, *, reg_event: bool = False) -> AsyncIterator[Running]:
    """Serve on three loopback addresses."""
    random, metrics = SystemRandom(), Metrics()
    config = demo_config("short", [])
    home = config.network.home_domain
    subscriber = Subscriber(impi=f"a@{home}", impus=[f"sip:a@{home}"], k=K, opc=OPC)
    server = structs.replace(config.application_servers[0], protection="ipsec", listen_sip=f"{SERVER}:0", reg_event=reg_event)
    async with charon() as served:
        config = structs.replace(
            config, scscf=structs.replace(config.scscf, listen=f"{SCSCF}:0"), application_servers=[server], subscribers=[subscriber],
            ipsec=Ipsec(vici=str(served.path)),
        )  # fmt: skip
        outgoing = sa(identity_of(server), name=child_of(server), local=f"{SCSCF}/32", remote=f"{SERVER}/32", number=1)
        incoming = sa(config.scscf.name, name=child_of(server), local=f"{SERVER}/32", remote=f"{SCSCF}/32", number=2)
        with open_state(folder / "state", random=random, exclusive=True) as state:
            system = System(config, state, SystemClock(), random, LOG, metrics)
            await system.start()
            try:
                (pcscf,) = [each for each in system.listeners if each.role == "pcscf" and each.proto == "udp"]
                async with open_ue(
                    UeProfile(parse_impi(f"a@{home}"), parse_impu(f"sip:a@{home}"), home), Isim("milenage", K, OPC),
                    pcscf=SipPeer("UDP", pcscf.host, pcscf.port), store=MemoryUeStore(), clock=SystemClock(), random=random, log=LOG,
                ) as client:  # fmt: skip
                    yield Running(system, metrics, client, served, outgoing, incoming)
            finally:
                await system.stop()


async def test_what_was_owed_goes_when_the_security_association_is_there(tmp_path: Path) -> None:
    async with running(tmp_path) as here:
        assert (await here.client.register()).k_m is not None
        await here.until("scscf_push_failed", "unprotected", 1)
        assert await here.keys() == 0
        assert here.metrics.value("as_pushes_refused", "unprotected") == 0  # nothing has left
        here.says(here.outgoing, here.incoming)
        await here.until("scscf_third_party_registers", "delivered", 1)
        assert (await here.keys(), here.metrics.value("as_pushes", "stored")) == (1, 1)


async def test_an_application_server_that_cannot_tell_who_pushes_is_pushed_to_again(tmp_path: Path) -> None:
    """Its charon was restarted, or does not answer: 480, and no word that is final."""
    async with running(tmp_path) as here:
        here.says(here.outgoing)
        assert (await here.client.register()).k_m is not None
        await here.until("as_pushes_refused", "unprotected", 1)
        assert await here.keys() == 0
        here.says(here.outgoing, here.incoming)
        await here.until("scscf_third_party_registers", "delivered", 1)
        assert (await here.keys(), here.metrics.value("as_pushes", "stored")) == (1, 1)


async def test_who_is_registered_is_told_through_the_security_association_alone(tmp_path: Path) -> None:
    """TS 24.229 §5.7.1.1: the SUBSCRIBE of an application server, and the NOTIFYs for it, ask the policy as pushes do."""
    async with running(tmp_path, reg_event=True) as here:
        here.says(here.outgoing, here.incoming)
        await here.until("ipsec_policy", "met", 1)  # else the watch may look when it is gone again, and has nothing to tell
        assert (await here.client.register()).k_m is not None
        await here.until("scscf_third_party_registers", "delivered", 1)
        await here.until("scscf_notifies", "taken", 1)
        await here.all_told()
        taken = int(here.metrics.value("scscf_notifies", "taken"))  # where the subscription was quick there are two
        here.says()
        await here.until("ipsec_policy", "unmet", 2)
        await here.client.deregister()
        await here.until("scscf_notifies", "failed", 1)
        assert here.metrics.value("as_pushes_refused", "unprotected") == 0  # nothing has left
        here.says(here.outgoing, here.incoming)
        await here.until("scscf_third_party_registers", "delivered", 2)
        await here.until("scscf_notifies", "taken", taken + 1)
        assert await here.keys() == 0
