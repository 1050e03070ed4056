# SPDX-License-Identifier: Apache-2.0
"""One connection to a Diameter peer over TCP or TLS (RFC 6733 §2.1, §5): carries out what the peer machine says, within bounds."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from keyferry.errors import ParseError, TransportError
from keyferry.protocol.diameter.base import BASE, DisconnectCause, PeerCapabilities, error_answer
from keyferry.protocol.diameter.message import (
    MAX_FIRST,
    MAX_MESSAGE,
    AvpFault,
    DiameterMessage,
    Framer,
    parse_header,
    parse_message,
    render_message,
)
from keyferry.protocol.diameter.peer import Action, Deliver, Ended, EndReason, Opened, PeerMachine, Resumed, Send, State, Suspended
from keyferry.transports.deadlines import Deadline
from keyferry.transports.diameter_context import Admission, DiameterContext, RemotePeer
from keyferry.transports.diameter_exchange import Exchange, Owner
from keyferry.transports.diameter_trust import Trust
from keyferry.transports.tcp_reset import reset
from keyferry.transports.tls_stream import TlsStream

HIGH_WATER: Final = 256 * 1024
"""Octets waiting to be sent above which a connection's requests wait, and of requests that wait above which it is read no further."""
MAX_TURN: Final = 64
"""Requests of one connection in one turn of the loop: the others have theirs."""
_REQUEST: Final = 0x80
_BASE: Final = BASE.to_bytes(4, "big")


