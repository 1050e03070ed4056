# SPDX-License-Identifier: Apache-2.0
"""A running system from a configuration: every network function on its own sockets (DESIGN §11: one process serves a lab)."""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, cast, get_args

from keyferry.asgi.admin import AdminApp
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.notes import Notes
from keyferry.asgi.registrations import RegistrationsApp
from keyferry.asgi.xcap import XcapApp
from keyferry.config import ApplicationServer, Config, Subscriber, split_address
from keyferry.errors import ConfigError, KeyferryError, TransportError
from keyferry.ports import Clock, KeyStore, Log, RandomSource, RegistrationStore, SipHandler, SipObserver, SipPeer, SubscriberStore
from keyferry.ports import SubscribedImpu as PortImpu
from keyferry.ports import Subscriber as PortSubscriber
from keyferry.protocol.aka import algorithm_of
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import derive_topc
from keyferry.protocol.identity import AsId, parse_as_id, parse_impi, parse_impu
from keyferry.protocol.ims import ifc
from keyferry.protocol.ims.user_profile import cached_user_profile
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.appserver import KeyAgent, PushedKeys, Pusher
from keyferry.roles.hss import Hss
from keyferry.roles.icscf import Icscf
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.pcscf.security import SecurityAgreement
from keyferry.roles.scscf.as_notifier import AsNotifier, PushPolicy, TransportKey
from keyferry.roles.scscf.authenticator import Authenticator, AuthPolicy
from keyferry.roles.scscf.node import Scscf
from keyferry.roles.scscf.reg_event import RegEventNotifier, RegEventPolicy
from keyferry.roles.scscf.registrar import Registrar, RegistrarPolicy
from keyferry.roles.xcap_server import XcapServer
from keyferry.stores.database import Database
from keyferry.stores.sqlite.documents import SqliteDocumentStore
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.sqlite.registrations import SqliteRegistrationStore
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.state_dir import StateDir
from keyferry.transports.http_server import AsgiApp, HttpServer, tls_context
from keyferry.transports.pki import Pki
from keyferry.transports.resolver import TableResolver
from keyferry.transports.sip_node import SipNode
from keyferry.wiring.observability import Metrics
from keyferry.wiring.registrations import RegistrarOperations
from keyferry.wiring.tracing import Tracer, both

Role = Literal["pcscf", "icscf", "scscf", "as", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)


class Listener(NamedTuple):
    """One socket that `serve` tells of."""

    role: Role
    proto: str  # udp, tcp, esp (in UDP), http or https
    host: str
    port: int
    name: str  # the function's host name; for an AS its AS_ID


@dataclass(slots=True)
class AsParts:
    """One application server, put together."""

    settings: ApplicationServer
    as_id: AsId
    keys: KeyStore
    agent: KeyAgent


