# SPDX-License-Identifier: Apache-2.0
"""What a benchmark found: rounds, figures, what they say together, and the machine that they are of."""

from __future__ import annotations

import os
import platform
import ssl
import statistics
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from keyferry.lab.bench_register_load import Burst
from keyferry.ports import Clock

Name = Literal["register", "register-3", "register-cx", "path", "get", "get-granian", "proxied", "handshake", "first-request"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is measured and for how long."""

    only: tuple[Name, ...] = NAMES
    seconds: float = 4.0  # of each round
    rounds: int = 3
    subscribers: int = 5_000  # more than the 4,096 user profiles that the S-CSCF keeps parsed: a city's do not fit either
    in_flight: int = 64  # registrations under way
    connections: int = 32  # HTTPS connections, one request under way on each


class Round(NamedTuple):
    """One burst and what the measured process used for it."""

    burst: Burst
    cpu_user: float  # seconds
    cpu_system: float
    max_rss: int  # octets

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.burst.done / self.burst.seconds if self.burst.seconds else 0.0

    @property
    def cost(self) -> float:
        """Microseconds of CPU time an operation, all threads of the measured process."""
        return (self.cpu_user + self.cpu_system) / self.burst.done * 1e6 if self.burst.done else 0.0


class Spread(NamedTuple):
    """The median of the rounds, the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the report."""

    name: str
    what: str
    rounds: tuple[Round, ...]

    @property
    def rate(self) -> Spread:
        """Operations a second."""
        return _spread([one.rate for one in self.rounds])

    @property
    def cost(self) -> Spread:
        """Microseconds of the measured process's CPU time an operation."""
        return _spread([one.cost for one in self.rounds])

    @property
    def busy(self) -> float:
        """How much of its core the measured process used, 0 to 1: well under 1, the load or a neighbour was the limit."""
        return statistics.median((one.cpu_user + one.cpu_system) / one.burst.seconds for one in self.rounds)

    @property
    def errors(self) -> int:
        """Operations that failed, of all rounds."""
        return sum(one.burst.errors for one in self.rounds)

    def data(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        rounds = [
            {**one.burst._asdict(), "cpu_user": one.cpu_user, "cpu_system": one.cpu_system, "max_rss": one.max_rss} for one in self.rounds
        ]
        return {
            "name": self.name, "what": self.what, "per_second": self.rate._asdict(), "cpu_microseconds": self.cost._asdict(),
            "core_busy": self.busy, "errors": self.errors, "latency_p50_ms": statistics.median(one.burst.p50 for one in self.rounds) * 1000,
            "latency_p99_ms": statistics.median(one.burst.p99 for one in self.rounds) * 1000, "rounds": rounds,
        }  # fmt: skip


@dataclass(slots=True)
class BenchReport:
    """Every figure, and the machine that they are of."""

    machine: dict[str, Any]
    options: BenchOptions
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)  # figure → why there is none

    def row(self, name: str) -> Row | None:
        """Return a figure by its name."""
        return next((row for row in self.rows if row.name == name), None)

    @property
    def errors(self) -> int:
        """Operations that failed."""
        return sum(row.errors for row in self.rows)

    @property
    def problems(self) -> list[str]:
        """The first reasons for them."""
        return list(dict.fromkeys(problem for row in self.rows for one in row.rounds for problem in one.burst.problems))

    @property
    def derived(self) -> dict[str, float]:
        """What two figures of the same run say together."""
        found = {}
        one, three = self.row("register"), self.row("register-3")
        if one and three:
            found["further_push_microseconds"] = (three.cost.median - one.cost.median) / 2
        apart, beside = self.row("register-cx"), self.row("register-cx-hss")
        if one and apart and beside:
            found["cx_over_diameter_microseconds"] = apart.cost.median + beside.cost.median - one.cost.median
        for name in ("get", "get-granian", "proxied"):
            bare, login = self.row(f"{name}-open"), self.row(name)
            if bare and login and bare.cost.median:
                prefix = "granian_" if name == "get-granian" else ""
                found[f"{prefix}login_microseconds"] = login.cost.median - bare.cost.median
                found[f"{prefix}login_share_of_open_get"] = login.cost.median / bare.cost.median - 1
                found[f"{prefix}login_share_of_get"] = 1 - bare.cost.median / login.cost.median
        for row in self.rows:
            if row.name.startswith("handshake-") and row.cost.median:
                # Not the rate: the client's side of a handshake costs more than the server's, and has one core, too.
                found[f"{row.name.replace('-', '_')}_per_core_second"] = 1e6 / row.cost.median
        direct, proxied = self.row("proxied-direct"), self.row("proxied")
        if direct and proxied:
            found["proxy_microseconds"] = proxied.cost.median - direct.cost.median
            found["proxied_rate_of_direct"] = proxied.rate.median / direct.rate.median if direct.rate.median else 0.0
        return found

    def data(self) -> dict[str, Any]:
        """Return what the JSON file holds."""
        return {
            "ok": self.errors == 0, "machine": self.machine, "options": asdict(self.options), "figures": [row.data() for row in self.rows],
            "derived": self.derived, "skipped": self.skipped,
        }  # fmt: skip


def machine_of(clock: Clock, folder: Path) -> dict[str, Any]:
    """Say what ran this, and on what kind of disk, so that figures can be compared."""
    return {
        "cpu": _cpu_model(), "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}", "python": f"{platform.python_implementation()} {platform.python_version()}",
        "openssl": ssl.OPENSSL_VERSION, "state_filesystem": filesystem_of(folder),
        "date": datetime.fromtimestamp(clock.now(), UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def filesystem_of(folder: Path) -> str:
    """Return the type of the file system that a folder is on, "unknown" where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    place = folder.resolve()
    above = [(len(Path(fields[1]).parts), fields[2]) for fields in mounts if place.is_relative_to(fields[1])]
    return max(above, default=(0, "unknown"), key=lambda entry: entry[0])[1]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values)) if values else Spread(0.0, 0.0, 0.0)
