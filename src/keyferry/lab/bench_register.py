# SPDX-License-Identifier: Apache-2.0
"""What is measured at a registration: the S-CSCF with its HSS, or every function of the path, in one process on one core."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import NamedTuple

from keyferry.config import Admin, ApplicationServer, Config, Cx, Hss, Icscf, Network, Pcscf, Scscf
from keyferry.lab.bench_worker import Link, usage
from keyferry.ports import SubscribedImpu, Subscriber, SubscriberStore
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Role
from keyferry.wiring.serving import spare_the_collector
from keyferry.wiring.system import System

HOME = "home1.net"
ANY_PORT = "127.0.0.1:0"
BATCH = 500  # subscribers stored between two words of progress


class Card(NamedTuple):
    """A subscriber that both sides make from its number, so that no key travels between them."""

    impi: Impi
    impu: Impu
    k: Secret
    opc: Secret


class RegisterSetup(NamedTuple):
    """What the process that is measured shall be."""

    state: Path
    subscribers: int
    as_addresses: tuple[str, ...]  # of the load's application servers, HOST:PORT
    whole_path: bool  # P-CSCF, I-CSCF and one AS too
    hss: str = ""  # where the HSS is asked over Diameter, aaa://HOST:PORT; "": in the process


def card(number: int) -> Card:
    """Return one subscriber."""
    octets = hashlib.sha256(b"keyferry bench %d" % number).digest()
    return Card(Impi(f"user{number}_private@{HOME}"), Impu(f"sip:user{number}_public1@{HOME}"), Secret(octets[:16]), Secret(octets[16:]))


async def serve_registrations(link: Link, setup: RegisterSetup) -> None:
    """Start, provision, tell the address that takes REGISTERs, then tell the usage whenever asked."""
    random = SystemRandom()
    with open_state(setup.state, random=random, exclusive=True) as state:
        roles: tuple[Role, ...] = ("pcscf", "icscf", "scscf", "as") if setup.whole_path else ("scscf",)
        system = System(config_of(setup), state, SystemClock(), random, StructLog("none"), Metrics(), roles)
        try:
            listeners = await system.start()
            if system.subscribers is not None:
                await _provision(system.subscribers, setup.subscribers, link)
            spare_the_collector()
            door = next(one for one in listeners if one.role == roles[0] and one.proto == "udp")
            link.send((door.host, door.port))
            await answer_usage(link)
        finally:
            await system.stop()


async def serve_hss(link: Link, setup: RegisterSetup) -> None:
    """Be the HSS in a process of its own: start, provision, tell where Diameter is taken, then tell the usage whenever asked."""
    await run_hss(link, config_of(setup), setup)


async def run_hss(link: Link, config: Config, setup: RegisterSetup) -> None:
    """Do so with a configuration of the caller's own."""
    random = SystemRandom()
    roles: tuple[Role, ...] = ("hss",)
    with open_state(setup.state, random=random, exclusive=True) as state:
        system = System(config, state, SystemClock(), random, StructLog("none"), Metrics(), roles)
        try:
            (door,) = await system.start()
            if system.subscribers is not None:
                await _provision(system.subscribers, setup.subscribers, link)
            spare_the_collector()
            link.send(f"aaa://{door.host}:{door.port}")
            await answer_usage(link)
        finally:
            await system.stop()


async def answer_usage(link: Link) -> None:
    """Tell what this process has used whenever it is asked, until it is to stop."""
    while await link.receive() != "stop":
        link.send(usage())


async def _provision(store: SubscriberStore, count: int, link: Link) -> None:
    for start in range(0, count, BATCH):
        batch = [_subscriber(number) for number in range(start, min(start + BATCH, count))]
        await asyncio.gather(*(store.add(subscriber) for subscriber in batch))
        link.progress("provisioning subscribers", start + len(batch), count)


def _subscriber(number: int) -> Subscriber:
    one = card(number)
    impus = (SubscribedImpu(one.impu, barred=False), SubscribedImpu(Impu(f"tel:+1555{number:07}"), barred=False))
    return Subscriber(one.impi, impus, "milenage", one.k, one.opc, b"\x80\x00", release=6)


def config_of(setup: RegisterSetup) -> Config:
    """Return the configuration that is measured: the default, but that overload control refuses nothing of what is counted."""
    names = ["xcap"] if setup.whole_path else [f"as{number}" for number in range(1, len(setup.as_addresses) + 1)]
    servers = [
        ApplicationServer(as_id=f"{name}.{HOME}", sip_uri=f"sip:{name}-as.{HOME}", listen_sip=ANY_PORT, listen_https=ANY_PORT)
        for name in names
    ]
    return Config(
        network=Network(home_domain=HOME, overload="off"),
        pcscf=Pcscf(listen=ANY_PORT),
        icscf=Icscf(listen=ANY_PORT, scscf=f"sip:scscf1.{HOME}"),
        scscf=Scscf(listen=ANY_PORT, as_probe=0),  # the application servers here count every request as a push
        hss=Hss(listen_diameter=ANY_PORT),
        cx=Cx(peers=[setup.hss] if setup.hss else []),
        admin=Admin(listen=ANY_PORT),
        application_servers=servers,
        hosts={f"{name}-as.{HOME}": address for name, address in zip(names, setup.as_addresses, strict=False)},
    )
