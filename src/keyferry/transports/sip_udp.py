# SPDX-License-Identifier: Apache-2.0
"""SIP over UDP (RFC 3261 §18): a non-blocking socket and a drain loop, on any asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import deque
from typing import Any, Final, NamedTuple

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.transports.sip_context import Receiver, SipContext

DRAIN: Final = 256
"""Datagrams read per wake-up: the kernel's buffer, which drops blindly, is emptied before work begins."""
TURN: Final = 0.01
"""Seconds of work per turn of the loop: enough to hide its cost, little enough to leave others theirs."""
MAX_INBOX: Final = 2_048
"""Datagrams read and not yet worked on. Beyond it none are read, and the kernel drops: at 4,000 a second they are T1 old by then."""
MAX_INBOX_OCTETS: Final = 16 * 1024 * 1024
"""The same in octets."""
BACKLOG: Final = 256
"""Datagrams that wait while the socket's buffer is full; beyond it they are lost, as on any full link."""
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Octets asked from the kernel, for bursts; it gives what its limits allow."""


class UdpEndpoint:
    """One bound socket."""

    def __init__(self, sock: socket.socket, context: SipContext, receiver: Receiver) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        address = sock.getsockname()
        self.local = SipPeer("UDP", address[0], address[1])
        self.family = sock.family
        self._socket = sock
        self._context = context
        self._receiver = receiver
        self._backlog: deque[tuple[bytes, tuple[str, int]]] = deque()
        self._inbox: deque[tuple[bytes, UdpFlow, float, bool]] = deque()  # the last: it was let in under load
        self._inbox_octets = 0
        self._scheduled = False
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, data: bytes, host: str, port: int) -> None:
        """Send a datagram to a numeric address.

        Raises TransportError if the address cannot be reached; a datagram that does not fit any buffer is dropped and counted.
        """
        if self._closed:
            raise TransportError(str(self.local), "the socket is closed")
        if self._backlog:
            self._wait(data, (host, port))
            return
        try:
            self._socket.sendto(data, (host, port))
        except (BlockingIOError, InterruptedError):
            self._wait(data, (host, port))
            self._loop.add_writer(self._socket.fileno(), self._writable)
        except OSError as problem:
            if problem.errno == errno.ENOBUFS:
                self._context.count("sip_dropped", "send-buffer-full")
                return
            raise TransportError(f"udp:{host}:{port}", _said(problem)) from problem

    def close(self) -> None:
        """Close the socket."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._inbox.clear()

    def _readable(self) -> None:
        receive = self._socket.recvfrom
        shed, shedding = self._receiver.shed, self._receiver.shedding
        now = self._context.clock.monotonic()
        for _ in range(DRAIN):
            if len(self._inbox) >= MAX_INBOX or self._inbox_octets >= MAX_INBOX_OCTETS:
                break
            try:
                data, address = receive(65_536)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # an ICMP error about some earlier datagram: nothing was received
                self._context.count("sip_dropped", "socket-error")
                continue
            flow = UdpFlow(self, address[0], address[1])
            if not shed(data, flow):
                self._inbox.append((data, flow, now, shedding))
                self._inbox_octets += len(data)
        if not self._scheduled:
            self._work()

    def _work(self) -> None:
        self._scheduled = False
        inbox = self._inbox
        clock = self._context.clock.monotonic
        now = clock()
        until = now + TURN
        if inbox:
            self._receiver.waited(now - inbox[0][2])
        while inbox and not self._closed:
            data, flow, _, admitted = inbox.popleft()
            self._inbox_octets -= len(data)
            if admitted:
                self._receiver.admitted(data, flow)
            else:
                self._receiver.received(data, flow)
            if clock() >= until and inbox:
                self._scheduled = True
                self._loop.call_soon(self._work)
                return
        self._receiver.waited(0.0)

    def _wait(self, data: bytes, address: tuple[str, int]) -> None:
        if len(self._backlog) < BACKLOG:
            self._backlog.append((data, address))
        else:
            self._context.count("sip_dropped", "send-buffer-full")

    def _writable(self) -> None:
        while self._backlog:
            data, address = self._backlog[0]
            try:
                self._socket.sendto(data, address)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._context.count("sip_dropped", "socket-error")
            self._backlog.popleft()
        self._loop.remove_writer(self._socket.fileno())


class UdpFlow(NamedTuple):
    """The way to one address over one socket."""

    endpoint: UdpEndpoint
    host: str
    port: int

    @property
    def local(self) -> SipPeer:
        """Our address."""
        return self.endpoint.local

    @property
    def peer(self) -> SipPeer:
        """Theirs."""
        return SipPeer("UDP", self.host, self.port)

    def send(self, data: bytes) -> None:
        """Send a datagram. Raises TransportError."""
        self.endpoint.send(data, self.host, self.port)


def bind(kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    """Return a bound socket, listening if it is a stream.

    Raises TransportError that says what to do.
    """
    stream = kind is socket.SOCK_STREAM
    where = f"{'tcp' if stream else 'udp'}:{host}:{port}"
    family, address = _numeric(host, port, where)
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if stream:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
        sock.bind(address)
        if stream:
            sock.listen(1024)
    except OSError as problem:
        sock.close()
        raise TransportError(where, listen_remedy(problem)) from problem
    return sock


async def address_towards(host: str, port: int) -> str:
    """Return the address of this machine that packets to a host come from; a loopback address while there is no way to it.

    Nothing is sent: the system chooses by its routes.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        with socket.socket(found[0][0], socket.SOCK_DGRAM) as sock:
            sock.connect(found[0][4])
            return str(sock.getsockname()[0])
    except OSError:
        return "::1" if ":" in host else "127.0.0.1"


def _numeric(host: str, port: int, where: str) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
    except OSError as problem:
        raise TransportError(where, "the host to listen on is unknown; give an address of this machine") from problem
    return found[0], found[4]


def listen_remedy(problem: OSError) -> str:
    """Say why a port cannot be listened on, and what to do."""
    if problem.errno == errno.EADDRINUSE:
        return "port in use; stop the program that has it or choose another port"
    if problem.errno == errno.EADDRNOTAVAIL:
        return "not an address of this machine; choose one that `ip address` shows"
    if problem.errno == errno.EACCES:
        return "not allowed; choose a port above 1023 or grant CAP_NET_BIND_SERVICE"
    return _said(problem)


def _said(problem: OSError) -> str:
    return problem.strerror or type(problem).__name__
