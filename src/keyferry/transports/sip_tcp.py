# SPDX-License-Identifier: Apache-2.0
"""SIP over TCP (RFC 3261 §18.1, §18.2.2; RFC 5626 §4.4.1): connections, both directions, reused per peer."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter, deque
from typing import Final, cast

from keyferry.errors import LocalFailure, ParseError, TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.framing import StreamFramer
from keyferry.transports.sip_context import Receiver, SipContext

CLOSED: Final = "the connection was closed"
HIGH_WATER: Final = 256 * 1024
"""Octets waiting to be sent above which a connection is read no further."""
WILDCARDS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to
"""Addresses that mean any."""
MAX_BACKLOG: Final = 1024 * 1024
"""Octets waiting to be sent above which a connection is given up: its peer does not read."""
LINGER: Final = 0.2
"""Seconds after the last answer to a peer that ended its half, in which a reset says that it had ended both."""
RESERVED: Final = 10
"""One in so many connections is for trusted addresses and for those that we open: strangers of many addresses cannot cut us off."""
RENOUNCED: Final = 5.0
"""Seconds that a connection lives at least before another takes its place though it is open: handshakes cost."""
MAX_TURN: Final = 64
"""Requests of one connection in one turn of the loop: the others have theirs."""


class TcpConnection(asyncio.Protocol):
    """One connection; a Flow. Requests wait here while too many are in progress; a peer that stops sending still gets its answers."""

    kind = "TCP"
    default_port = 5060

    def __init__(self, owner: TcpTransport, local_host: str, *, outgoing: SipPeer | None = None) -> None:
        self._owner = owner
        self.local_host = local_host  # as asked for: "" is any
        self._framer = StreamFramer()
        self._transport: asyncio.Transport | None = None
        self._queue: deque[bytes] = deque()
        self._taking = False
        self._pongs = 0
        self._in_progress = 0
        self._writable = True
        self._reading = True
        self._active_at = 0.0
        self.opened_at = 0.0
        self._partial_since: float | None = None
        self._last: list[bytes] = []  # sent since the peer ended its half
        self.problem = CLOSED
        self.finished = False  # the peer sends no more, or we listen no more: what is in progress is answered, then it is closed
        self.closed = False
        self.given_up = False  # we ended it, and want no other in its place
        self.source = ""  # of who connected, or whom we owed an answer, if such are bounded: what the owner counts by
        self.incoming = outgoing is None
        self.peer = outgoing or SipPeer(self.kind, "", 0)
        self.local = SipPeer(self.kind, "", 0)

    def send(self, data: bytes) -> None:
        """Send a message. Raises TransportError."""
        transport = self._transport
        if transport is None or self.closed or transport.is_closing():
            raise TransportError(str(self.peer), "the connection is closed")
        if transport.get_write_buffer_size() + len(data) > MAX_BACKLOG:
            self.abort("the peer does not read what we send")
            raise TransportError(str(self.peer), self.problem)
        self._active_at = self._owner.context.clock.monotonic()
        if self.finished:
            self._last.append(data)
        self._put(data)

    async def ready(self) -> None:
        """Wait until the connection may be used. Raises TransportError."""

    async def again(self, port: int | None) -> TcpConnection:
        """Return a connection to the same peer at the port in its sent-by, None: the default (RFC 3261 §18.2.2). Raises TransportError."""
        return await self._owner.back(self.peer._replace(port=port or self.default_port), self.local_host)

    def renounce(self) -> None:
        """Let the next request to the peer open another connection: over this one it got no answer, or its certificate would not do."""
        self._owner.renounce(self)

    def begun(self) -> None:
        """Note that a request of this connection is in progress; too many, and others wait."""
        self._in_progress += 1

    def ended(self) -> None:
        """Note that it no longer is."""
        self._in_progress -= 1
        if not self._taking:
            self._take()

    def abort(self, problem: str) -> None:
        """Close without ceremony."""
        self.problem = problem
        self.given_up = True
        self._queue.clear()
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
        if not (peer and local):  # it was reset before we looked
            self.given_up = True
            stream.abort()
            return
        self.peer = self.peer._replace(host=peer[0], port=peer[1])
        self.local = SipPeer(self.kind, local[0], local[1])
        stream.set_write_buffer_limits(high=HIGH_WATER)
        self.opened_at = self._active_at = self._owner.context.clock.monotonic()
        if self._owner.admitted(self):
            self._opened()

    def data_received(self, data: bytes) -> None:
        """Take octets of the network."""
        self._octets(data)

    def eof_received(self) -> bool:
        """Take the end of what the peer sends; true keeps our half open until the answers it waits for are sent."""
        self._finish(CLOSED)
        return self._busy or bool(self._last)

    def pause_writing(self) -> None:
        """Stop taking work from a peer that does not take our answers."""
        self._writable = False
        self._throttle()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._take()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        self.closed = True
        self._queue.clear()
        if isinstance(exc, OSError) and exc.strerror and not self.given_up:
            self.problem = exc.strerror
        self._owner.lost(self)

    # ---- inside

    @property
    def _busy(self) -> bool:
        return self._in_progress > 0 or bool(self._queue)

    def _opened(self) -> None:
        self._owner.usable(self)

    def _put(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _octets(self, data: bytes) -> None:
        """Cut the stream into messages and pass on as many as may be in progress."""
        if self.finished:
            return
        now = self._owner.context.clock.monotonic()
        self._active_at = now
        try:
            messages = self._framer.feed(data)
        except ParseError:
            messages = []
        for message in messages:
            if message.startswith(b"SIP/"):
                self._owner.receiver.received(message, self)  # a response waits for nobody: somebody waits for it
            else:
                self._queue.append(message)
        if not self._framer.partial:
            self._partial_since = None
        elif messages or self._partial_since is None:
            self._partial_since = now
        self._pong()
        if self._framer.problem is not None:
            self._owner.context.count("sip_dropped", "malformed-stream")
            self.given_up = True
            self._finish("the peer sent something that is not SIP")
        self._take()

    def _pong(self) -> None:
        if self._framer.pings > self._pongs:
            self._pongs = self._framer.pings  # one answer for the pings of one read is enough
            if self._writable and not self.closed:
                self._put(b"\r\n")

    def _take(self) -> None:
        """Pass on requests that wait, a turn's worth."""
        left, limit = MAX_TURN, self._owner.context.limits.pipelined
        self._taking = True
        while self._queue and self._in_progress < limit and self._writable and left and not self.closed:
            left -= 1
            self._owner.receiver.received(self._queue.popleft(), self)
        self._taking = False
        if not left and self._queue:
            asyncio.get_running_loop().call_soon(self._take)
        if self.finished and not self._busy and not self.closed:
            self._leave()
        self._throttle()

    def _leave(self) -> None:
        """Close, and if answers were sent to a peer that ended its half, first learn whether it had ended both (RFC 3261 §18.2.2)."""
        if self._last and not self.given_up:
            self._owner.context.deadlines.after(LINGER, self._left)
        else:
            self.close()

    def _left(self) -> None:
        sock = None if self._transport is None or self.closed else self._transport.get_extra_info("socket")
        if sock is not None and not self._busy and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            last, self._last = self._last, []
            self.abort(CLOSED)
            for data in last:
                self._owner.receiver.undelivered(data, self)
        elif not self._busy:
            self.close()

    def _finish(self, problem: str) -> None:
        """Read no more; whoever waits for a response here waits in vain."""
        if not self.finished:
            self.finished = True
            self.problem = problem
            self._owner.unusable(self)
            self._throttle()

    def _throttle(self) -> None:
        wanted = self._writable and len(self._queue) < self._owner.context.limits.pipelined and not self.finished
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
        self._of_source: Counter[str] = Counter()
        self._closed = False
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._connections)

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a listening socket."""
        host = sock.getsockname()[0]
        local_host = "" if host in WILDCARDS else host
        server = await asyncio.get_running_loop().create_server(lambda: self._connection(local_host, None), sock=sock)
        self._servers.append(server)

    async def connection(self, peer: SipPeer, local_host: str) -> TcpConnection:
        """Return a connection to a numeric address, a new one from `local_host` if there is none ("" = any).

        Raises TransportError.
        """
        found = await self._found(peer, local_host)
        if peer.role and found.peer.role != peer.role:
            found.renounce()
            raise TransportError(str(peer), f"its certificate is not one of the role {peer.role}")
        return found

    async def back(self, peer: SipPeer, local_host: str) -> TcpConnection:
        """Return a connection for an answer to a peer whose own is gone; a new one counts as one that the peer had made.

        Raises TransportError.
        """
        source = self._source(peer.host) if self.known(peer, local_host) is None else ""
        if not source:
            return await self.connection(peer, local_host)
        problem = self._no_room(source)
        if problem:
            raise TransportError(str(peer), problem)
        self._of_source[source] += 1
        try:
            connection = await self.connection(peer, local_host)
        except BaseException:
            self._release(source)
            raise
        if connection.source or connection.closed:
            self._release(source)
        else:
            connection.source = source
        return connection

    async def _found(self, peer: SipPeer, local_host: str) -> TcpConnection:
        known = self.known(peer, local_host)
        if known is not None:
            return known
        key = _key(peer, local_host)
        opening = self._opening.get(key)
        if opening is None:
            if len(self._connections) + len(self._opening) >= self.context.limits.connections:
                raise LocalFailure(str(peer), "too many connections are open")
            opening = asyncio.get_running_loop().create_task(self._open(peer, local_host))
            self._opening[key] = opening
            opening.add_done_callback(lambda done: self._opened(key, done))
        return await asyncio.shield(opening)

    def known(self, peer: SipPeer, local_host: str) -> TcpConnection | None:
        """Return the open connection to a peer, whoever opened it."""
        found = self._by_peer.get(_key(peer, local_host))
        return None if found is None or found.closed or found.given_up or found.finished else found

    def renounce(self, connection: TcpConnection) -> None:
        """Use a connection for no new request; too young a one is kept."""
        key = _key(connection.peer, connection.local_host)
        if self._by_peer.get(key) is connection and self.context.clock.monotonic() - connection.opened_at >= RENOUNCED:
            del self._by_peer[key]  # what waits for a response on it goes on waiting; it ends when it is idle

    def abandon(self, host: str, problem: str) -> None:
        """Break every connection with a numeric host: what waits on one fails, and the next request opens a new one."""
        for connection in list(self._connections):
            if connection.peer.host == host:
                connection.abort(problem)

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

    def admitted(self, connection: TcpConnection) -> bool:
        """Take in a new connection, or refuse it above a limit."""
        source = self._source(connection.peer.host) if connection.incoming else ""
        problem = self._no_room(source)
        if problem:
            connection.abort(problem)
            return False
        self._connections.add(connection)
        if source:
            connection.source = source
            self._of_source[source] += 1
        self._sweep_later()
        return True

    def usable(self, connection: TcpConnection) -> None:
        """Let requests to its peer use a connection."""
        self._by_peer[_key(connection.peer, connection.local_host)] = connection

    def unusable(self, connection: TcpConnection) -> None:
        """Let no request use it any more, and fail those that wait for a response on it."""
        key = _key(connection.peer, connection.local_host)
        if self._by_peer.get(key) is connection:
            del self._by_peer[key]
        self.receiver.lost(connection, connection.problem)

    def lost(self, connection: TcpConnection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)
        if connection.source:
            self._release(connection.source)
            connection.source = ""
        self.unusable(connection)

    # ---- inside

    def _source(self, host: str) -> str:
        """Return by what connections from or for a stranger are counted, "" for whom we trust."""
        return "" if self.context.trusts(host) else source_of(host)

    def _no_room(self, source: str) -> str:
        """Return, and count, why one more connection is too much, of a stranger if there is a source; "" if it is not."""
        limits = self.context.limits
        if self._closed or len(self._connections) >= limits.connections - (limits.connections // RESERVED if source else 0):
            self.context.count("sip_dropped", "too-many-connections")
            return "too many connections are open"
        if source and self._of_source[source] >= limits.per_source:
            self.context.count("sip_dropped", "too-many-of-source")
            return "too many connections of its address are open"
        return ""

    def _release(self, source: str) -> None:
        self._of_source[source] -= 1
        if not self._of_source[source]:
            del self._of_source[source]

    def _connection(self, local_host: str, outgoing: SipPeer | None) -> TcpConnection:
        return TcpConnection(self, local_host, outgoing=outgoing)

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
                lambda: self._connection(local_host, peer), peer.host, peer.port, local_addr=(local_host, 0) if local_host else None
            )
            await connection.ready()
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


def source_of(host: str) -> str:
    """Return by what connections from a numeric address are counted: the address, of IPv6 its /64, which one subscriber has whole."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))


def _key(peer: SipPeer, local_host: str) -> tuple[SipPeer, str]:
    """Say which connections are the same: to one address, over TLS to one verified name, whatever role it was asked to have."""
    return (peer._replace(role="") if peer.role else peer), local_host
