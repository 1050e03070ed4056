# SPDX-License-Identifier: Apache-2.0
"""Ask Diameter peers: several in order of preference, with failover and failback (RFC 6733 §5.1, §5.5; RFC 3539 §3.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from keyferry.errors import LocalProtocolError, TransportError
from keyferry.ports import Clock, Counter, Log, RandomSource
from keyferry.protocol.diameter.base import DESTINATION_HOST, RESULT_CODE, DiameterIdentity, DisconnectCause, ResultCode, error_answer
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.protocol.diameter.peer import EndReason, PeerTimers
from keyferry.transports.diameter_connection import DiameterConnection
from keyferry.transports.diameter_context import Admission, DiameterContext, DiameterHandler, DiameterLimits, RemotePeer, command_of
from keyferry.transports.diameter_exchange import Exchange
from keyferry.transports.diameter_requests import DiameterRequests
from keyferry.transports.pki import MutualTls
from keyferry.transports.tls_stream import TlsStream

MAX_ATTEMPTS: Final = 5
"""Times that one request is sent, whatever peers come and go."""
MIN_WAIT: Final = 0.1
"""Seconds without an answer after which another peer is asked, too: half of what is left each time, but this at least."""
NOBODY: Final = "no peer is connected"
_ASK_ANOTHER: Final = (ResultCode.UNABLE_TO_DELIVER.to_bytes(4, "big"), ResultCode.TOO_BUSY.to_bytes(4, "big"))


class DiameterPeer(NamedTuple):
    """A peer to connect to."""

    host: str
    port: int = 3868
    name: str = ""  # its Origin-Host; "" is any, and not possible with TLS, where the certificate must name it
    tls: MutualTls | None = None
    role: str = "hss"  # of its certificate; "" is any

    def __str__(self) -> str:
        return f"{'aaa' if self.tls is None else 'aaas'}://{self.name or self.host}:{self.port}"


class _Link:
    """A peer, and the connection to it while there is one."""

    def __init__(self, peer: DiameterPeer) -> None:
        self.peer = peer
        self.admission = Admission.of([peer.name] if peer.name else [], [peer.role] if peer.role else [])
        self.connection: DiameterConnection | None = None
        self.after_failure = False
        self.failures = 0  # since it was last open
        self.problem = ""


class DiameterClient:
    """Send requests to the first peer that is usable, and answer those that peers send."""

    def __init__(
        self,
        peers: Sequence[DiameterPeer],
        identity: DiameterIdentity,
        *,
        clock: Clock,
        random: RandomSource,
        log: Log,
        counter: Counter | None = None,
        handler: DiameterHandler | None = None,
        limits: DiameterLimits | None = None,
        timers: PeerTimers | None = None,
    ) -> None:
        """Take the peers in order of preference; `start` connects. Raises LocalProtocolError: a TLS peer without a name."""
        if any(peer.tls is not None and not peer.name for peer in peers):
            raise LocalProtocolError("a TLS peer needs a name that its certificate must show")
        self.context = DiameterContext(identity, clock, random, log, counter, limits or DiameterLimits(), timers or PeerTimers())
        self._requests = DiameterRequests(self.context, handler or self._not_served)
        self._links = [_Link(peer) for peer in peers]
        self._of_connection: dict[DiameterConnection, _Link] = {}
        self._exchanges: dict[Exchange, None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.late_answer: Callable[[DiameterMessage], None] | None = None
        """Called with an answer that nobody waits for; must not raise."""
        self._hoped_until = 0.0  # until when requests wait for a peer, though there is none
        self._changed: asyncio.Event = asyncio.Event()
        self._closed = False

    async def start(self) -> None:
        """Begin to connect to every peer, and keep doing so."""
        self._hope()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(link)) for link in self._links]

    async def send(self, request: DiameterMessage, *, timeout: float) -> DiameterMessage:  # noqa: ASYNC109 - one coarse timer, no task's
        """Send a request and return its answer, whatever its result; identifiers are given here.

        After half of `timeout` without an answer the next peer is asked, too, with the T flag (RFC 6733 §5.5.4). If more wait than may,
        the answer is our own TOO_BUSY. Raises TransportError: no answer in `timeout` seconds, or nobody to ask.
        """
        context = self.context
        if self._closed:
            raise TransportError("diameter", "closed")
        if len(self._exchanges) >= context.limits.pending:
            context.count("diameter_sent", "busy")
            return error_answer(request, ResultCode.TOO_BUSY, context.identity)
        exchange = Exchange(request.with_ids(0, context.end_to_end.end_to_end()), context.clock.monotonic(), timeout)
        self._exchanges[exchange] = None
        self._wait(exchange)
        try:
            self._route(exchange)
            return await exchange.future
        finally:
            exchange.forget()
            del self._exchanges[exchange]

    def connected(self) -> list[RemotePeer]:
        """Return the peers that can be asked, in order of preference."""
        return [link.connection.peer for link in self._links if link.connection is not None and link.connection.usable]

    async def ready(self) -> None:
        """Wait until a peer can be asked; for how long is the caller's to say."""
        while not self.connected():
            self._changed.clear()
            await self._changed.wait()

    async def aclose(self) -> None:
        """Say goodbye (DPR), wait a little for the end, close; who still waits for an answer gets TransportError."""
        self._closed = True
        for task in self._tasks:
            task.cancel()  # what is being dialled is given up
        await asyncio.gather(*self._tasks, return_exceptions=True)
        connections = [connection for connection in self._of_connection if connection.made]
        for connection in connections:
            connection.disconnect(DisconnectCause.REBOOTING)
        if connections:
            await asyncio.wait([connection.gone for connection in connections])
        for exchange in list(self._exchanges):
            exchange.fail("diameter", "closed")
        await self._requests.aclose()
        self.context.deadlines.close()

    # ---- called by connections

    def admitted(self, connection: DiameterConnection) -> bool:
        """Take in a connection of ours."""
        if self._closed:
            connection.abort("closed", "closed")
        return not self._closed

    def opened(self, connection: DiameterConnection) -> None:
        """Use a peer; what waited for one goes there."""
        link = self._of_connection[connection]
        link.problem = ""
        if connection.usable:
            self.resumed(connection)
        else:
            self._rely()

    def suspended(self, connection: DiameterConnection) -> None:
        """Send what waits there to another peer (RFC 3539 §3.4.2); a peer that leaves in peace may still answer for a moment."""
        self._hope()
        self._rely()
        if connection.leaving:
            self.context.deadlines.after(self.context.limits.draining, lambda: self._fail_over(connection))
        else:
            self._fail_over(connection)

    def resumed(self, connection: DiameterConnection) -> None:
        """Use it again."""
        del connection
        self._changed.set()
        for exchange in list(self._exchanges):
            if not any(place.usable for place in exchange.places):
                self._route(exchange)

    def ended(self, connection: DiameterConnection) -> None:
        """Send what waited there to another peer."""
        if connection.peer.origin_host:
            self._hope()
            self._rely()
        lost = list(connection.waiting.values())
        connection.waiting.clear()
        for exchange in lost:
            del exchange.places[connection]
        self._again(connection, lost)

    def requested(self, connection: DiameterConnection, request: DiameterMessage) -> None:
        """Answer a request of the peer, such as a RTR."""
        self._requests.take(connection, request)

    def answered(self, connection: DiameterConnection, exchange: Exchange, answer: DiameterMessage) -> None:
        """Take an answer; of one that says that it cannot, another peer is asked (RFC 6733 §7.1.3)."""
        result = answer.first(RESULT_CODE)
        if result is not None and result.data in _ASK_ANOTHER:
            self.context.count("diameter_sent", "passed-on")
            exchange.refused.add(self._of_connection.get(connection))
            if any(place.usable for place in exchange.places):
                return
            another = self._choose(exchange)
            if another is not None and exchange.attempts < MAX_ATTEMPTS:
                self._ask(exchange, another)
                return
        self.context.count("diameter_sent", "answered")
        exchange.succeed(answer)

    def late(self, answer: DiameterMessage) -> None:
        """Tell who wants to know that something was carried out late."""
        self.context.count("diameter_dropped", "late-answer")
        if self.late_answer is not None:
            self.late_answer(answer)

    # ---- requests

    def _choose(self, exchange: Exchange) -> DiameterConnection | None:
        """Return where to send: whom the request names if that one is here (RFC 6733 §6.1.4), else the first that answers."""
        named = exchange.request.first(DESTINATION_HOST)
        found: DiameterConnection | None = None
        doubted: DiameterConnection | None = None
        for link in self._links:
            connection = link.connection
            if connection is None or not connection.usable or connection in exchange.places or link in exchange.refused:
                continue
            if named is not None and named.data.decode("ascii", "replace").lower() == connection.peer.origin_host:
                return connection
            if connection.trust.doubted and not connection.trust.holds(self.context.clock.monotonic(), len(connection.waiting)):
                doubted = doubted or connection
            elif named is None:
                return connection
            else:
                found = found or connection
        return found or doubted

    def _route(self, exchange: Exchange) -> None:
        """Send a request, or let it wait: for an answer of who is suspected only, or for a peer that may be back at once."""
        connection = self._choose(exchange)
        if connection is not None and exchange.attempts < MAX_ATTEMPTS:
            self._ask(exchange, connection)
        elif exchange.places:
            return
        elif exchange.attempts >= MAX_ATTEMPTS or self.context.clock.monotonic() >= self._hoped_until:
            self.context.count("diameter_sent", "unreachable")
            exchange.fail(self._named(), NOBODY)

    def _ask(self, exchange: Exchange, connection: DiameterConnection) -> None:
        exchange.asked_at = self.context.clock.monotonic()
        connection.ask(exchange)

    def _wait(self, exchange: Exchange) -> None:
        """Look again when it has waited for as long as it should where it is, or in all."""
        due = min(exchange.asked_at + exchange.wait, exchange.ends_at)
        exchange.deadline = self.context.deadlines.at(due, lambda: self._due(exchange))

    def _due(self, exchange: Exchange) -> None:
        now = self.context.clock.monotonic()
        if exchange.future.done():
            return
        if now >= exchange.ends_at:
            self._late(exchange)
            return
        if now >= exchange.asked_at + exchange.wait:  # else it was sent elsewhere meanwhile
            self._overdue(exchange)
            exchange.wait = now - exchange.asked_at + max((exchange.ends_at - now) / 2, MIN_WAIT)
        self._wait(exchange)

    def _overdue(self, exchange: Exchange) -> None:
        """Ask another peer, too; who has answered nobody since it was asked is suspected, and what waits there goes on as well."""
        another = self._choose(exchange)
        if another is None or exchange.attempts >= MAX_ATTEMPTS:
            return
        where, asked_at = exchange.asked_last, exchange.asked_at
        exchange.again = exchange.again or where is not None
        self._ask(exchange, another)
        if where is not None:
            self.context.count("diameter_sent", "again")
            if where.trust.answered_at < asked_at:
                where.suspect()

    def _fail_over(self, connection: DiameterConnection) -> None:
        self._again(connection, list(connection.waiting.values()))

    def _again(self, connection: DiameterConnection, exchanges: list[Exchange]) -> None:
        """Send again what was lost, or may be: with the T flag."""
        moved = [exchange for exchange in exchanges if not any(place.usable for place in exchange.places)]
        if not moved:
            return
        self.context.log.warning(
            "diameter-failover", node=self.context.identity.origin_host, peer=connection.peer.origin_host, requests=len(moved)
        )
        for exchange in moved:
            exchange.again = True
            attempts = exchange.attempts
            self._route(exchange)
            if exchange.attempts > attempts:
                self.context.count("diameter_sent", "again")

    def _late(self, exchange: Exchange) -> None:
        places = ", ".join(sorted(place.peer.origin_host for place in exchange.places))
        self.context.count("diameter_sent", "timeout" if places else "unreachable")
        self.context.refused(
            "diameter-no-answer", peer=places, command=command_of(exchange.request), end_to_end=exchange.request.end_to_end
        )
        exchange.fail(places or self._named(), f"no answer in {exchange.timeout:g} s" if places else NOBODY)

    def _hope(self) -> None:
        """Let requests wait for a peer for a moment: one that is started again is back at once."""
        patience = self.context.limits.patience
        self._hoped_until = self.context.clock.monotonic() + patience
        self.context.deadlines.after(patience, self._give_up)

    def _rely(self) -> None:
        """Where nobody can be asked, ask who is on trial (REOPEN)."""
        if not self.connected():
            for connection in tuple(self._of_connection):
                connection.rely()

    def _give_up(self) -> None:
        if self.context.clock.monotonic() >= self._hoped_until and not self.connected():
            for exchange in list(self._exchanges):
                if not exchange.places:
                    self._route(exchange)

    def _named(self) -> str:
        return ", ".join(str(link.peer) for link in self._links)

    async def _not_served(self, request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        del peer
        return error_answer(request, ResultCode.COMMAND_UNSUPPORTED, self.context.identity)

    # ---- connections

    async def _keep(self, link: _Link) -> None:
        """Connect to a peer whenever it is not."""
        while not self._closed:
            connection = await self._connect(link)
            wait = self.context.limits.retry_last
            if connection is not None:
                await asyncio.wait([connection.gone])  # not cancelled with us
                link.connection = None
                del self._of_connection[connection]
                self._note(link, connection)
                if _told_to_go(connection):
                    await self.context.sleep(wait * (0.5 + self.context.chance()))
                    continue
            wait = min(wait, self.context.limits.retry_first * 2.0 ** min(link.failures, 16))
            await self.context.sleep(wait * (0.5 + self.context.chance()))

    def _note(self, link: _Link, connection: DiameterConnection) -> None:
        """Remember how a connection ended, for the next."""
        opened, end = bool(connection.peer.origin_host), connection.end
        lived = self.context.clock.monotonic() - connection.made_at
        link.failures = 0 if opened and lived >= self.context.timers.watchdog else link.failures + 1
        if opened:  # else a peer that stands still lets us in, and says as little as before
            link.after_failure = end is not None and end.reason is EndReason.WATCHDOG

    async def _connect(self, link: _Link) -> DiameterConnection | None:
        peer = link.peer
        stream = None if peer.tls is None else TlsStream(peer.tls, calls=True, name=peer.name)
        connection = DiameterConnection(
            self.context, self, link.admission, dials=True, stream=stream, after_failure=link.after_failure and bool(self.connected())
        )
        self._of_connection[connection] = link
        link.connection = connection
        loop = asyncio.get_running_loop()
        dialling = loop.create_task(loop.create_connection(lambda: connection, peer.host, peer.port))
        deadline = self.context.deadlines.after(self.context.limits.connect, dialling.cancel)
        problem = f"no connection in {self.context.limits.connect:g} s"
        try:
            await asyncio.wait([dialling])
            if not dialling.cancelled():
                error = dialling.exception()
                if error is None:
                    return connection
                problem = getattr(error, "strerror", None) or type(error).__name__
        finally:
            deadline.cancel()
            dialling.cancel()
        self._unreachable(link, connection, problem)
        return None

    def _unreachable(self, link: _Link, connection: DiameterConnection, problem: str) -> None:
        link.connection = None
        del self._of_connection[connection]
        link.failures += 1
        self.context.count("diameter_peer", "unreachable")
        if problem != link.problem:  # once, until something changes
            link.problem = problem
            self.context.log.warning(
                "diameter-peer-unreachable", node=self.context.identity.origin_host, peer=str(link.peer), problem=problem
            )


def _told_to_go(connection: DiameterConnection) -> bool:
    """Tell whether the peer wants no connection for now (RFC 6733 §5.4.3)."""
    return connection.end is not None and connection.end.cause in (DisconnectCause.BUSY, DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU)
