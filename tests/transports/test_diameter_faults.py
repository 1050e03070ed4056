# SPDX-License-Identifier: Apache-2.0
"""Random faults between a Diameter client and two servers: no request is lost, hangs, gets another's answer, or is carried out twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyferry.errors import TransportError
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import result_of
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.protocol.identity import Impi
from keyferry.transports.diameter_client import DiameterClient
from keyferry.transports.diameter_context import DiameterLimits, RemotePeer
from protocol.diameter.cxkit import HSS
from transports.diameterkit import HSS2, Net, a_mar, an_maa

FAULTS = ("cut", "settle", "stall", "go", "pass", "ask", "garbage")
TIMEOUT = 20.0


class Relay:
    """Carry octets between a client and a server: may cut, or hold them back."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._called, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self.writers.append(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._carry(source, sink))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(4096):
                await self.flowing.wait()
                sink.write(data)
        except ConnectionError:
            pass
        sink.transport.abort()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def garble(self) -> None:
        for writer in self.writers[:1]:
            if not writer.transport.is_closing():
                writer.write(b"\x01\0\0\x10garbage")

    async def close(self) -> None:
        self.flowing.set()
        self.cut()
        if self.server is not None:
            self.server.close()
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Counting:
    """A handler that counts how often each user was asked for, and answers after some turns of the loop."""

    def __init__(self, turns: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._turns = turns

    async def __call__(self, request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        self.done[cx.parse_mar(request).impi] += 1
        for _ in range(self._turns.randrange(30)):
            await asyncio.sleep(0)
        return an_maa(request)


async def ask(client: DiameterClient, user: Impi) -> str:
    """Return whose vector came, or "" if none did, which has to be said in time."""
    try:
        answer = await client.send(a_mar(user), timeout=TIMEOUT)
    except TransportError:
        return ""
    assert result_of(answer).success
    return cx.parse_maa(answer).impi or ""


class Suffering:
    """A client and its servers, with relays between that break."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.net = Net()
        self.handlers: list[Counting] = []
        self.relays: list[Relay] = []
        self.users: list[Impi] = []
        self.tasks: list[asyncio.Task[str]] = []

    async def start(self, servers: int) -> DiameterClient:
        for identity in (HSS, HSS2)[:servers]:
            self.handlers.append(Counting(self.chance))
            # A copy that is held up for longer than answers are kept is carried out again, and here half a minute is over in a moment.
            limits = DiameterLimits(remember=1e6)
            _, port = await self.net.server(self.handlers[-1], identity=identity, limits=limits)
            self.relays.append(Relay(port))
            await self.relays[-1].start()
        return await self.net.client(*[relay.port for relay in self.relays], limits=DiameterLimits(patience=4.0, retry_last=2.0))

    async def fault(self, name: str, client: DiameterClient) -> None:
        """Do something, to one of the relays, and let the network run for some turns of the loop."""
        relay = self.chance.choice(self.relays)
        if name == "ask":
            for _ in range(self.chance.randrange(1, 20)):
                self.users.append(Impi(f"user{len(self.users)}@home1.net"))
                self.tasks.append(asyncio.ensure_future(ask(client, self.users[-1])))
        elif name == "pass":
            await self.net.passes(self.chance.choice([0.1, 1.0, 35.0]))
        elif name == "settle":
            await self.net.settles()
        else:
            {"cut": relay.cut, "stall": relay.flowing.clear, "go": relay.flowing.set, "garbage": relay.garble}[name]()
        for _ in range(self.chance.randrange(40)):
            await asyncio.sleep(0)

    async def heals(self, client: DiameterClient) -> None:
        """All is well again: the next request is answered, the first if no server was away for longer than a request waits."""
        last = Impi("last@home1.net")
        healed = asyncio.ensure_future(ask(client, last))
        await self.net.until(healed.done, step=0.1)
        if not healed.result():
            await self.net.until(client.connected, step=0.1)
            assert await ask(client, last) == last

    async def close(self) -> None:
        await self.net.aclose()
        for relay in self.relays:
            await relay.close()
        await asyncio.sleep(0)


async def suffer(faults: Sequence[str], seed: int, servers: int) -> None:
    suffering = Suffering(seed)
    client = await suffering.start(servers)
    for fault in faults:
        await suffering.fault(fault, client)
    for relay in suffering.relays:
        relay.flowing.set()
    await suffering.net.until(lambda: all(task.done() for task in suffering.tasks), step=0.1)
    for user, task in zip(suffering.users, suffering.tasks, strict=True):
        assert task.result() in (user, "")
    for handler in suffering.handlers:
        assert max(handler.done.values(), default=0) <= 1  # one server does nothing twice
    assert not client._exchanges
    assert all(not connection.waiting for connection in client._of_connection)
    await suffering.heals(client)
    await suffering.close()


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.sampled_from(FAULTS), min_size=3, max_size=25), st.integers(0, 1 << 16), st.integers(1, 2))
def test_whatever_breaks_no_request_hangs_or_is_done_twice(faults: list[str], seed: int, servers: int) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await suffer(["ask", *faults], seed, servers)

    asyncio.run(bounded())
