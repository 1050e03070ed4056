# SPDX-License-Identifier: Apache-2.0
"""Listen for Diameter peers: an HSS for its S-CSCFs and I-CSCFs (RFC 6733 §5; TS 29.228 §5, Release 17)."""

from __future__ import annotations

import asyncio
from collections import Counter as Counts

from keyferry.errors import TransportError
from keyferry.ports import Clock, Counter, Log, RandomSource
from keyferry.protocol.diameter.base import DiameterIdentity, DisconnectCause, ResultCode, error_answer
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.protocol.diameter.peer import PeerTimers
from keyferry.transports.diameter_connection import DiameterConnection
from keyferry.transports.diameter_context import Admission, DiameterContext, DiameterHandler, DiameterLimits, RemotePeer, command_of
from keyferry.transports.diameter_exchange import Exchange
from keyferry.transports.diameter_requests import DiameterRequests
from keyferry.transports.pki import MutualTls
from keyferry.transports.sip_tcp import source_of
from keyferry.transports.sip_udp import listen_remedy
from keyferry.transports.tls_stream import TlsStream


class DiameterServer:
    """Answer peers that connect, and ask those that are connected."""

    def __init__(
        self,
        identity: DiameterIdentity,
        handler: DiameterHandler,
        *,
        allowed: Admission,
        clock: Clock,
        random: RandomSource,
        log: Log,
        counter: Counter | None = None,
        limits: DiameterLimits | None = None,
        timers: PeerTimers | None = None,
    ) -> None:
        """Take who may connect, and who answers: each request once, whatever comes again."""
        self.context = DiameterContext(identity, clock, random, log, counter, limits or DiameterLimits(), timers or PeerTimers())
        self._allowed = allowed
        self._requests = DiameterRequests(self.context, handler)
        self._servers: list[asyncio.Server] = []
        self._connections: dict[DiameterConnection, None] = {}
        self._strangers: dict[DiameterConnection, None] = {}  # of those, who have not said who they are; the oldest first
        self._of_host: dict[str, list[DiameterConnection]] = {}  # the newest last
        self._pending = 0
        self._closed = False

    async def listen(self, host: str, port: int, *, tls: MutualTls | None = None) -> tuple[str, int]:
        """Accept connections, with TLS only if there are contexts for it; return the address. Raises TransportError."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: self._connection(tls), host, port)
        except OSError as problem:
            raise TransportError(f"{host}:{port}", f"cannot listen: {listen_remedy(problem)}") from problem
        self._servers.append(server)
        found = server.sockets[0].getsockname()
        return found[0], found[1]

    async def send_to(self, origin_host: str, request: DiameterMessage, *, timeout: float) -> DiameterMessage:  # noqa: ASYNC109
        """Send a request, such as a RTR, to a peer that is connected, and return its answer.

        If more wait than may, the answer is our own TOO_BUSY. Raises TransportError: it is not connected, or gave no answer in time.
        """
        context = self.context
        connection = self._usable(origin_host.lower())
        if connection is None:
            context.count("diameter_sent", "unreachable")
            raise TransportError(origin_host, "is not connected")
        if self._pending >= context.limits.pending:
            context.count("diameter_sent", "busy")
            return error_answer(request, ResultCode.TOO_BUSY, context.identity)
        exchange = Exchange(request.with_ids(0, context.end_to_end.end_to_end()))
        exchange.deadline = context.deadlines.after(timeout, lambda: self._late(exchange, origin_host, timeout))
        self._pending += 1
        try:
            connection.ask(exchange)
            return await exchange.future
        finally:
            self._pending -= 1
            exchange.forget()

    def connected(self) -> list[RemotePeer]:
        """Return the peers that can be asked, each once."""
        return [connection.peer for name in self._of_host if (connection := self._usable(name)) is not None]

    async def aclose(self) -> None:
        """Accept nobody any more, say goodbye (DPR), let answers that are under way go out, close."""
        self._closed = True
        for server in self._servers:
            server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.disconnect(DisconnectCause.REBOOTING)
        if connections:
            await asyncio.wait([connection.gone for connection in connections])
        await self._requests.aclose()
        for server in self._servers:
            await server.wait_closed()
        self.context.deadlines.close()

    # ---- called by connections

    def admitted(self, connection: DiameterConnection) -> bool:
        """Take in a connection, or refuse it: a stranger without TLS, or one too many."""
        if not connection.protected and not self._allowed.address(connection.peer.address):
            connection.abort("stranger", "may not connect without TLS from there")
            self.context.refused("diameter-peer-refused", peer="", address=connection.peer.address, problem=connection.problem)
            return False
        if self._closed:
            connection.abort("closed", "closed")
            return False
        self._connections[connection] = None
        self._strangers[connection] = None
        if len(self._strangers) > self.context.limits.strangers:
            self._crowded().abort("too-many-strangers", "too many have not said who they are")
        connection.gone.add_done_callback(lambda _: self._gone(connection))
        return True

    def opened(self, connection: DiameterConnection) -> None:
        """Ask the peer over its newest connection from now on; of too many the oldest ends, of those without a certificate first."""
        self._strangers.pop(connection, None)
        if not self._has_room(connection):
            return
        found = self._of_host.setdefault(connection.peer.origin_host, [])
        found.append(connection)
        if len(found) > self.context.limits.per_peer:
            min(found, key=_is_proven).abort("displaced", "the peer has opened others")

    def suspended(self, connection: DiameterConnection) -> None:
        """Wait: nobody else can answer for that peer."""

    def resumed(self, connection: DiameterConnection) -> None:
        """Go on."""

    def ended(self, connection: DiameterConnection) -> None:
        """Forget a connection; what waits for an answer there has none."""
        name = connection.peer.origin_host
        found = self._of_host.get(name, [])
        if connection in found:
            found.remove(connection)
            if not found:
                del self._of_host[name]
        for exchange in list(connection.waiting.values()):
            exchange.fail(name, "the connection ended")

    def requested(self, connection: DiameterConnection, request: DiameterMessage) -> None:
        """Answer a request."""
        self._requests.take(connection, request)

    def answered(self, connection: DiameterConnection, exchange: Exchange, answer: DiameterMessage) -> None:
        """Take an answer."""
        del connection
        self.context.count("diameter_sent", "answered")
        exchange.succeed(answer)

    def late(self, answer: DiameterMessage) -> None:
        """Pass over an answer that nobody waits for."""
        del answer
        self.context.count("diameter_dropped", "late-answer")

    # ---- inside

    def _crowded(self) -> DiameterConnection:
        """Return the oldest connection of the source with the most strangers: who floods us keeps nobody of another out."""
        sources = {stranger: source_of(stranger.peer.address) for stranger in self._strangers}
        most, _ = Counts(sources.values()).most_common(1)[0]
        return next(stranger for stranger, source in sources.items() if source == most)

    def _has_room(self, connection: DiameterConnection) -> bool:
        """Tell whether one more may stay; a peer displaces itself, one with a certificate one without, and of others the last has to go."""
        limit = self.context.limits.connections
        taken = sum([len(found) for found in self._of_host.values()])
        if taken < limit:
            return True
        own = [each for each in self._of_host.get(connection.peer.origin_host, ()) if connection.protected or not each.protected]
        if own:  # it may have come again before we notice that this one is dead
            min(own, key=_is_proven).abort("displaced", "the peer has opened another, and all connections are taken")
            return True
        unproven = (each for found in self._of_host.values() for each in found if not each.protected)
        displaced = next(unproven, None) if connection.protected else None
        if displaced is not None:
            displaced.abort("displaced", "a peer with a certificate came, and all connections were taken")
            return True
        self.context.count("diameter_dropped", "too-many-connections")
        self.context.refused(
            "diameter-peer-refused", peer=connection.peer.origin_host, address=connection.peer.address,
            problem=f"{taken} connections are open, and no more may be (hss.connections)",
        )  # fmt: skip
        if len(self._connections) - taken - len(self._strangers) > self.context.limits.strangers:
            connection.abort("too-many-connections", "all connections are taken")
        else:
            connection.disconnect(DisconnectCause.BUSY)  # so that it does not try again at once (RFC 6733 §5.4.3)
        return False

    def _gone(self, connection: DiameterConnection) -> None:
        self._connections.pop(connection, None)
        self._strangers.pop(connection, None)

    def _connection(self, tls: MutualTls | None) -> DiameterConnection:
        stream = None if tls is None else TlsStream(tls, calls=False)
        return DiameterConnection(self.context, self, self._allowed, dials=False, stream=stream)

    def _usable(self, name: str) -> DiameterConnection | None:
        usable = [connection for connection in reversed(self._of_host.get(name, ())) if connection.usable]
        return max(usable, key=_is_proven, default=None)

    def _late(self, exchange: Exchange, name: str, seconds: float) -> None:
        if not exchange.future.done():
            self.context.count("diameter_sent", "timeout")
            self.context.refused(
                "diameter-no-answer", peer=name, command=command_of(exchange.request), end_to_end=exchange.request.end_to_end
            )
            exchange.fail(name, f"no answer in {seconds:g} s")


def _is_proven(connection: DiameterConnection) -> bool:
    """Tell whether a certificate has shown whose connection it is: where one is there, who only says the name is somebody else."""
    return connection.protected
