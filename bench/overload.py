# SPDX-License-Identifier: Apache-2.0
"""Offer a registrar more than it can do, and measure what it still gets done (DESIGN: goodput at twice the capacity).

    python bench/overload.py                                        a SipNode whose handler costs a fixed time
    python bench/overload.py --server scscf                         a real S-CSCF with its HSS and store, keys pushed to nobody
    python bench/overload.py --server scscf --server kamailio       and Kamailio's plain registrar (MD5, memory) beside it
    python bench/overload.py --server scscf --control off --json    without overload control, a JSON line a row

A server is a process of its own, the load this one; they talk over loopback UDP. First the capacity is measured: registrations a second
with as many under way as keep the server busy. Then registrations begin at a multiple of it, evenly spaced, whatever the server does;
a REGISTER without an answer is sent again after T1, doubled each time, and one refused with 503 is not. Several servers take turns at each
multiple. Where the load has less than a tenth of its processor left, it and not the server is the limit: the row says so.

Kamailio does less for a registration (no AKA, no disk, no keys): its figures are beside ours for the shape, not for the height.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import heapq
import itertools
import json
import multiprocessing
import re
import select
import signal
import socket
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Literal, NamedTuple, Protocol

import uvloop

from kamailio import PASSWORD, KamailioMissing, kamailio
from keyferry.config import Config, Network, Scscf
from keyferry.lab.bench_register import HOME, Card, card
from keyferry.ports import SipPeer, SubscribedImpu, Subscriber
from keyferry.protocol.aka import Usim
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.digest import parse_aka_nonce
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.sip.overload import OverloadPolicy
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Role
from keyferry.wiring.serving import spare_the_collector
from keyferry.wiring.system import System

T1 = 0.5  # seconds (RFC 3261 §17.1.2.2)
GIVE_UP = 8.0  # seconds without an answer, then a registration failed
FACTORS = (0.5, 1.0, 2.0, 4.0)
BUFFER = 4 * 1024 * 1024  # octets
WARM_UP = 1.0  # seconds of each run that are not counted
LOAD_LIMIT = 0.9  # of a processor; above, the load and not the server is what is measured

Kind = Literal["fixed", "scscf", "kamailio"]
Credentials = Literal["none", "aka", "md5"]
IN_FLIGHT: dict[Kind, int] = {"fixed": 32, "scscf": 32, "kamailio": 64}  # registrations under way while the capacity is measured
CREDENTIALS: dict[Kind, Credentials] = {"fixed": "none", "scscf": "aka", "kamailio": "md5"}

_BRANCH = re.compile(rb"branch=z9hG4bKov([0-9a-f]{8})")
_NONCE = re.compile(rb'nonce="([^"]*)"')


# ---- the server


def serve(link: Connection, kind: str, control: bool, subscribers: int, first_us: int, second_us: int) -> None:
    """Serve until told to stop; tell the port first, then counters."""
    policy = OverloadPolicy() if control else None
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as `keyferry serve` does
        if kind == "scscf":
            runner.run(serve_scscf(link, control, subscribers))
        else:
            runner.run(serve_fixed(link, policy, first_us * 1e-6, second_us * 1e-6))


async def serve_fixed(link: Connection, policy: OverloadPolicy | None, first: float, second: float) -> None:
    """Answer the first REGISTER of a registration with 401 and the second with 200, each after so many seconds of work."""
    metrics = Metrics()
    nonces = itertools.count()  # who answers a nonce that another has answered is refused under load

    async def handle(request: Request, _: SipPeer) -> Response:
        answers = 'response="0' in (request.get("Authorization") or "")
        until = perf_counter() + (second if answers else first)
        while perf_counter() < until:
            pass
        if answers:
            return make_response(request, 200)
        return make_response(request, 401, headers=(("WWW-Authenticate", f'Digest realm="{HOME}", nonce="{next(nonces):048}"'),))

    node = SipNode(
        name="bench", clock=SystemClock(), random=SystemRandom(), log=StructLog("none"), handler=handle, counter=metrics, overload=policy
    )
    listening = await node.listen("127.0.0.1", 0)
    link.send(listening[0].port)
    await answer(link, metrics)
    await node.aclose()


async def serve_scscf(link: Connection, control: bool, subscribers: int) -> None:
    """Run the S-CSCF and the HSS of `keyferry serve`."""
    random, metrics = SystemRandom(), Metrics()
    overload: Literal["on", "off"] = "on" if control else "off"
    config = Config(network=Network(home_domain=HOME, overload=overload), scscf=Scscf(listen="127.0.0.1:0"))
    with tempfile.TemporaryDirectory() as folder, open_state(Path(folder) / "state", random=random, exclusive=True) as state:
        roles: tuple[Role, ...] = ("scscf",)
        system = System(config, state, SystemClock(), random, StructLog("none"), metrics, roles)
        try:
            port = next(one.port for one in await system.start() if one.proto == "udp")
            store = system.subscribers
            assert store is not None  # noqa: S101 - the HSS is in this process
            for start in range(0, subscribers, 500):
                await asyncio.gather(*(store.add(subscriber(number)) for number in range(start, min(start + 500, subscribers))))
            spare_the_collector()
            link.send(port)
            await answer(link, metrics)
        finally:
            await system.stop()


def subscriber(number: int) -> Subscriber:
    """Return what the HSS stores of a card."""
    one = card(number)
    return Subscriber(one.impi, (SubscribedImpu(one.impu, barred=False),), "milenage", one.k, one.opc, b"\x80\x00")


async def answer(link: Connection, metrics: Metrics) -> None:
    """Tell the processor time used, as often as asked, and at the end the counters."""
    while await asyncio.get_running_loop().run_in_executor(None, link.recv) != "stop":
        link.send(process_time())
    link.send({"shed": metrics.value("sip_shed", "initial"), "full": metrics.value("sip_dropped", "overload")})


class Server(Protocol):
    """What is measured."""

    port: int

    def cpu(self) -> float:
        """Return the processor time used so far, seconds."""


class Ours:
    """One of ours, in a process of its own."""

    def __init__(self, port: int, link: Connection) -> None:
        self.port = port
        self._link = link

    def cpu(self) -> float:
        """Ask it for the processor time that it used, seconds."""
        self._link.send("cpu")
        used: float = self._link.recv()
        return used


@contextlib.contextmanager
def running(kind: Kind, options: argparse.Namespace) -> Iterator[Server]:
    """Run a server for as long as the block lasts. Raises KamailioMissing."""
    if kind == "kamailio":
        with kamailio(options.kamailio_workers) as peer:
            yield peer
        return
    here, there = multiprocessing.Pipe()
    settings = (there, kind, options.control == "on", options.phones, options.first_us, options.second_us)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=settings, daemon=True)
    process.start()
    try:
        yield Ours(here.recv(), here)
        here.send("stop")
        sys.stderr.write(f"{kind}: {here.recv()}\n")
        process.join(10)
    finally:
        process.kill()
        process.join()


# ---- the load


class Phone(NamedTuple):
    """One UE."""

    card: Card
    usim: Usim
    call_id: str


@dataclass(slots=True)
class Waiting:
    """A REGISTER without an answer so far."""

    phone: Phone
    began: float  # when the registration did
    data: bytes
    challenged: bool
    interval: float = T1


@dataclass(slots=True)
class Outcome:
    """What one run did."""

    offered: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)  # when it ended, how long it took
    refused: int = 0
    failed: int = 0
    resent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)  # of those that failed with an answer


class Load:
    """Begin registrations, answer challenges, send again what got no answer."""

    def __init__(self, port: int, phones: int, credentials: Credentials) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._port = self._socket.getsockname()[1]
        self._kind = credentials
        self._idle = deque(self._phone(number) for number in range(phones))
        self._waiting: dict[bytes, Waiting] = {}
        self._timers: list[tuple[float, bytes]] = []
        self._sent = 0
        self.outcome = Outcome()

    def run(self, seconds: float, due: Callable[[float, int], int], over: Callable[[], None]) -> Outcome:
        """Begin, at each moment, as many registrations as `due` of (seconds since the start, under way) says; then wait for the last.

        `over` is called when the last has begun.
        """
        self.outcome = Outcome()
        start, beginning = perf_counter(), True
        while (now := perf_counter()) < start + seconds or (self._waiting and now < start + seconds + GIVE_UP):
            if now < start + seconds:
                for _ in range(min(due(now - start, len(self._waiting)), 64, len(self._idle))):
                    self._begin()
            elif beginning:
                beginning = False
                over()
            busy = self._receive()
            self._resend(perf_counter())
            if not busy:
                select.select([self._socket], [], [], 0.0005)
        if beginning:
            over()
        self.outcome.failed += len(self._waiting)
        self._idle.extend(one.phone for one in self._waiting.values())
        self._waiting.clear()
        self._timers.clear()
        return self.outcome

    @staticmethod
    def _phone(number: int) -> Phone:
        one = card(number)
        return Phone(one, Usim(Milenage(one.k, one.opc)), hashlib.sha256(one.impi.encode()).hexdigest()[:24])

    def _begin(self) -> None:
        self.outcome.offered += 1
        phone = self._idle.popleft()
        self._send(phone, perf_counter(), f'nonce="", uri="sip:{HOME}", response=""', challenged=False)

    def _send(self, phone: Phone, began: float, credentials: str, *, challenged: bool) -> None:
        self._sent += 1
        branch, impu = f"{self._sent:08x}", phone.card.impu
        data = (
            f"REGISTER sip:scscf1.{HOME} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{self._port};rport;branch=z9hG4bKov{branch}\r\n"
            f"Via: SIP/2.0/UDP 127.0.0.1:5060;rport=5060;branch=z9hG4bKp0fb23f60dcc8e2ed{branch};received=127.0.0.1\r\n"
            f"Via: SIP/2.0/UDP 127.0.0.1:5070;rport=5070;branch=z9hG4bKu3ac8bdb21d402d66{branch};received=127.0.0.1\r\n"
            f"Max-Forwards: 68\r\nFrom: <{impu}>;tag={branch}\r\nTo: <{impu}>\r\n"
            f"Call-ID: {phone.call_id}\r\nCSeq: {self._sent} REGISTER\r\n"
            f'Contact: <sip:127.0.0.1:5070>;+sip.instance="<urn:uuid:{phone.call_id}>"\r\nExpires: 600000\r\n'
            f'Authorization: Digest username="{phone.card.impi}", realm="{HOME}", {credentials}, integrity-protected="no"\r\n'
            f'Supported: path\r\nRequire: path\r\nPath: <sip:pcscf1.{HOME};lr>\r\nP-Visited-Network-ID: "{HOME}"\r\n'
            f'P-Charging-Vector: icid-value="58421833954f32c862677aee{branch}"\r\nContent-Length: 0\r\n\r\n'
        ).encode()
        key = branch.encode()
        self._waiting[key] = Waiting(phone, began, data, challenged)
        heapq.heappush(self._timers, (perf_counter() + T1, key))
        self._transmit(data)

    def _transmit(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):  # sent again when its time comes
            self._socket.send(data)

    def _receive(self) -> bool:
        busy = False
        for _ in range(64):
            try:
                data = self._socket.recv(65_536)
            except (BlockingIOError, ConnectionRefusedError):
                break
            busy = True
            branch = _BRANCH.search(data)
            waiting = self._waiting.pop(branch[1], None) if branch else None
            if waiting is not None:
                self._answered(waiting, data)
        return busy

    def _answered(self, waiting: Waiting, data: bytes) -> None:
        status = int(data[8:11])
        if status == 401 and not waiting.challenged:
            self._send(waiting.phone, waiting.began, self._credentials(waiting.phone, data), challenged=True)
            return
        now = perf_counter()
        if status == 200:
            self.outcome.latencies.append((now, now - waiting.began))
        elif status == 503:
            self.outcome.refused += 1
        else:
            self.outcome.failed += 1
            self.outcome.statuses[status] += 1
        self._idle.append(waiting.phone)

    def _credentials(self, phone: Phone, data: bytes) -> str:
        found = _NONCE.search(data)
        nonce = found[1].decode() if found else ""
        if self._kind == "none":
            return f'nonce="{nonce}", uri="sip:{HOME}", response="{"0" * 32}"'
        password, algorithm = PASSWORD.encode(), "MD5"
        if self._kind == "aka":
            parts = parse_aka_nonce(nonce)
            password, algorithm = phone.usim.authenticate(parts.rand, parts.autn).res.reveal(), "AKAv1-MD5"
        ha1 = hashlib.md5(f"{phone.card.impi}:{HOME}:".encode() + password).hexdigest()  # noqa: S324 - RFC 3310
        ha2 = hashlib.md5(f"REGISTER:sip:{HOME}".encode()).hexdigest()  # noqa: S324
        response = hashlib.md5(f"{ha1}:{nonce}:{ha2}".encode()).hexdigest()  # noqa: S324
        return f'nonce="{nonce}", uri="sip:{HOME}", response="{response}", algorithm={algorithm}'

    def _resend(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, key = heapq.heappop(self._timers)
            waiting = self._waiting.get(key)
            if waiting is None:
                continue
            if now - waiting.began >= GIVE_UP:
                del self._waiting[key]
                self._idle.append(waiting.phone)
                self.outcome.failed += 1
                continue
            self.outcome.resent += 1
            self._transmit(waiting.data)
            waiting.interval = min(2 * waiting.interval, 4.0)
            heapq.heappush(self._timers, (now + waiting.interval, key))


# ---- the measurement


class Row(NamedTuple):
    """One line of the table."""

    server: Kind
    factor: float  # 0: the measurement of the capacity
    offered: float  # registrations a second
    goodput: float  # registrations a second that ended in the time in which registrations began
    ratio: float  # goodput of the capacity
    share: float  # the same, for the same processor time: on a shared machine the server does not always get its own
    p50: float  # seconds
    p99: float
    refused: int
    failed: int
    resent: int
    cpu: float  # of one processor, what the server got
    load: float  # of one processor, what the load got


class Used(NamedTuple):
    """Processor time so far, and when; seconds."""

    at: float
    server: float
    load: float


class Measured(NamedTuple):
    """A server and its load."""

    kind: Kind
    server: Server
    load: Load


def measure(one: Measured, seconds: float, factor: float, capacity: Row | None) -> Row:
    """Run once; a factor of 0 keeps as many registrations under way as IN_FLIGHT says."""
    load = one.load

    def closed(_: float, under_way: int) -> int:
        return max(0, IN_FLIGHT[one.kind] - under_way)

    def opened(elapsed: float, _: int) -> int:
        return int(elapsed * factor * (capacity.goodput if capacity else 0.0)) - load.outcome.offered

    used: list[Used] = []

    def note() -> None:
        used.append(Used(perf_counter(), one.server.cpu(), process_time()))

    note()
    begin = used[0].at
    outcome = load.run(seconds, opened if factor else closed, note)
    elapsed = used[1].at - begin
    taken = sorted(took for ended, took in outcome.latencies if ended >= begin + WARM_UP) or [0.0]
    counted = sum(1 for ended, _ in outcome.latencies if begin + WARM_UP <= ended < begin + seconds)
    goodput = counted / (seconds - WARM_UP)
    cpu = (used[1].server - used[0].server) / elapsed
    if outcome.statuses:
        sys.stderr.write(f"failed with {dict(outcome.statuses)}\n")
    ratio = goodput / capacity.goodput if capacity and capacity.goodput else 1.0
    share = ratio / cpu * capacity.cpu if capacity and cpu else 1.0
    return Row(
        one.kind, factor, outcome.offered / seconds, goodput, ratio, share, taken[len(taken) // 2],
        taken[int(len(taken) * 0.99)], outcome.refused, outcome.failed, outcome.resent, cpu,
        (used[1].load - used[0].load) / elapsed,
    )  # fmt: skip


def rows(options: argparse.Namespace, kinds: Sequence[Kind]) -> Iterator[Row]:
    """Start the servers and measure them in turn."""
    with contextlib.ExitStack() as stack:
        servers = []
        for kind in kinds:
            try:
                server = stack.enter_context(running(kind, options))
            except KamailioMissing as problem:
                sys.stderr.write(f"{problem}\n")
                continue
            servers.append(Measured(kind, server, Load(server.port, options.phones, CREDENTIALS[kind])))
        for one in servers:
            _everybody(one, options)
        for factor in options.factor or FACTORS:
            for one in servers:  # each after a measurement of its own: a shared machine does not stay the same
                capacity = measure(one, options.seconds, 0.0, None)
                yield capacity
                yield measure(one, options.seconds, factor, capacity)


def _everybody(one: Measured, options: argparse.Namespace) -> None:
    """Let every UE register once: who is new costs more, and the capacity is to be that of the load which is offered then."""
    seconds = min(3.0, options.seconds)
    done = 0.0
    while done < options.phones:
        sys.stderr.write(f"{one.kind}: warming up, {done:.0f} of {options.phones} UEs\n")
        row = measure(one, seconds, 0.0, None)
        if not row.goodput:
            break
        done += row.goodput * (seconds - WARM_UP if seconds > WARM_UP else seconds)


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("fixed", "scscf", "kamailio"), action="append", help="repeatable; default: fixed")
    parser.add_argument("--factor", type=float, action="append", help="offered load in capacities, repeatable; default: 0.5, 1, 2, 4")
    parser.add_argument("--kamailio-workers", type=int, default=1, help="one process takes what one of ours does: one processor")
    parser.add_argument("--control", choices=("on", "off"), default="on")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run")
    parser.add_argument("--phones", type=int, default=20_000)
    parser.add_argument("--first-us", type=int, default=150, help="microseconds of work of the fixed handler for a first REGISTER")
    parser.add_argument("--second-us", type=int, default=250, help="microseconds for a second one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    if not options.json:
        print("server   offered      reg/s   goodput  ratio  share    p50 ms    p99 ms   refused  failed  resent   cpu  load")
    try:
        for row in rows(options, options.server or ["fixed"]):
            print(json.dumps(row._asdict()) if options.json else line(row), flush=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return 0


def line(row: Row) -> str:
    """Return one line of the table."""
    name = f"{row.factor:g}x" if row.factor else "capacity"
    return (
        f"{row.server:8} {name:8} {row.offered:9.0f} {row.goodput:9.0f} {row.ratio:6.0%} {row.share:6.0%} {row.p50 * 1e3:9.1f}"
        f" {row.p99 * 1e3:9.1f} {row.refused:9} {row.failed:7} {row.resent:7} {row.cpu:5.0%} {row.load:5.0%}"
        f"{'  the load is the limit' if row.load > LOAD_LIMIT else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
