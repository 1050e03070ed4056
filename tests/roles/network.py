# SPDX-License-Identifier: Apache-2.0
"""SIP without sockets: handlers behind names, messages as octets, faults by hop; a clock, chance, a log and a counter that tests read."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from keyferry.errors import RemoteProtocolError, TransportError
from keyferry.ports import PeerCheck, SipHandler, SipPeer
from keyferry.protocol.sip.headers import Via, build_via, top_via
from keyferry.protocol.sip.message import (
    Message,
    Request,
    Response,
    build_message,
    check_request,
    make_response,
    parse_message,
    with_to_tag,
)
from keyferry.protocol.sip.uri import SipUri

START = 1_800_000_000.0
TURNS = 30  # of the event loop, after which everything in memory has come to rest


class FakeClock:
    """Tell the time a test sets, and wake who sleeps."""

    def __init__(self) -> None:
        self.time = START
        self.pauses: list[float] = []
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time - START + 1_000.0

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.time + seconds, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let time pass, and let what it wakes come to rest."""
        end = self.time + seconds
        while due := sorted((each for each in self._sleepers if each[0] <= end), key=lambda each: each[0]):
            self._sleepers.remove(due[0])
            self.time = max(self.time, due[0][0])
            if not due[0][1].done():
                due[0][1].set_result(None)
            await settle()
        self.time = end
        await settle()


async def settle() -> None:
    """Let every task run until it waits for something that only the test can give."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class SeededRandom:
    """Yield octets that never repeat and are the same in every run."""

    def __init__(self, seed: str = "") -> None:
        self._seed = seed
        self._drawn = 0

    def octets(self, count: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_128(f"{self._seed}/{self._drawn}".encode()).digest(count)


class RecordingLog:
    """Keep every event; `warnings` are the alarms."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(("warning", event, fields))

    @property
    def warnings(self) -> list[str]:
        return [event for level, event, _ in self.events if level == "warning"]

    def fields(self, event: str) -> dict[str, object]:
        """Return the fields of the last such event."""
        return next(fields for _, name, fields in reversed(self.events) if name == event)


