# SPDX-License-Identifier: Apache-2.0
"""What the parts of one Diameter node share: who we are, whom we talk to, bounds, clock, counters (RFC 6733)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from keyferry.ports import Clock, Counter, Log, RandomSource
from keyferry.protocol.diameter.base import DiameterIdentity, Identifiers, PeerCapabilities, first_end_to_end
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.protocol.diameter.peer import MAX_JITTER, PeerTimers
from keyferry.transports.deadlines import Deadlines
from keyferry.transports.pki import PeerIdentity

MINUTE: Final = 60.0
"""Seconds."""
REFUSALS_LOGGED: Final = 20
"""Refused or broken connections that the log names in a minute: who connects in a loop does not fill it. All are counted."""
LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
CALLERS: Final = ("scscf", "icscf")
"""Roles of certificates that may ask an HSS: application servers have certificates of the same CA, and must get no vectors."""
COMMANDS: Final = {300: "UAR", 301: "SAR", 302: "LIR", 303: "MAR", 304: "RTR", 305: "PPR"}
"""Names for log and metrics; all else is "other"."""


@dataclass(frozen=True, slots=True)
class DiameterLimits:
    """Bounds of one node, each against one peer taking everything."""

    connections: int = 64  # of peers; an HSS is asked by a handful of S-CSCFs and I-CSCFs
    strangers: int = 32  # connections of who has not said yet who it is; one more, and the oldest ends: strangers keep no peer out
    per_peer: int = 2  # of one Origin-Host, who may come again before its dead connection is noticed; above it the oldest ends
    in_flight: int = 256  # requests of one connection in progress; others wait, and when as many do it is read no further
    pending: int = 10_000  # requests of ours that wait for an answer; above it TOO_BUSY
    backlog: int = 16 * 1024 * 1024  # octets that a peer has not read, more than `pending` requests have; above it its connection ends
    remembered: int = 20_000  # answers kept for requests that come again
    remembered_octets: int = 32 * 1024 * 1024
    remember: float = 30.0  # seconds that they are kept; they hold keys, and who still waits sends again within seconds
    handling: float = 10.0  # seconds that a request may take; then UNABLE_TO_COMPLY
    connect: float = 5.0  # seconds to establish a connection, before TLS
    patience: float = 2.0  # seconds that a request waits for a peer after the last one was lost, or after the start
    draining: float = 1.0  # seconds after a DPR of the peer in which answers are still expected from it
    closing: float = 2.0  # seconds until a connection that is to be closed is cut
    retry_first: float = 0.2  # seconds until a lost connection is tried again; then twice as long each time
    retry_last: float = 30.0  # seconds at most (RFC 6733 §2.1, Tc)


class RemotePeer(NamedTuple):
    """Who is at the other end of a connection, as CER or CEA and certificate say."""

    origin_host: str  # lower case
    origin_realm: str
    address: str
    port: int
    role: str = ""  # of its certificate: "scscf", "icscf", "hss"; "" without TLS
    product: str = ""


DiameterHandler: TypeAlias = Callable[[DiameterMessage, RemotePeer], Awaitable[DiameterMessage]]
"""Answer one request; AvpFault becomes its code, any other exception UNABLE_TO_COMPLY."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whom we talk to. Over TLS the certificate must name the peer's Origin-Host, and be of one of the roles."""

    names: frozenset[str] = frozenset()  # Origin-Hosts, lower case; none: any
    roles: frozenset[str] = frozenset()  # of certificates; none: any
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()  # who may connect without TLS

    @classmethod
    def of(cls, names: Iterable[str], roles: Iterable[str] = CALLERS, addresses: Iterable[str] = LOOPBACK) -> Admission:
        """Take names in any case, and addresses or networks as text. Raises ValueError."""
        lower = frozenset(name.lower().rstrip(".") for name in names)
        return cls(lower, frozenset(roles), tuple(ipaddress.ip_network(text) for text in addresses))

    def address(self, host: str) -> bool:
        """Tell whether a numeric address may connect without TLS."""
        address = ipaddress.ip_address(host.partition("%")[0])
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return any((mapped or address) in network for network in self.networks)

    def certificate_problem(self, shown: PeerIdentity) -> str:
        """Return what is wrong with a certificate whose chain was verified, "" if nothing is."""
        if self.roles and shown.role not in self.roles:
            return f"its certificate is not one of the role {' or '.join(sorted(self.roles))}"
        if not shown.names or (self.names and self.names.isdisjoint(shown.names)):
            return "its certificate names no peer of ours"
        return ""

    def peer(self, claimed: PeerCapabilities, shown: PeerIdentity | None) -> bool:
        """Tell whether who says this in a CER or CEA may be it; `shown` is None without TLS."""
        return (not self.names or claimed.origin_host in self.names) and (shown is None or claimed.origin_host in shown.names)


class SharedIdentifiers(Identifiers):
    """Identifiers of one connection; end-to-end ones are drawn from all connections' sequence (RFC 6733 §3)."""

    __slots__ = ("_shared",)

    def __init__(self, hop_by_hop: int, shared: Identifiers) -> None:
        super().__init__(hop_by_hop, 0)
        self._shared = shared

    def end_to_end(self) -> int:
        """Return the next one of the process."""
        return self._shared.end_to_end()


@dataclass(slots=True)
class DiameterContext:
    """Shared by the connections of a node."""

    identity: DiameterIdentity
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter | None = None
    limits: DiameterLimits = field(default_factory=DiameterLimits)
    timers: PeerTimers = field(default_factory=PeerTimers)
    deadlines: Deadlines = field(init=False)
    end_to_end: Identifiers = field(init=False)
    _refused: int = 0
    _minute: int = 0

    def __post_init__(self) -> None:
        self.deadlines = Deadlines(self.clock)
        self.end_to_end = Identifiers(0, first_end_to_end(self.clock.now(), self._number()))

    def identifiers(self) -> SharedIdentifiers:
        """Return the identifiers of a new connection."""
        return SharedIdentifiers(self._number(), self.end_to_end)

    def jitter(self) -> float:
        """Return seconds, drawn evenly (RFC 3539 §3.4.1)."""
        return (self.chance() * 2 - 1) * MAX_JITTER

    def chance(self) -> float:
        """Return a number from 0 to 1."""
        return (self._number() & 0xFFFF) / 0xFFFF

    def count(self, name: str, reason: str = "") -> None:
        """Count, if anybody wants to know."""
        if self.counter is not None:
            self.counter.count(name, reason)

    def refused(self, event: str, **fields: object) -> None:
        """Log a connection that came to nothing, unless there were many in this minute."""
        minute = int(self.clock.monotonic() // MINUTE)
        if minute != self._minute:
            self._minute, self._refused = minute, 0
        self._refused += 1
        if self._refused <= REFUSALS_LOGGED:
            self.log.warning(event, node=self.identity.origin_host, **fields)

    async def sleep(self, seconds: float) -> None:
        """Wait, by the clock port."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        deadline = self.deadlines.after(seconds, wake)
        try:
            await woken
        finally:
            deadline.cancel()

    def _number(self) -> int:
        return int.from_bytes(self.random.octets(4), "big")


def command_of(message: DiameterMessage) -> str:
    """Return the name of a command, of a fixed set."""
    return COMMANDS.get(message.code, "other")
