# SPDX-License-Identifier: Apache-2.0
"""A running system from a configuration: every network function on its own sockets (DESIGN §11: one process serves a lab)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from keyferry.asgi.admin import AdminApp
from keyferry.asgi.failures import FailuresApp
from keyferry.asgi.registrations import RegistrationsApp
from keyferry.asgi.subscribers import SubscribersApp
from keyferry.config import Config
from keyferry.config import Scscf as ScscfSettings
from keyferry.ports import Clock, Log, RandomSource, SipObserver, SubscriberStore
from keyferry.protocol.ims.failures import FailureBook
from keyferry.roles.pcscf.proxy import Pcscf
from keyferry.roles.scscf.diagnosis import Diagnosis
from keyferry.roles.scscf.registrar import Registrar
from keyferry.stores.state_dir import StateDir
from keyferry.transports.pki import Pki
from keyferry.transports.resolver import TableResolver
from keyferry.wiring.appserver import AsParts, groups_of, start_appservers
from keyferry.wiring.gauges import show_keys, show_scscfs, show_services
from keyferry.wiring.hss import start_hss
from keyferry.wiring.icscf import start_icscf
from keyferry.wiring.measuring import MeasuredCx
from keyferry.wiring.observability import Metrics
from keyferry.wiring.pcscf import start_pcscf
from keyferry.wiring.readiness import Readiness, disk_of
from keyferry.wiring.registrations import RegistrarOperations
from keyferry.wiring.scscf import ScscfParts, start_scscf
from keyferry.wiring.services import ROLES, Listener, Role, Services
from keyferry.wiring.subscriptions import HssOperations
from keyferry.wiring.tracing import Tracer

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
    subscribers: SubscriberStore = field(init=False)
    scscf_names: Collection[str] | None = None  # of several S-CSCFs only these; None: all of the file
    scscfs: list[ScscfParts] = field(default_factory=list)
    pcscf: Pcscf | None = None
    servers: list[AsParts] = field(default_factory=list)

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

    def renew(self) -> None:
        """Read certificates again."""
        self.services.renew()
        self.log.info("certificates-read-again")

    async def _start(self) -> None:
        parts = await start_hss(self.services)
        hss, self.subscribers = parts.hss, parts.subscribers
        diagnosis = Diagnosis(self.clock, self.log, self.metrics, hss)
        cx = MeasuredCx(hss, self.metrics, self.clock, self.log)
        # Backwards along the path of a REGISTER, so that nobody is asked before it can answer.
        if "as" in self.roles:
            for group in groups_of(self.config.application_servers):
                self.servers += await start_appservers(self.services, group)
        if "scscf" in self.roles:
            for scscf in self._own_scscfs():
                started = await start_scscf(self.services, cx, scscf, diagnosis)
                parts.servings.by_name[started.server_name] = started.serving
                self.scscfs.append(started)
        if "icscf" in self.roles:
            await start_icscf(self.services, cx, lambda impi, problem, status: diagnosis.cx(impi, problem, status, "I-CSCF"))
        if "pcscf" in self.roles:
            self.pcscf = await start_pcscf(self.services)
        self.services.every(RENEW_EVERY, self._renew_daily)
        if "admin" in self.roles:
            await self._start_admin(diagnosis.book, HssOperations(hss, parts.profiles, self.scscfs))

    async def _renew_daily(self) -> None:
        self.services.renew()

    def _own_scscfs(self) -> list[ScscfSettings]:
        return [each for each in self.config.scscfs if self.scscf_names is None or each.name in self.scscf_names]

    async def _start_admin(self, book: FailureBook, subscribers: HssOperations) -> None:
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
            subscribers=SubscribersApp(subscribers),
        )
        await self.services.serve_http("admin", app, self.config.admin.listen, "", None)
        self.services.exit.callback(self.tracer.close)  # before the listener, so that streams end and nobody waits for them

    async def _health(self) -> dict[str, object]:
        registered = sum([await each.registrations.count() for each in self.scscfs])
        keys = {server.as_id: await server.keys.count(self.clock.now(), server.as_id) for server in self.servers}
        again: Counter[str] = Counter()
        for each in self.scscfs:
            again.update(each.repusher.under_way())
        return {"ok": True, "registrations": registered, "keys": keys, **({"pushed_again": dict(again)} if again else {})}
