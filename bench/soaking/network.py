# SPDX-License-Identifier: Apache-2.0
"""Two `keyferry serve` processes on one state directory: the network's functions, and the application server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic
from typing import IO, Literal, NamedTuple

from keyferry.lab.bench_register import HOME, card
from keyferry.ports import SubscribedImpu, Subscriber
from keyferry.stores.database import Database
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from loopback import free_port
from soaking.phones import AS_ID

Part = Literal["network", "as"]
PARTS: tuple[Part, Part] = ("network", "as")
ROLES = {"network": ("pcscf", "icscf", "scscf", "admin"), "as": ("as", "admin")}
READY_LIMIT = 60.0  # seconds; the machine may be busy
STOP_LIMIT = 30.0
BATCH = 500
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

CONFIG = """
[network]
home_domain = "{home}"
[pcscf]
listen = "127.0.0.1:{pcscf}"
icscf = "sip:icscf.{home}:{icscf}"
[icscf]
listen = "127.0.0.1:{icscf}"
scscf = "sip:scscf1.{home}:{scscf}"
[scscf]
listen = "127.0.0.1:{scscf}"
[admin]
listen = "127.0.0.1:{admin}"
[[application_servers]]
as_id = "{as_id}"
sip_uri = "sip:xcap-as.{home}:{sip}"
listen_sip = "127.0.0.1:{sip}"
listen_https = "127.0.0.1:{https}"
[hosts]
"xcap-as.{home}" = "127.0.0.1:{sip}"
"""
_PORTS = ("pcscf", "icscf", "scscf", "sip", "https")


class Life(NamedTuple):
    """What one process weighed, from its start to its end."""

    part: Part
    began: float  # monotonic
    samples: list[tuple[float, int]]  # age in seconds, octets


@dataclass(slots=True)
class Process:
    """One of the two."""

    part: Part
    config: Path
    state: Path
    log: Path
    running: asyncio.subprocess.Process | None = None
    ready_since: float | None = None
    down: list[tuple[float, float]] = field(default_factory=list)  # from the kill until ready again
    lives: list[Life] = field(default_factory=list)
    _cpu: tuple[int, float] = (0, 0.0)  # process id, seconds

    async def start(self) -> None:
        """Start, and wait until it listens. Raises RuntimeError."""
        command = [sys.executable, "-m", "keyferry", "serve", "--config", str(self.config), "--state", str(self.state), "--log", "json"]
        for role in ROLES[self.part]:
            command += ["--role", role]
        began = monotonic()
        with self.log.open("ab") as errors:
            # Ctrl-C goes to every process of the terminal: it is this one that ends the others.
            self.running = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors, start_new_session=True
            )
        self.lives.append(Life(self.part, began, []))
        async with asyncio.timeout(READY_LIMIT):
            line = await self.running.stdout.readline() if self.running.stdout else b""
        if not line:
            raise RuntimeError(f"{self.part} ended before it was ready; its log is {self.log}")
        self.ready_since = monotonic()

    async def kill_and_restart(self, pause: float = 0.0) -> float:
        """Kill -9, and start again after a pause; return for how many seconds it was away."""
        began = monotonic()
        self.ready_since = None
        self.down.append((began, inf))
        if self.running is not None:
            self.running.kill()
            await self.running.wait()
        await asyncio.sleep(pause)
        await self.start()
        self.down[-1] = (began, monotonic())
        return monotonic() - began

    async def stop(self) -> str:
        """End it with SIGTERM; return what was wrong, "" if nothing."""
        running, self.running, self.ready_since = self.running, None, None
        if running is None:
            return ""
        if running.returncode is not None:
            return f"{self.part} had ended by itself with {running.returncode}"
        running.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_LIMIT):
                rest = await running.stdout.read() if running.stdout else b""
                code = await running.wait()
        except TimeoutError:
            running.kill()
            await running.wait()
            return f"{self.part} did not end within {STOP_LIMIT:g} s of SIGTERM"
        return "" if (code, rest) == (0, b"stopped\n") else f"{self.part} ended with {code} and said {rest[-100:]!r}"

    async def end(self) -> None:
        """See to it that it is gone."""
        running, self.running = self.running, None
        if running is not None and running.returncode is None:
            running.kill()
            await running.wait()

    def weigh(self) -> int:
        """Return its resident memory, octets, and remember it; 0 while it is away."""
        if self.running is None or self.ready_since is None:
            return 0
        try:
            resident = int(Path(f"/proc/{self.running.pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            return 0
        self.lives[-1].samples.append((monotonic() - self.lives[-1].began, resident))
        return resident

    def cpu(self) -> float:
        """Return the processor time that it had since the last time, seconds."""
        if self.running is None:
            return 0.0
        try:
            fields = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        now = (int(fields[11]) + int(fields[12])) / TICKS
        before, self._cpu = self._cpu, (self.running.pid, now)
        return now - (before[1] if before[0] == self.running.pid else 0.0)

    def was_away(self, began: float, ended: float) -> bool:
        """Tell whether it was away at any time between two."""
        return any(start <= ended and began <= end for start, end in self.down)


class Lines(NamedTuple):
    """What new lines of a log hold."""

    events: Counter[str]  # "level event": how often
    bad: list[str]  # what no network should say


class LogReader:
    """Read what is new in a log, and tell what is bad in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._half = b""

    def read(self) -> Lines:
        """Return the events since the last time."""
        with self._path.open("rb") as file:
            file.seek(self._place)
            data = self._half + file.read()
            self._place = file.tell()
        *lines, self._half = data.split(b"\n")
        return read_lines(lines)


