# SPDX-License-Identifier: Apache-2.0
"""One HSS, asked in the process, over TCP and over TLS: what the port promises is the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from keyferry.ports import CxClient, CxServing, SubscriberStore
from keyferry.protocol.diameter.base import DiameterIdentity
from keyferry.roles.cx_client import CxListener, DiameterCx
from keyferry.roles.cx_exchange import Sessions
from keyferry.roles.cx_server import CxPolicy, CxServer, DiameterServings
from keyferry.roles.hss import Hss
from keyferry.stores.memory import MemorySubscriberStore
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import Admission
from keyferry.transports.diameter_server import DiameterServer
from keyferry.transports.pki import MutualTls, Pki, mutual_tls
from roles.home import criterion, subscriber
from roles.network import FakeClock, RecordingCounter, RecordingLog, SeededRandom

Way: TypeAlias = Literal["in process", "tcp", "tls"]
WAYS: tuple[Way, ...] = ("in process", "tcp", "tls")
PATIENCE = 60.0  # seconds that anything may take before a test fails
HSS, SCSCF = DiameterIdentity("hss.home1.net", "home1.net"), DiameterIdentity("scscf1.home1.net", "home1.net")
SERVER_NAME = "sip:scscf1.home1.net:6060"


@dataclass(slots=True)
class Wired:
    """An HSS and whoever asks it."""

    cx: CxClient
    hss: Hss
    store: MemorySubscriberStore
    log: RecordingLog = field(default_factory=RecordingLog)
    counter: RecordingCounter = field(default_factory=RecordingCounter)
    servings: DiameterServings | None = None
    server: DiameterServer | None = None


def an_hss(store: SubscriberStore, **more: object) -> Hss:
    return Hss(store, {"default": [criterion()]}, SeededRandom(), RecordingLog(), RecordingCounter(), FakeClock(), **more)  # type: ignore[arg-type]


@asynccontextmanager
async def wired(
    way: Way, folder: Path, *, serving: CxServing | None = None, policy: CxPolicy | None = None, asker: DiameterIdentity = SCSCF,
    role: str = "scscf", **more: object,
) -> AsyncIterator[Wired]:  # fmt: skip
    """Run an HSS with some subscribers, and give the port to it."""
    store = MemorySubscriberStore()
    for user in ("alice", "bobby"):
        await store.add(subscriber(user))
    await store.add(subscriber("tara", algorithm="tuak"))
    hss = an_hss(store, **more)
    net = Wired(hss, hss, store)
    if way == "in process":
        yield net
        return
    async with AsyncExitStack() as exit_:
        pki = Pki(folder, SystemClock()) if way == "tls" else None
        port = await _serve(net, exit_, policy or CxPolicy(), _tls(pki, HSS.origin_host, "hss"))
        await _ask(net, exit_, port, serving, asker, _tls(pki, asker.origin_host, role))
        yield net


def _tls(pki: Pki | None, name: str, role: str) -> MutualTls | None:
    return None if pki is None else mutual_tls(pki.ensure(name, role), pki.ca_file)


async def _serve(net: Wired, exit_: AsyncExitStack, policy: CxPolicy, tls: MutualTls | None) -> int:
    clock, random = SystemClock(), SystemRandom()
    cx_server = CxServer(net.hss, net.hss, HSS, net.log, net.counter, policy)
    server = net.server = DiameterServer(
        HSS, cx_server.handle, allowed=Admission.of([], ["scscf", "icscf"]), clock=clock, random=random, log=net.log, counter=net.counter
    )
    exit_.push_async_callback(server.aclose)
    net.servings = DiameterServings(
        server, lambda: {peer.origin_host: peer.origin_realm for peer in server.connected()}, cx_server.origin_of, HSS,
        Sessions(HSS.origin_host, clock, random), net.log, net.counter,
    )  # fmt: skip
    return (await server.listen("127.0.0.1", 0, tls=tls))[1]


async def _ask(
    net: Wired, exit_: AsyncExitStack, port: int, serving: CxServing | None, asker: DiameterIdentity, tls: MutualTls | None
) -> None:
    clock, random = SystemClock(), SystemRandom()
    peer = DiameterPeer("127.0.0.1", port, HSS.origin_host if tls else "", tls)
    listener = CxListener(asker, net.log, net.counter, serving)
    client = DiameterClient([peer], asker, clock=clock, random=random, log=net.log, counter=net.counter, handler=listener.handle)
    exit_.push_async_callback(client.aclose)
    await client.start()
    async with asyncio.timeout(PATIENCE):
        await client.ready()
    net.cx = DiameterCx(client, asker, "home1.net", clock, random, net.log, net.counter)
