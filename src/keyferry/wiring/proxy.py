# SPDX-License-Identifier: Apache-2.0
"""The process of `keyferry proxy`: doors for many host names, servers behind them, and the endpoint for nginx (TS 33.222 §6)."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import re
import signal
import ssl
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from keyferry.asgi.admin import AdminApp
from keyferry.asgi.audit import AuditLog
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.auth_request import AuthRequest, granted
from keyferry.asgi.exchange import App
from keyferry.asgi.names import Proxies, check_as_id
from keyferry.asgi.origin import Origins
from keyferry.asgi.proxy.fields import Route
from keyferry.asgi.proxy.forward import Forward
from keyferry.asgi.proxy.front import Front
from keyferry.client.upstream import Address, HttpUpstream, Timeouts
from keyferry.config import split_address
from keyferry.errors import ConfigError
from keyferry.ports import Clock, KeySource, RandomSource
from keyferry.protocol.identity import AsId
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.database import Database
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.state_dir import StateDir
from keyferry.transports.agent_socket import AgentKeys, socket_path
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.http_server import AsgiApp, HttpServer, tls_context
from keyferry.transports.http_upgrade import UpgradingHttp
from keyferry.transports.pki import Pki, not_after_of
from keyferry.transports.service_manager import ServiceManager
from keyferry.transports.terminal import closing
from keyferry.transports.unix_socket import check_folder
from keyferry.wiring.connections import allow_connections
from keyferry.wiring.gauges import show_certificates, show_ready
from keyferry.wiring.measuring import MeasuredDoor
from keyferry.wiring.observability import BackgroundStream, LogFormat, Metrics, StructLog, bridge_libraries
from keyferry.wiring.protection import opened_state
from keyferry.wiring.proxy_secrets import ENDPOINT, ProxySecrets, read_secrets
from keyferry.wiring.readiness import Readiness, disk_of
from keyferry.wiring.serving import Announce, spare_the_collector, until_told

NOBODY = "A" * 24 + "@ready.invalid"
"""A key id that nobody has: looking for it shows whether keys can be looked for."""
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9\-]{0,63}")


@dataclass(frozen=True, slots=True)
class Target:
    """One host name, and the server behind it."""

    as_id: AsId
    address: Address
    tls: bool
    host: str  # as in its URL


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What the command line says; paths are files."""

    targets: Sequence[Target] = ()
    listen: str = "127.0.0.1:8443"
    agent: str = ""  # unix:PATH; "": the stores of the state directory
    certificate: Path | None = None  # None: one of the state directory's CA
    key: Path | None = None
    host_of_upstream: bool = False  # what Host tells the server behind: its own name, or the one that the user opened
    user_id_header: str = ""
    secret_files: Mapping[AsId, Path] = field(default_factory=dict)  # what each server behind sees in X-Keyferry-Secret
    upstream_ca: Path | None = None
    upstream_certificate: Path | None = None
    upstream_key: Path | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_connections: int = 512
    auth_request: str = ""  # unix:PATH or HOST:PORT
    auth_request_secret_file: Path | None = None  # what nginx must show
    names: Sequence[AsId] = ()  # that nginx serves
    trusted_origins: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()  # who may say in X-Forwarded-For who the client is
    admin: str = ""
    audit: Path | None = None


def parse_target(text: str, *, plain: bool) -> Target:
    """Read NAME=URL; `plain` lets identities go over http:// to other machines. Raises ConfigError."""
    where = f"--upstream {text}"
    name, equals, url = text.partition("=")
    if not equals:
        raise ConfigError(where, "is not NAME=URL", "Write for example notes.home1.net=http://127.0.0.1:8000")
    as_id = check_as_id(where, name)
    if url.startswith("unix:/"):
        return Target(as_id, Address("", 0, url.removeprefix("unix:")), False, as_id)
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ConfigError(where, "is not a URL", "Write http://HOST:PORT, https://HOST or unix:/PATH") from None
    if parts.scheme not in {"http", "https"} or not host or parts.username is not None or not url.isascii():
        raise ConfigError(where, "is neither http://HOST:PORT, https://HOST:PORT nor unix:/PATH")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError(where, "has a path: the proxy passes paths on as they are", "Leave the path out")
    if parts.scheme == "http" and not plain and not _is_loopback(host):
        remedy = "Use https://, or say --plain-upstream if the way there is protected otherwise (TS 33.210)"
        raise ConfigError(where, "would send who users are to another machine in clear", remedy)
    tls = parts.scheme == "https"
    return Target(as_id, Address(host, port or (443 if tls else 80)), tls, parts.netloc)


def serve_proxy(settings: ProxySettings, state_path: Path, announce: Announce, *, log_format: LogFormat = "text") -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError, StateError, TransportError."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, state_path, announce, log_format))


