# SPDX-License-Identifier: Apache-2.0
"""The application servers of a process: the SIP side for pushes, the HTTPS doors, the applications behind them."""

from __future__ import annotations

import importlib
import ssl
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from keyferry.asgi.auth import SimLogin
from keyferry.asgi.notes import Notes
from keyferry.asgi.static_keys import load_static_keys
from keyferry.asgi.wsgi import WsgiAdapter, is_wsgi
from keyferry.asgi.xcap import XcapApp
from keyferry.config import AGENT, ApplicationServer
from keyferry.config.explaining import did_you_mean
from keyferry.errors import ConfigError, StateError
from keyferry.ports import KeySource, KeyStore, Log
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.appserver import KeyAgent, PushedKeys
from keyferry.roles.xcap_server import XcapServer
from keyferry.stores.database import Database
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.transports.http_server import AsgiApp, tls_context
from keyferry.transports.pki import Certificate, Pki
from keyferry.transports.tls_psk import PskDoor, PskVersion, psk_context
from keyferry.wiring.key_agent import skew_of, start_key_agent
from keyferry.wiring.measuring import MeasuredDoor
from keyferry.wiring.services import Services

BUILT_IN: Final = ("xcap", "notes", AGENT)
"""What `app` may be besides `module:attribute`."""
WARNING_DAYS: Final = 14
"""As of a certificate of SIP; one of ours is renewed at 30 where the CA's key is."""


@dataclass(slots=True)
class AsParts:
    """One application server, put together."""

    settings: ApplicationServer
    as_id: AsId
    keys: SqliteKeyStore
    agent: KeyAgent


def groups_of(servers: Iterable[ApplicationServer]) -> list[list[ApplicationServer]]:
    """Return the application servers that this process runs, those of one SIP URI together: they share a listener and a key store."""
    groups: dict[str, list[ApplicationServer]] = {}
    for server in servers:
        if server.app != AGENT:
            groups.setdefault(server.sip_uri, []).append(server)
    return list(groups.values())


async def start_appservers(services: Services, group: Sequence[ApplicationServer]) -> list[AsParts]:
    """Start the application servers of one SIP URI. Raises ConfigError, StateError, TransportError."""
    first = group[0]
    as_ids = [parse_as_id(server.as_id) for server in group]
    databases = [services.database(f"as-{as_id}") for as_id in as_ids]
    ours = [scscf.name for scscf in services.config.scscfs]
    keys = SqliteKeyStore(databases[0], services.state.keyring, now=services.clock.now(), skew=skew_of(first.pushers, ours))
    shown = as_ids[0] if len(group) == 1 else parse_sip_uri(first.sip_uri).host
    agent = await start_key_agent(services, first, as_ids, keys, first.pushers or ours, shown=shown)
    for settings, as_id, database in zip(group, as_ids, databases, strict=True):
        await _open_door(services, settings, as_id, keys, database)
    return [AsParts(settings, as_id, keys, agent) for settings, as_id in zip(group, as_ids, strict=True)]


def door_certificate(pki: Pki, log: Log, as_id: AsId) -> Certificate:
    """Return what a door shows, and warn where users will soon refuse it, or do so already. Raises StateError."""
    certificate = pki.ensure(as_id, "as")
    left = pki.days_left(certificate)
    if left < WARNING_DAYS:
        log.warning("door-certificate-expiring", as_id=as_id, days_left=left, remedy="issue it anew where the CA is, and send SIGHUP")
    return certificate


async def _open_door(services: Services, settings: ApplicationServer, as_id: AsId, keys: KeyStore, database: Database) -> None:
    certificate = door_certificate(services.pki, services.log, as_id)
    static = [load_static_keys(Path(settings.static_keys))] if settings.static_keys else []
    sources: list[KeySource | str] = [PushedKeys(keys, services.clock, services.state.user_id_key), *static]
    ours: dict[str, Any] = {
        "clock": services.clock, "random": services.random, "counter": services.metrics, "certificates": (certificate.certificate,),
    }  # fmt: skip
    application = application_of(settings, database)
    if isinstance(application, SimLogin):  # the developer's rules, our keys
        check_as_id(application, as_id)
        door = application.with_keys(sources, **ours, certificate_hashes=())
    else:
        door = guarded(application, settings, as_id, sources, **ours)
    measured = MeasuredDoor(as_id, services.metrics, services.clock)
    door.app = measured.inside(door.app)  # here, and not before: SimLogin looks into the application for its routes
    outside = measured.around(door)
    tls = tls_context(certificate.certificate, certificate.key)
    services.renewals.append(lambda: _renew_door(services, tls, door))
    await services.serve_http("as", outside, settings.listen_https or "", as_id, tls, lifespan=":" in settings.app)
    await _serve_psk(services, settings, as_id, keys, outside)
    if settings.listen_http is not None:
        services.log.warning("door-without-tls", as_id=as_id, listen=settings.listen_http, networks=settings.http_networks)
        await services.serve_http("as", outside, settings.listen_http, as_id, None, lifespan=False)


