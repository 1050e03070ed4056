# SPDX-License-Identifier: Apache-2.0
"""The process that serves: start, tell, wait for a signal, stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol, TypeVar

import uvloop

from keyferry.config import Config
from keyferry.ports import Log
from keyferry.stores.state_dir import StateDir, open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.connections import allow_connections
from keyferry.wiring.observability import BackgroundStream, LogFormat, Metrics, StructLog, bridge_libraries
from keyferry.wiring.services import ROLES, Listener, Role
from keyferry.wiring.system import System

Announce = Callable[[dict[str, object]], None]
GC_THRESHOLDS = (50_000, 50, 1_000)
"""For `gc.set_threshold`: messages and records hold no cycles, so looking for some after each 2,000 new objects finds nothing."""


class Process(Protocol):
    """What a process runs from its start until a signal."""

    @property
    def listeners(self) -> list[Listener]:
        """The sockets that are open."""

    async def start(self) -> object:
        """Start, or leave nothing behind and raise."""

    async def stop(self) -> None:
        """End everything."""

    def renew(self) -> None:
        """Read certificates again."""


P = TypeVar("P", bound=Process)


def serve(
    config: Config, state_path: Path, announce: Announce, *, roles: Collection[Role] = ROLES, scscfs: Collection[str] | None = None,
    log_format: LogFormat = "text",
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT; SIGHUP reads certificates again. Raises ConfigError, StateError, TransportError."""
    random = SystemRandom()
    whole = set(roles) == set(ROLES) and scscfs is None

    def told(system: System) -> None:
        announce({"ready": True, "listen": [listener._asdict() for listener in system.listeners], "ca": str(system.pki.ca_file)})

    run_until_signal(
        lambda: open_state(state_path, random=random, exclusive=whole),
        lambda state, log: System(config, state, SystemClock(), random, log, Metrics(), roles, scscf_names=scscfs),
        told,
        log_format,
    )


def run_until_signal(
    opened: Callable[[], StateDir], build: Callable[[StateDir, Log], P], announce: Callable[[P], None], log_format: LogFormat
) -> None:
    """Run a process over a state directory until SIGTERM or SIGINT; SIGHUP renews it. Raises what `opened` and its start raise."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(opened, build, announce, log_format))


def spare_the_collector() -> None:
    """Leave to the garbage collector what comes from now on, in larger portions; a process calls it once, when it begins to serve.

    A look at everything that was loaded would stop the loop for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _run(
    opened: Callable[[], StateDir], build: Callable[[StateDir, Log], P], announce: Callable[[P], None], log_format: LogFormat
) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # nothing is read yet that could be read again; unhandled, it ends a process
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    with opened() as state:
        stream = BackgroundStream(sys.stderr)
        log = StructLog(log_format, stream)
        bridge_libraries(log)
        process = build(state, log)
        loop.add_signal_handler(signal.SIGHUP, process.renew)
        try:
            await process.start()
            allow_connections((listener.proto for listener in process.listeners), log)
            spare_the_collector()
            log.info("ready", listeners=len(process.listeners))
            announce(process)
            await ended.wait()
            log.info("stopping")
        finally:
            await process.stop()
            stream.close()
