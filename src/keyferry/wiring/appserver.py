# SPDX-License-Identifier: Apache-2.0
"""One application server of a process: the SIP side for pushes, the HTTPS door, the application behind it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.notes import Notes
from keyferry.asgi.static_keys import load_static_keys
from keyferry.asgi.xcap import XcapApp
from keyferry.config import ApplicationServer
from keyferry.errors import ConfigError
from keyferry.ports import KeyStore
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.ims.keypush import SKEW
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.appserver import KeyAgent, PushedKeys, Pusher
from keyferry.roles.reg_event_subscriber import RegEventSubscriber, SubscriberProfile
from keyferry.roles.xcap_server import XcapServer
from keyferry.stores.database import Database
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.transports.http_server import AsgiApp, tls_context
from keyferry.transports.sip_node import SipNode
from keyferry.transports.tls_psk import PskDoor, PskVersion, psk_context
from keyferry.wiring.isc import OpeningKeys
from keyferry.wiring.services import Services
from keyferry.wiring.watching import SWEEP, AsWatch, Tasks


@dataclass(slots=True)
class AsParts:
    """One application server, put together."""

    settings: ApplicationServer
    as_id: AsId
    keys: KeyStore
    agent: KeyAgent


def check_apart(servers: Sequence[ApplicationServer]) -> None:
    """Refuse two application servers of this process at one SIP URI: each has a listener of its own, and one would get all pushes.

    An S-CSCF may push for several AS_IDs to one server, which is somebody else's then. Raises ConfigError.
    """
    seen: dict[str, str] = {}
    for place, server in enumerate(servers):
        other = seen.setdefault(server.sip_uri, server.as_id)
        if other != server.as_id:
            where = f"application_servers[{place}].sip_uri"
            raise ConfigError(where, f"is the one of {other}, too", "Give each application server of this process its own")


async def start_appserver(services: Services, settings: ApplicationServer) -> AsParts:
    """Start one application server. Raises ConfigError, StateError, TransportError."""
    as_id = parse_as_id(settings.as_id)
    database = services.database(f"as-{as_id}")
    ours = [scscf.name for scscf in services.config.scscfs]
    # Pushers of this process have our clock.
    skew = SKEW if set(settings.pushers) - set(ours) else 0.0
    keys = SqliteKeyStore(database, services.state.keyring, now=services.clock.now(), skew=skew)
    pushers = {name: _pusher(services, name, as_id) for name in settings.pushers or ours}
    over_tls = str(settings.protection) == "tls"
    agent = KeyAgent(
        frozenset({as_id}), pushers, keys, services.clock, services.log, services.metrics, over_tls=over_tls,
        registered=lambda register: watch.registered(register) if settings.reg_event else None,
    )  # fmt: skip
    node = services.node(f"AS {as_id}", lambda request, peer: watch.handle(request, peer), trusted=())
    watch = _watch(services, settings, node, agent)
    name = parse_sip_uri(settings.sip_uri).host
    if over_tls:
        identity = services.identity(node, name, "as")
        await services.serve_sip("as", node, name, settings.listen_sips or "", shown=as_id, over=("TLS",), tls=identity)
    else:
        await services.serve_sip("as", node, name, settings.listen_sip or "", shown=as_id)
    services.every(60.0, lambda: keys.sweep(services.clock.now()))
    certificate = services.pki.ensure(as_id, "as")
    static = [load_static_keys(Path(settings.static_keys))] if settings.static_keys else []
    door = SimLogin(
        _application(settings, database), as_id=as_id, keys=[PushedKeys(keys, services.clock, services.state.user_id_key), *static],
        clock=services.clock, random=services.random, counter=services.metrics, algorithms=tuple(settings.algorithms),
        qop=tuple(settings.qop), certificate_hashes=(certificate.sha256,),
        handsets=settings.handsets, http_networks=tuple(settings.http_networks),
    )  # fmt: skip
    tls = tls_context(certificate.certificate, certificate.key)
    await services.serve_http("as", door, settings.listen_https, as_id, tls, lifespan=":" in settings.app)
    await _serve_psk(services, settings, as_id, keys, door)
    if settings.listen_http is not None:
        services.log.warning("door-without-tls", as_id=as_id, listen=settings.listen_http, networks=settings.http_networks)
        await services.serve_http("as", door, settings.listen_http, as_id, None, lifespan=False)
    return AsParts(settings, as_id, keys, agent)


async def _serve_psk(services: Services, settings: ApplicationServer, as_id: AsId, keys: KeyStore, door: AsgiApp) -> None:
    """Listen for TLS with pushed keys, where it is configured. Raises ConfigError, TransportError."""
    listeners: tuple[tuple[str | None, PskVersion], ...] = ((settings.listen_psk13, "1.3"), (settings.listen_psk12, "1.2"))
    for listen, version in listeners:
        if listen is not None:
            source = PushedKeys(keys, services.clock)
            psk = PskDoor(as_id, [source], services.random, services.metrics, services.log, version, settings.psk12_suite)
            await services.serve_http("as", door, listen, as_id, psk_context(psk))


def _watch(services: Services, settings: ApplicationServer, node: SipNode, agent: KeyAgent) -> AsWatch:
    subscriber = RegEventSubscriber(
        sip=node, profile=SubscriberProfile(settings.sip_uri, settings.sip_uri, asserts=True), on_news=lambda news: watch.heard(news),
        clock=services.clock, random=services.random, log=services.log, counter=services.metrics, resolver=services.resolver,
    )  # fmt: skip
    watch = AsWatch(agent, subscriber, services.resolver, Tasks(services.log))
    if settings.reg_event:
        services.every(SWEEP, subscriber.sweep)
    services.exit.push_async_callback(subscriber.aclose)
    services.exit.push_async_callback(watch.tasks.aclose)
    return watch


def _pusher(services: Services, name: str, as_id: AsId) -> Pusher:
    keys = OpeningKeys(as_id, services.isc_keys(name, as_id))
    home = services.config.network.home_domain
    return Pusher(name=name, realm=home, transport_keys=keys, domains=frozenset({home}))


def _application(settings: ApplicationServer, database: Database) -> AsgiApp:
    if settings.app == "xcap":
        return XcapApp(XcapServer(SqliteDocumentStore(database)))
    if settings.app == "notes":
        return Notes()
    return load_application(settings.app)


def load_application(reference: str) -> AsgiApp:
    """Import `module:attribute`. Raises ConfigError."""
    module, colon, attribute = reference.partition(":")
    if not colon:
        raise ConfigError("app", f"{reference!r} is neither xcap, notes nor module:attribute")
    try:
        app = cast("AsgiApp", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as problem:
        raise ConfigError("app", f"{reference!r} cannot be imported: {problem}", "Is its folder on PYTHONPATH?") from problem
    if isinstance(app, SimLogin):
        raise ConfigError("app", f"{reference!r} has a SimLogin of its own, and would ask twice", "Name the application inside")
    return app
