# SPDX-License-Identifier: Apache-2.0
"""The load of the registration benchmark: UEs behind an I-CSCF (or before a P-CSCF), and application servers that answer pushes."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import socket
import uuid
from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, cast

from keyferry.errors import KeyferryError, ParseError
from keyferry.lab.bench_register import HOME, Card, card
from keyferry.lab.bench_worker import Link, usage
from keyferry.protocol.aka import Usim
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.digest import parse_aka_nonce
from keyferry.protocol.sip.framing import StreamFramer
from keyferry.transports.sip_node import bind_alike

DRAIN = 64  # datagrams read at a wake-up
T1 = 0.5  # seconds until a REGISTER is sent again (RFC 3261 §17.1.2.2)
GIVE_UP = 8.0  # seconds without an answer, then it is an error
RECEIVE_BUFFER = 4 * 1024 * 1024
EXPIRES = 600_000
MAX_ERRORS = 500  # in one burst; beyond, nothing new begins: 8 s for each of thousands would be an hour

_BRANCH = re.compile(rb"branch=z9hG4bKkf([0-9a-f]{8})")
_NONCE = re.compile(rb'nonce="([A-Za-z0-9+/=]+)"')
_RSPAUTH = re.compile(rb'rspauth="([0-9a-f]{32})"')
_ECHOED = (b"via:", b"from:", b"call-id:", b"cseq:")


class Order(NamedTuple):
    """One burst of load."""

    in_flight: int
    seconds: float | None  # None: each subscriber once


class Burst(NamedTuple):
    """What one burst did."""

    done: int
    errors: int
    seconds: float
    p50: float  # seconds from the first octet sent to the last received
    p99: float
    cpu: float  # seconds that the load itself took
    pushes: int = 0
    pushes_tcp: int = 0
    retransmissions: int = 0
    problems: tuple[str, ...] = ()  # the first few, for people


class RegisterLoad(NamedTuple):
    """What the load shall be."""

    subscribers: int
    as_count: int
    behind_icscf: bool  # REGISTERs as an I-CSCF forwards them, else as a UE sends them
    pause: float = 0.0  # seconds between a challenge and its answer, as a card takes them


@dataclass(slots=True)
class Phone:
    """One UE with its ISIM."""

    card: Card
    usim: Usim
    call_id: str
    contact: str
    cseq: int = 0


@dataclass(slots=True)
class Under:
    """A REGISTER that waits for its answer."""

    phone: Phone
    began: float
    data: bytes
    rspauth: bytes = b""  # expected; empty while a challenge is
    sent: float = 0.0


@dataclass(slots=True)
class Tally:
    """What is counted during one burst."""

    began: float
    until: float
    left: int  # registrations that may still begin
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    retransmissions: int = 0
    problems: list[str] = field(default_factory=list)


class Registrars:
    """Keep a number of registrations under way, each subscriber in turn."""

    def __init__(self, load: RegisterLoad, target: tuple[str, int], *, t1: float = T1) -> None:
        self._t1 = t1
        self._loop = asyncio.get_running_loop()
        self._socket = udp_socket()
        self._socket.connect(target)
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self.address = self._socket.getsockname()
        self._behind_icscf = load.behind_icscf
        self._idle: deque[Phone] = deque(self._phone(number) for number in range(load.subscribers))
        self._under: dict[bytes, Under] = {}
        self._pause = load.pause
        self._pausing = 0  # challenged, and not answered yet
        self._numbers = itertools.count(1)
        self._tally = Tally(0.0, 0.0, 0)
        self._ended = asyncio.Event()

    async def run(self, order: Order) -> Tally:
        """Run one burst to its end."""
        now = perf_counter()
        self._ended.clear()
        self._tally = Tally(now, now + (order.seconds or 1e9), len(self._idle) if order.seconds is None else 1 << 60)
        for _ in range(order.in_flight):
            self._begin()
        while self._under or self._pausing:
            try:
                async with asyncio.timeout(self._t1 / 4):
                    await self._ended.wait()
            except TimeoutError:
                self._overdue()
        return self._tally

    def close(self) -> None:
        """Close the socket."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _phone(self, number: int) -> Phone:
        one = card(number)
        instance = uuid.uuid5(uuid.NAMESPACE_URL, one.impi)
        contact = f'<sip:user{number}_public1@127.0.0.1:{self.address[1]}>;+sip.instance="<urn:uuid:{instance}>";+g.keyferry.release="6"'
        return Phone(one, Usim(Milenage(one.k, one.opc)), hashlib.sha256(one.impi.encode()).hexdigest()[:24], contact)

    def _begin(self) -> None:
        now = perf_counter()
        if self._idle and now < self._tally.until and self._tally.left > 0 and self._tally.errors < MAX_ERRORS:
            self._tally.left -= 1
            phone = self._idle.popleft()
            self._send(phone, now, b"", f'Digest username="{phone.card.impi}", realm="{HOME}", nonce="", uri="sip:{HOME}", response=""')
        elif not self._under and not self._pausing:
            self._ended.set()

    def _send(self, phone: Phone, began: float, rspauth: bytes, authorization: str) -> None:
        branch = b"%08x" % next(self._numbers)
        phone.cseq += 1
        build = self._from_icscf if self._behind_icscf else self._from_ue
        under = Under(phone, began, build(phone, branch.decode(), authorization).encode(), rspauth, perf_counter())
        self._under[branch] = under
        self._transmit(under)

    def _transmit(self, under: Under) -> None:
        try:
            self._socket.send(under.data)
        except (BlockingIOError, ConnectionRefusedError):
            return  # sent again when its time comes

    def _from_ue(self, phone: Phone, branch: str, authorization: str) -> str:
        impu, port = phone.card.impu, self.address[1]
        return (
            f"REGISTER sip:{HOME} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{port};rport;branch=z9hG4bKkf{branch}\r\nMax-Forwards: 70\r\n"
            f"From: <{impu}>;tag={branch}\r\nTo: <{impu}>\r\nCall-ID: {phone.call_id}\r\nCSeq: {phone.cseq} REGISTER\r\n"
            f"Contact: {phone.contact}\r\nExpires: {EXPIRES}\r\nAuthorization: {authorization}\r\n"
            "Supported: path\r\nContent-Length: 0\r\n\r\n"
        )

    def _from_icscf(self, phone: Phone, branch: str, authorization: str) -> str:
        """As the demonstration's I-CSCF sends it: three Via, Path, charging and network headers."""
        impu, port = phone.card.impu, self.address[1]
        return (
            f"REGISTER sip:scscf1.{HOME} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{port};rport;branch=z9hG4bKkf{branch}\r\n"
            f"Via: SIP/2.0/UDP 127.0.0.1:{port};rport={port};branch=z9hG4bKp0fb23f60dcc8e2ed{branch};received=127.0.0.1\r\n"
            f"Via: SIP/2.0/UDP 127.0.0.1:{port};rport={port};branch=z9hG4bKu3ac8bdb21d402d66{branch};received=127.0.0.1\r\n"
            "Max-Forwards: 68\r\n"
            f"From: <{impu}>;tag={branch}\r\nTo: <{impu}>\r\nCall-ID: {phone.call_id}\r\nCSeq: {phone.cseq} REGISTER\r\n"
            f'Contact: {phone.contact}\r\nExpires: {EXPIRES}\r\nAuthorization: {authorization}, integrity-protected="no"\r\n'
            f'Supported: path\r\nRequire: path\r\nPath: <sip:pcscf1.{HOME};lr>\r\nP-Visited-Network-ID: "{HOME}"\r\n'
            f'P-Charging-Vector: icid-value="58421833954f32c862677aee{branch}"\r\nContent-Length: 0\r\n\r\n'
        )

    def _readable(self) -> None:
        for _ in range(DRAIN):
            try:
                data = self._socket.recv(65_536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            branch = _BRANCH.search(data)
            under = self._under.pop(branch[1], None) if branch else None
            if under is not None:
                self._answered(under, data)

    def _answered(self, under: Under, data: bytes) -> None:
        status = data[8:11]
        if status == b"401" and not under.rspauth:
            self._challenged(under, data)
        elif status == b"200" and under.rspauth:
            proof = _RSPAUTH.search(data)
            self._over(under, "" if proof and proof[1] == under.rspauth else "rspauth is wrong")
        else:
            self._over(under, data.split(b"\r\n", 1)[0][:60].decode("latin-1"))

    def _challenged(self, under: Under, data: bytes) -> None:
        if self._pause:
            self._pausing += 1
            self._loop.call_later(self._pause, self._pause_over, under, data)
        else:
            self._try_to_answer(under, data)

    def _pause_over(self, under: Under, data: bytes) -> None:
        self._pausing -= 1
        self._try_to_answer(under, data)

    def _try_to_answer(self, under: Under, data: bytes) -> None:
        try:
            self._answer(under, data)
        except KeyferryError as problem:
            self._over(under, f"{type(problem).__name__}: {problem}")

    def _answer(self, under: Under, data: bytes) -> None:
        """Run AKA as the ISIM does, AUTN checked, and send the second REGISTER."""
        found = _NONCE.search(data)
        if found is None:
            raise ParseError("WWW-Authenticate", "no nonce")
        nonce = found[1].decode()
        rand, autn, _ = parse_aka_nonce(nonce)
        res = under.phone.usim.authenticate(rand, autn).res.reveal()
        impi = under.phone.card.impi
        cnonce = hashlib.sha256(rand).hexdigest()[:32]
        ha1 = _md5(b"%b:%b:%b" % (impi.encode(), HOME.encode(), res))
        middle = f"{ha1}:{nonce}:00000001:{cnonce}:auth:"
        response = _md5(f"{middle}{_A2}".encode())
        rspauth = _md5(f"{middle}{_A2_BACK}".encode())
        text = (
            f'Digest username="{impi}", realm="{HOME}", nonce="{nonce}", uri="sip:{HOME}", response="{response}", algorithm=AKAv1-MD5, '
            f'qop=auth, nc=00000001, cnonce="{cnonce}"'
        )
        self._send(under.phone, under.began, rspauth.encode(), text)

    def _over(self, under: Under, problem: str) -> None:
        if problem:
            self._tally.errors += 1
            if len(self._tally.problems) < 5:
                self._tally.problems.append(problem)
        else:
            self._tally.latencies.append(perf_counter() - under.began)
        self._idle.append(under.phone)
        self._begin()

    def _overdue(self) -> None:
        now = perf_counter()
        for branch, under in list(self._under.items()):
            if now - under.began > GIVE_UP:
                del self._under[branch]
                self._over(under, "no answer")
            elif now - under.sent > self._t1:
                under.sent = now
                self._tally.retransmissions += 1
                self._transmit(under)


class AnsweringAs:
    """An application server that answers every push with 200, over UDP and TCP on one port."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        (_, self._socket), (_, self._listener) = bind_alike("127.0.0.1", 0, ("UDP", "TCP"))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.address: tuple[str, int] = self._socket.getsockname()
        self._tcp: asyncio.Server | None = None
        self.pushes = 0
        self.pushes_tcp = 0

    async def listen(self) -> None:
        """Begin."""
        self._loop.add_reader(self._socket.fileno(), self._readable)
        self._tcp = await self._loop.create_server(lambda: _AsStream(self), sock=self._listener)

    def close(self) -> None:
        """End."""
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._tcp is None:
            self._listener.close()
        else:
            self._tcp.close()

    def _readable(self) -> None:
        for _ in range(DRAIN):
            try:
                data, address = self._socket.recvfrom(65_536)
                self.pushes += 1
                self._socket.sendto(ok(data), address)
            except (BlockingIOError, ConnectionRefusedError):
                return


class _AsStream(asyncio.Protocol):
    def __init__(self, server: AnsweringAs) -> None:
        self._server = server
        self._framer = StreamFramer()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        for message in self._framer.feed(data):
            self._server.pushes += 1
            self._server.pushes_tcp += 1
            if self._transport is not None:
                self._transport.write(ok(message))


async def load_registrations(link: Link, load: RegisterLoad) -> None:
    """Tell the addresses of the application servers, take the one of the registrar, then run bursts."""
    servers = [AnsweringAs() for _ in range(load.as_count)]
    for server in servers:
        await server.listen()
    link.send(tuple(f"{host}:{port}" for host, port in (server.address for server in servers)))
    registrars = Registrars(load, await link.receive())
    link.send(None)
    try:
        while isinstance(order := await link.receive(), Order):
            before, pushes = usage(), sum(server.pushes for server in servers)
            pushes_tcp = sum(server.pushes_tcp for server in servers)
            began = perf_counter()
            tally = await registrars.run(order)
            seconds = perf_counter() - began
            after = usage()
            cpu = after.cpu_user + after.cpu_system - before.cpu_user - before.cpu_system
            burst = Burst(
                len(tally.latencies), tally.errors, seconds, *quantiles(tally.latencies), cpu, sum(one.pushes for one in servers) - pushes,
                sum(one.pushes_tcp for one in servers) - pushes_tcp, tally.retransmissions, tuple(tally.problems),
            )  # fmt: skip
            link.send(burst)
    finally:
        registrars.close()
        for server in servers:
            server.close()


def ok(request: bytes) -> bytes:
    """Return the 200 that a request gets (RFC 3261 §8.2.6.2)."""
    head, _, _ = request.partition(b"\r\n\r\n")
    lines = [b"SIP/2.0 200 OK"]
    for line in head.split(b"\r\n")[1:]:
        name = line[:8].lower()
        if name.startswith(_ECHOED):
            lines.append(line)
        elif name.startswith(b"to:"):
            lines.append(line + b";tag=as")
    return b"\r\n".join(lines) + b"\r\nContent-Length: 0\r\n\r\n"


def quantiles(latencies: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile, 0 if there is none."""
    if not latencies:
        return 0.0, 0.0
    latencies.sort()
    return latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]


def udp_socket() -> socket.socket:
    """Return a socket on a free port of the loopback with a large receive buffer."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.bind(("127.0.0.1", 0))
    return sock


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


_A2 = _md5(f"REGISTER:sip:{HOME}".encode())
_A2_BACK = _md5(f":sip:{HOME}".encode())
