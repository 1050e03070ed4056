# SPDX-License-Identifier: Apache-2.0
"""One SIP element without dialogs: UDP, TCP and TLS, client and server (RFC 3261 §8, §17, §18)."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Final

from keyferry.errors import EspRejected, LocalFailure, LocalProtocolError, ParseError, RemoteProtocolError, TransportError
from keyferry.ports import Clock, Counter, Log, PeerCheck, RandomSource, SipHandler, SipObserver, SipPeer
from keyferry.protocol.ims.gm_association import GmAssociations
from keyferry.protocol.sip.grammar import MAX_MESSAGE
from keyferry.protocol.sip.headers import Via, build_via
from keyferry.protocol.sip.message import Request, Response, build_message, least_octets, parse_message
from keyferry.protocol.sip.overload import Load, OverloadPolicy
from keyferry.protocol.sip.transaction import Timers
from keyferry.transports.esp_sas import EspSas, Outer
from keyferry.transports.esp_udp import EspEndpoint, EspFlow
from keyferry.transports.pki import MutualTls
from keyferry.transports.sip_client import SipClientSide
from keyferry.transports.sip_context import ESP, Flow, Limits, SipContext, not_listening, permitted
from keyferry.transports.sip_overload import OverloadGate, Sheddable
from keyferry.transports.sip_server import SipServer
from keyferry.transports.sip_tcp import WILDCARDS, TcpConnection, TcpTransport
from keyferry.transports.sip_tls import TlsTransport
from keyferry.transports.sip_udp import UdpEndpoint, UdpFlow, bind

SAME_PORT_ATTEMPTS: Final = 16
"""How often another port is tried until one is free for UDP and TCP alike."""
MAX_PORT: Final = 65_535
MAX_KNOWN_HOSTS: Final = 1_024
"""Numeric addresses remembered as such; parsing one costs 2 µs."""


class SipNode:
    """Listen, answer requests with a handler, send requests (ports.SipClient)."""

    def __init__(
        self,
        *,
        name: str,
        clock: Clock,
        random: RandomSource,
        log: Log,
        handler: SipHandler | None = None,
        observer: SipObserver | None = None,
        observed: Callable[[], bool] = lambda: True,
        counter: Counter | None = None,
        timers: Timers | None = None,
        limits: Limits | None = None,
        overload: OverloadPolicy | None = None,
        sheddable: Sheddable | None = None,
        trusts: Callable[[str], bool] = lambda _host: False,
        core: bool = False,
        registered: Callable[[SipPeer], bool] = lambda _peer: False,
    ) -> None:
        """Events are made for the observer while `observed` says that it looks.

        With an overload policy, messages that `sheddable` says yes to get 503 while there is too much to do; without it REGISTERs that
        answer no challenge of this node. An address that `trusts`
        says yes to may open more connections than `Limits.per_source`. In the `core` no UE is a peer, so what a REGISTER says of its
        protection is a P-CSCF's word. What comes from where `registered` says that a device is registered is not refused either.
        """
        self._context = SipContext(name, clock, random, log, counter, observer, timers or Timers(), limits or Limits(), observed, trusts)
        self._tcp = TcpTransport(self._context, self)
        self._tls: TlsTransport | None = None
        self._gate = (
            None
            if overload is None
            else OverloadGate(self._context, overload, sheddable, lambda: self.in_progress, core=core, registered=registered)
        )
        self._server = SipServer(self._context, handler, self._gate)
        self._client = SipClientSide(self._context)
        self._udp: list[UdpEndpoint] = []
        self._esp: EspEndpoint | None = None
        self._sent_by: list[tuple[socket.AddressFamily, SipPeer, str]] = []  # family, what Via says, host to connect from
        self._numeric: set[str] = set()
        self._closed = False

    @property
    def in_progress(self) -> int:
        """How many requests the handler is working on."""
        return self._server.in_progress

    @property
    def remembered(self) -> int:
        """How many responses are kept for retransmissions."""
        return self._server.remembered

    @property
    def connections(self) -> int:
        """How many TCP and TLS connections are open."""
        return len(self._tcp) + (len(self._tls) if self._tls else 0)

    @property
    def load(self) -> Load:
        """What the overload control thinks; CALM without one."""
        return Load.CALM if self._gate is None else self._gate.state

    async def listen(
        self,
        host: str,
        port: int,
        transports: Sequence[str] = ("UDP", "TCP"),
        *,
        advertise: str | None = None,
        tls: MutualTls | None = None,
    ) -> list[SipPeer]:
        """Listen on a port of `host`; 0 picks one that is free for all `transports`. Return what Via will say, one for each.

        TLS takes the port after that of the others, as 5061 is after 5060, or any free one for 0. `tls` is what this node shows and
        trusts, given once; requests may then go over TLS whether or not it listens with it. `advertise` is the host others reach us at,
        needed with a wildcard address. Raises TransportError that says what to do.
        """
        if tls is not None and self._tls is None:
            self._tls = TlsTransport(self._context, self, tls)
        if "TLS" in transports and self._tls is None:
            raise TransportError(host, "TLS needs a certificate; give `tls`")
        sockets = bind_alike(host, port, transports)
        bound = sockets[0][1].getsockname()
        if bound[0] in WILDCARDS and advertise is None:
            for _, sock in sockets:
                sock.close()
            raise TransportError(host, "a wildcard address says nobody where to answer; give the address to advertise")
        return [await self._serve(transport, sock, advertise) for transport, sock in sockets]

    async def protect(self, host: str, port: int, *, pcscf: SipPeer | None = None) -> EspSas:
        """Carry SIP in ESP in UDP, too, at a numeric `host`; return the sets of SAs, for the role (ports.GmProtection).

        As a UE towards the `pcscf`, else as a P-CSCF. Inside the tunnel our protected server port is the one after this socket's, and
        the client port the next: neither is bound, and whoever looks at a capture can tell inside from outside. Raises TransportError.
        """
        fixed = None if pcscf is None else (await self._address(pcscf._replace(transport="UDP")))[1]
        sock = bind(socket.SOCK_DGRAM, host, port)
        bound = sock.getsockname()
        if bound[0] in WILDCARDS:
            sock.close()
            raise TransportError(host, "a tunnel ends at one address; give it")
        step = 1 if bound[1] < MAX_PORT - 1 else -1
        sas = EspSas(
            GmAssociations("ue" if fixed else "pcscf"), self._context.clock, self._context.random, ipaddress.ip_address(bound[0]),
            (bound[1] + 2 * step, bound[1] + step), Outer(fixed.host, fixed.port) if fixed else None,
            ipaddress.ip_address(fixed.host) if fixed else None, Outer(bound[0], bound[1]),
        )  # fmt: skip
        self._esp = EspEndpoint(sock, sas, self._context, self)
        return sas

    def renew(self, tls: MutualTls) -> None:
        """Note that the certificate was renewed (MutualTls.renew): warnings about the old one end."""
        if self._tls is not None:
            self._tls.tls = tls

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        """Send a request and return the final response without our Via.

        Adds the top Via, retransmits over UDP, and uses TCP for a request over 1,300 octets whatever `hop` says (RFC 3261 §18.1.1;
        it does not fall back to UDP). To a hop over TLS, whose `name` or else host name must be in its certificate, everything goes over
        TLS. Over ESP, `hop` is what `protect` returned says of a set, and any size goes through the tunnel. `check` is called with the
        numeric destination, over TLS with its verified name and role, before every transmission and may raise; what it returns is awaited.
        Raises TransportError (no answer within timer F, or no connection), LocalProtocolError, RemoteProtocolError 513 for a request
        that no receiver takes, and what `check` raises.
        """
        if self._closed:
            raise LocalFailure(str(hop), "this node was closed")
        if request.get("CSeq") is None:
            raise LocalProtocolError("a request without CSeq")
        if hop.transport == ESP:
            return await self._send_protected(request, hop, check)
        family, peer = await self._address(hop)
        if peer.transport == "UDP":
            response = await self._send_datagram(request, family, peer, check)
            if response is not None:
                return response
            peer = peer._replace(transport="TCP")
        sent_by, local_host = self._own(peer.transport, family)
        outgoing, data, via = self._prepared(request, peer.transport, sent_by)
        if check is not None and peer.transport == "TCP":
            await permitted(check, peer)  # before a connection is made, too; over TLS, who it is with must be known first
        connection = await self._stream(peer, local_host)
        try:
            return await self._client.run(outgoing, data, via, connection, check)
        except TransportError:
            connection.renounce()
            raise

    def abandon(self, host: str, problem: str) -> None:
        """Break the TCP connections with a numeric host, as the way that they took is gone; those over TLS are not touched."""
        self._tcp.abandon(host, problem)

    def tick(self) -> int:
        """Fire the timers that are due by the clock; the event loop does this by itself, a test with a clock of its own calls it."""
        return self._context.deadlines.run()

    async def aclose(self) -> None:
        """Stop listening, cancel handlers, fail requests that wait, close connections."""
        self._closed = True
        self._client.close()
        await self._server.aclose()
        for endpoint in self._udp:
            endpoint.close()
        if self._esp is not None:
            self._esp.close()
        await self._tcp.aclose()
        if self._tls is not None:
            await self._tls.aclose()
        if self._gate is not None:
            self._gate.close()
        self._context.deadlines.close()

    # ---- sip_context.Receiver

    def received(self, data: bytes, flow: Flow) -> None:
        """Take a datagram or a message of a stream; nothing that it holds stops the listener."""
        self._guarded(data, flow, admitted=False)

    def admitted(self, data: bytes, flow: Flow) -> None:
        """Take a message that was let in while there was too much to do."""
        self._guarded(data, flow, admitted=True)

    def _guarded(self, data: bytes, flow: Flow, *, admitted: bool) -> None:
        try:
            if admitted or not self.shed(data, flow):
                if self._gate is not None:
                    self._gate.let_in(data)
                self._take(data, flow)
        except Exception as problem:  # the shell's last line: a bug of ours costs one message
            self._context.count("sip_dropped", "internal-error")
            self._context.log.warning("sip-internal-error", node=self._context.name, problem=type(problem).__name__)

    def lost(self, flow: Flow, problem: str) -> None:
        """Take the end of a connection."""
        self._client.lost(flow, problem)

    def undelivered(self, data: bytes, flow: Flow) -> None:
        """Take back a response whose peer had ended the connection."""
        self._server.undelivered(data, flow)

    @property
    def shedding(self) -> bool:
        """Whether there is too much to do."""
        return self._gate is not None and self._gate.shedding

    def shed(self, data: bytes, flow: Flow) -> bool:
        """Refuse a message at once if there is too much to do and it may be refused."""
        gate = self._gate
        if gate is None or not gate.sheds(data, flow):
            return False
        self._server.shed(data, flow, gate)
        return True

    def waited(self, seconds: float) -> None:
        """Note how long a datagram has waited for its turn."""
        if self._gate is not None:
            self._gate.waited(seconds)

    # ---- inside

    async def _serve(self, transport: str, sock: socket.socket, advertise: str | None) -> SipPeer:
        bound = sock.getsockname()
        peer = SipPeer(transport, advertise or bound[0], bound[1])
        if transport == "UDP":
            self._udp.append(UdpEndpoint(sock, self._context, self))
        else:
            await (self._tls if transport == "TLS" and self._tls is not None else self._tcp).listen(sock)
        self._sent_by.append((sock.family, peer, "" if bound[0] in WILDCARDS else bound[0]))
        return peer

    async def _send_datagram(
        self, request: Request, family: socket.AddressFamily, peer: SipPeer, check: PeerCheck | None
    ) -> Response | None:
        """Send a request over UDP; None if it is too long for that, told mostly without writing it."""
        if least_octets(request) > self._context.limits.datagram:
            return None
        sent_by, _ = self._own("UDP", family)
        outgoing, data, via = self._prepared(request, "UDP", sent_by)
        if len(data) > self._context.limits.datagram:
            return None
        return await self._client.run(outgoing, data, via, self._udp_flow(family, peer), check)

    async def _send_protected(self, request: Request, hop: SipPeer, check: PeerCheck | None) -> Response:
        if self._esp is None:
            raise not_listening(ESP)
        try:
            flow = EspFlow(self._esp, self._esp.sas.tunnel_of(hop.spi))
        except EspRejected as problem:
            raise TransportError(str(hop), "there is no such set of security associations, or no longer") from problem
        outgoing, data, via = self._prepared(request, ESP, flow.local)
        return await self._client.run(outgoing, data, via, flow, check)

    async def _stream(self, peer: SipPeer, local_host: str) -> TcpConnection:
        if peer.transport == "TCP":
            return await self._tcp.connection(peer, local_host)
        if self._tls is None:
            raise TransportError(str(peer), "this node has no certificate for TLS; give `tls` to listen()")
        return await self._tls.connection(peer, local_host)

    def _take(self, data: bytes, flow: Flow) -> None:
        try:
            message = parse_message(data)
        except ParseError as problem:
            if not data.strip(b"\r\n\0 "):
                self._context.count("sip_dropped", "keep-alive")
            else:
                self._server.malformed(data, flow, problem.status)
            return
        if isinstance(message, Request):
            self._server.received(message, len(data), flow)
        else:
            self._client.received(message, len(data), flow)

    def _prepared(self, request: Request, transport: str, sent_by: SipPeer) -> tuple[Request, bytes, Via]:
        via = self._client.via(transport, sent_by)
        outgoing = request.prepending("Via", build_via(via))
        data = build_message(outgoing)
        if len(data) > MAX_MESSAGE:
            # The next hop would read no further on the connection, which others use, and be taken for dead: no UE may cause that.
            raise RemoteProtocolError(f"the request has over {MAX_MESSAGE} octets on its next hop", status=513)
        return outgoing, data, via

    async def _address(self, hop: SipPeer) -> tuple[socket.AddressFamily, SipPeer]:
        if hop.transport not in ("UDP", "TCP", "TLS"):
            raise TransportError(str(hop), "a transport this node does not have")
        if hop.transport == "TLS":
            hop = hop._replace(name=(hop.name or _name_in(hop.host)).lower().rstrip("."))
        elif hop.name or hop.role:
            hop = hop._replace(name="", role="")
        host = hop.host.strip("[]")
        if host not in self._numeric:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return await self._resolved(hop)
            if len(self._numeric) >= MAX_KNOWN_HOSTS:
                self._numeric.clear()
            self._numeric.add(host)
        return (socket.AF_INET6 if ":" in host else socket.AF_INET), hop if host == hop.host else hop._replace(host=host)

    async def _resolved(self, hop: SipPeer) -> tuple[socket.AddressFamily, SipPeer]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(hop.host, hop.port, type=socket.SOCK_DGRAM)
        except OSError as problem:
            raise TransportError(str(hop), "the host is unknown") from problem
        families = {family for family, _, _ in self._sent_by}
        for family, _, _, _, address in found:
            if family in families:
                return family, hop._replace(host=str(address[0]))
        raise TransportError(str(hop), "no address of a family this node listens on")

    def _own(self, transport: str, family: socket.AddressFamily) -> tuple[SipPeer, str]:
        same_family = [(peer, local_host) for known, peer, local_host in self._sent_by if known == family]
        for peer, local_host in same_family:
            if peer.transport == transport:
                return peer, local_host
        if transport != "UDP" and same_family:
            return same_family[0]  # responses come back on the connection we open
        raise not_listening(transport)

    def _udp_flow(self, family: socket.AddressFamily, peer: SipPeer) -> UdpFlow:
        for endpoint in self._udp:
            if endpoint.family == family:
                return UdpFlow(endpoint, peer.host, peer.port)
        raise not_listening("UDP")


def bind_alike(host: str, port: int, transports: Sequence[str]) -> list[tuple[str, socket.socket]]:
    """Return bound sockets by transport, UDP and TCP on one port; 0 tries ports until one is free for both. Raises TransportError."""
    kinds = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM, "TLS": socket.SOCK_STREAM}
    if not transports or any(transport not in kinds for transport in transports):
        raise TransportError(host, "transports are UDP, TCP and TLS")
    for _ in range(SAME_PORT_ATTEMPTS):
        sockets: list[tuple[str, socket.socket]] = []
        try:
            for transport in transports:
                shared = [sock.getsockname()[1] for other, sock in sockets if (other == "TLS") is (transport == "TLS")]
                chosen = shared[0] if shared else port + 1 if port and transport == "TLS" and set(transports) != {"TLS"} else port
                sockets.append((transport, bind(kinds[transport], host, chosen)))
            return sockets
        except TransportError:
            for _, sock in sockets:
                sock.close()
            if port != 0 or not sockets:
                raise
    raise TransportError(host, "no port is free for UDP and TCP alike")


def _name_in(host: str) -> str:
    """Return a host that is a name, "" for an address: only a connection that its peer opened, and showed no name on, leads there."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host
    return ""