class DiameterConnection(asyncio.Protocol):
    """One connection. Small writes of one turn of the loop are joined; requests wait here while too many are in progress."""

    def __init__(
        self,
        context: DiameterContext,
        owner: Owner,
        admission: Admission,
        *,
        dials: bool,
        stream: TlsStream | None = None,
        after_failure: bool = False,
    ) -> None:
        self._context = context
        self._owner = owner
        self._admission = admission
        self._dials = dials
        self._stream = stream
        self._after_failure = after_failure
        self._identifiers = context.identifiers()
        self._machine: PeerMachine | None = None
        self._transport: asyncio.Transport | None = None
        self._framer = Framer(MAX_FIRST)
        self._heard = self._from_here = False  # anything at all; it is a process of this machine
        self._queue: deque[bytes] = deque()
        self._queued = 0  # octets of it
        self._turn = 0
        self._taking = False
        self._writable = True
        self._reading = True
        self._out: list[bytes] = []
        self._out_octets = 0
        self._corked = False
        self._flushing = False
        self._deadline: Deadline | None = None
        self._armed_at = 0.0
        self._cut: Deadline | None = None
        self.waiting: dict[int, Exchange] = {}  # by hop-by-hop identifier
        self.trust = Trust()
        self.in_flight = 0
        self.made_at = context.clock.monotonic()
        self.protected = stream is not None
        self.usable = False  # a request of ours may be sent
        self.peer = RemotePeer("", "", "", 0)
        self.end: Ended | None = None
        self.problem = ""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # ---- for the owner

    @property
    def made(self) -> bool:
        """Whether there is a transport, or was: only then `gone` comes."""
        return self._transport is not None

    @property
    def leaving(self) -> bool:
        """Whether a DPR was sent or received."""
        return self._machine is not None and self._machine.state is State.CLOSING

    def ask(self, exchange: Exchange) -> None:
        """Send a request of ours; its answer, if one comes, goes to the owner."""
        number = self._identifiers.hop_by_hop()
        request = exchange.request
        exchange.places[self] = number
        exchange.attempts += 1
        self.waiting[number] = exchange
        self.send(request.with_ids(number, request.end_to_end, retransmitted=exchange.again))

    def suspect(self) -> None:
        """Doubt a peer that has answered nothing since the oldest request that waits there: it gets a watchdog, and nothing new for now."""
        now = self._context.clock.monotonic()
        self.trust.failed(now)
        if self._machine is not None:
            self._carry_out(self._machine.suspect(now))
            self._rearm()

    def rely(self) -> None:
        """Use a peer that has not yet proved itself again: there is no other."""
        if self._machine is not None:
            self._carry_out(self._machine.trust(self._context.clock.monotonic()))

    def send(self, message: DiameterMessage) -> None:
        """Write a message with others of this turn; to who is gone, nothing. Raises LocalProtocolError if it is too long."""
        self.send_octets(render_message(message))

    def send_octets(self, data: bytes) -> None:
        """Write a message that is rendered already."""
        if self._transport is None or self._transport.is_closing():
            return
        self._out.append(data)
        self._out_octets += len(data)
        if self._out_octets > self._context.limits.backlog:
            self._flush()
        elif not self._corked and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def begun(self) -> None:
        """Note that a request of the peer is in progress; too many, and others wait."""
        self.in_flight += 1

    def done(self) -> None:
        """Note that it no longer is."""
        self.in_flight -= 1
        if self._queue and not self._taking:
            self._taking = True
            asyncio.get_running_loop().call_soon(self._take)
        if self.end is not None and not self.in_flight:
            self._leave()

    def disconnect(self, cause: DisconnectCause) -> None:
        """Leave in peace: a DPR, its DPA, the end; `limits.closing` later it is cut."""
        if self._machine is None:
            return
        self._carry_out(self._machine.disconnect(cause, self._context.clock.monotonic()))
        self._cut_later()

    def abort(self, reason: str, problem: str) -> None:
        """Cut the connection, and count why: `reason` is of a fixed set."""
        if self.gone.done() or self.problem:
            return
        self.problem = problem
        self._context.count("diameter_dropped", reason)
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Learn the addresses and begin."""
        stream = self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its bases
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if not (peer and local):  # it was reset before we looked
            stream.abort()
            return
        self.peer = RemotePeer("", "", peer[0], peer[1])
        self._from_here = peer[0] == local[0] or ipaddress.ip_address(peer[0]).is_loopback
        if not self._owner.admitted(self):
            return
        stream.set_write_buffer_limits(high=HIGH_WATER)
        self._machine = PeerMachine(
            self._context.identity, self._identifiers, dials=self._dials, addresses=[local[0].partition("%")[0]],
            admit=self._admits, timers=self._context.timers, after_failure=self._after_failure,
        )  # fmt: skip
        if self._stream is not None and self._dials:
            self._stream.begin()
            stream.write(self._stream.outgoing())
        self._carry_out(self._machine.start(self._context.clock.monotonic()))  # over TLS a CER waits for the handshake
        self._rearm()

    def data_received(self, data: bytes) -> None:
        """Take octets of the network: a handshake's, records, messages. What is answered at once goes out in one write."""
        if self.end is not None or self._machine is None or self.problem:
            return
        self._heard = self._corked = True
        try:
            if self._stream is None:
                self._octets(data)
            else:
                self._records(self._stream, data)
        finally:
            self._corked = False
            self._flush()

    def pause_writing(self) -> None:
        """Stop taking work from a peer that does not take our answers."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._take()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner."""
        if isinstance(exc, OSError) and exc.strerror and not self.problem:
            self.problem = exc.strerror
        if self._machine is not None:
            self._carry_out(self._machine.lost())
        for deadline in (self._deadline, self._cut):
            if deadline is not None:
                deadline.cancel()
        self._queue.clear()
        self._out.clear()
        if not self.gone.done():
            self.gone.set_result(None)

    # ---- octets in

    def _records(self, stream: TlsStream, data: bytes) -> None:
        shaken = stream.shaken
        try:
            clear = stream.feed(data)
        except TransportError as problem:
            self._write(stream.outgoing())  # the alert
            self._refuse("tls-record" if shaken else "tls-handshake", problem.problem)
            return
        self._write(stream.outgoing())
        if stream.shaken and not shaken:
            problem_with_peer = self._admission.certificate_problem(stream.identity)
            if problem_with_peer:
                self._refuse("tls-peer", problem_with_peer)
                return
            self.peer = self.peer._replace(role=stream.identity.role)
        if clear:
            self._octets(clear)
        if stream.ended and self._transport is not None:
            self._transport.close()

    def _octets(self, data: bytes) -> None:
        try:
            frames = self._framer.feed(data)
        except ParseError as problem:
            self._refuse("malformed-stream", str(problem))
            return
        self._turn = 0
        now = self._context.clock.monotonic()
        for frame in frames:
            if self._waits(frame):
                self._queue.append(frame)
                self._queued += len(frame)
            else:
                self._frame(frame, now)
        self._after()

    def _waits(self, frame: bytes) -> bool:
        """Tell whether a request has to wait for others; answers wait for nothing, somebody waits for them, and watchdogs little."""
        if not frame[4] & _REQUEST:
            return False
        if self._turn >= MAX_TURN:
            return True
        self._turn += 1
        return frame[8:12] != _BASE and (self._full or bool(self._queue))

    @property
    def _full(self) -> bool:
        return self.in_flight >= self._context.limits.in_flight or not self._writable

    def _take(self) -> None:
        """Take requests that wait, a turn's worth."""
        self._taking = False
        self._turn = 0
        now = self._context.clock.monotonic()
        while self._queue and self._turn < MAX_TURN and not self._full:
            self._turn += 1
            frame = self._queue.popleft()
            self._queued -= len(frame)
            self._frame(frame, now)
        self._after()

    def _after(self) -> None:
        if self._queue and not self._full and not self._taking:
            self._taking = True
            asyncio.get_running_loop().call_soon(self._take)
        self._throttle()
        self._rearm()

    def _throttle(self) -> None:
        wanted = len(self._queue) < self._context.limits.in_flight and self._queued < HIGH_WATER
        if wanted is self._reading or self._transport is None or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _frame(self, frame: bytes, now: float) -> None:
        if self._machine is None or self.end is not None or self.problem:
            return
        try:
            message = parse_message(frame)
        except AvpFault as fault:
            self._faulty(frame, fault)
        except ParseError as problem:
            self._refuse("malformed-stream", str(problem))
        else:
            self._carry_out(self._machine.received(message, now))

    def _faulty(self, frame: bytes, fault: AvpFault) -> None:
        """Answer a request whose AVPs cannot be read; an answer like that is none, and before CER and CEA nobody is answered."""
        self._context.count("diameter_dropped", "malformed-avp")
        head = parse_header(frame)
        if not self.peer.origin_host:
            self._refuse("malformed-stream", str(fault))
        elif head.request:
            self.send(error_answer(head, fault.code, self._context.identity, failed=fault.failed))

    # ---- the machine's actions

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            _ACTIONS[type(action)](self, action)

    def _send(self, action: Send) -> None:
        self.send(action.message)

    def _deliver(self, action: Deliver) -> None:
        message = action.message
        if message.request:
            self._owner.requested(self, message)
            return
        exchange = self.waiting.get(message.hop_by_hop)
        if exchange is None:
            self._owner.late(message)
            return
        asked = exchange.request
        if (message.end_to_end, message.code, message.application) != (asked.end_to_end, asked.code, asked.application):
            self._context.count("diameter_dropped", "wrong-answer")
            return
        if exchange.asked_last is self:
            self.trust.answered(self._context.clock.monotonic())
        del self.waiting[message.hop_by_hop]
        del exchange.places[self]
        self._owner.answered(self, exchange, message)

    def _opened(self, action: Opened) -> None:
        peer = action.peer
        self.peer = self.peer._replace(origin_host=peer.origin_host, origin_realm=peer.origin_realm, product=peer.product)
        self.usable = action.usable
        self._framer.limit = MAX_MESSAGE
        self._context.count("diameter_peer", "up")
        self._context.log.info("diameter-peer-up", node=self._context.identity.origin_host, tls=self.protected, **self._named())
        self._owner.opened(self)

    def _suspended(self, action: Suspended) -> None:
        del action
        self.usable = False
        if not self.leaving:
            self._context.count("diameter_peer", "suspect")
            self._context.log.warning("diameter-peer-suspect", node=self._context.identity.origin_host, **self._named())
        self._owner.suspended(self)

    def _resumed(self, action: Resumed) -> None:
        del action
        self.usable = True
        self._context.count("diameter_peer", "resumed")
        self._owner.resumed(self)

    def _ended(self, action: Ended) -> None:
        self.usable = False
        self.end = action
        self._queue.clear()
        self._context.count("diameter_peer", action.reason.value)
        self._tell(action)
        self._owner.ended(self)
        if action.reason is EndReason.WATCHDOG and self._transport is not None:
            reset(self._transport)  # what it has not taken is asked of others, or given up: it must not come late
        elif not self.in_flight or action.reason is not EndReason.DISCONNECTED:
            self._leave()  # otherwise after the last answer
        self._cut_later()

    def _tell(self, end: Ended) -> None:
        """Log the end: that of a peer that was there always, others as far as the log should hold them."""
        told = {"reason": end.reason.value, "code": end.code, "cause": end.cause.name.lower() if end.cause else "", "problem": self.problem}
        if self._from_here and end.reason is EndReason.LOST and not (self._dials or self._heard or self.problem):
            return  # somebody here looked whether the port is open, as `keyferry kamailio --check` does: nobody was refused
        if not self.peer.origin_host:
            self._context.refused("diameter-peer-refused", **self._named(), **told)
        elif end.reason is EndReason.DISCONNECTED:
            self._context.log.info("diameter-peer-down", node=self._context.identity.origin_host, **self._named(), **told)
        else:
            self._context.log.warning("diameter-peer-down", node=self._context.identity.origin_host, **self._named(), **told)

    def _named(self) -> dict[str, object]:
        return {"peer": self.peer.origin_host, "address": f"{self.peer.address}:{self.peer.port}"}

    def _admits(self, claimed: PeerCapabilities) -> bool:
        if self._admission.peer(claimed, None if self._stream is None else self._stream.identity):
            return True
        self.problem = f"{claimed.origin_host} is no peer of ours, or not this one"
        return False

    # ---- time

    def _rearm(self) -> None:
        """Keep one deadline, no later than the machine's: that moves with every message, so it is looked at when ours fires."""
        due = None if self._machine is None else self._machine.deadline
        if due is None or (self._deadline is not None and self._armed_at <= due):
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._armed_at = due
        self._deadline = self._context.deadlines.at(due, self._tick)

    def _tick(self) -> None:
        self._deadline = None
        if self._machine is not None:
            self._check_certificate()
            self._carry_out(self._machine.tick(self._context.clock.monotonic(), self._context.jitter()))
            self._rearm()

    def _check_certificate(self) -> None:
        """Leave a peer whose certificate has ended meanwhile; with a new one it may come again."""
        if self.usable and self._stream is not None and self._context.clock.now() >= self._stream.identity.not_after:
            self.problem = "its certificate has ended"
            self._context.count("diameter_dropped", "tls-expired")
            self.disconnect(DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU)

    # ---- octets out, and the end

    def _flush(self) -> None:
        self._flushing = False
        transport, stream = self._transport, self._stream
        if not self._out or transport is None or transport.is_closing() or (stream is not None and not stream.shaken):
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_octets = 0
        if transport.get_write_buffer_size() + len(data) > self._context.limits.backlog:
            self.abort("slow-reader", "the peer does not read what we send")
            return
        if stream is not None:
            try:
                stream.write(data)
            except TransportError as problem:
                self.abort("tls-record", problem.problem)
                return
            data = stream.outgoing()
        transport.write(data)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _refuse(self, reason: str, problem: str) -> None:
        """End the connection for something that the peer did; an alert goes out."""
        if self.problem:
            return
        self.problem = problem
        self._context.count("diameter_dropped", reason)
        if self._machine is not None:
            self._carry_out(self._machine.lost())

    def _leave(self) -> None:
        self._flush()
        if self._transport is None or self._transport.is_closing():
            return
        if self._stream is not None:
            self._stream.close()
            self._write(self._stream.outgoing())
        self._transport.close()

    def _cut_later(self) -> None:
        if self._cut is None and not self.gone.done():
            self._cut = self._context.deadlines.after(self._context.limits.closing, self._cut_now)

    def _cut_now(self) -> None:
        if self._transport is not None and not self.gone.done():
            self._transport.abort()


_ACTIONS: Final[dict[type, Callable[..., None]]] = {
    Send: DiameterConnection._send,
    Deliver: DiameterConnection._deliver,
    Opened: DiameterConnection._opened,
    Suspended: DiameterConnection._suspended,
    Resumed: DiameterConnection._resumed,
    Ended: DiameterConnection._ended,
}
