# SPDX-License-Identifier: Apache-2.0
"""The client side of a SIP node (RFC 3261 §8.1.1.7, §17.1.2, §17.1.3, §18.1)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable

from keyferry.errors import KeyferryError, LocalFailure, ParseError, TransportError
from keyferry.ports import PeerCheck, SipPeer
from keyferry.protocol.sip.headers import CSeq, Via, parse_cseq, top_via
from keyferry.protocol.sip.message import Request, Response
from keyferry.protocol.sip.transaction import MAGIC_COOKIE, ClientTransaction, Deliver, Effect, Failed, Input, Transmit
from keyferry.transports.deadlines import Deadline
from keyferry.transports.sip_context import ESP, Flow, SipContext

BRANCH_OCTETS = 12
"""Random octets of a branch: 96 bits, so nobody off the path guesses it."""


class Call:
    """One request on its way: the transaction, what it sends and who waits."""

    __slots__ = ("check", "checking", "cseq", "data", "deadline", "flow", "future", "request", "transaction", "via")

    def __init__(
        self, request: Request, data: bytes, via: Via, cseq: CSeq, flow: Flow, check: PeerCheck | None, context: SipContext
    ) -> None:  # fmt: skip
        self.request = request
        self.data = data
        self.via = via
        self.cseq = cseq
        self.flow = flow
        self.check = check
        self.checking: asyncio.Task[None] | None = None  # a transmission that waits for what the policy says
        self.transaction = ClientTransaction(reliable=flow.peer.transport not in ("UDP", ESP), timers=context.timers)
        self.future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.deadline: Deadline | None = None


class SipClientSide:
    """Match responses to requests and retransmit."""

    def __init__(self, context: SipContext) -> None:
        self._context = context
        self._calls: dict[str, Call] = {}
        self._on: Counter[int] = Counter()  # how many calls wait on a flow, by its id, while there are any

    @property
    def in_progress(self) -> int:
        """How many requests wait for their final response."""
        return len(self._calls)

    def via(self, transport: str, sent_by: SipPeer) -> Via:
        """Return a new top Via."""
        branch = MAGIC_COOKIE + self._context.random.octets(BRANCH_OCTETS).hex()
        host = f"[{sent_by.host}]" if ":" in sent_by.host else sent_by.host
        parameters: tuple[tuple[str, str | None], ...] = (("branch", branch),)
        if transport == "UDP":
            parameters = (("rport", None), *parameters)
        elif transport == ESP:
            # TS 24.229 §5.1.1.2.2: the protected server port, without rport, which would ask for the answer at the client port
            transport = "UDP"
        return Via(transport, host, sent_by.port, parameters)

    async def run(self, request: Request, data: bytes, via: Via, flow: Flow, check: PeerCheck | None) -> Response:
        """Send a request whose top Via is `via`; return the final response without it.

        Raises TransportError, and what `check` raises.
        """
        call = Call(request, data, via, parse_cseq(request.get("CSeq") or ""), flow, check, self._context)
        self._calls[via.branch] = call
        self._on[id(flow)] += 1
        try:
            self._carry_out(call, call.transaction.start(self._context.clock.monotonic()))
            return without_top_via(await call.future)
        finally:
            # the transaction would now absorb further responses for T4; unmatched ones are dropped just the same
            del self._calls[via.branch]
            self._on[id(flow)] -= 1
            if not self._on[id(flow)]:
                del self._on[id(flow)]
            if call.deadline is not None:
                call.deadline.cancel()
            if call.checking is not None:
                call.checking.cancel()

    def received(self, response: Response, octets: int, flow: Flow) -> None:
        """Take a response; one that belongs to no request is dropped (§18.1.2)."""
        call = self._match(response, flow)
        self._context.saw(flow, octets, response, outgoing=False, retransmission=call is None)
        if call is None:
            self._context.count("sip_dropped", "stray-response")
            return
        if call.future.done():
            return  # its sender has not run yet
        self._carry_out(call, call.transaction.receive(response, self._context.clock.monotonic()))

    def lost(self, flow: Flow, problem: str) -> None:
        """Fail what waits for an answer on a connection that ended."""
        if id(flow) not in self._on:
            return  # a stranger's connection: whoever makes and ends many is not to have us look through all calls
        for call in list(self._calls.values()):
            if call.flow is flow:
                self._fail(call, TransportError(str(flow.peer), problem))

    def close(self) -> None:
        """Fail everything."""
        for call in list(self._calls.values()):
            self._fail(call, LocalFailure(str(call.flow.peer), "this node was closed"))

    def _match(self, response: Response, flow: Flow) -> Call | None:
        # §17.1.3: the branch, our sent-by, and the method of CSeq; its number too
        try:
            via, _ = top_via(response.get("Via") or "")
            cseq = parse_cseq(response.get("CSeq") or "")
        except ParseError:
            return None
        call = self._calls.get(via.branch)
        if call is None or (via.host, via.port) != (call.via.host, call.via.port) or cseq != call.cseq:
            return None
        if call.flow.peer.transport == ESP and flow.peer != call.flow.peer:
            return None  # TS 33.203 §7: what was asked under a set of SAs is answered under it, or by a stranger
        return call

    def _carry_out(self, call: Call, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Transmit(retransmission):
                    self._transmit(call, retransmission)
                case Deliver(response):
                    if response.status >= 200 and not call.future.done():
                        call.future.set_result(response)
                case Failed(cause):
                    why = f"no answer in {self._context.timers.f:g} s" if cause is Input.TIMER_F else "could not be sent"
                    self._fail(call, TransportError(str(call.flow.peer), why))
        self._arm(call)

    def _transmit(self, call: Call, retransmission: bool) -> None:
        if call.checking is not None:
            return  # one that is due earlier still waits for the policy; this one would ask the same
        try:
            pending = None if call.check is None else call.check(call.flow.peer)
        except Exception as problem:  # whatever the policy raises goes to the caller, not to the timer that retransmits
            self._stopped(call, problem)
            return
        if pending is None:
            self._put(call, retransmission)
        else:
            call.checking = asyncio.get_running_loop().create_task(self._transmit_if(call, pending, retransmission))

    async def _transmit_if(self, call: Call, pending: Awaitable[None], retransmission: bool) -> None:
        try:
            await pending
        except Exception as problem:  # as above
            self._stopped(call, problem)
            return
        finally:
            call.checking = None
        if not call.future.done():
            self._put(call, retransmission)

    def _put(self, call: Call, retransmission: bool) -> None:
        try:
            call.flow.send(call.data)
        except Exception as problem:  # of the socket
            self._stopped(call, problem)
            return
        if retransmission:
            self._context.count("sip_retransmissions", "sent")
        self._context.saw(call.flow, len(call.data), call.request, outgoing=True, retransmission=retransmission)

    def _stopped(self, call: Call, problem: Exception) -> None:
        call.transaction.transport_failed(self._context.clock.monotonic())
        self._fail(call, problem)

    def _arm(self, call: Call) -> None:
        if call.deadline is not None:
            call.deadline.cancel()
            call.deadline = None
        when = None if call.future.done() else call.transaction.deadline
        if when is not None:
            call.deadline = self._context.deadlines.at(when, lambda: self._tick(call))

    def _tick(self, call: Call) -> None:
        self._carry_out(call, call.transaction.tick(self._context.clock.monotonic()))

    @staticmethod
    def _fail(call: Call, problem: Exception) -> None:
        if not call.future.done():
            call.future.set_exception(problem)


def without_top_via(response: Response) -> Response:
    """Return a response without its first Via value."""
    for number, (name, value) in enumerate(response.headers):
        if name == "Via":
            with contextlib.suppress(KeyferryError):
                _, rest = top_via(value)
                middle = (("Via", rest),) if rest else ()
                return response.with_headers((*response.headers[:number], *middle, *response.headers[number + 1 :]))
    return response
