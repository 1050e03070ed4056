# SPDX-License-Identifier: Apache-2.0
"""SIP over TCP (RFC 3261 §18.1, §18.2.2; RFC 5626 §4.4.1): connections, both directions, reused per peer."""

from __future__ import annotations

import asyncio
import socket
from typing import Final, cast

from keyferry.errors import ParseError, TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.framing import StreamFramer
from keyferry.transports.sip_context import Receiver, SipContext

HIGH_WATER: Final = 256 * 1024
"""Octets waiting to be sent above which a connection is read no further."""
WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
"""Addresses that mean any."""
MAX_BACKLOG: Final = 1024 * 1024
"""Octets waiting to be sent above which a connection is given up: its peer does not read."""


class TcpConnection(asyncio.Protocol):
    """One connection; a Flow."""

    def __init__(self, owner: TcpTransport, local_host: str, *, outgoing: SipPeer | None = None) -> None:
        self._owner = owner
        self.local_host = local_host  # as asked for: "" is any
        self._framer = StreamFramer()
        self._transport: asyncio.Transport | None = None
        self._pongs = 0
        self._in_progress = 0
        self._writable = True
        self._reading = True
        self._active_at = 0.0
        self._partial_since: float | None = None
        self.problem = "the connection was closed"
        self.closed = False
        self.given_up = False  # we ended it, and want no other in its place
        self.peer = outgoing or SipPeer("TCP", "", 0)
        self.local = SipPeer("TCP", "", 0)

    def send(self, data: bytes) -> None:
        """Send a message. Raises TransportError."""
        transport = self._transport
        if transport is None or self.closed or transport.is_closing():
            raise TransportError(str(self.peer), "the connection is closed")
        if transport.get_write_buffer_size() + len(data) > MAX_BACKLOG:
            self.abort("the peer does not read what we send")
            raise TransportError(str(self.peer), self.problem)
        self._active_at = self._owner.context.clock.monotonic()
        transport.write(data)

    def begun(self) -> None:
        """Note that a request of this connection is in progress; too many, and it is read no further."""
        self._in_progress += 1
        self._throttle()

    def ended(self) -> None:
        """Note that it no longer is."""
        self._in_progress -= 1
        self._throttle()

    def abort(self, problem: str) -> None:
        """Close without ceremony."""
        self.problem = problem
        self.given_up = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close after what is written was sent."""
        if self._transport is not None:
            self._transport.close()

    def stale(self, now: float) -> bool:
        """Tell whether the connection was idle too long, or a message is."""
        limits = self._owner.context.limits
        if self.closed or self.given_up:
            return False
        if self._partial_since is not None and now - self._partial_since >= limits.partial:
            return True
        return self._in_progress == 0 and now - self._active_at >= limits.idle

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn the addresses."""
        stream = self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer and local:
            self.peer = SipPeer("TCP", peer[0], peer[1])
            self.local = SipPeer("TCP", local[0], local[1])
        stream.set_write_buffer_limits(high=HIGH_WATER)
        self._active_at = self._owner.context.clock.monotonic()
        self._owner.made(self)

    def data_received(self, data: bytes) -> None:
        """Cut the stream and pass the messages on."""
        now = self._owner.context.clock.monotonic()
        self._active_at = now
        try:
            messages = self._framer.feed(data)
        except ParseError:
            messages = []
        for message in messages:
            self._owner.receiver.received(message, self)
        if messages or not self._framer.partial:
            self._partial_since = None
        if self._framer.partial and self._partial_since is None:
            self._partial_since = now
        if self._framer.problem is not None:
            self._owner.context.count("sip_dropped", "malformed-stream")
            self.abort("the peer sent something that is not SIP")
        elif self._framer.pings > self._pongs and not self.closed:
            self._pongs = self._framer.pings  # one answer for the pings of one read is enough
            if self._transport is not None and self._writable:
                self._transport.write(b"\r\n")

    def pause_writing(self) -> None:
        """Stop taking work from a peer that does not take our answers."""
        self._writable = False
        self._throttle()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._throttle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self.closed = True
        if isinstance(exc, OSError) and exc.strerror:
            self.problem = exc.strerror
        self._owner.lost(self)

    def _throttle(self) -> None:
        wanted = self._writable and self._in_progress < self._owner.context.limits.pipelined
        if wanted is self._reading or self._transport is None or self.closed or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