async def _serve(settings: ProxySettings, state_path: Path, announce: Announce, log_format: LogFormat) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    closed = closing()
    loop.add_signal_handler(signal.SIGHUP, lambda: ended.set() if closed() else None)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    stream = BackgroundStream(sys.stderr)
    log = StructLog(log_format, stream)
    bridge_libraries(log)
    random = SystemRandom()
    try:
        async with AsyncExitStack() as stack:
            state = stack.enter_context(opened_state(state_path))
            process = ProxyProcess(settings, state, SystemClock(), random, log, Metrics(), stack)
            listeners = await process.start()
            upstream = settings.max_connections * len(settings.targets)
            allow_connections((str(listener["proto"]) for listener in listeners), log, upstream=upstream)
            spare_the_collector()
            log.info("ready", listeners=len(listeners))
            announce({"ready": True, "listen": listeners, "ca": str(process.pki.ca_file)})
            await until_told(ended, ServiceManager.of(os.environ), process.readiness)
            log.info("stopping")
    finally:
        stream.close()


@dataclass(slots=True)
class ProxyProcess:
    """Put the proxy together; what is opened is closed, backwards, by `exit`."""

    settings: ProxySettings
    state: StateDir
    clock: Clock
    random: RandomSource
    log: StructLog
    metrics: Metrics
    exit: AsyncExitStack
    listeners: list[dict[str, object]] = field(default_factory=list)
    pki: Pki = field(init=False)
    audit: AuditLog | None = None  # one for all doors
    agent: AgentKeys | None = None
    secrets: ProxySecrets = field(init=False)
    readiness: Readiness = field(init=False)

    def __post_init__(self) -> None:
        """Prepare what needs no socket. Raises ConfigError."""
        settings = self.settings
        self.readiness = Readiness(self.clock)
        split_address(settings.listen, "--listen")
        addresses = {target.as_id: target.address for target in settings.targets}
        self.secrets = read_secrets(settings.secret_files, settings.auth_request_secret_file, addresses)
        self.pki = Pki(self.state.root, self.clock)
        if settings.audit is not None:
            self.audit = AuditLog(settings.audit, clock=self.clock)
            self.exit.callback(self.audit.close)

    async def start(self) -> list[dict[str, object]]:
        """Open the listeners and return them. Raises ConfigError, StateError, TransportError."""
        settings = self.settings
        if settings.targets:
            names = [target.as_id for target in settings.targets]
            tls, digest = self._tls(names)
            forwards = {target.as_id: self._forward(target) for target in settings.targets}
            doors: dict[str, App] = {name: self._door(name, forward, digest) for name, forward in forwards.items()}
            front = Front(doors, clock=self.clock, counter=self.metrics)
            proxies = Proxies(settings.trusted_proxies, "--trusted-proxy")
            await self._listen(proxies.in_front_of(front) if settings.trusted_proxies else front, settings.listen, names, tls=tls)
            for forward in forwards.values():
                self.exit.push_async_callback(forward.aclose)  # before the listener waits for them
        if settings.auth_request:
            await self._start_auth_request()
        if settings.admin:
            await self._listen(self._admin(), settings.admin, ["admin"])
        return self.listeners

    async def _start_auth_request(self) -> None:
        settings = self.settings
        secret = self.secrets.nginx
        if not settings.auth_request.startswith("unix:/") and secret is None:
            remedy = f"Give {ENDPOINT}, or use unix:/PATH"
            raise ConfigError("--auth-request", "anybody on this machine could ask, and see whether a login is right", remedy)
        shown = (settings.certificate,) if settings.certificate else ()  # nginx reloads it by itself
        doors: dict[str, App] = {name: self._door(name, granted, certificates=shown) for name in settings.names}
        endpoint = AuthRequest(doors, clock=self.clock, secret=secret, counter=self.metrics, origins=Origins(settings.trusted_origins))
        await self._listen(endpoint, settings.auth_request, settings.names)

    def _forward(self, target: Target) -> Forward:
        settings = self.settings
        tls = self._upstream_tls() if target.tls else None
        if target.address.path:  # whoever listens there is told who the user is
            check_folder(Path(target.address.path), "the server behind", socket_owner=True)
        upstream = HttpUpstream(target.address, tls=tls, timeouts=settings.timeouts, max_connections=settings.max_connections)
        self.exit.push_async_callback(upstream.aclose)
        secret = self.secrets.behind.get(target.as_id)
        route = Route(
            target.as_id,
            target.host.encode("ascii") if settings.host_of_upstream else None,
            secret=secret.reveal() if secret else None,
            user_id=_field_name(settings.user_id_header) if settings.user_id_header else None,
        )
        return Forward(upstream, route, log=self.log, counter=self.metrics, origins=Origins(settings.trusted_origins))

    def _door(self, as_id: AsId, app: App, digests: tuple[bytes, ...] = (), certificates: tuple[Path, ...] = ()) -> App:
        keys: KeySource = self._of_agent() if self.settings.agent else self._stored(as_id)
        self.readiness.check(f"keys of {as_id}", lambda: keys.lookup(NOBODY, as_id))
        measured = MeasuredDoor(as_id, self.metrics, self.clock)
        door = SimLogin(
            app, as_id=as_id, keys=keys, clock=self.clock, random=self.random, counter=self.metrics, certificate_hashes=digests,
            user_id_key=None if self.settings.agent else self.state.user_id_key(as_id), audit=self.audit,
            trusted_origins=self.settings.trusted_origins, certificates=certificates,
        )  # fmt: skip
        door.app = measured.inside(door.app)
        return measured.around(door)

    def _of_agent(self) -> AgentKeys:
        """Return the keys of the agent: one connection for all doors."""
        if self.agent is None:
            self.agent = AgentKeys(socket_path(self.settings.agent), clock=self.clock, random=self.random)
            self.exit.push_async_callback(self.agent.aclose)
        return self.agent

    def _stored(self, as_id: AsId) -> PushedKeys:
        path = self.state.path(f"as-{as_id}.db")
        if not path.exists():
            remedy = "Start `keyferry serve` or `keyferry agent` with this name and this state directory first, or give --agent"
            raise ConfigError(str(path), f"is not there: no keys come in for {as_id}", remedy)
        database = Database(path)
        self.exit.callback(database.close)
        return PushedKeys(SqliteKeyStore(database, self.state.keyring), self.clock)

    def _tls(self, names: Sequence[AsId]) -> tuple[ssl.SSLContext, tuple[bytes, ...]]:
        settings = self.settings
        if settings.certificate is None:
            made = self.pki.ensure(names[0], "proxy", also=names[1:])
            return tls_context(made.certificate, made.key), (made.sha256,)
        try:
            return tls_context(settings.certificate, settings.key or settings.certificate), (_sha256_of(settings.certificate),)
        except OSError as problem:
            raise ConfigError(str(settings.certificate), f"does not go with its key: {problem.strerror}") from problem

    def _upstream_tls(self) -> ssl.SSLContext:
        settings = self.settings
        try:
            context = ssl.create_default_context(cafile=str(settings.upstream_ca) if settings.upstream_ca else None)
            if settings.upstream_certificate is not None:
                context.load_cert_chain(settings.upstream_certificate, settings.upstream_key)
        except OSError as problem:
            raise ConfigError("--upstream-ca, --upstream-certificate", f"cannot be read: {problem.strerror}") from problem
        return context

    async def _listen(self, app: AsgiApp, listen: str, names: Sequence[str], *, tls: ssl.SSLContext | None = None) -> None:
        server = HttpServer(app, tls=tls, protocol=UpgradingHttp, date=False) if tls else HttpServer(app)
        self.exit.push_async_callback(server.aclose)
        if listen.startswith("unix:/"):
            await server.listen_unix(Path(listen.removeprefix("unix:")))
            self.listeners.append({"proto": "unix", "path": listen.removeprefix("unix:"), "names": list(names)})
            return
        host, port = await server.listen(*split_address(listen, "listen address"))
        self.listeners.append({"proto": "https" if tls else "http", "host": host, "port": port, "names": list(names)})

    def _admin(self) -> AdminApp:
        own = None if self.settings.certificate is None else not_after_of(self.settings.certificate)
        given = [] if own is None else [(self.settings.targets[0].as_id, "proxy", own)]
        self.metrics.of_process()
        show_ready(self.metrics, self.readiness)
        show_certificates(self.metrics, self.clock, lambda: [*self.pki.ends(), *given])
        self.readiness.check("state directory", disk_of(self.state.root))
        return AdminApp(
            registry=self.metrics.registry, health=self._health, ready=self.readiness.report, refresh=self.metrics.refresh
        )  # fmt: skip

    async def _health(self) -> Mapping[str, object]:
        return {"ok": True}


def _field_name(text: str) -> bytes:
    name = text.lower()
    if not _FIELD.fullmatch(text) or name.startswith(("x-3gpp-", "x-keyferry-", "x-forwarded-")) or name in {"host", "connection"}:
        raise ConfigError("--user-id-header", f"{text!r} is no name for a field of your own", "Write for example X-User-Id")
    return name.encode("ascii")


def _sha256_of(certificate: Path) -> bytes:
    try:
        pem = certificate.read_text("ascii", "replace")
        first = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", pem, re.DOTALL)
        if first is None:
            raise ValueError
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[0])).digest()
    except (OSError, ValueError):
        raise ConfigError(str(certificate), "is no certificate in PEM that can be read") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
