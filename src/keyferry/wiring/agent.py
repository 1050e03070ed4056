# SPDX-License-Identifier: Apache-2.0
"""A key agent: takes the pushes for the application servers of a machine, and gives their workers keys over a UNIX socket (DESIGN §7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keyferry.asgi.admin import AdminApp
from keyferry.config import Config, Network
from keyferry.config.agent import AgentConfig
from keyferry.errors import StoreError
from keyferry.ports import Clock, KeySource, Log, RandomSource
from keyferry.protocol.identity import AsId, KeyId, parse_as_id
from keyferry.protocol.ims.keypush import SKEW
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.sqlite.ledger import SqliteLedgerStore
from keyferry.stores.state_dir import StateDir
from keyferry.transports.agent_server import AgentServer, Served
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.unix_socket import Admission, group_id, user_id
from keyferry.wiring.agent_ledger import Ledgers
from keyferry.wiring.gauges import show_keys, show_services
from keyferry.wiring.key_agent import start_key_agent
from keyferry.wiring.observability import LogFormat, Metrics
from keyferry.wiring.protection import opened_state
from keyferry.wiring.readiness import Readiness, disk_of
from keyferry.wiring.services import Listener, Services
from keyferry.wiring.serving import Announce, run_until_signal

DATABASE = "agent"
LOCK = "agent.lock"
SOCKET = "agent.sock"
RENEW_EVERY = 86_400.0
"""Seconds between looks for a certificate that is near its end."""


@dataclass(slots=True)
class Agent:
    """Build, start and stop a key agent."""

    config: AgentConfig
    state: StateDir
    clock: Clock
    random: RandomSource
    log: Log
    metrics: Metrics
    listens: bool = True  # for workers, at the UNIX socket; not where the one application is in this process
    services: Services = field(init=False)
    served: dict[AsId, Served] = field(default_factory=dict)
    keys: SqliteKeyStore = field(init=False)
    server: AgentServer | None = None

    def __post_init__(self) -> None:
        """Prepare what needs no socket."""
        settings = Config(network=Network(home_domain=self.config.agent.home_domain), hosts=self.config.hosts, ipsec=self.config.ipsec)
        self.services = Services(settings, self.state, self.clock, self.random, self.log, self.metrics)

    @property
    def socket(self) -> Path:
        """Where workers connect."""
        return Path(self.config.agent.socket) if self.config.agent.socket else self.state.root / SOCKET

    @property
    def listeners(self) -> list[Listener]:
        """The SIP sockets that are open."""
        return self.services.listeners

    @property
    def readiness(self) -> Readiness:
        """What /ready says."""
        return self.services.readiness

    @property
    def as_ids(self) -> list[AsId]:
        """The AS_IDs whose keys are kept."""
        return [parse_as_id(text) for text in self.config.agent.as_ids]

    async def start(self) -> None:
        """Start; what is started is stopped again if something fails. Raises ConfigError, StateError, StoreError, TransportError."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End: first the workers' socket, then what takes pushes; what nonces were used for is saved."""
        await self.services.exit.aclose()

    async def renew(self) -> None:
        """Read certificates again."""
        self.services.renew()
        self.log.info("certificates-read-again")

    def ready(self) -> dict[str, object]:
        """Return what is told when everything listens."""
        told: dict[str, object] = {"ready": True, "listen": [listener._asdict() for listener in self.listeners], "as_ids": self.as_ids}
        if self.listens:
            told["socket"] = str(self.socket.resolve())
        if str(self.config.agent.protection) == "tls":
            told["ca"] = str(self.services.pki.ca_file)
        return told

    async def _start(self) -> None:
        settings, services = self.config.agent, self.services
        database = services.database(DATABASE)
        # Who pushes from this machine has our clock.
        here = str(settings.protection) == "loopback" and not settings.trusted_peers
        self.keys = SqliteKeyStore(database, self.state.keyring, now=self.clock.now(), skew=0.0 if here else SKEW, changed=self._changed)
        ledgers = await Ledgers.open(
            SqliteLedgerStore(database, self.state.keyring), self.as_ids, self.keys, lifetime=settings.nonce_lifetime, clock=self.clock,
            random=self.random, log=self.log,
        )  # fmt: skip
        services.exit.push_async_callback(self._save, ledgers)
        source: KeySource = PushedKeys(self.keys, self.clock)
        self.served = {
            as_id: Served(source, ledger, ledgers.key_of(as_id), as_id, self.state.user_id_key(as_id))
            for as_id, ledger in ledgers.of.items()
        }
        if self.listens:
            self.server = AgentServer(self.served, admission=self._admission(), clock=self.clock, log=self.log, counter=self.metrics)
        name = parse_sip_uri(settings.sip_uri).host
        await start_key_agent(services, settings, self.as_ids, self.keys, settings.pushers, shown=name)
        services.every(RENEW_EVERY, self._renew_daily)
        if self.server is not None:
            services.exit.push_async_callback(self.server.aclose)
            await self.server.listen(self.socket, int(settings.socket_mode, 8))
        if settings.listen_admin is not None:
            await self._start_admin(settings.listen_admin)

    async def _start_admin(self, listen: str) -> None:
        self.metrics.of_process()
        self.readiness.check("state directory", disk_of(self.state.root))
        show_services(self.services)
        show_keys(self.metrics, self.clock, dict.fromkeys(self.as_ids, self.keys))
        app = AdminApp(registry=self.metrics.registry, health=self._health, ready=self.readiness.report, refresh=self.metrics.refresh)
        await self.services.serve_http("admin", app, listen, "", None)

    async def _health(self) -> dict[str, object]:
        return {"ok": True, "keys": {as_id: (await self.keys.span(self.clock.now(), as_id)).keys for as_id in self.as_ids}}

    async def _save(self, ledgers: Ledgers) -> None:
        try:
            await ledgers.save()
        except StoreError as problem:  # the next start has a new nonce key, and clients are challenged once more
            self.log.warning("nonces-not-saved", problem=str(problem))

    async def _renew_daily(self) -> None:
        self.services.renew()

    def _changed(self, key_ids: Sequence[KeyId]) -> None:
        if self.server is not None:
            self.server.changed(key_ids)

    def _admission(self) -> Admission:
        group = self.config.agent.socket_group
        users: dict[int, list[AsId]] = {}
        for user in self.config.users:
            users.setdefault(user_id(user.user), []).extend(map(parse_as_id, user.as_ids))
        return Admission(None if group is None else group_id(group), users)


def serve_agent(config: AgentConfig, state_path: Path, announce: Announce, *, log_format: LogFormat = "text") -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads certificates again. Raises ConfigError, StateError, StoreError, TransportError."""
    random = SystemRandom()

    run_until_signal(
        lambda: opened_state(state_path, exclusive=True, lock_name=LOCK),
        lambda state, log: Agent(config, state, SystemClock(), random, log, Metrics()),
        lambda agent: announce(agent.ready()),
        log_format,
    )
