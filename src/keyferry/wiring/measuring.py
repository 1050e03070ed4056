# SPDX-License-Identifier: Apache-2.0
"""What stands around roles, ports and doors and measures them: none of them knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from keyferry.asgi.exchange import App, Message, Receive, Scope, Send
from keyferry.asgi.limits import bucket_name
from keyferry.asgi.proxy.forward import LEFT
from keyferry.errors import CxError, RemoteProtocolError
from keyferry.ports import (
    Clock,
    CxClient,
    Log,
    OrderedCx,
    PeerCheck,
    Resync,
    ServerAssignment,
    SipClient,
    SipHandler,
    SipPeer,
)
from keyferry.ports.correlation import correlate
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.identity import AsId, Impi, Impu
from keyferry.protocol.ims.charging import correlation_of
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.repeats import Repeats
from keyferry.protocol.sip.message import Request, Response
from keyferry.wiring.metrics import Count, Histogram, Metrics

REGISTER_OUTCOMES: Final = ("challenged", "accepted", "refused", "failed")
PUSH_OUTCOMES: Final = ("delivered", "refused", "unreachable")
CX_OUTCOMES: Final = ("success", "refused", "failed")
OTHER: Final = "other"
"""The label of an AS that a user's profile names and our configuration does not: such names have no bound."""
MECHANISMS: Final = ("digest", "first-nonce", "psk", "session", "none")
CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")
GONE: Final = "left"
"""The class of a request whose client left before the answer: nobody failed."""
SEVERAL: Final = "several"
"""The source of what came from more addresses than are told apart."""
LINES: Final = 60
"""Lines of one source, function and status other than 2xx, a minute."""
ALL_LINES: Final = 6_000
"""And of all of a function; a source takes some 400 octets until the minute is over."""
_MEASURED: Final = "keyferry.measured"  # of a scope: how its application tells what stands before the door whom it was given


def outcome_of(status: int) -> str:
    """Return the label of an answer to a REGISTER."""
    if status == 401:
        return "challenged"
    if 200 <= status < 300:
        return "accepted"
    return "refused" if 300 <= status < 500 or status >= 600 else "failed"


@dataclass(slots=True)
class RegisterLines:
    """Write a line of each REGISTER that a function has answered.

    Strangers cause those that are not accepted: of one source and status the first of a minute are lines, the others a number in one.
    """

    function: str
    clock: Clock
    log: Log
    trusts: Callable[[SipPeer], bool]
    """Whose P-Charging-Vector is believed; what a UE writes there is nothing to us (RFC 7315 §4.6.2)."""
    of_strangers: Repeats = field(default_factory=lambda: Repeats(full=LINES, all_full=ALL_LINES, kinds=ALL_LINES))
    of_peers: Repeats = field(default_factory=lambda: Repeats(full=ALL_LINES, all_full=ALL_LINES, kinds=ALL_LINES))

    def tell(self, peer: SipPeer, status: int, seconds: float) -> None:
        """Write the line, or count it."""
        if not 200 <= status < 300:
            kind = str(status)
            repeats, source = (self.of_peers, peer.host) if self.trusts(peer) else (self.of_strangers, bucket_name(peer.host))
            if not repeats.take((kind, source), (kind, SEVERAL), self.clock.now(), self.clock.monotonic()):
                return
        self.log.info("register", function=self.function, status=status, ms=int(seconds * 10_000) / 10)

    def tell_counts(self, *, final: bool = False) -> None:
        """Write what was counted in the minutes that are over; `final`: in this one, too."""
        now = self.clock.monotonic()
        for counted in (*self.of_strangers.over(now, final=final), *self.of_peers.over(now, final=final)):
            status, source = counted.kind
            self.log.info(
                "register-repeated", function=self.function, status=int(status), source=source, count=counted.number,
                seconds=round(counted.until - counted.since),
            )  # fmt: skip


def measured_handler(handler: SipHandler, lines: RegisterLines, metrics: Metrics, clock: Clock) -> SipHandler:
    """Tell each request's registration to the log, time REGISTERs and write a line of each."""
    function, trusts = lines.function, lines.trusts
    times: Mapping[str, Histogram] = {each: metrics.histogram("sip_register_seconds", function, each) for each in REGISTER_OUTCOMES}

    async def handle(request: Request, peer: SipPeer) -> Response:
        correlate(correlation_of(request.get("P-Charging-Vector")) if trusts(peer) else "")
        if request.method != "REGISTER":
            return await handler(request, peer)
        began, status = clock.monotonic(), 500
        try:
            response = await handler(request, peer)
            status = response.status
            return response
        except RemoteProtocolError as problem:
            status = problem.status
            raise
        finally:
            taken = clock.monotonic() - began
            times[outcome_of(status)].observe(taken)
            lines.tell(peer, status, taken)

    return handle


