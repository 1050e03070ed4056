# SPDX-License-Identifier: Apache-2.0
"""Cx over Diameter: the listener of our HSS, and what the I-CSCF and each S-CSCF ask with. Imported only where it is used."""

from __future__ import annotations

from typing import NamedTuple

from keyferry.config import split_address
from keyferry.config.cx import CxPeer, cx_peers
from keyferry.ports import CxServings
from keyferry.ports.scripts import ScriptStore
from keyferry.protocol.diameter.base import DiameterIdentity
from keyferry.protocol.diameter.peer import PeerTimers
from keyferry.roles.cx_client import CxListener, DiameterCx
from keyferry.roles.cx_ended import EndedBook, NotingServings
from keyferry.roles.cx_exchange import Sessions
from keyferry.roles.cx_rspauth import LIFE, RspauthBook
from keyferry.roles.cx_server import CxPolicy, CxServer, DiameterServings
from keyferry.roles.hss import Hss
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import LOOPBACK, Admission, DiameterLimits
from keyferry.transports.diameter_server import DiameterServer
from keyferry.transports.pki import MutualTls, mutual_tls
from keyferry.transports.pulse import Pulse
from keyferry.wiring.measuring import MeasuredHss
from keyferry.wiring.rspauth import start_rspauth
from keyferry.wiring.services import Listener, Role, Services

ASKERS = ("scscf", "icscf")
"""Roles of certificates that may ask an HSS."""
HELLO = 5.0
"""Seconds that who connects to the HSS may take for TLS and its CER."""


async def start_cx_server(services: Services, hss: Hss, scripts: ScriptStore) -> CxServings:
    """Let the HSS be asked over Diameter; return how it finds S-CSCFs that have asked. Raises ConfigError, StateError, TransportError."""
    settings = services.config.hss
    identity = _identity(services, settings.name)
    policy = CxPolicy(
        own_names=settings.server_names == "own", marker_for=frozenset(host.lower().rstrip(".") for host in settings.marker_for),
        rspauth=settings.marker_flags == 7,
    )  # fmt: skip
    measured = MeasuredHss(hss, services.metrics, services.clock, services.log)
    # by whichever process a vector is given, or a user ended: the script of a Kamailio may ask another
    book, ended = RspauthBook(services.clock, scripts), EndedBook(services.clock, scripts)
    remember = book.remember if policy.rspauth else None
    services.every(LIFE, book.sweep, first=0.0)
    await start_rspauth(services, book, ended)
    pulse = Pulse(services.clock, services.log, services.config.cx.timeout / 2)  # who asks waits for so long before asking another HSS
    services.every(pulse.limit / 4, pulse.beat)
    server = CxServer(measured, hss, identity, services.log, services.metrics, policy, remember, pulse.stood_still)
    node = DiameterServer(
        identity, server.handle, allowed=Admission.of(settings.peers, ASKERS, (*LOOPBACK, *settings.networks)), clock=services.clock,
        random=services.random, log=services.log, counter=services.metrics,
        limits=DiameterLimits(connections=settings.connections), timers=PeerTimers(services.config.cx.watchdog, capabilities=HELLO),
    )  # fmt: skip
    services.exit.push_async_callback(node.aclose)
    if settings.listen_diameter is not None:
        await _listen(services, node, settings.listen_diameter, None)
    if settings.listen_diameters is not None:
        await _listen(services, node, settings.listen_diameters, _certificate(services, settings.name, "hss"))
    servings = DiameterServings(
        node, lambda: {peer.origin_host: peer.origin_realm for peer in node.connected()}, server.origin_of, identity,
        Sessions(identity.origin_host, services.clock, services.random), services.log, services.metrics,
        services.config.cx.timeout,
    )  # fmt: skip
    return NotingServings(servings, ended, policy.marker_for) if policy.marker_for else servings


class CxParts(NamedTuple):
    """What a function asks the HSS with."""

    cx: DiameterCx
    node: DiameterClient
    listener: CxListener  # is given who serves when that has started


async def start_cx_client(services: Services, name: str, role: Role) -> CxParts:
    """Begin to connect to the HSSs, as the function of this host name. Raises ConfigError, StateError."""
    settings = services.config.cx
    identity = _identity(services, name)
    found = cx_peers(settings, services.config.hosts)
    tls = _certificate(services, name, role) if any(peer.tls for peer in found) else None
    listener = CxListener(identity, services.log, services.metrics)
    node = DiameterClient(
        [_peer(peer, tls) for peer in found], identity, clock=services.clock, random=services.random, log=services.log,
        counter=services.metrics, handler=listener.handle, timers=PeerTimers(settings.watchdog),
    )  # fmt: skip
    services.exit.push_async_callback(node.aclose)
    await node.start()
    realm = settings.realm or services.config.network.home_domain
    # What the HSS believes of the order of our SARs must hold after a clock was set back, too.
    start = services.state.next_start(identity.origin_host, int(services.clock.now())) if role == "scscf" else 0
    cx = DiameterCx(node, identity, realm, services.clock, services.random, services.log, services.metrics, settings.timeout, start)
    cx.done_late, node.late_answer = listener.late, cx.late
    return CxParts(cx, node, listener)


async def _listen(services: Services, node: DiameterServer, listen: str, tls: MutualTls | None) -> None:
    name, proto = ("listen_diameter", "diameter") if tls is None else ("listen_diameters", "diameters")
    host, port = await node.listen(*split_address(listen, f"hss.{name}"), tls=tls)
    services.listeners.append(Listener("hss", proto, host, port, services.config.hss.name))


def _certificate(services: Services, name: str, role: str) -> MutualTls:
    tls = mutual_tls(services.pki.ensure(name, role), services.pki.ca_file)
    services.renewals.append(lambda: _renew(services, tls, name, role))
    return tls


def _renew(services: Services, tls: MutualTls, name: str, role: str) -> None:
    tls.renew(services.pki.ensure(name, role))  # into the same contexts, which the next handshake uses


def _identity(services: Services, name: str) -> DiameterIdentity:
    return DiameterIdentity(name.lower().rstrip("."), services.config.network.home_domain)


def _peer(peer: CxPeer, tls: MutualTls | None) -> DiameterPeer:
    return DiameterPeer(peer.host, peer.port, peer.name, tls if peer.tls else None)