def _renew_door(services: Services, tls: ssl.SSLContext, door: SimLogin) -> None:
    """Show the certificate that is there now from the next handshake on; one that does not go with its key changes nothing."""
    try:
        certificate = door_certificate(services.pki, services.log, door.as_id)
        # Tried elsewhere first: a context that took the certificate, and not the key, would shake hands with nobody any more.
        tls_context(certificate.certificate, certificate.key)
        tls.load_cert_chain(certificate.certificate, certificate.key)
        door.certificates_renewed()
    except StateError as problem:
        services.log.warning("door-certificate-unusable", as_id=door.as_id, problem=str(problem))


async def _serve_psk(services: Services, settings: ApplicationServer, as_id: AsId, keys: KeyStore, door: AsgiApp) -> None:
    """Listen for TLS with pushed keys, where it is configured. Raises TransportError."""
    listeners: tuple[tuple[str | None, PskVersion], ...] = ((settings.listen_psk13, "1.3"), (settings.listen_psk12, "1.2"))
    for listen, version in listeners:
        if listen is not None:
            source = PushedKeys(keys, services.clock)
            psk = PskDoor(as_id, [source], services.random, services.metrics, services.log, version, settings.psk12_suite, services.clock)
            try:
                context = psk_context(psk)
            except ConfigError as problem:  # this Python cannot; the door with a certificate takes the same keys
                services.log.warning("psk-not-served", as_id=as_id, listen=listen, problem=str(problem))
                continue
            await services.serve_http("as", door, listen, as_id, context)


def guarded(application: AsgiApp, settings: ApplicationServer, as_id: AsId, keys: Sequence[KeySource | str], **ours: Any) -> SimLogin:
    """Return an application behind the door that its settings ask for. Raises ConfigError."""
    return SimLogin(
        application, as_id=as_id, keys=keys, algorithms=tuple(settings.algorithms), qop=tuple(settings.qop),
        handsets=settings.handsets, http_networks=tuple(settings.http_networks), **ours,
    )  # fmt: skip


def check_as_id(application: SimLogin, as_id: AsId) -> None:
    """Refuse an application whose own SimLogin is for another host name. Raises ConfigError."""
    if application.as_id != as_id:
        raise ConfigError("app", f"its SimLogin is for {application.as_id}, and not for {as_id}", "Write one as_id in both places")


def application_of(settings: ApplicationServer, database: Database | None = None) -> AsgiApp:
    """Return the application behind a door; without a database one that is only looked at. Raises ConfigError."""
    if settings.app == "xcap" and database is not None:
        return XcapApp(XcapServer(SqliteDocumentStore(database)))
    if settings.app in {"xcap", "notes"}:
        return Notes()
    return load_application(settings.app)


def load_application(reference: str) -> AsgiApp:
    """Import `module:attribute`, an ASGI or a WSGI application. Raises ConfigError."""
    module, colon, attribute = reference.partition(":")
    if not colon or not module or not attribute:
        otherwise = "Write for example main:app"
        raise ConfigError("app", f"{reference!r} is neither xcap, notes nor module:attribute", did_you_mean(reference, BUILT_IN, otherwise))
    try:
        imported = importlib.import_module(module)
    except Exception as problem:  # whatever the developer's module does when it is imported
        raise ConfigError("app", f"{reference!r} cannot be imported: {_said(problem)}", _missing(module, problem)) from problem
    if not hasattr(imported, attribute):
        there = sorted(name for name, value in vars(imported).items() if not name.startswith("_") and callable(value))
        otherwise = f"It has {', '.join(there[:8])}" if there else "It has nothing that could be an application"
        raise ConfigError("app", f"{module} has no {attribute!r}", did_you_mean(attribute, there, otherwise))
    app = getattr(imported, attribute)
    if not callable(app):
        raise ConfigError("app", f"{reference!r} is a {type(app).__name__}", "Name an ASGI or WSGI application, which can be called")
    return WsgiAdapter(app) if is_wsgi(app) else cast("AsgiApp", app)


def _said(problem: Exception) -> str:
    return str(problem) if isinstance(problem, ImportError) else f"{type(problem).__name__}: {problem}"


def _missing(module: str, problem: Exception) -> str:
    """Return what to do about a module that cannot be imported."""
    if not isinstance(problem, ModuleNotFoundError):
        return f"Mend it: python -c 'import {module}' shows where"
    name = problem.name or ""
    if name != module.partition(".")[0] and name != module:
        return f"Install {name} where keyferry is installed"
    files = {file.stem for folder in sys.path for file in Path(folder or ".").glob("*.py")} if "." not in module else set()
    return did_you_mean(module, files, "Is its folder on PYTHONPATH?")