@dataclass(slots=True)
class System:
    """Build, start and stop the functions that a process plays."""

    config: Config
    state: StateDir
    clock: Clock
    random: RandomSource
    log: Log
    metrics: Metrics
    roles: Collection[Role] = ROLES
    observer: SipObserver | None = None
    tracer: Tracer = field(default_factory=Tracer)
    resolver: TableResolver = field(init=False)
    pki: Pki = field(init=False)
    listeners: list[Listener] = field(default_factory=list)
    subscribers: SubscriberStore = field(init=False)
    registrations: RegistrationStore | None = None
    pcscf: Pcscf | None = None
    registrar: Registrar | None = None
    servers: list[AsParts] = field(default_factory=list)
    _exit: AsyncExitStack = field(default_factory=AsyncExitStack)

    def __post_init__(self) -> None:
        """Prepare what needs no socket."""
        self.resolver = TableResolver(self.config.hosts)
        self.pki = Pki(self.state.root, self.clock)

    async def start(self) -> list[Listener]:
        """Start every function; what is started is stopped again if one fails. Raises ConfigError, StateError, TransportError."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self.listeners

    async def stop(self) -> None:
        """End every function, the doors first, and close the stores."""
        await self._exit.aclose()

    async def _start(self) -> None:
        self.subscribers = SqliteSubscriberStore(self._database("hss"), self.state.keyring)
        hss = Hss(self.subscribers, {"default": self._criteria()}, self.random, self.log, self.metrics, amf_bit=self.config.network.amf_bit)
        await provision(self.subscribers, self.config.subscribers)
        # Backwards along the path of a REGISTER, so that nobody is asked before it can answer.
        if "as" in self.roles:
            for settings in self.config.application_servers:
                await self._start_as(settings)
        if "scscf" in self.roles:
            await self._start_scscf(hss)
        if "icscf" in self.roles:
            node = self._node("I-CSCF", self._trusting(self.config.icscf.trusted_peers, lambda request, peer: icscf.handle(request, peer)))
            icscf = Icscf(cx=hss, sip=node, resolver=self.resolver, default_scscf=self.config.icscf.scscf, log=self.log)
            await self._serve_sip("icscf", node, self.config.icscf.name, self.config.icscf.listen)
        if "pcscf" in self.roles:
            await self._start_pcscf()
        if "admin" in self.roles:
            operations = RegistrationsApp(RegistrarOperations(self.registrar)) if self.registrar is not None else None
            app = AdminApp(
                registry=self.metrics.registry,
                health=self._health,
                trace=self.tracer.follower_of(self.subscribers),
                registrations=operations,
            )
            await self._serve_http("admin", app, self.config.admin.listen, "", None)
            self._exit.callback(self.tracer.close)  # before the listener, so that streams end and nobody waits for them

    async def _start_pcscf(self) -> None:
        settings = self.config.pcscf
        node = self._node("P-CSCF", lambda request, peer: pcscf.handle(request, peer))
        pcscf = Pcscf(
            sip=node, resolver=self.resolver, uri=f"sip:{settings.name}", icscf=settings.icscf, clock=self.clock, random=self.random,
            visited_network=self.config.network.home_domain, log=self.log, counter=self.metrics,
        )  # fmt: skip
        self.pcscf = pcscf
        tunnel = []
        if self.config.network.gm != "off":  # before anybody can ask
            sas = await node.protect(*split_address(settings.gm_listen, "pcscf.gm_listen"))
            tunnel = [Listener("pcscf", "esp", str(sas.address), sas.ports[1], settings.name)]
            pcscf.security = SecurityAgreement(sas, self.metrics, required=self.config.network.gm == "required")
        await self._serve_sip("pcscf", node, settings.name, settings.listen)
        self.listeners += tunnel

    async def _start_scscf(self, hss: Hss) -> None:
        settings = self.config.scscf
        node = self._node("S-CSCF", self._trusting(settings.trusted_peers, lambda request, peer: scscf.handle(request, peer)))
        registrations = SqliteRegistrationStore(self._database("scscf"), self.state.keyring)
        self.registrations = registrations
        port = split_address(settings.listen, "scscf.listen")[1]
        server_name = f"sip:{settings.name}:{port}" if port else f"sip:{settings.name}"
        policy = AuthPolicy(
            realm=self.config.network.home_domain, server_name=server_name, release=settings.release, release_info=settings.release_info,
            mask=settings.mask, reg_await_auth=settings.reg_await_auth,
        )  # fmt: skip
        notifier = AsNotifier(
            sip=node, resolver=self.resolver, registrations=registrations, clock=self.clock, random=self.random, log=self.log,
            counter=self.metrics, policy=self._push_policy(server_name), targets_of=lambda registration: registrar.targets_of(registration),
            terminate=lambda impi, reg: registrar.network_deregister(impi, reg),
        )  # fmt: skip
        reg_event = RegEventNotifier(
            sip=node, resolver=self.resolver, registrations=registrations, owner_of=registrations.of_impu,
            trusts=lambda peer: self._is_trusted(settings.trusted_peers, peer), clock=self.clock, random=self.random, log=self.log,
            counter=self.metrics, policy=RegEventPolicy(server_name), profile_of=cached_user_profile,
        )  # fmt: skip
        registrar = Registrar(
            authenticator=Authenticator(hss, self.clock, policy, self.log, self.metrics), notifier=notifier, registrations=registrations,
            cx=hss, clock=self.clock, random=self.random, log=self.log, counter=self.metrics,
            policy=RegistrarPolicy(
                settings.min_expires, settings.max_expires, associated=settings.p_associated_uri, reauth_age=settings.reauth_age
            ),
            # Where Gm is not protected nobody can say that it is; and this machine's own users can reach the loopback addresses.
            trusts=lambda peer: str(self.config.network.gm) != "off" and self._is_trusted(settings.trusted_peers, peer),
            changed=reg_event.changed,
        )  # fmt: skip
        self.registrar = registrar
        scscf = Scscf(registrar, reg_event)
        self._exit.push_async_callback(reg_event.aclose)
        self._exit.push_async_callback(notifier.aclose)
        await self._serve_sip("scscf", node, settings.name, settings.listen)
        try:
            await scscf.sweep()
        except KeyferryError as problem:  # a store that fails for one user must not keep the others out
            self.log.warning("first-sweep-failed", problem=str(problem))
        self._every(settings.sweep, scscf.sweep)

    def _push_policy(self, server_name: str) -> PushPolicy:
        settings = self.config.scscf
        as_ids: dict[str, tuple[AsId, ...]] = {}
        transport_keys: dict[AsId, TransportKey] = {}
        for server in self.config.application_servers:
            as_id = parse_as_id(server.as_id)
            as_ids[server.sip_uri] = (*as_ids.get(server.sip_uri, ()), as_id)
            kid, key = list(self.state.isc_keys(settings.name, as_id).items())[-1]
            transport_keys[as_id] = TransportKey(kid, Siv(key))
        return PushPolicy(
            scscf_uri=server_name, scscf_name=settings.name, as_ids=as_ids, transport_keys=transport_keys, check_peer=only_loopback,
            key_max_age=settings.key_max_age, push_wait=settings.push_wait,
        )  # fmt: skip

    async def _start_as(self, settings: ApplicationServer) -> None:
        as_id = parse_as_id(settings.as_id)
        database = self._database(f"as-{as_id}")
        keys = SqliteKeyStore(database, self.state.keyring)
        pushers = {name: self._pusher(name, as_id) for name in settings.pushers or [self.config.scscf.name]}
        agent = KeyAgent(frozenset({as_id}), pushers, keys, self.clock, self.log, self.metrics)
        self.servers.append(AsParts(settings, as_id, keys, agent))
        node = self._node(f"AS {as_id}", agent.handle)
        await self._serve_sip("as", node, parse_sip_uri(settings.sip_uri).host, settings.listen_sip, shown=as_id)
        self._every(60.0, lambda: keys.sweep(self.clock.now()))
        certificate = self.pki.ensure(as_id, "as")
        door = SimLogin(
            self._application(settings, database), as_id=as_id, keys=PushedKeys(keys, self.clock), clock=self.clock, random=self.random,
            counter=self.metrics, algorithms=tuple(settings.algorithms), certificate_hashes=(certificate.sha256,),
        )  # fmt: skip
        await self._serve_http("as", door, settings.listen_https, as_id, tls_context(certificate.certificate, certificate.key))

    def _pusher(self, name: str, as_id: AsId) -> Pusher:
        keys = {(as_id, kid): key for kid, key in self.state.isc_keys(name, as_id).items()}
        home = self.config.network.home_domain
        return Pusher(name=name, realm=home, transport_keys=keys, domains=frozenset({home}))

    def _application(self, settings: ApplicationServer, database: Database) -> AsgiApp:
        if settings.app == "xcap":
            return XcapApp(XcapServer(SqliteDocumentStore(database)))
        if settings.app == "notes":
            return Notes()
        return load_application(settings.app)

    def _criteria(self) -> tuple[ifc.InitialFilterCriteria, ...]:
        """One criterion per AS, for every REGISTER: initial, again and at the end (specs: RegistrationType absent means all)."""
        trigger = ifc.TriggerPoint(cnf=True, triggers=(ifc.ServicePointTrigger(ifc.OnMethod("REGISTER")),))
        return tuple(
            ifc.InitialFilterCriteria(
                priority=place,
                trigger=trigger,
                application_server=ifc.ApplicationServer(
                    server_name=server.sip_uri, default_handling=server.default_handling, service_info=server.service_info
                ),
            )
            for place, server in enumerate(self.config.application_servers)
        )

    def _database(self, name: str) -> Database:
        database = Database(self.state.path(f"{name}.db"))
        self._exit.callback(database.close)
        return database

    def _trusting(self, trusted: Collection[str], handler: SipHandler) -> SipHandler:
        """Answer 403 to whoever is neither on this machine nor trusted (TS 33.210: within the network, peers are known)."""

        async def handle(request: Request, peer: SipPeer) -> Response:
            if not self._is_trusted(trusted, peer):
                self.metrics.count("sip_untrusted")
                self.log.warning("peer-not-trusted", peer=str(peer))
                return make_response(request, 403)
            return await handler(request, peer)

        return handle

    @staticmethod
    def _is_trusted(trusted: Collection[str], peer: SipPeer) -> bool:
        return peer.host in trusted or _is_loopback(peer)

    def _node(self, name: str, handler: SipHandler) -> SipNode:
        node = SipNode(
            name=name, clock=self.clock, random=self.random, log=self.log, handler=handler,
            observer=both(self.tracer.observe, self.observer), counter=self.metrics,
            observed=lambda: self.observer is not None or self.tracer.following > 0,
        )  # fmt: skip
        self._exit.push_async_callback(node.aclose)
        return node

    async def _serve_sip(self, role: Role, node: SipNode, name: str, listen: str, shown: str = "") -> None:
        host, port = split_address(listen, f"{role}.listen")
        for peer in await node.listen(host, port):
            self.listeners.append(Listener(role, peer.transport.lower(), peer.host, peer.port, shown or name))
            self.resolver.serve(name, peer.host, peer.port)
            self.tracer.serve(peer, role, shown or name)

    async def _serve_http(self, role: Role, app: AsgiApp, listen: str, name: str, tls: ssl.SSLContext | None) -> None:
        host, port = split_address(listen, f"{role}.listen")
        server = HttpServer(app, tls=tls)
        self._exit.push_async_callback(server.aclose)
        address = await server.listen(host, port)
        self.listeners.append(Listener(role, "https" if tls else "http", *address, name))

    def _every(self, seconds: float, work: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await work()
                except KeyferryError as problem:
                    self.log.warning("periodic-work-failed", problem=str(problem))

        task = asyncio.get_running_loop().create_task(run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._exit.push_async_callback(end)

    async def _health(self) -> dict[str, object]:
        registered = await self.registrations.count() if self.registrations else 0
        keys = {server.as_id: await server.keys.count(self.clock.now()) for server in self.servers}
        return {"ok": True, "registrations": registered, "keys": keys}


def only_loopback(peer: SipPeer) -> None:
    """Let no key leave the machine: the protection policy `loopback` (DESIGN §6). Raises TransportError."""
    if not _is_loopback(peer):
        raise TransportError(str(peer), "the policy `loopback` lets no key leave this machine")


def _is_loopback(peer: SipPeer) -> bool:
    return _host_is_loopback(peer.host)


@lru_cache(maxsize=1024)
def _host_is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.strip("[]")).is_loopback


def load_application(reference: str) -> AsgiApp:
    """Import `module:attribute`. Raises ConfigError."""
    module, colon, attribute = reference.partition(":")
    if not colon:
        raise ConfigError("app", f"{reference!r} is neither xcap, notes nor module:attribute")
    try:
        app = cast("AsgiApp", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as problem:
        raise ConfigError("app", f"{reference!r} cannot be imported: {problem}", "Is its folder on PYTHONPATH?") from problem
    return app


def subscriber_of(settings: Subscriber) -> PortSubscriber:
    """Return what the HSS stores, OPc derived where the file gives OP. Raises ParseError."""
    opc = settings.opc
    if opc is None:
        opc = opc_of(settings.algorithm, settings.k, settings.op or Secret(b""))
    algorithm_of(settings.algorithm, settings.k, opc)
    barred = {parse_impu(text) for text in settings.barred}
    impus = tuple(PortImpu(parse_impu(text), parse_impu(text) in barred) for text in settings.impus)
    return PortSubscriber(parse_impi(settings.impi), impus, settings.algorithm, settings.k, opc, bytes.fromhex(settings.amf))


def opc_of(algorithm: Literal["milenage", "tuak"], k: Secret, op: Secret) -> Secret:
    """Return OPc from OP, or TOPc from TOP. Raises ParseError."""
    return derive_opc(k, op) if algorithm == "milenage" else derive_topc(k, op)


async def provision(store: SubscriberStore, subscribers: Sequence[Subscriber]) -> None:
    """Store the file's subscribers where they differ from what is there; SEQ is kept."""
    for settings in subscribers:
        wanted = subscriber_of(settings)
        if await store.get(wanted.impi) != wanted:
            await store.replace(wanted)
