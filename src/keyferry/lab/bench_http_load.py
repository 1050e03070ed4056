# SPDX-License-Identifier: Apache-2.0
"""The load of the GET benchmark: keep-alive TLS connections that send one GET after the other, each answer checked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import ssl
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, cast

from keyferry.lab.bench_http import AS_ID, Doors, HttpUser, http_user, password_of
from keyferry.lab.bench_register_load import Burst, quantiles
from keyferry.lab.bench_worker import Link, usage
from keyferry.protocol.ims.keys import digest_realm

END_WAIT = 5.0  # seconds for the last answers
FIRST_WAIT = 60.0  # seconds for each user's first requests

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_NONCE = re.compile(rb'[ ,]nonce="([^"]+)"')
_NEXT_NONCE = re.compile(rb'nextnonce="([^"]+)"')
_RSPAUTH = re.compile(rb'rspauth="([0-9a-f]{64})"')


class HttpLoad(NamedTuple):
    """What the load shall be."""

    users: int
    connections: int


class HttpOrder(NamedTuple):
    """One burst of load."""

    login: bool  # at the door that asks for a key, or at the open one
    seconds: float | None  # None: each user once (and, where asked, a challenge first)
    beside: bool = False  # log in at the other door: it asks, too


@dataclass(slots=True)
class Browser:
    """One user's side of Digest."""

    user: HttpUser
    ha1: bytes
    ha2: bytes
    ha2_back: bytes
    cnonce: bytes
    nonce: bytes = b""
    count: int = 0
    rspauth: bytes = b""

    def request(self, *, login: bool) -> bytes:
        """Return a GET of the user's document, with credentials as soon as there is a nonce."""
        path = self.user.path.encode()
        head = b"GET %b HTTP/1.1\r\nHost: %b\r\nUser-Agent: keyferry-bench\r\nAccept: */*\r\n" % (path, AS_ID.encode())
        if not login or not self.nonce:
            return head + b"\r\n"
        self.count += 1
        nc = b"%08x" % self.count
        middle = b"%b:%b:%b:%b:auth:" % (self.ha1, self.nonce, nc, self.cnonce)
        response = _sha256(middle + self.ha2)
        self.rspauth = _sha256(middle + self.ha2_back)
        return b"%bAuthorization: %b\r\n\r\n" % (head, self._credentials(path, nc, response))

    def _credentials(self, path: bytes, nc: bytes, response: bytes) -> bytes:
        return b'Digest username="%b", realm="%b", nonce="%b", uri="%b", response="%b", algorithm=SHA-256, cnonce="%b", qop=auth, nc=%b' % (
            self.user.key_id.encode(),
            digest_realm(AS_ID).encode(),
            self.nonce,
            path,
            response,
            self.cnonce,
            nc,
        )

    def take(self, head: bytes, *, login: bool) -> str | None:
        """Read an answer; return what is wrong with it, None if it is only the challenge that had to come first."""
        status = head[9:12]
        if login and status == b"401" and not self.nonce:
            found = _NONCE.search(head)
            self.nonce = found[1] if found else b""
            return None if found else "no nonce"
        if status != b"200":
            return f"status {status.decode('latin-1')}"
        if not login:
            return ""
        proof = _RSPAUTH.search(head)
        following = _NEXT_NONCE.search(head)
        if following:
            self.nonce, self.count = following[1], 0
        return "" if proof and proof[1] == self.rspauth else "rspauth is wrong"


@dataclass(slots=True)
class HttpTally:
    """What is counted during one burst."""

    login: bool
    until: float
    once: bool
    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    problems: list[str] = field(default_factory=list)

    def problem(self, problem: str, count: int = 1) -> None:
        """Count an error."""
        self.errors += count
        if len(self.problems) < 5:
            self.problems.append(problem)


