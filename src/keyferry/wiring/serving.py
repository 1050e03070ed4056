# SPDX-License-Identifier: Apache-2.0
"""The process that serves: start, tell, wait for a signal, stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Protocol, TypeVar

import uvloop

from keyferry.config import Config
from keyferry.stores.state_dir import StateDir
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.service_manager import ServiceManager
from keyferry.transports.terminal import closing
from keyferry.wiring.connections import allow_connections
from keyferry.wiring.observability import BackgroundStream, LogFormat, LogLevel, Metrics, StructLog, bridge_libraries
from keyferry.wiring.protection import opened_state
from keyferry.wiring.readiness import Readiness
from keyferry.wiring.reloading import Reload
from keyferry.wiring.services import Listener, Role, roles_of
from keyferry.wiring.system import System

Announce = Callable[[dict[str, object]], None]
GC_THRESHOLDS = (50_000, 50, 1_000)
"""For `gc.set_threshold`: messages and records hold no cycles, so looking for some after each 2,000 new objects finds nothing."""


class Process(Protocol):
    """What a process runs from its start until a signal."""

    @property
    def listeners(self) -> list[Listener]:
        """The sockets that are open."""

    @property
    def readiness(self) -> Readiness:
        """What /ready says."""

    async def start(self) -> object:
        """Start, or leave nothing behind and raise."""

    async def stop(self) -> None:
        """End everything."""

    async def renew(self) -> None:
        """Read certificates again, and what else may change while it runs."""


P = TypeVar("P", bound=Process)


def serve(
    config: Config, state_path: Path, announce: Announce, *, roles: Collection[Role] | None = None, scscfs: Collection[str] | None = None,
    log_format: LogFormat = "text", log_level: LogLevel | None = None, reread: tuple[Path, Callable[[], Config]] | None = None,
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; SIGHUP reads certificates again, and a file with `reread`. Without `roles`: all that the file has.

    Raises ConfigError, StateError, TransportError.
    """
    random = SystemRandom()
    played = roles_of(config) if roles is None else roles
    whole = set(played) == set(roles_of(config)) and scscfs is None

    def system(state: StateDir, log: StructLog) -> System:
        reload = Reload(*reread, config, log, log_level) if reread is not None else None
        return System(config, state, SystemClock(), random, log, Metrics(), played, scscf_names=scscfs, reload=reload)

    def told(system: System) -> None:
        announce({"ready": True, "listen": [listener._asdict() for listener in system.listeners], "ca": str(system.pki.ca_file)})

    run_until_signal(
        lambda: opened_state(state_path, exclusive=whole),
        system,
        told,
        log_format,
        log_level or config.log.level,
    )


def run_until_signal(
    opened: Callable[[], StateDir], build: Callable[[StateDir, StructLog], P], announce: Callable[[P], None], log_format: LogFormat,
    log_level: LogLevel = "info",
) -> None:  # fmt: skip
    """Run a process over a state directory until SIGTERM or SIGINT; SIGHUP renews it. Raises what `opened` and its start raise."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(opened, build, announce, log_format, log_level))


def spare_the_collector() -> None:
    """Leave to the garbage collector what comes from now on, in larger portions; a process calls it once, when it begins to serve.

    A look at everything that was loaded would stop the loop for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def until_told(ended: asyncio.Event, manager: ServiceManager, readiness: Readiness) -> None:
    """Say that we serve, and while a watchdog is set that we live, until the end; then say that."""
    readiness.started = True
    manager.ready()
    while not ended.is_set():
        try:
            async with asyncio.timeout(manager.watchdog / 2 or None):
                await ended.wait()
        except TimeoutError:
            manager.alive()
    readiness.ending = True
    manager.stopping()


async def renewing(renew: Callable[[], Awaitable[None]], asked: asyncio.Event, manager: ServiceManager, log: StructLog) -> None:
    """Renew whenever it is asked for, once at a time, and say so to the service manager, which waits for the end of it."""
    while True:
        await asked.wait()
        asked.clear()
        manager.reloading()
        try:
            await renew()
        except Exception as problem:  # what runs goes on, and the next SIGHUP is heard
            log.error("not-read-again", problem=f"{type(problem).__name__}: {problem}")
        manager.ready()


async def _run(
    opened: Callable[[], StateDir], build: Callable[[StateDir, StructLog], P], announce: Callable[[P], None], log_format: LogFormat,
    log_level: LogLevel,
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    closed = closing()  # before SIGHUP has a handler
    loop.add_signal_handler(
        signal.SIGHUP, lambda: ended.set() if closed() else None
    )  # nothing is read yet that could be read again; unhandled, it ends a process
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    with opened() as state:
        stream = BackgroundStream(sys.stderr)
        log = StructLog(log_format, stream, level=log_level)
        bridge_libraries(log)
        process = build(state, log)
        manager = ServiceManager.of(os.environ)
        try:
            await process.start()
            asked = asyncio.Event()
            renewals = loop.create_task(renewing(process.renew, asked, manager, log))
            loop.add_signal_handler(signal.SIGHUP, lambda: ended.set() if closed() else asked.set())
            allow_connections((listener.proto for listener in process.listeners), log)
            spare_the_collector()
            log.info("ready", listeners=len(process.listeners))
            announce(process)
            await until_told(ended, manager, process.readiness)
            renewals.cancel()
            log.info("stopping")
        finally:
            await process.stop()
            stream.close()
