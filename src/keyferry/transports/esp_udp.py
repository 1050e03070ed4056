# SPDX-License-Identifier: Apache-2.0
"""ESP in UDP on a socket of user space (RFC 3948; TS 33.203 annex M): a SIP node's protected port, without privileges.

A request over 1,300 octets stays in here, against RFC 3261 §18.1.1: that rule keeps a datagram from loss by fragments and from
flooding a path of unknown size, the tunnel is one hop, and TCP inside it would need a TCP in user space.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, NamedTuple

from keyferry.errors import EspRejected, KeyferryError, TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.esp import KEEPALIVE, Kind, kind_of
from keyferry.transports.esp_sas import EspSas, Outer, Tunnel
from keyferry.transports.sip_context import Receiver, SipContext

DRAIN: Final = 64
"""Packets per turn of the loop: each costs a decryption and a handler."""
SWEEP: Final = 5.0
"""Seconds between looks for sets whose time is over; none is used after its time."""
KEEPALIVE_INTERVAL: Final = 20.0
"""RFC 3948 §4: seconds after which a UE, which may be behind a NAT, sends one."""


class EspEndpoint:
    """One bound socket."""

    def __init__(self, sock: socket.socket, sas: EspSas, context: SipContext, receiver: Receiver) -> None:
        sock.setblocking(False)
        self.sas = sas
        self._socket = sock
        self._context = context
        self._receiver = receiver
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)
        self._sweep()
        if sas.fixed is not None:
            self._keep_alive(sas.fixed)

    def send(self, tunnel: Tunnel, data: bytes) -> None:
        """Seal and send. Raises TransportError, LocalProtocolError; what does not fit the socket's buffer is lost and counted."""
        if self._closed or tunnel.outer is None:
            raise TransportError(str(tunnel.peer), "the tunnel is closed, or its other end unknown")
        self._out(self.sas.seal(tunnel, data), tunnel.outer)

    def close(self) -> None:
        """Close the socket."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        for _ in range(DRAIN):
            try:
                data, address = self._socket.recvfrom(65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._context.count("esp_dropped", "socket-error")
                continue
            self._take(data, Outer(address[0], address[1]))
            if self._closed:
                return

    def _take(self, data: bytes, source: Outer) -> None:
        kind = kind_of(data)
        if kind is not Kind.ESP:
            self._context.count("esp_dropped", "keep-alive" if kind is Kind.KEEPALIVE else "non-esp")
            return
        try:
            tunnel, datagram = self.sas.open(data, source)
        except EspRejected as problem:
            self._context.count("esp_rejected", problem.reason)
            return
        self._receiver.received(datagram.payload, EspFlow(self, tunnel))

    def _out(self, packet: bytes, outer: Outer) -> None:
        try:
            self._socket.sendto(packet, outer)
        except (BlockingIOError, InterruptedError):
            self._context.count("esp_dropped", "send-buffer-full")
        except OSError as problem:
            raise TransportError(f"udp:{outer.host}:{outer.port}", problem.strerror or type(problem).__name__) from problem

    def _sweep(self) -> None:
        if not self._closed:
            self.sas.expire()
            self._context.deadlines.after(SWEEP, self._sweep)

    def _keep_alive(self, outer: Outer) -> None:
        if self._closed:
            return
        if len(self.sas):
            try:
                self._out(KEEPALIVE, outer)
            except KeyferryError:
                self._context.count("esp_dropped", "unreachable")
        self._context.deadlines.after(KEEPALIVE_INTERVAL, lambda: self._keep_alive(outer))


class EspFlow(NamedTuple):
    """The way through one tunnel; it holds the tunnel itself, so that an answer reaches who asked even if the set just ended."""

    endpoint: EspEndpoint
    tunnel: Tunnel

    @property
    def local(self) -> SipPeer:
        """Our end, inside."""
        return self.tunnel.local

    @property
    def peer(self) -> SipPeer:
        """The other end, inside."""
        return self.tunnel.peer

    def wire_octets(self, octets: int) -> int:
        """Return how long the ESP packet of a datagram of so many octets is."""
        return self.tunnel.wire_octets(octets)

    def send(self, data: bytes) -> None:
        """Send a datagram. Raises TransportError, LocalProtocolError."""
        self.endpoint.send(self.tunnel, data)
