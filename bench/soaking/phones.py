# SPDX-License-Identifier: Apache-2.0
"""UEs over UDP that register, register again and de-register, and remember what they were told (RFC 3261 §17.1.2)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import re
import socket
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import NamedTuple

from keyferry.errors import KeyferryError, ParseError
from keyferry.lab.bench_register import HOME, Card, card
from keyferry.lab.bench_register_load import RECEIVE_BUFFER
from keyferry.protocol.aka import Usim
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import parse_aka_nonce
from keyferry.protocol.identity import AsId, KeyId
from keyferry.protocol.ims.keys import application_master_key, as_key, key_id
from keyferry.protocol.ims.marker import parse_marker

AS_ID = AsId(f"xcap.{HOME}")
T1, T2 = 0.5, 4.0  # seconds (RFC 3261 §17.1.2.2)
TIMER_F = 64 * T1
TICK = 0.01  # seconds between two looks at what is due
MAX_CHALLENGES = 4  # in one registration: a restart forgets those that wait
EXPIRES = 600_000
RETRY = 0.5  # seconds until a UE that failed begins anew, besides what a 503 told it to wait

_BRANCH = re.compile(rb"branch=z9hG4bKso([0-9a-f]{8})")
_NONCE = re.compile(rb'nonce="([A-Za-z0-9+/=]+)"')
_RETRY_AFTER = re.compile(rb"\r\nRetry-After: *([0-9]{1,3})")
_RSPAUTH = re.compile(rb'rspauth="([0-9a-f]{32})"')


@dataclass(slots=True)
class Phone:
    """One UE, and what the network last told it."""

    card: Card
    usim: Usim
    call_id: str
    contact: str
    cseq: int = 0
    registered: bool = False
    sure: bool = True  # false from an attempt without a final 2xx until the next one
    since: float = 0.0  # monotonic, of the last 2xx
    k_m: Secret | None = None
    key: KeyId | None = None
    old: KeyId | None = None  # the key that a de-registration ended
    busy: bool = False


@dataclass(slots=True)
class Attempt:
    """A registration, or its end, under way."""

    phone: Phone
    leaves: bool
    began: float
    sure: bool  # what the phone was when it began
    data: bytes = b""
    sent: float = 0.0  # the first time
    interval: float = T1
    challenges: int = 0
    nonce: str = ""
    rspauth: bytes = b""
    k_m: Secret | None = None


class Failure(NamedTuple):
    """An attempt that did not end with 2xx."""

    began: float  # monotonic
    ended: float
    why: str


@dataclass(slots=True)
class Tally:
    """What was counted since the last look."""

    begun: int = 0
    registered: int = 0
    left: int = 0
    resent: int = 0
    again_challenged: int = 0
    latencies: list[float] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


class Load:
    """Keep a rate of registrations, or a number of them under way."""

    def __init__(self, target: tuple[str, int], count: int, random: Random, *, leave: float = 0.0) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.bind(("127.0.0.1", 0))
        self._target = target
        self._port: int = self._socket.getsockname()[1]
        self._random, self._leave, self._loss = random, leave, 0.0
        self._numbers = itertools.count(1)
        self._under: dict[bytes, Attempt] = {}
        self._timers: list[tuple[float, bytes]] = []
        self._later: list[tuple[float, int, Phone]] = []
        self.phones = [self._phone(number) for number in range(count)]
        self._idle = deque(self.phones)
        self.tally = Tally()
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    @property
    def under_way(self) -> int:
        """Return the number of attempts without an end so far."""
        return len(self._under)

    def lose(self, share: float) -> None:
        """Lose that share of the datagrams from now on, both ways."""
        self._loss = share

    def close(self) -> None:
        """Close the socket."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def take(self) -> Tally:
        """Return what was counted, and count anew."""
        tally, self.tally = self.tally, Tally()
        return tally

    async def everybody(self, in_flight: int) -> None:
        """Register each UE once."""
        for phone in self.phones:
            while len(self._under) >= in_flight:
                await self._tick()
            self._idle.remove(phone)
            self._begin(phone)
        await self.drain()

    async def closed(self, seconds: float, in_flight: int) -> None:
        """Keep a number of attempts under way: what the network can do."""
        until = monotonic() + seconds
        while monotonic() < until:
            while len(self._under) < in_flight and self._idle:
                self._begin(self._idle.popleft())
            await self._tick(0.001)
        await self.drain()

    async def open(self, rate: float, ended: asyncio.Event) -> None:
        """Begin so many attempts a second, evenly, whatever the network does, until told to stop."""
        start, begun = monotonic(), 0
        while not ended.is_set():
            due = int((monotonic() - start) * rate)
            while begun < due:
                begun += 1
                if self._idle:
                    self._begin(self._idle.popleft())
            await self._tick()

    async def drain(self) -> None:
        """Wait until every attempt has ended, and begin those anew that failed."""
        while self._under or self._later:
            await self._tick()

    @contextlib.contextmanager
    def held(self, phone: Phone) -> Iterator[None]:
        """Keep a UE from beginning anything. Only for one that is not busy."""
        phone.busy = True
        self._idle.remove(phone)
        try:
            yield
        finally:
            phone.busy = False
            self._idle.append(phone)

    async def _tick(self, seconds: float = TICK) -> None:
        await asyncio.sleep(seconds)
        now = monotonic()
        while self._later and self._later[0][0] <= now:
            self._begin(heapq.heappop(self._later)[2])
        while self._timers and self._timers[0][0] <= now:
            self._due(heapq.heappop(self._timers)[1], now)

    def _due(self, branch: bytes, now: float) -> None:
        attempt = self._under.get(branch)
        if attempt is None:
            return
        if now - attempt.sent >= TIMER_F:
            del self._under[branch]
            self._failed(attempt, "no answer")
            return
        self.tally.resent += 1
        self._transmit(attempt.data)
        attempt.interval = min(2 * attempt.interval, T2)
        heapq.heappush(self._timers, (now + attempt.interval, branch))

    def _phone(self, number: int) -> Phone:
        one = card(number)
        contact = (
            f'<sip:user{number}_public1@127.0.0.1:{self._port}>;+sip.instance="<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, one.impi)}>"'
            ';+g.keyferry.release="6"'
        )
        return Phone(one, Usim(Milenage(one.k, one.opc)), hashlib.sha256(one.impi.encode()).hexdigest()[:24], contact)

    def _begin(self, phone: Phone) -> None:
        self.tally.begun += 1
        phone.busy = True
        leaves = phone.registered and phone.sure and self._random.random() < self._leave
        attempt = Attempt(phone, leaves, monotonic(), phone.sure)
        if leaves:
            phone.sure = False
        self._send(attempt, f'Digest username="{phone.card.impi}", realm="{HOME}", nonce="", uri="sip:{HOME}", response=""')

    def _send(self, attempt: Attempt, authorization: str) -> None:
        phone, branch = attempt.phone, b"%08x" % next(self._numbers)
        phone.cseq += 1
        impu = phone.card.impu
        attempt.data = (
            f"REGISTER sip:{HOME} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{self._port};rport;branch=z9hG4bKso{branch.decode()}\r\n"
            f"Max-Forwards: 70\r\nFrom: <{impu}>;tag={branch.decode()}\r\nTo: <{impu}>\r\nCall-ID: {phone.call_id}\r\n"
            f"CSeq: {phone.cseq} REGISTER\r\nContact: {phone.contact}\r\nExpires: {0 if attempt.leaves else EXPIRES}\r\n"
            f"Authorization: {authorization}\r\nSupported: path\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        attempt.sent, attempt.interval = monotonic(), T1
        self._under[branch] = attempt
        heapq.heappush(self._timers, (attempt.sent + T1, branch))
        self._transmit(attempt.data)

    def _transmit(self, data: bytes) -> None:
        if self._loss and self._random.random() < self._loss:
            return
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):  # sent again when its time comes
            self._socket.sendto(data, self._target)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                data = self._socket.recv(65_536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            branch = _BRANCH.search(data)
            if branch is None or (self._loss and self._random.random() < self._loss) or data[8:9] == b"1":
                continue
            attempt = self._under.pop(branch[1], None)
            if attempt is not None:
                self._answered(attempt, data)

    def _answered(self, attempt: Attempt, data: bytes) -> None:
        status = data[8:11].decode("latin-1")
        self.tally.statuses[status] += 1
        if status == "401":
            try:
                self._answer(attempt, data)
            except KeyferryError as problem:
                self._failed(attempt, f"{type(problem).__name__}: {problem}")
        elif status == "200" and attempt.nonce:
            proof = _RSPAUTH.search(data)
            if attempt.leaves or (proof and proof[1] == attempt.rspauth):
                self._done(attempt)
            else:
                self._failed(attempt, "rspauth is wrong")
        else:
            later = _RETRY_AFTER.search(data)
            self._failed(attempt, data.split(b"\r\n", 1)[0][:60].decode("latin-1"), RETRY + (float(later[1]) if later else 0.0))

    def _answer(self, attempt: Attempt, data: bytes) -> None:
        """Run AKA as the ISIM does, AUTN checked, and send the second REGISTER."""
        found = _NONCE.search(data)
        if found is None or found[1].decode() == attempt.nonce:
            raise ParseError("WWW-Authenticate", "the answer was not taken")
        attempt.challenges += 1
        self.tally.again_challenged += attempt.challenges > 1
        if attempt.challenges > MAX_CHALLENGES:
            raise ParseError("WWW-Authenticate", "challenged again and again")
        attempt.nonce = nonce = found[1].decode()
        rand, autn, server_data = parse_aka_nonce(nonce)
        marker = parse_marker(server_data)
        if marker is None or not marker.complete:
            raise ParseError("WWW-Authenticate", "no complete release marker")
        phone = attempt.phone
        answer = phone.usim.authenticate(rand, autn)
        attempt.k_m = application_master_key(answer.ck, answer.ik, rand, phone.card.impi)
        cnonce = hashlib.sha256(rand).hexdigest()[:32]
        ha1 = _md5(b"%b:%b:%b" % (phone.card.impi.encode(), HOME.encode(), answer.res.reveal()))
        middle = f"{ha1}:{nonce}:00000001:{cnonce}:auth:"
        attempt.rspauth = _md5(f"{middle}{_A2_BACK}".encode()).encode()
        self._send(
            attempt,
            f'Digest username="{phone.card.impi}", realm="{HOME}", nonce="{nonce}", uri="sip:{HOME}", '
            f'response="{_md5(f"{middle}{_A2}".encode())}", algorithm=AKAv1-MD5, qop=auth, nc=00000001, cnonce="{cnonce}"',
        )

    def _done(self, attempt: Attempt) -> None:
        phone, now = attempt.phone, monotonic()
        phone.since, phone.sure, phone.registered = now, True, not attempt.leaves
        if attempt.leaves:
            self.tally.left += 1
            phone.old, phone.key, phone.k_m = phone.key, None, None
        elif attempt.k_m is not None:
            self.tally.registered += 1
            phone.k_m, phone.key = attempt.k_m, key_id(as_key(attempt.k_m, AS_ID), HOME)
        self.tally.latencies.append(now - attempt.began)
        phone.busy = False
        self._idle.append(phone)

    def _failed(self, attempt: Attempt, why: str, retry: float = RETRY) -> None:
        now = monotonic()
        self.tally.failures.append(Failure(attempt.began, now, why))
        attempt.phone.sure = attempt.sure and not attempt.nonce  # without an answer to a challenge nothing has changed
        heapq.heappush(self._later, (now + retry, next(self._numbers), attempt.phone))


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


_A2 = _md5(f"REGISTER:sip:{HOME}".encode())
_A2_BACK = _md5(f":sip:{HOME}".encode())