class Connection(asyncio.Protocol):
    """One keep-alive connection that carries the requests of some users in turn."""

    def __init__(self, browsers: list[Browser], tally: HttpTally) -> None:
        self._loop = asyncio.get_running_loop()
        self._browsers = browsers
        self._place = 0
        self._tally = tally
        self._transport: asyncio.WriteTransport | None = None
        self._parts: list[bytes] = []
        self._missing = 0  # octets of the answer, once its header is there
        self._sent_at = 0.0
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for `begin`."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none of asyncio's classes

    def begin(self) -> None:
        """Send the first request."""
        self._next()

    def data_received(self, data: bytes) -> None:
        """Collect an answer: it is over when its body is as long as its header says."""
        self._parts.append(data)
        if self._missing > 0:
            self._missing -= len(data)
            if self._missing > 0:
                return
        answer = b"".join(self._parts)
        end = answer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(answer, 0, end)
        self._missing = end + 4 + (int(length[1]) if length else 0) - len(answer)
        if self._missing > 0:
            self._parts = [answer]
            return
        self._parts.clear()
        self._missing = 0
        self._answered(answer[:end])

    def connection_lost(self, exc: Exception | None) -> None:
        """Count a connection that the server closed."""
        del exc
        if not self.ended.done():
            self._tally.problem("the server closed the connection")
            self.ended.set_result(None)

    def close(self) -> None:
        """Close the connection."""
        if not self.ended.done():
            self.ended.set_result(None)
        if self._transport is not None:
            self._transport.close()

    def _next(self) -> None:
        if perf_counter() >= self._tally.until or (self._tally.once and self._place >= len(self._browsers)) or not self._browsers:
            self.ended.set_result(None)
            return
        browser = self._browsers[self._place % len(self._browsers)]
        self._sent_at = perf_counter()
        if self._transport is not None:
            self._transport.write(browser.request(login=self._tally.login))

    def _answered(self, head: bytes) -> None:
        problem = self._browsers[self._place % len(self._browsers)].take(head, login=self._tally.login)
        if problem is not None:
            self._place += 1
            if problem:
                self._tally.problem(problem)
            else:
                self._tally.latencies.append(perf_counter() - self._sent_at)
        self._next()


async def load_documents(link: Link, load: HttpLoad) -> None:
    """Take the doors' addresses, then run bursts: connect and say so, wait for the word, run, and tell."""
    doors: Doors = await link.receive()
    context = ssl.create_default_context(cafile=doors.ca)
    certificate = base64.urlsafe_b64encode(doors.certificate).rstrip(b"=")
    shares = {}
    for beside in (False, True):  # a nonce is good at its own door
        browsers = [_browser(number, certificate) for number in range(load.users)]
        shares[beside] = [browsers[place :: load.connections] for place in range(load.connections)]
    link.send(None)
    while isinstance(order := await link.receive(), HttpOrder):
        tally = HttpTally(order.login, 0.0, once=order.seconds is None)
        address = doors.login if order.login and not order.beside else doors.open
        connections = [await _connect(share, tally, address, context) for share in shares[order.beside]]
        try:
            link.send(None)
            await link.receive()
            link.send(await _burst(order, tally, connections))
        finally:
            for connection in connections:
                connection.close()


async def _connect(share: list[Browser], tally: HttpTally, address: tuple[str, int], context: ssl.SSLContext) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(share, tally), *address, ssl=context, server_hostname=AS_ID)
    return connection


async def _burst(order: HttpOrder, tally: HttpTally, connections: list[Connection]) -> Burst:
    before, began = usage(), perf_counter()
    tally.until = began + (order.seconds or FIRST_WAIT)
    for connection in connections:
        connection.begin()
    _, late = await asyncio.wait([connection.ended for connection in connections], timeout=(order.seconds or FIRST_WAIT) + END_WAIT)
    if late:
        tally.problem("no answer", len(late))
    seconds, after = perf_counter() - began, usage()
    cpu = after.cpu_user + after.cpu_system - before.cpu_user - before.cpu_system
    return Burst(len(tally.latencies), tally.errors, seconds, *quantiles(tally.latencies), cpu, problems=tuple(tally.problems))


def _browser(number: int, certificate: bytes) -> Browser:
    user = http_user(number)
    ha1 = _sha256(b"%b:%b:%b" % (user.key_id.encode(), digest_realm(AS_ID).encode(), password_of(user)))
    chance = base64.urlsafe_b64encode(hashlib.sha256(user.impu.encode()).digest()[:16]).rstrip(b"=")
    path = user.path.encode()
    return Browser(user, ha1, _sha256(b"GET:" + path), _sha256(b":" + path), b"cb1.%b.%b" % (chance, certificate))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
