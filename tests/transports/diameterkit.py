# SPDX-License-Identifier: Apache-2.0
"""Diameter nodes for the tests: clients, servers, and peers that do what they are told, octet by octet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Self

import pytest_asyncio

from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DiameterIdentity, DisconnectCause
from keyferry.protocol.diameter.message import DiameterMessage, Framer, parse_message, render_message
from keyferry.protocol.diameter.peer import PeerTimers
from keyferry.protocol.identity import Impi
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import Admission, DiameterLimits, RemotePeer
from keyferry.transports.diameter_server import DiameterServer
from protocol.diameter.cxkit import HSS, IMPI, IMPU, SCSCF, SERVER, VECTOR
from transports.sipkit import PATIENCE, FakeClock, Numbers, Tallies

RTR = 304
HSS2 = DiameterIdentity("hss2.home1.net", "home1.net")
_sessions = itertools.count(1)


def a_mar(impi: Impi = IMPI) -> DiameterMessage:
    """Return a MAR with a session of its own."""
    route = cx.Route(SCSCF, base.session_id(SCSCF.origin_host, 1, next(_sessions)), "home1.net")
    return cx.build_mar(cx.Mar(impi, IMPU, SERVER), route)


def an_rtr() -> DiameterMessage:
    route = cx.Route(HSS, base.session_id(HSS.origin_host, 1, next(_sessions)), "home1.net", SCSCF.origin_host)
    return cx.build_rtr(cx.Rtr(IMPI, (IMPU,), cx.ReasonCode.PERMANENT_TERMINATION, ""), route)


def an_maa(request: DiameterMessage, identity: DiameterIdentity = HSS) -> DiameterMessage:
    """Answer a MAR for the user that it names."""
    mar = cx.parse_mar(request)
    return cx.build_maa(request, cx.Maa(mar.impi, mar.impu, (cx.AuthItem(VECTOR),)), identity)


class Answering:
    """A handler that notes what it was asked; requests wait while the gate is shut."""

    def __init__(self, identity: DiameterIdentity = HSS) -> None:
        self.identity = identity
        self.asked: list[DiameterMessage] = []
        self.peers: list[RemotePeer] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Event()
        self.code = 0

    async def __call__(self, request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        self.asked.append(request)
        self.peers.append(peer)
        self.came.set()
        if not self.gate.is_set():
            await self.gate.wait()
        if self.code:
            return base.error_answer(request, self.code, self.identity)
        if request.code == RTR:
            return cx.build_rta(request, cx.Rta(()), self.identity)
        return an_maa(request, self.identity)

    async def until(self, number: int) -> None:
        """Wait until so many requests came."""
        async with asyncio.timeout(PATIENCE):
            while len(self.asked) < number:
                self.came.clear()
                await self.came.wait()


class Wire:
    """One end of a connection without a Diameter node behind it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._framer = Framer()
        self._read: list[DiameterMessage] = []

    @classmethod
    async def to(cls, port: int, **options: Any) -> Wire:
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    def send(self, *messages: DiameterMessage | bytes) -> None:
        self.writer.write(b"".join(one if isinstance(one, bytes) else render_message(one) for one in messages))

    async def read(self) -> DiameterMessage:
        """Return the next message."""
        async with asyncio.timeout(PATIENCE):
            while not self._read:
                data = await self.reader.read(65_536)
                assert data, "the other side closed"
                self._read += [parse_message(frame) for frame in self._framer.feed(data)]
        return self._read.pop(0)

    async def closed(self) -> None:
        """Wait until the other side closed; what came before is dropped."""
        async with asyncio.timeout(PATIENCE):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass

    async def hello(self, identity: DiameterIdentity = SCSCF) -> DiameterMessage:
        """Exchange capabilities as the one who called."""
        self.send(base.build_cer(identity, ["127.0.0.1"]).with_ids(1, 1))
        answer = await self.read()
        assert answer.code == base.CAPABILITIES_EXCHANGE
        return answer

    async def welcome(self, identity: DiameterIdentity = HSS) -> None:
        """Exchange capabilities as the one who was called."""
        request = await self.read()
        assert request.code == base.CAPABILITIES_EXCHANGE
        self.send(base.build_cea(request, identity, ["127.0.0.1"]))

    def close(self) -> None:
        self.writer.close()