def read_lines(lines: Iterable[bytes]) -> Lines:
    """Return the events of lines of JSON; bad are errors, tracebacks, what libraries warn of, and lines that are no event of ours."""
    found = Lines(Counter(), [])
    for line in lines:
        try:
            entry = json.loads(line)
            name = f"{entry['level']} {entry['event']}"
        except (ValueError, KeyError, TypeError):
            # kill -9 cuts a line off, and the next process writes on behind it
            if b'{"' not in line or b"Traceback" in line:
                found.bad.append(line[:400].decode("latin-1"))
            continue
        found.events[name] += 1
        if entry["level"] not in {"info", "warning"} or entry["event"] == "library" or "traceback" in entry:
            found.bad.append(line[:2000].decode("latin-1"))
    return found


def make(folder: Path) -> dict[Part, Process]:
    """Write both configurations on free ports."""
    ports = {name: free_port() for name in _PORTS}
    processes: dict[Part, Process] = {}
    for part in PARTS:
        config = folder / f"{part}.toml"
        config.write_text(CONFIG.format(home=HOME, as_id=AS_ID, admin=free_port(), **ports), "utf-8")
        processes[part] = Process(part, config, folder / "state", folder / f"{part}.log")
    return processes


def port_of(process: Process, name: str) -> int:
    """Return a port of the configuration: pcscf, https, admin."""
    text = process.config.read_text("utf-8")
    section = {"pcscf": "[pcscf]\nlisten", "https": "listen_https", "admin": "[admin]\nlisten"}[name]
    return int(text.partition(f"{section} = ")[2].partition("\n")[0].strip('"').rpartition(":")[2])


def state_size(state: Path) -> int:
    """Return what the databases take, octets."""
    return sum(file.stat().st_size for file in state.glob("*.db*"))


async def provision(state_path: Path, count: int, progress: IO[str]) -> None:
    """Store the subscribers."""
    with open_state(state_path, random=SystemRandom()) as state, Database(state.path("hss.db")) as database:
        store = SqliteSubscriberStore(database, state.keyring)
        for start in range(0, count, BATCH):
            await asyncio.gather(*(store.add(_subscriber(number)) for number in range(start, min(start + BATCH, count))))
            progress.write(f"\rsubscribers: {min(start + BATCH, count)} of {count}")
            progress.flush()
        progress.write("\n")


def _subscriber(number: int) -> Subscriber:
    one = card(number)
    return Subscriber(one.impi, (SubscribedImpu(one.impu, barred=False),), "milenage", one.k, one.opc, b"\x80\x00")
