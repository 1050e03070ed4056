# SPDX-License-Identifier: Apache-2.0
"""What every function of a process shares: settings, stores, names, sockets, periodic work, and the order in which it all ends."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from keyferry.config import Config, Scscf, split_address
from keyferry.errors import KeyferryError, TransportError
from keyferry.ports import Clock, Log, RandomSource, SipHandler, SipObserver, SipPeer
from keyferry.protocol.identity import AsId
from keyferry.protocol.repeats import WINDOW
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.sip.overload import OverloadPolicy
from keyferry.protocol.sip.transaction import Timers
from keyferry.protocol.trusted import TrustedHosts
from keyferry.stores.database import Database
from keyferry.stores.isc_keys import LiveIscKeys
from keyferry.stores.state_dir import StateDir
from keyferry.transports.http_server import AsgiApp, HttpServer
from keyferry.transports.pki import MutualTls, Pki, mutual_tls
from keyferry.transports.resolver import TableResolver
from keyferry.transports.sip_context import Limits
from keyferry.transports.sip_node import SipNode
from keyferry.transports.tls_psk import PskContext
from keyferry.wiring.measuring import RegisterLines, measured_handler
from keyferry.wiring.observability import Metrics
from keyferry.wiring.readiness import Readiness
from keyferry.wiring.tracing import Tracer, both

Role = Literal["pcscf", "icscf", "scscf", "hss", "as", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)


def roles_of(config: Config) -> tuple[Role, ...]:
    """Return what a process plays that was not told: everything, but no HSS where the file says that others are asked."""
    return tuple([role for role in ROLES if role != "hss" or not config.cx.peers])


class Listener(NamedTuple):
    """One socket that `serve` tells of."""

    role: Role
    proto: str  # udp, tcp, tls, esp (in UDP), http, https, psk12 or psk13 (https with a key instead of a certificate), diameter, diameters
    host: str
    port: int
    name: str  # the function's host name; for an AS its AS_ID


@dataclass(slots=True)
class Services:
    """Hand a function what it needs to be put together; what is opened here is closed, backwards, by `exit`."""

    config: Config
    state: StateDir
    clock: Clock
    random: RandomSource
    log: Log
    metrics: Metrics
    observer: SipObserver | None = None
    tracer: Tracer = field(default_factory=Tracer)
    resolver: TableResolver = field(init=False)
    pki: Pki = field(init=False)
    listeners: list[Listener] = field(default_factory=list)
    limits: dict[str, Limits] = field(default_factory=dict)  # by the name of a node, for a measurement beside the defaults
    exit: AsyncExitStack = field(default_factory=AsyncExitStack)
    nodes: dict[str, SipNode] = field(default_factory=dict)  # by name
    readiness: Readiness = field(init=False)
    renewals: list[Callable[[], None]] = field(default_factory=list)
    """What reads certificates again, on SIGHUP and once a day."""

    def __post_init__(self) -> None:
        """Prepare what needs no socket."""
        self.resolver = TableResolver(self.config.hosts)
        self.pki = Pki(self.state.root, self.clock)
        self.readiness = Readiness(self.clock)

    def database(self, name: str) -> Database:
        """Open a database of the state directory. Raises StateError."""
        database = Database(self.state.path(f"{name}.db"))
        self.exit.callback(database.close)
        self.readiness.check(f"store {name}", lambda: database.scan("SELECT count(*) FROM sqlite_master"))
        return database

    def isc_keys(self, scscf: str, as_id: AsId) -> LiveIscKeys:
        """Return the transport keys of an S-CSCF and an AS, which may change while we run. Raises StateError."""
        return LiveIscKeys(self.state, scscf, as_id, self.clock, self.log)

    def node(
        self, name: str, handler: SipHandler, *, sheds: bool = False, trusted: TrustedHosts | None = None,
        believes: Callable[[SipPeer], bool] | None = None, answer_within: float = Timers().f,
        registered: Callable[[SipPeer], bool] = lambda _peer: False,
    ) -> SipNode:  # fmt: skip
        """Return a SIP node that listens nowhere yet.

        One that `sheds` refuses first REGISTERs under load, if the configuration lets it, save those from where a device is
        `registered`. `trusted` addresses may open as many connections as they like, and say which registration a request belongs to;
        None: nobody may. `believes` says who else may say so where an address is not what tells. A proxy has others answer within fewer
        seconds than it has itself.
        """
        known = believes or (lambda peer: trusted is not None and trusted.holds(peer.host))
        lines = RegisterLines(name, self.clock, self.log, known)
        measured = measured_handler(handler, lines, self.metrics, self.clock)
        self.exit.callback(lines.tell_counts, final=True)
        self.every(WINDOW, lambda: _told(lines))
        node = self.nodes[name] = SipNode(
            name=name, limits=self.limits.get(name), clock=self.clock, random=self.random, log=self.log, handler=measured,
            observer=both(self.tracer.observe, self.observer), counter=self.metrics, timers=Timers(f=answer_within),
            observed=lambda: self.observer is not None or self.tracer.following > 0,
            overload=OverloadPolicy() if sheds and str(self.config.network.overload) == "on" else None,
            core=trusted is not None, registered=registered,
            trusts=trusted.holds if trusted is not None else lambda _host: False,
        )  # fmt: skip
        self.exit.push_async_callback(node.aclose)
        return node

    def trusting(self, trusted: TrustedHosts, handler: SipHandler, *, subscribers: TrustedHosts | None = None) -> SipHandler:
        """Answer 403 to whoever is not trusted (TS 33.210: within the network, peers are known); `subscribers` may SUBSCRIBE, too."""

        async def handle(request: Request, peer: SipPeer) -> Response:
            may_subscribe = subscribers is not None and request.method == "SUBSCRIBE" and subscribers.holds(peer.host)
            if not may_subscribe and not trusted.holds(peer.host):
                self.metrics.count("sip_untrusted")
                self.log.warning("peer-not-trusted", peer=str(peer))
                return make_response(request, 403)
            return await handler(request, peer)

        return handle

    async def serve_sip(
        self, role: Role, node: SipNode, name: str, listen: str, shown: str = "", *, over: Sequence[str] = ("UDP", "TCP"),
        tls: MutualTls | None = None,
    ) -> None:  # fmt: skip
        """Listen, and make `name` known to the other functions of this process. Raises ConfigError, TransportError."""
        host, port = split_address(listen, f"{role}.listen")
        for peer in await node.listen(host, port, over, tls=tls):
            self.listeners.append(Listener(role, peer.transport.lower(), peer.host, peer.port, shown or name))
            self.resolver.serve(name, peer.host, peer.port, peer.transport)
            self.tracer.serve(peer, role, shown or name)

    def identity(self, node: SipNode, name: str, role: str, *, clients: ssl.VerifyMode = ssl.CERT_REQUIRED) -> MutualTls:
        """Return what a node shows and trusts over TLS: the certificate of its name and role. Raises StateError."""
        tls = mutual_tls(self.pki.ensure(name, role), self.pki.ca_file, clients=clients)
        self.renewals.append(lambda: node.renew(tls.renew(self.pki.ensure(name, role))))
        return tls

    def renew(self) -> None:
        """Read certificates again; those of our CA that are near their end are made again."""
        for renewal in self.renewals:
            try:
                renewal()
            except KeyferryError as problem:
                self.metrics.count("sip_certificate", "unusable")
                self.log.warning("sip-certificate-unusable", problem=str(problem))

    async def serve_http(
        self, role: Role, app: AsgiApp, listen: str, name: str, tls: ssl.SSLContext | None, *, lifespan: bool = False
    ) -> None:
        """Listen for HTTP, over TLS where there is a context. Raises ConfigError, TransportError."""
        host, port = split_address(listen, f"{role}.listen")
        server = HttpServer(app, tls=tls, lifespan=lifespan)
        self.exit.push_async_callback(server.aclose)
        address = await server.listen(host, port)
        self.readiness.check(f"listener {listen}", lambda: _is_open(server))
        proto = f"psk{tls.door.version.replace('.', '')}" if isinstance(tls, PskContext) else "https" if tls else "http"
        self.listeners.append(Listener(role, proto, *address, name))

    def every(self, seconds: float, work: Callable[[], Awaitable[object]], *, first: float | None = None) -> None:
        """Do some work again and again until the end; the first time after `first` seconds, or else after `seconds`."""

        async def run() -> None:
            pause = seconds if first is None else first
            while True:
                await asyncio.sleep(pause)
                pause = seconds
                try:
                    await work()
                except KeyferryError as problem:
                    self.log.warning("periodic-work-failed", problem=str(problem))
                except Exception as problem:  # the shell's last line: one bad row must not end the work for ever, in silence
                    self.log.warning("periodic-work-failed", problem=type(problem).__name__)

        task = asyncio.get_running_loop().create_task(run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self.exit.push_async_callback(end)


async def _told(lines: RegisterLines) -> None:
    lines.tell_counts()


async def _is_open(server: HttpServer) -> str:
    return "" if server.is_open else "has ended"


def server_name_of(settings: Scscf) -> str:
    """Return the Server-Name of an S-CSCF: its SIP URI. Raises ConfigError."""
    port = split_address(settings.listen, "scscf.listen")[1]
    return f"sip:{settings.name}:{port}" if port else f"sip:{settings.name}"


def only_listed(trusted: TrustedHosts) -> Callable[[SipPeer], None]:
    """Return the protection policy `loopback` (DESIGN §6): a check that raises TransportError for an address that is not trusted."""

    def check(peer: SipPeer) -> None:
        if not trusted.holds(peer.host):
            raise TransportError(str(peer), "the policy `loopback` sends keys to loopback addresses and to `trusted_peers` alone")

    return check


def only_tls(name: str) -> Callable[[SipPeer], None]:
    """Return the protection policy `tls` for an application server of this host name (DESIGN §6): a check that raises TransportError."""

    def check(peer: SipPeer) -> None:
        if (peer.transport, peer.name, peer.role) != ("TLS", name, "as"):
            raise TransportError(str(peer), f"the policy `tls` sends keys over TLS alone, to a certificate of {name} in the role as")

    return check
