# SPDX-License-Identifier: Apache-2.0
"""A running system from a configuration: every network function on its own sockets (DESIGN §11: one process serves a lab)."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from keyferry.asgi.admin import AdminApp
from keyferry.asgi.failures import FailuresApp
from keyferry.asgi.registrations import RegistrationsApp
from keyferry.asgi.subscribers import SubscribersApp
from keyferry.config import Config
from keyferry.config import Scscf as ScscfSettings
from keyferry.errors import ConfigError
from keyferry.ports import Clock, CxClient, Log, RandomSource, SipObserver, SubscriberStore
from keyferry.protocol.ims.failures import FailureBook
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.scscf.diagnosis import Diagnosis
from keyferry.roles.scscf.registrar import Registrar
from keyferry.stores.state_dir import StateDir
from keyferry.transports.pki import Pki
from keyferry.transports.resolver import TableResolver
from keyferry.wiring.appserver import AsParts, groups_of, start_appservers
from keyferry.wiring.gauges import show_keys, show_scscfs, show_services
from keyferry.wiring.hss import HssParts, start_hss
from keyferry.wiring.icscf import start_icscf
from keyferry.wiring.measuring import MeasuredCx
from keyferry.wiring.observability import Metrics
from keyferry.wiring.pcscf import start_pcscf
from keyferry.wiring.readiness import Readiness, disk_of
from keyferry.wiring.registrations import RegistrarOperations
from keyferry.wiring.reloading import Reload
from keyferry.wiring.scscf import ScscfParts, start_scscf
from keyferry.wiring.services import ROLES, Listener, Role, Services
from keyferry.wiring.subscriptions import HssOperations
from keyferry.wiring.tracing import Tracer

if TYPE_CHECKING:  # it imports what only Cx over the wire needs
    from keyferry.roles.cx_client import CxListener

RENEW_EVERY = 86_400.0
"""Seconds between looks for certificates that are near their end."""


@dataclass(slots=True)
class System:
    """Build, start and stop the functions that a process plays; each is put together in the module of its name."""

    config: Config
    state: StateDir
    clock: Clock
    random: RandomSource
    log: Log
    metrics: Metrics
    roles: Collection[Role] = ROLES
    observer: SipObserver | None = None
    tracer: Tracer = field(default_factory=Tracer)
    services: Services = field(init=False)
    subscribers: SubscriberStore | None = None  # None: the HSS is elsewhere
    scscf_names: Collection[str] | None = None  # of several S-CSCFs only these; None: all of the file
    reload: Reload | None = None
    scscfs: list[ScscfParts] = field(default_factory=list)
    pcscf: Pcscf | None = None
    servers: list[AsParts] = field(default_factory=list)
    hss_of: dict[str, Callable[[], list[str]]] = field(default_factory=dict)  # host name of who asks over Diameter → the HSSs it can ask

    def __post_init__(self) -> None:
        """Prepare what needs no socket."""
        self.services = Services(
            self.config, self.state, self.clock, self.random, self.log, self.metrics, self.observer, self.tracer
        )  # fmt: skip

    @property
    def registrar(self) -> Registrar | None:
        """The registrar of the first S-CSCF."""
        return self.scscfs[0].registrar if self.scscfs else None

    @property
    def listeners(self) -> list[Listener]:
        """The sockets that are open."""
        return self.services.listeners

    @property
    def readiness(self) -> Readiness:
        """What /ready says."""
        return self.services.readiness

    @property
    def resolver(self) -> TableResolver:
        """The names that the functions of this process know."""
        return self.services.resolver

    @property
    def pki(self) -> Pki:
        """The certificates of the state directory."""
        return self.services.pki

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
        await self.services.exit.aclose()

    async def renew(self) -> None:
        """Read certificates again, and the configuration, if that is to be."""
        self.services.renew()
        self.log.info("certificates-read-again")
        if self.reload is not None:
            await self.reload(self.subscribers)

    async def _start(self) -> None:
        parts = await self._start_hss()
        analyst = parts.hss if parts is not None and not self.config.cx.peers else None
        diagnosis = Diagnosis(self.clock, self.log, self.metrics, analyst)
        # Backwards along the path of a REGISTER, so that nobody is asked before it can answer.
        if "as" in self.roles:
            for group in groups_of(self.config.application_servers):
                self.servers += await start_appservers(self.services, group)
        if "scscf" in self.roles:
            for scscf in self._own_scscfs():
                self.scscfs.append(await self._start_scscf(scscf, parts, diagnosis))
        if "icscf" in self.roles:
            cx, _ = await self._cx_of(self.config.icscf.name, "icscf", parts)
            await start_icscf(self.services, cx, lambda impi, problem, status: diagnosis.cx(impi, problem, status, "I-CSCF"))
        if "pcscf" in self.roles:
            self.pcscf = await start_pcscf(self.services)
        self.services.every(RENEW_EVERY, self._renew_daily)
        if "admin" in self.roles:
            await self._start_admin(diagnosis.book, HssOperations(parts.hss, parts.profiles, self.scscfs) if parts is not None else None)

    async def _start_scscf(self, settings: ScscfSettings, parts: HssParts | None, diagnosis: Diagnosis) -> ScscfParts:
        """Start an S-CSCF, and let its HSS find it."""
        cx, listener = await self._cx_of(settings.name, "scscf", parts)
        started = await start_scscf(self.services, cx, settings, diagnosis)
        if listener is not None:
            listener.serving, listener.done_late = started.serving, started.registrar.tell_again
        elif parts is not None:
            parts.servings.by_name[started.server_name] = started.serving
        return started

    async def _start_hss(self) -> HssParts | None:
        """Start the HSS, if it is this process's; who plays nothing else must be reachable."""
        if "hss" not in self.roles and self.config.cx.peers:
            return None
        parts = await start_hss(self.services)
        self.subscribers = parts.subscribers
        settings = self.config.hss
        listens = settings.listen_diameter is not None or settings.listen_diameters is not None
        if "hss" in self.roles and listens:
            parts.servings.remote = await _over_diameter("hss").start_cx_server(self.services, parts.hss, parts.scripts)
        elif "hss" in self.roles and not {"icscf", "scscf"} & set(self.roles):
            raise ConfigError("hss", "has no listener, and nothing in this process asks it", 'Set hss.listen_diameter = "127.0.0.1:3868"')
        return parts

    async def _cx_of(self, name: str, role: Role, parts: HssParts | None) -> tuple[CxClient, CxListener | None]:
        """Return what a function asks the HSS with, and what takes the HSS's own requests, where that is over Diameter."""
        if not self.config.cx.peers and parts is not None:
            return MeasuredCx(parts.hss, self.metrics, self.clock, self.log), None
        found = await _over_diameter("cx").start_cx_client(self.services, name, role)
        self.hss_of[name] = lambda: [str(peer.origin_host) for peer in found.node.connected()]
        self.readiness.check(f"HSS of {name}", _any_of(self.hss_of[name]))
        return MeasuredCx(found.cx, self.metrics, self.clock, self.log), found.listener

    async def _renew_daily(self) -> None:
        self.services.renew()

    def _own_scscfs(self) -> list[ScscfSettings]:
        return [each for each in self.config.scscfs if self.scscf_names is None or each.name in self.scscf_names]

    async def _start_admin(self, book: FailureBook, subscribers: HssOperations | None) -> None:
        self.metrics.of_process()
        self.readiness.check("state directory", disk_of(self.state.root))
        show_services(self.services)
        show_scscfs(self.metrics, self.scscfs)
        show_keys(self.metrics, self.clock, {server.as_id: server.keys for server in self.servers})
        app = AdminApp(
            registry=self.metrics.registry,
            health=self._health,
            ready=self.readiness.report,
            refresh=self.metrics.refresh,
            trace=self.tracer.follower_of(self.subscribers),
            registrations=RegistrationsApp(RegistrarOperations([each.registrar for each in self.scscfs])) if self.scscfs else None,
            failures=FailuresApp(book),
            subscribers=SubscribersApp(subscribers) if subscribers is not None else None,
        )
        await self.services.serve_http("admin", app, self.config.admin.listen, "", None)
        self.services.exit.callback(self.tracer.close)  # before the listener, so that streams end and nobody waits for them

    async def _health(self) -> dict[str, object]:
        registered = sum([await each.registrations.count() for each in self.scscfs])
        keys = {server.as_id: await server.keys.count(self.clock.now(), server.as_id) for server in self.servers}
        again: Counter[str] = Counter()
        for each in self.scscfs:
            again.update(each.repusher.under_way())
        asked = {name: connected() for name, connected in self.hss_of.items()}
        more = {"pushed_again": dict(again), "hss": asked}
        return {"ok": True, "registrations": registered, "keys": keys, **{name: value for name, value in more.items() if value}}


def _any_of(connected: Callable[[], list[str]]) -> Callable[[], Awaitable[str]]:
    """Return a look at whether anybody can be asked."""

    async def look() -> str:
        return "" if connected() else "is not connected"

    return look


def _over_diameter(section: str) -> ModuleType:
    """Return what is needed where Cx goes over the wire; its library takes 0.2 s to import, and is an extra. Raises ConfigError."""
    try:
        return importlib.import_module("keyferry.wiring.cx")
    except ModuleNotFoundError as problem:
        if problem.name is None or not problem.name.startswith("diameter"):
            raise
        raise ConfigError(section, "needs the library python-diameter", "Run pip install 'keyferry[diameter]'") from None