class RecordingCounter:
    """Keep every count."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, reason: str = "") -> None:
        self.counts[name, reason] += 1

    def __getitem__(self, name: str | tuple[str, str]) -> int:
        return self.counts[(name, "") if isinstance(name, str) else name]


class Fault(Enum):
    """What happens to a request on its way."""

    NONE = auto()
    LOST = auto()  # it never arrives
    ANSWER_LOST = auto()  # it arrives, the answer does not
    DUPLICATED = auto()  # it arrives twice; the sender sees the first answer
    HELD = auto()  # its sender gives up, and it arrives when the test says so


class Sent(NamedTuple):
    """One message that went from one node to another."""

    sender: str
    receiver: str
    message: Message


@dataclass(slots=True)
class _Node:
    name: str
    peer: SipPeer
    handler: SipHandler | None


@dataclass(slots=True)
class Client:
    """The SipClient of one node."""

    network: Network
    name: str

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        pending = None if check is None else check(hop)
        if pending is not None:
            await pending
        return await self.network.carry(self.name, request, hop)


@dataclass(slots=True)
class Network:
    """Carry messages between nodes, each called by a short name for ladders and by a host name in URIs."""

    seen: list[Sent] = field(default_factory=list)
    held: list[tuple[str, str, bytes]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)  # what a handler ought not to raise
    requests: dict[tuple[str, str], Callable[[Request], Request]] = field(default_factory=dict)  # a middleman, by hop
    responses: dict[tuple[str, str], Callable[[Response], Response]] = field(default_factory=dict)  # by the request's hop
    gates: dict[str, asyncio.Event] = field(default_factory=dict)  # a node that takes its time
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _hosts: dict[str, str] = field(default_factory=dict)
    _faults: dict[str, list[Fault]] = field(default_factory=dict)
    _down: set[str] = field(default_factory=set)
    _branches: int = 0

    def attach(self, name: str, host_name: str, handler: SipHandler | None, *, address: str = "") -> Client:
        """Add a node, or exchange its handler."""
        peer = self._nodes[name].peer if name in self._nodes else SipPeer("UDP", address or f"127.0.0.{len(self._nodes) + 2}", 5060)
        self._nodes[name] = _Node(name, peer, handler)
        self._hosts[host_name] = name
        return Client(self, name)

    def resolve(self, uri: SipUri) -> SipPeer:
        """The Resolver port."""
        if uri.host not in self._hosts:
            raise TransportError(uri.host, "is not known")
        return self.peer(self._hosts[uri.host])

    def peer(self, name: str) -> SipPeer:
        return self._nodes[name].peer

    def down(self, *names: str) -> None:
        self._down.update(names)

    def up(self, *names: str) -> None:
        self._down.difference_update(names)

    def next_to(self, receiver: str, *faults: Fault) -> None:
        """Say what happens to the next requests to a node."""
        self._faults[receiver] = list(faults)

    def ladder(self) -> list[str]:
        """Return what was sent, one line a message, and forget it."""
        lines = [
            f"{each.sender} > {each.receiver} {each.message.method if isinstance(each.message, Request) else each.message.status}"
            for each in self.seen
        ]
        self.seen.clear()
        return lines

    def sent(self, sender: str, receiver: str) -> list[Message]:
        return [each.message for each in self.seen if (each.sender, each.receiver) == (sender, receiver)]

    async def release(self, place: int = 0) -> int:
        """Deliver one held request, nobody waiting for its answer any more; return the answer's status."""
        sender, receiver, data = self.held.pop(place)
        return (await self._deliver(sender, receiver, data)).status

    async def carry(self, sender: str, request: Request, hop: SipPeer) -> Response:
        receiver = next((node.name for node in self._nodes.values() if node.peer[1:] == hop[1:]), "")
        data = self._written(sender, receiver, request)
        faults = self._faults.get(receiver)
        fault = faults.pop(0) if faults else Fault.NONE
        if fault is Fault.HELD:
            self.held.append((sender, receiver, data))
        if fault in {Fault.HELD, Fault.LOST} or receiver in self._down or not receiver:
            raise TransportError(str(hop), "no answer in 32 s")
        gate = self.gates.get(receiver)
        if gate is not None:
            await gate.wait()
        response = await self._deliver(sender, receiver, data)
        if fault is Fault.DUPLICATED:
            await self._deliver(sender, receiver, data)
        if fault is Fault.ANSWER_LOST:
            raise TransportError(str(hop), "no answer in 32 s")
        return self._read(sender, receiver, response)

    def _written(self, sender: str, receiver: str, request: Request) -> bytes:
        self._branches += 1
        via = Via("UDP", self.peer(sender).host, 5060, (("rport", None), ("branch", f"z9hG4bK{self._branches}")))
        request = request.prepending("Via", build_via(via))
        if (sender, receiver) in self.requests:
            request = self.requests[sender, receiver](request)
        self.seen.append(Sent(sender, receiver, request))
        return build_message(request)

    def _read(self, sender: str, receiver: str, response: Response) -> Response:
        response = response.replacing("Via", *response.all("Via")[1:])
        changed = self.responses.get((sender, receiver))
        return response if changed is None else changed(response)

    async def _deliver(self, sender: str, receiver: str, data: bytes) -> Response:
        request, peer = parse_message(data), self.peer(sender)
        handler = self._nodes[receiver].handler
        assert isinstance(request, Request)
        assert handler is not None
        via, _ = top_via(request.get("Via") or "")
        received = build_via(via._replace(parameters=(("received", peer.host), ("rport", str(peer.port)), *via.parameters[1:])))
        request = request.replacing("Via", received, *request.all("Via")[1:])
        try:
            check_request(request)
            response = await handler(request, peer)
        except RemoteProtocolError as problem:
            response = make_response(request, problem.status)
        except Exception as problem:
            self.failures.append(problem)
            response = make_response(request, 500)
        response = with_to_tag(response, "tag")
        written = parse_message(build_message(response))
        assert isinstance(written, Response)
        self.seen.append(Sent(receiver, sender, written))
        return written