class Listener:
    """A place where nodes may call; each connection is a Wire."""

    def __init__(self) -> None:
        self._wires: asyncio.Queue[Wire] = asyncio.Queue()
        self._all: list[Wire] = []
        self.port = 0
        self.server: asyncio.Server | None = None

    async def start(self) -> Self:
        async def called(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire = Wire(reader, writer)
            self._all.append(wire)
            await self._wires.put(wire)

        self.server = await asyncio.start_server(called, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def wire(self) -> Wire:
        """Return the next connection."""
        async with asyncio.timeout(PATIENCE):
            return await self._wires.get()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        for wire in self._all:
            wire.writer.transport.abort()
        await asyncio.sleep(0)


class Net:
    """Nodes under one fake clock, with everything they say; ends all of them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.tallies = Tallies()
        self.random = Numbers()
        self._nodes: list[DiameterClient | DiameterServer] = []
        self._listeners: list[Listener] = []
        self._wires: list[Wire] = []

    async def server(
        self,
        handler: Callable[[DiameterMessage, RemotePeer], Awaitable[DiameterMessage]] | None = None,
        *,
        identity: DiameterIdentity = HSS,
        allowed: Admission | None = None,
        limits: DiameterLimits | None = None,
        port: int = 0,
        tls: Any = None,
        timers: PeerTimers | None = None,
    ) -> tuple[DiameterServer, int]:
        """Return a server that listens, and its port."""
        made = DiameterServer(
            identity, handler or Answering(identity), allowed=allowed or Admission.of([SCSCF.origin_host]), clock=self.clock,
            random=self.random, log=self.tallies, counter=self.tallies, limits=limits, timers=timers,
        )  # fmt: skip
        self._nodes.append(made)
        return made, (await made.listen("127.0.0.1", port, tls=tls))[1]

    async def client(
        self,
        *peers: int | DiameterPeer,
        handler: Callable[[DiameterMessage, RemotePeer], Awaitable[DiameterMessage]] | None = None,
        identity: DiameterIdentity = SCSCF,
        limits: DiameterLimits | None = None,
    ) -> DiameterClient:
        """Return a client of ports on the loopback interface, in this order."""
        made = DiameterClient(
            [peer if isinstance(peer, DiameterPeer) else DiameterPeer("127.0.0.1", peer) for peer in peers], identity,
            clock=self.clock, random=self.random, log=self.tallies, counter=self.tallies, handler=handler, limits=limits,
        )  # fmt: skip
        self._nodes.append(made)
        await made.start()
        return made

    async def wire(self, port: int, **options: Any) -> Wire:
        """Return a new connection to a node."""
        made = await Wire.to(port, **options)
        self._wires.append(made)
        return made

    async def listener(self) -> Listener:
        made = await Listener().start()
        self._listeners.append(made)
        return made

    async def passes(self, seconds: float, step: float = 0.0) -> None:
        """Let time pass, at once or in steps between which sockets are looked at."""
        left = seconds
        while left > 1e-9:
            moved = min(step or seconds, left)
            left -= moved
            self.clock.time += moved
            for node in self._nodes:
                node.context.deadlines.run()
            for _ in range(20):
                await asyncio.sleep(0)

    async def settles(self) -> None:
        """Let what is on its way over the loopback interface arrive."""
        for _ in range(300):
            await asyncio.sleep(0)

    async def until(self, holds: Callable[[], object], step: float = 0.0) -> None:
        """Wait until something is so, moving the clock by `step` each time."""
        async with asyncio.timeout(PATIENCE):
            while not holds():
                await self.passes(step) if step else await asyncio.sleep(0)

    async def end(self, node: DiameterClient | DiameterServer) -> None:
        """Close a node; peers that do not answer cost time of the clock."""
        self._nodes.remove(node)
        closing = asyncio.ensure_future(node.aclose())
        turns = 0
        while not closing.done():
            await asyncio.sleep(0)
            turns += 1
            if turns > 200:
                self.clock.time += 0.5
                node.context.deadlines.run()
        await closing

    async def aclose(self) -> None:
        for node in tuple(self._nodes):
            await self.end(node)
        for listener in self._listeners:
            await listener.close()
        for wire in self._wires:
            wire.writer.transport.abort()
        await asyncio.sleep(0)

    def said(self, event: str) -> list[dict[str, object]]:
        """Return what was logged under a name."""
        return [fields for name, fields in self.tallies.events if name == event]


@pytest_asyncio.fixture(name="net")
async def net_fixture() -> AsyncIterator[Net]:
    net = Net()
    yield net
    await net.aclose()


async def ready(client: DiameterClient, *names: str) -> None:
    """Wait until just these peers can be asked."""
    async with asyncio.timeout(PATIENCE):
        while tuple(peer.origin_host for peer in client.connected()) != names:
            await asyncio.sleep(0)


async def wires(net: Net, *identities: DiameterIdentity) -> tuple[list[Wire], DiameterClient]:
    """Return peers as wires, and a client that has them in this order."""
    listeners = [await net.listener() for _ in identities]
    client = await net.client(*[each.port for each in listeners])
    made = [await each.wire() for each in listeners]
    for wire, identity in zip(made, identities, strict=True):
        await wire.welcome(identity)
    await ready(client, *[identity.origin_host for identity in identities])
    return made, client


async def pair(net: Net) -> tuple[Wire, Wire, DiameterClient]:
    """Return two peers of a client, and the client."""
    (one, two), client = await wires(net, HSS, HSS2)
    return one, two, client


async def one_peer(net: Net) -> tuple[Wire, DiameterClient]:
    """Return the only peer of a client, and the client."""
    (wire,), client = await wires(net, HSS)
    return wire, client


async def asking(client: DiameterClient, count: int = 1, **options: Any) -> Sequence[asyncio.Task[DiameterMessage]]:
    """Send so many MARs at once."""
    tasks = [asyncio.ensure_future(client.send(a_mar(), timeout=options.get("timeout", 5.0))) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


REBOOTING = DisconnectCause.REBOOTING
