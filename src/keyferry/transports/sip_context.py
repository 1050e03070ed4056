# SPDX-License-Identifier: Apache-2.0
"""What the parts of one SIP node share: name, clock, counters, observer; and the way a message travels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from keyferry.errors import LocalFailure, TransportError
from keyferry.ports import Clock, Counter, Log, PeerCheck, RandomSource, SipEvent, SipObserver, SipPeer
from keyferry.protocol.sip.message import Message
from keyferry.protocol.sip.transaction import Timers
from keyferry.transports.deadlines import Deadlines

ESP: Final = "ESP"
"""The transport of a SipPeer that is reached through a tunnel; inside it is UDP, and so says Via."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one node, each against one peer taking everything."""

    in_progress: int = 1_000  # requests a handler is working on; above it 503
    retry_after: int = 2  # seconds, in that 503
    completed: int = 400_000  # responses kept for timer J: 32 s at 6,000 registrations a second
    completed_octets: int = 256 * 1024 * 1024
    connections: int = 2_000  # TCP and as many TLS, both directions
    per_source: int = 200  # of those, made by one address (IPv6: /64) that is not trusted: phones behind one NAT fit, nobody takes all
    idle: float = 180.0  # seconds after which a TCP connection without traffic is closed
    partial: float = 32.0  # seconds a TCP peer may take for one message: 64*T1
    connect: float = 5.0  # seconds to establish a connection, TLS and all
    handshake: float = 5.0  # seconds a TLS client may take to shake hands
    datagram: int = 1_300  # octets above which a request goes over TCP: RFC 3261 §18.1.1, path MTU unknown
    pipelined: int = 64  # requests in progress of one connection before others wait; as many wait before it is read no further
    expiry_warning: float = 14 * 86_400.0  # seconds before a certificate ends in which the log says so, once a day


@dataclass(frozen=True, slots=True)
class SipContext:
    """Shared by the parts of a node."""

    name: str
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter | None
    observer: SipObserver | None
    timers: Timers
    limits: Limits
    observed: Callable[[], bool] = lambda: True  # whether the observer looks now: making an event for nobody costs 3 µs
    trusts: Callable[[str], bool] = lambda _host: False  # whether a numeric address may open as many connections as it likes
    deadlines: Deadlines = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "deadlines", Deadlines(self.clock))

    def count(self, name: str, reason: str = "") -> None:
        """Count, if anybody wants to know."""
        if self.counter is not None:
            self.counter.count(name, reason)

    def saw(self, flow: Flow, octets: int, message: Message, *, outgoing: bool, retransmission: bool = False) -> None:
        """Show a message to the observer."""
        if self.observer is None or not self.observed():
            return
        try:
            peer = flow.peer
            wire = cast("TunnelFlow", flow).wire_octets(octets) if peer.transport == ESP else 0
            self.observer(SipEvent(self.clock.now(), self.name, outgoing, flow.local, peer, octets, message, retransmission, wire))
        except Exception as problem:  # who looks on must not stop what he looks at
            self.log.warning("sip-observer-failed", node=self.name, problem=type(problem).__name__)


class Flow(Protocol):
    """A way to one peer: an UDP socket with an address, or a TCP connection."""

    @property
    def local(self) -> SipPeer:
        """Our address."""

    @property
    def peer(self) -> SipPeer:
        """Theirs."""

    def send(self, data: bytes) -> None:
        """Send one message. Raises TransportError if that is known to be impossible."""


class TunnelFlow(Flow, Protocol):
    """A way through a tunnel, which is the only one of transport `ESP`."""

    def wire_octets(self, octets: int) -> int:
        """Return how long the packet that carries a message of so many octets is."""


class Receiver(Protocol):
    """Who takes what the sockets receive; no method raises."""

    def waited(self, seconds: float) -> None:
        """Note how long a datagram has waited for its turn."""

    @property
    def shedding(self) -> bool:
        """Whether the node is overloaded."""

    def shed(self, data: bytes, flow: Flow) -> bool:
        """Refuse a message at once if the node is overloaded and the message may be refused; `received` asks this, too."""

    def admitted(self, data: bytes, flow: Flow) -> None:
        """Take a message that `shed` let in while the node was overloaded: it is not asked again."""

    def received(self, data: bytes, flow: Flow) -> None:
        """Take one datagram, or one message of a stream."""

    def lost(self, flow: Flow, problem: str) -> None:
        """Take the end of a connection."""

    def undelivered(self, data: bytes, flow: Flow) -> None:
        """Take back a response whose peer had ended the connection."""


async def permitted(check: PeerCheck, peer: SipPeer) -> None:
    """Wait for what a policy says. Raises what it raises."""
    pending = check(peer)
    if pending is not None:
        await pending


def not_listening(transport: str) -> TransportError:
    """Say that a node has no socket of a transport."""
    return LocalFailure(transport.lower(), "this node does not listen on it; call listen() first")