class TcpTransport:
    """Every TCP connection of a node."""

    def __init__(self, context: SipContext, receiver: Receiver) -> None:
        self.context = context
        self.receiver = receiver
        self._servers: list[asyncio.Server] = []
        self._connections: set[TcpConnection] = set()
        self._by_peer: dict[tuple[SipPeer, str], TcpConnection] = {}
        self._opening: dict[tuple[SipPeer, str], asyncio.Task[TcpConnection]] = {}
        self._closed = False
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._connections)

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket."""
        host = sock.getsockname()[0]
        local_host = "" if host in WILDCARDS else host
        server = await asyncio.get_running_loop().create_server(lambda: TcpConnection(self, local_host), sock=sock)
        self._servers.append(server)

    async def connection(self, peer: SipPeer, local_host: str) -> TcpConnection:
        """Return a connection to a numeric address, a new one from `local_host` if there is none ("" = any).

        Raises TransportError.
        """
        key = (peer, local_host)
        known = self.known(peer, local_host)
        if known is not None:
            return known
        opening = self._opening.get(key)
        if opening is None:
            if len(self._connections) + len(self._opening) >= self.context.limits.connections:
                raise TransportError(str(peer), "too many connections are open")
            opening = asyncio.get_running_loop().create_task(self._open(peer, local_host))
            self._opening[key] = opening
            opening.add_done_callback(lambda done: self._opened(key, done))
        return await asyncio.shield(opening)

    def known(self, peer: SipPeer, local_host: str) -> TcpConnection | None:
        """Return the open connection to a peer, whoever opened it."""
        found = self._by_peer.get((peer, local_host))
        return None if found is None or found.closed or found.given_up else found

    async def aclose(self) -> None:
        """Close listeners and connections."""
        self._closed = True
        for server in self._servers:
            server.close()
        for task in list(self._opening.values()):
            task.cancel()
        if self._opening:
            await asyncio.wait(list(self._opening.values()))
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # lets the transports call connection_lost
        for connection in list(self._connections):
            connection.abort("closed")
        await asyncio.sleep(0)
        for server in self._servers:
            await server.wait_closed()

    # ---- called by connections

    def made(self, connection: TcpConnection) -> None:
        """Take in a new connection, or refuse it above the limit."""
        if self._closed or len(self._connections) >= self.context.limits.connections:
            self.context.count("sip_dropped", "too-many-connections")
            connection.abort("too many connections are open")
            return
        self._connections.add(connection)
        self._by_peer[(connection.peer, connection.local_host)] = connection
        self._sweep_later()

    def lost(self, connection: TcpConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        key = (connection.peer, connection.local_host)
        if self._by_peer.get(key) is connection:
            del self._by_peer[key]
        self.receiver.lost(connection, connection.problem)

    # ---- inside

    async def _open(self, peer: SipPeer, local_host: str) -> TcpConnection:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        late = False

        def expire() -> None:
            nonlocal late
            late = True
            if task is not None:
                task.cancel()

        deadline = self.context.deadlines.after(self.context.limits.connect, expire)
        try:
            _, connection = await loop.create_connection(
                lambda: TcpConnection(self, local_host, outgoing=peer),
                peer.host,
                peer.port,
                local_addr=(local_host, 0) if local_host else None,
            )
        except OSError as problem:
            raise TransportError(str(peer), f"no connection: {problem.strerror or type(problem).__name__}") from problem
        except asyncio.CancelledError:
            if late:
                raise TransportError(str(peer), f"no connection in {self.context.limits.connect:g} s") from None
            raise
        finally:
            deadline.cancel()
        return connection

    def _opened(self, key: tuple[SipPeer, str], done: asyncio.Task[TcpConnection]) -> None:
        self._opening.pop(key, None)
        if not done.cancelled():
            done.exception()  # whoever waited has seen it; nobody may be left

    def _sweep_later(self) -> None:
        if not self._sweeping and self._connections and not self._closed:
            self._sweeping = True
            limits = self.context.limits
            self.context.deadlines.after(min(limits.partial, limits.idle) / 4, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        now = self.context.clock.monotonic()
        for connection in list(self._connections):
            if connection.stale(now):
                self.context.count("sip_dropped", "idle-connection")
                connection.abort("the connection was idle, or a message took too long")
        self._sweep_later()
