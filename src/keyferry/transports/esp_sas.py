# SPDX-License-Identifier: Apache-2.0
"""The security associations of one side of Gm, and the packets under them (TS 33.203 §7, annex M; RFC 4301 §5); no socket."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from keyferry.errors import EspRejected
from keyferry.ports import Clock, RandomSource, SipPeer
from keyferry.protocol.esp import EspKeys, InboundSa, OutboundSa, spi_of
from keyferry.protocol.ims.gm_association import AssociationSet, Endpoint, GmAssociations
from keyferry.protocol.ip_packet import InnerDatagram, IpAddress, datagram_octets
from keyferry.transports.sip_context import ESP


class Outer(NamedTuple):
    """Where packets of a tunnel go."""

    host: str
    port: int


@dataclass(slots=True, eq=False)
class Tunnel:
    """One set with the keys and counters of its SAs."""

    association: AssociationSet
    own: Endpoint
    other: Endpoint
    inbound: dict[int, InboundSa]
    outbound: OutboundSa  # UDP goes to the other's server port (TS 33.203 §7.1); the SA to its client port is for TCP alone
    outer: Outer | None  # None until a packet told it

    def wire_octets(self, payload: int) -> int:
        """Return how long the packet of a payload of so many octets is."""
        return self.outbound.packet_octets(datagram_octets(self.own.address.version, payload))

    @property
    def peer(self) -> SipPeer:
        """The other side."""
        return SipPeer(ESP, str(self.other.address), self.other.port_s, spi=self.own.spi_s)

    @property
    def local(self) -> SipPeer:
        """Our side: what Via says."""
        return SipPeer(ESP, str(self.own.address), self.own.port_s, spi=self.own.spi_s)


class EspTap(Protocol):
    """Somebody who records a laboratory's tunnels; what it is given opens them."""

    def begun(self, association: AssociationSet, keys: EspKeys) -> None:
        """Take a set of SAs that begins."""

    def sealed(self, packet: bytes, source: Outer, target: Outer) -> None:
        """Take a packet that goes out."""


@dataclass(slots=True)
class EspSas:
    """Keep the tunnels of a P-CSCF, or of a UE with its one P-CSCF at `fixed` (ports.GmProtection)."""

    associations: GmAssociations
    clock: Clock
    random: RandomSource
    address: IpAddress
    ports: tuple[int, int]
    fixed: Outer | None = None
    remote: IpAddress | None = None
    bound: Outer | None = None  # the socket
    tap: EspTap | None = None
    _tunnels: dict[int, Tunnel] = field(default_factory=dict)  # by our spi_s
    _watchers: list[Callable[[AssociationSet], None]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._tunnels)

    # ---- what a role does (ports.GmProtection)

    def watch(self, dropped: Callable[[AssociationSet], None]) -> None:
        """Call `dropped` with every set as it ends."""
        self._watchers.append(dropped)

    def allocate(self, avoid: Collection[int] = ()) -> tuple[int, int]:
        """Return two free SPIs (client, server), not in `avoid`."""
        return self.associations.allocate(int.from_bytes(self.random.octets(8), "big"), avoid)

    def begin(self, user: str, ue: Endpoint, pcscf: Endpoint, keys: EspKeys, attempt: str = "") -> AssociationSet:
        """Set up a temporary set. Raises LocalProtocolError, RemoteProtocolError."""
        self.expire()
        association, gone = self.associations.begin(user, ue, pcscf, self.clock.monotonic(), attempt)
        self._drop(gone)
        own, other = (ue, pcscf) if self.associations.side == "ue" else (pcscf, ue)
        inbound = {spi: InboundSa(spi, keys) for spi in (own.spi_c, own.spi_s)}
        self._tunnels[own.spi_s] = Tunnel(association, own, other, inbound, OutboundSa(other.spi_s, keys), self.fixed)
        if self.tap is not None:
            self.tap.begun(association, keys)
        return association

    def of_peer(self, peer: SipPeer) -> AssociationSet:
        """Return the set that a message from this peer came over. Raises EspRejected."""
        return self._alive(peer.spi)

    def hop(self, association: AssociationSet) -> SipPeer:
        """Return the other side of a set. Raises EspRejected."""
        return self.tunnel_of(self._own(association)).peer

    def sending(self, user: str) -> AssociationSet | None:
        """Return the set for a new request to the other side."""
        return self.associations.sending(user, self.clock.monotonic())

    def confirmed(self, association: AssociationSet, registration: float) -> None:
        """Take the 2xx to a REGISTER over this set."""
        self._drop(self.associations.confirmed(association, self.clock.monotonic(), registration))

    def failed(self, association: AssociationSet) -> None:
        """Take the refusal of a REGISTER over a temporary set."""
        self.associations.failed(association)
        self._drop([association])

    def ended(self, user: str) -> None:
        """Take the end of a registration."""
        self.associations.end(user, self.clock.monotonic())

    # ---- what the socket does

    def tunnel_of(self, spi: int) -> Tunnel:
        """Return the tunnel with this SPI of ours. Raises EspRejected."""
        return self._tunnels[self._own(self._alive(spi))]

    def open(self, packet: bytes, source: Outer) -> tuple[Tunnel, InnerDatagram]:
        """Open a packet and check that its SA may carry what is in it (RFC 4301 §5.2).

        The other side's outer address follows its packets, as a NAT may change it (RFC 3948 §5.2 with RFC 7296 §2.23): only those
        whose ICV was right, and only the newest, so nothing that is replayed or late moves it. Raises EspRejected.
        """
        spi = spi_of(packet)
        tunnel = self.tunnel_of(spi)
        sa = tunnel.inbound[spi]
        before = sa.highest
        datagram = sa.open_datagram(packet)
        tunnel.association.check_inbound(spi, datagram)
        if self.fixed is None and sa.highest > before:
            tunnel.outer = source
        self.associations.received(tunnel.association, self.clock.monotonic())
        return tunnel, datagram

    def seal(self, tunnel: Tunnel, payload: bytes) -> bytes:
        """Return the packet for a datagram from our client port to the other's server port. Raises LocalProtocolError."""
        own, other = tunnel.own, tunnel.other
        iv = self.random.octets(tunnel.outbound.iv_octets) if tunnel.outbound.iv_octets else b""
        packet = tunnel.outbound.seal_datagram(InnerDatagram(own.address, own.port_c, other.address, other.port_s, payload), iv)
        if self.tap is not None and self.bound is not None and tunnel.outer is not None:
            self.tap.sealed(packet, self.bound, tunnel.outer)
        return packet

    def expire(self) -> None:
        """Drop the sets whose time is over."""
        self._drop(self.associations.expire(self.clock.monotonic()))

    def _alive(self, spi: int) -> AssociationSet:
        association = self.associations.of_spi(spi)
        if association.expires_at <= self.clock.monotonic():
            raise EspRejected("spi")
        return association

    def _own(self, association: AssociationSet) -> int:
        return association.spi_us if self.associations.side == "ue" else association.spi_ps

    def _drop(self, gone: Collection[AssociationSet]) -> None:
        for association in gone:
            self._tunnels.pop(self._own(association), None)
            for dropped in self._watchers:
                dropped(association)