@dataclass(frozen=True, slots=True)
class MeasuredPushes:
    """Implement ports.SipClient around another: an S-CSCF's third-party REGISTERs, each attempt by its AS."""

    sip: SipClient
    metrics: Metrics
    clock: Clock
    log: Log
    servers: Collection[str]  # ServerNames of the configuration
    times: dict[tuple[str, str], Histogram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Show every AS from the start, at zero."""
        for server in (*self.servers, OTHER):
            for outcome in PUSH_OUTCOMES:
                self.times[server, outcome] = self.metrics.histogram("isc_push_seconds", server, outcome)

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        """Send as the other does, and note how long the answer took."""
        began, outcome = self.clock.monotonic(), "unreachable"
        try:
            response = await self.sip.send(request, hop, check=check)
            outcome = "delivered" if 200 <= response.status < 300 else "refused"
            return response
        finally:
            taken = self.clock.monotonic() - began
            self.times[request.uri if request.uri in self.servers else OTHER, outcome].observe(taken)
            self.log.info("push", server=request.uri, outcome=outcome, ms=int(taken * 10_000) / 10)


@dataclass(frozen=True, slots=True)
class MeasuredCx:
    """Implement ports.CxClient around another."""

    cx: CxClient
    metrics: Metrics
    clock: Clock
    log: Log
    times: dict[tuple[str, str], Histogram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Show every command from the start, at zero."""
        for command in ("UAR", "LIR", "MAR", "SAR"):
            for outcome in CX_OUTCOMES:
                self.times[command, outcome] = self.metrics.histogram("cx_seconds", command, outcome)

    async def user_authorization(
        self, impi: Impi, impu: Impu, visited_network: str, kind: AuthorizationType = AuthorizationType.REGISTRATION
    ) -> UserAuthorization:
        """UAR."""
        with _CxTime(self, "UAR"):
            return await self.cx.user_authorization(impi, impu, visited_network, kind)

    async def location_info(self, impu: Impu) -> str:
        """LIR."""
        with _CxTime(self, "LIR"):
            return await self.cx.location_info(impu)

    async def multimedia_auth(
        self, impi: Impi, impu: Impu, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        """MAR."""
        with _CxTime(self, "MAR"):
            return await self.cx.multimedia_auth(impi, impu, server_name, resync, masked=masked)

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment) -> bytes:
        """SAR."""
        with _CxTime(self, "SAR"):
            return await self.cx.server_assignment(impi, impu, server_name, assignment)


@dataclass(frozen=True, slots=True)
class MeasuredHss(MeasuredCx):
    """Implement ports.OrderedCx around another."""

    cx: OrderedCx

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment, *, order: int = 0) -> bytes:
        """SAR."""
        with _CxTime(self, "SAR"):
            return await self.cx.server_assignment(impi, impu, server_name, assignment, order=order)


class _CxTime:
    """The time of one command."""

    __slots__ = ("_began", "_command", "_of")

    def __init__(self, of: MeasuredCx, command: str) -> None:
        self._of, self._command, self._began = of, command, of.clock.monotonic()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        outcome = "success" if kind is None else "refused" if issubclass(kind, CxError) else "failed"
        taken = self._of.clock.monotonic() - self._began
        self._of.times[self._command, outcome].observe(taken)
        result = error.name if isinstance(error, CxError) else outcome
        self._of.log.info("cx", function="HSS", command=self._command, result=result, ms=int(taken * 10_000) / 10)


# ---- doors


class _Seen:
    """What is known of one HTTP request."""

    __slots__ = ("admitted", "began", "gone", "mechanism", "status")

    def __init__(self, began: float) -> None:
        self.began, self.admitted, self.mechanism, self.status, self.gone = began, 0.0, "none", 0, False


@dataclass(slots=True)
class MeasuredDoor:
    """Measure what stands at one AS_ID's listeners: `inside` goes around the application, `around` around its door."""

    as_id: AsId
    metrics: Metrics
    clock: Clock
    check: Histogram = field(init=False)
    times: Mapping[int, Histogram] = field(init=False)
    answers: Mapping[tuple[str, int], Count] = field(init=False)
    gone: Count = field(init=False)

    def __post_init__(self) -> None:
        """Show the door from the start, at zero."""
        metrics, as_id = self.metrics, self.as_id
        self.check = metrics.histogram("door_check_seconds", as_id)
        self.times = {int(each[0]): metrics.histogram("http_request_seconds", as_id, each) for each in CLASSES}
        self.answers = {
            (mechanism, int(each[0])): metrics.counter("http_responses", as_id, mechanism, each)
            for mechanism in MECHANISMS
            for each in CLASSES
        }
        self.gone = metrics.counter("http_responses", as_id, "none", GONE)

    def inside(self, app: App) -> App:
        """Return an application that notes when it is asked, and for whom."""
        now = self.clock.monotonic

        async def admitted(scope: Scope, receive: Receive, send: Send) -> None:
            seen = scope.pop(_MEASURED, None)
            if seen is not None:
                identity = scope.get("keyferry")
                if identity is not None:
                    seen.admitted = now()
                    seen.mechanism = identity.mechanism
            await app(scope, receive, send)

        return admitted

    def around(self, door: App) -> App:
        """Return a door that measures each request."""
        now = self.clock.monotonic

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await door(scope, receive, send)
                return
            seen = scope[_MEASURED] = _Seen(now())

            async def noted(message: Message) -> None:
                if not seen.status and message["type"] == "http.response.start":
                    seen.status = message["status"]
                    self._answered(seen, now())
                await send(message)

            async def heard() -> Message:
                message = await receive()
                if message["type"] == "http.disconnect":
                    seen.gone = True
                return message

            try:
                await door(scope, heard, noted)
            finally:
                if not seen.status:
                    self._unanswered(seen, scope.get(LEFT), now())

        return measured

    def _unanswered(self, seen: _Seen, left: asyncio.Future[None] | None, at: float) -> None:
        if seen.gone or (left is not None and left.done()):
            self.gone.value += 1
            return
        seen.status = 500  # what the server answers for an application that failed
        self._answered(seen, at)

    def _answered(self, seen: _Seen, at: float) -> None:
        if seen.admitted:
            self.check.observe(seen.admitted - seen.began)
        class_ = seen.status // 100
        times = self.times.get(class_)
        if times is not None:
            times.observe(at - seen.began)
            count = self.answers.get((seen.mechanism, class_)) or self.answers["none", class_]
            count.value += 1
