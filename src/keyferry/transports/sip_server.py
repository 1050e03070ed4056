# SPDX-License-Identifier: Apache-2.0
"""The server side of a SIP node (RFC 3261 §8.2, §17.2.2, §18.2; RFC 3581 §4): every request is answered once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import Coroutine

from keyferry.errors import KeyferryError, ParseError, RemoteProtocolError
from keyferry.ports import SipHandler, SipPeer
from keyferry.protocol.sip.completed import CompletedResponses
from keyferry.protocol.sip.grammar import MAX_MESSAGE, with_parameter
from keyferry.protocol.sip.headers import Via, build_via, top_via
from keyferry.protocol.sip.message import (
    Request,
    Response,
    build_message,
    check_request,
    make_response,
    parse_message,
    salvage_request,
    with_to_tag,
)
from keyferry.protocol.sip.overload import first_via
from keyferry.protocol.sip.transaction import ServerTransaction, is_unique, key_of_branch, server_key
from keyferry.transports.sip_context import Flow, SipContext
from keyferry.transports.sip_overload import OverloadGate
from keyferry.transports.sip_tcp import TcpConnection
from keyferry.transports.sip_udp import UdpFlow

DEFAULT_PORT = 5060
"""RFC 3261 §18.2.2, for UDP."""


class SipServer:
    """Run a handler for each new request and keep its answer for the retransmissions."""

    def __init__(self, context: SipContext, handler: SipHandler | None, gate: OverloadGate | None = None) -> None:
        self._context = context
        self._gate = gate
        self._handler = handler
        self._secret = context.random.octets(32)
        self._active: dict[int, ServerTransaction] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._completed = CompletedResponses(
            lifetime=context.timers.j, max_entries=context.limits.completed, max_octets=context.limits.completed_octets
        )
        self._sweeping = False

    @property
    def in_progress(self) -> int:
        """How many requests the handler is working on."""
        return len(self._active)

    @property
    def remembered(self) -> int:
        """How many responses are kept for retransmissions."""
        return self._completed.entries

    def received(self, request: Request, octets: int, flow: Flow) -> None:
        """Take a request."""
        if request.method == "ACK":
            # an ACK is never answered (§17): none of our responses asks for one
            self._context.saw(flow, octets, request, outgoing=False)
            return
        try:
            via = check_request(request)
        except ParseError as problem:
            self._context.saw(flow, octets, request, outgoing=False)
            self._context.count("sip_dropped", "malformed")
            self._refuse(request, flow, problem.status)
            return
        peer = flow.peer
        key = server_key(request, via, _source(peer), self._secret)
        request, back = self._routed(request, via, flow, peer)
        if not self._again(key, request, octets, flow, back):
            self._context.saw(flow, octets, request, outgoing=False)
            self._begin(key, request, flow, back)

    def shed(self, data: bytes, flow: Flow, gate: OverloadGate) -> None:
        """Answer 503 without a transaction (RFC 3261 §21.5.4), and without parsing where the message has the usual form.

        Not to what is being served, or has been: whose first copy was let in gets one answer (§17.2.2).
        """
        key = self._key_of(data, flow) if gate.was_let_in(data) else 0
        if key in self._active:
            self._context.count("sip_retransmissions", "received")
            return
        short = None if key in self._completed else gate.refusal(data, flow)
        if short is not None:
            try:
                (UdpFlow(flow.endpoint, flow.host, short.port) if isinstance(flow, UdpFlow) else flow).send(short.data)
            except KeyferryError:
                self._context.count("sip_dropped", "unreachable")
            return
        try:
            request = parse_message(data)
        except ParseError as problem:
            self.malformed(data, flow, problem.status)
            return
        if not isinstance(request, Request):
            return
        if key in self._completed:
            self.received(request, len(data), flow)
        else:
            self._refuse(request, flow, 503, (("Retry-After", str(gate.retry_after)),))

    def _key_of(self, data: bytes, flow: Flow) -> int:
        """Return the name of a message's transaction without parsing the message; 0, which is nobody's, where that cannot be."""
        row = first_via(data)
        try:
            via = top_via(row)[0] if row is not None else None
        except ParseError:
            via = None
        if via is None or not is_unique(via.branch):
            return 0
        method = data[: data.find(b" ")].decode("utf-8", "surrogateescape")
        return key_of_branch(method, via, _source(flow.peer), self._secret)

    def malformed(self, data: bytes, flow: Flow, status: int) -> None:
        """Answer octets that are no message if they hold what an answer needs; else drop them."""
        self._context.count("sip_dropped", "malformed")
        request = salvage_request(data)
        if request is not None:
            self._refuse(request, flow, status)

    def undelivered(self, data: bytes, flow: Flow) -> None:
        """Send a response again, over a new connection (RFC 3261 §18.2.2)."""
        response = parse_message(data)
        if isinstance(flow, TcpConnection) and isinstance(response, Response):
            self._run(self._send_anew(response, data, flow))

    async def aclose(self) -> None:
        """Cancel the handlers at work."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- one request

    def _again(self, key: int, request: Request, octets: int, flow: Flow, back: Flow) -> bool:
        active = self._active.get(key)
        response = None if active else self._completed.recall(key, request, self._context.clock.monotonic())
        if active is None and response is None:
            return False
        self._context.count("sip_retransmissions", "received")
        self._context.saw(flow, octets, request, outgoing=False, retransmission=True)
        if active is not None:
            active.retransmitted(self._context.clock.monotonic())  # no effect: we send no provisional response
        elif response is not None:
            self._send(response, build_message(response), back, retransmission=True)
        return True

    def _begin(self, key: int, request: Request, flow: Flow, back: Flow) -> None:
        if len(self._active) >= self._context.limits.in_progress:
            self._context.count("sip_dropped", "overload")
            self._refuse(request, flow, 503, (("Retry-After", str(self._context.limits.retry_after)),))
        elif self._handler is None or request.method == "INVITE":
            # stateless (§8.2.7): the same answer to each retransmission; an INVITE's ACK is dropped above
            self._refuse(request, flow, 501)
        elif request.method == "CANCEL":
            self._refuse(request, flow, 481)
        else:
            transaction = ServerTransaction(reliable=isinstance(flow, TcpConnection), timers=self._context.timers)
            self._active[key] = transaction
            if isinstance(flow, TcpConnection):
                flow.begun()
            self._run(self._serve(self._handler, key, transaction, request, flow, back))

    async def _serve(self, handler: SipHandler, key: int, transaction: ServerTransaction, request: Request, flow: Flow, back: Flow) -> None:
        try:
            response, data = await self._answer(handler, request, flow)
            now = self._context.clock.monotonic()
            if response.status == 401 and self._gate is not None:
                self._gate.challenged(response)
            if transaction.respond(response.status, data, now):
                self._send(response, data, back)
            if not transaction.reliable:
                self._completed.remember(key, request, response, now)
                self._sweep_later()
        finally:
            del self._active[key]
            if isinstance(flow, TcpConnection):
                flow.ended()

    async def _answer(self, handler: SipHandler, request: Request, flow: Flow) -> tuple[Response, bytes]:
        try:
            response = with_to_tag(await handler(request, flow.peer), lambda: self._tag(request))
            data = build_message(response)
            if len(data) > MAX_MESSAGE:
                raise RemoteProtocolError("the response would be too large", status=513)
            if response.status >= 200:
                return response, data
            problem: str = "provisional response"
        except RemoteProtocolError as error:
            status = error.status if 300 <= error.status <= 699 else 500
            response = make_response(request, status, to_tag=self._tag(request))
            return response, build_message(response)
        except Exception as error:  # the shell's last line: whatever a role raises, the peer gets an answer
            problem = type(error).__name__
        self._context.count("sip_dropped", "handler-failed")
        self._context.log.warning("sip-handler-failed", node=self._context.name, method=request.method, problem=problem)
        response = make_response(request, 500, to_tag=self._tag(request))
        return response, build_message(response)

    def _refuse(self, request: Request, flow: Flow, status: int, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """Answer without a transaction, if Via, From, To, Call-ID and CSeq are there (RFC 3261 §8.2.7)."""
        if any(not request.get(name) for name in ("Via", "From", "To", "Call-ID", "CSeq")):
            return
        back: Flow = flow
        with contextlib.suppress(
            ParseError
        ):  # RFC 4475 §3.1.2.1, §3.1.2.16: Via does not say where, so it goes where the request came from
            request, back = self._routed(request, top_via((request.get("Via") or "").strip())[0], flow, flow.peer)
        response = make_response(request, status, headers=headers, to_tag=self._tag(request))
        self._send(response, build_message(response), back)

    # ---- the way back

    def _routed(self, request: Request, via: Via, flow: Flow, peer: SipPeer) -> tuple[Request, Flow]:
        """Note the source in the top Via (§18.2.1, RFC 3581 §4) and say where the response goes (§18.2.2).

        maddr is not followed: it would send our answers wherever a stranger says.
        """
        host, port = peer.host, peer.port
        parameters = via.parameters
        asked = via.rport is not None
        if asked or via.received is not None or via.host.strip("[]") != host:
            parameters = with_parameter(parameters, "received", host)
        if asked:
            parameters = with_parameter(parameters, "rport", str(port))
        if parameters != via.parameters:
            request = _with_top_via(request, Via(via.transport, via.host, via.port, parameters))
        if isinstance(flow, UdpFlow) and not asked:
            return request, UdpFlow(flow.endpoint, host, via.port or DEFAULT_PORT)
        return request, flow

    def _send(self, response: Response, data: bytes, back: Flow, *, retransmission: bool = False) -> None:
        if len(data) > MAX_MESSAGE:  # what it has to repeat of its request alone; its receiver would read no further on the connection
            self._context.count("sip_dropped", "too-large")
            return
        try:
            back.send(data)
        except KeyferryError:
            if isinstance(back, TcpConnection) and back.closed and not back.given_up:
                self._run(self._send_anew(response, data, back))
            else:
                self._context.count("sip_dropped", "unreachable")
            return
        self._context.saw(back, len(data), response, outgoing=True, retransmission=retransmission)

    async def _send_anew(self, response: Response, data: bytes, back: TcpConnection) -> None:
        # §18.2.2: the connection is gone, so one is opened to the same host, at the port in sent-by
        try:
            via, _ = top_via(response.get("Via") or "")
            flow = await back.again(via.port)
            flow.send(data)
        except KeyferryError:
            self._context.count("sip_dropped", "unreachable")
            return
        self._context.saw(flow, len(data), response, outgoing=True)

    def _tag(self, request: Request) -> str:
        # the same request gets the same tag, even after its response was forgotten (§8.2.7)
        text = "\n".join(request.get(name) or "" for name in ("Call-ID", "From", "CSeq"))
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8, key=self._secret, person=b"tag").hexdigest()

    # ---- tasks and time

    def _run(self, work: Coroutine[None, None, None]) -> None:
        """Start now where Python can (3.12): a handler that never waits costs no turn of the loop."""
        loop = asyncio.get_running_loop()
        if sys.version_info >= (3, 12):
            task = asyncio.Task(work, loop=loop, eager_start=True)
            if task.done():
                return
        else:
            task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _sweep_later(self) -> None:
        if not self._sweeping and self._completed.entries:
            self._sweeping = True
            self._context.deadlines.after(self._context.timers.j / 4, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        self._completed.sweep(self._context.clock.monotonic())
        self._sweep_later()


def _source(peer: SipPeer) -> str:
    """Return who sent something; two UEs may have one address inside their tunnels."""
    return f"{peer}/{peer.spi}" if peer.spi else str(peer)


def _with_top_via(request: Request, via: Via) -> Request:
    _, rest = top_via(request.get("Via") or "")
    return request.with_first("Via", f"{build_via(via)}, {rest}" if rest else build_via(via))
