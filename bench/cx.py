# SPDX-License-Identifier: Apache-2.0
"""Measure what Cx over Diameter costs, with our S-CSCF and with Kamailio instead: registrations a second, processor time by process.

    python bench/cx.py                                  three rows, two minutes
    python bench/cx.py --rounds 9 --json                a JSON object instead of the table
    python bench/cx.py --python V/bin/python            the Python whose `cryptography` Kamailio's script imports

The rows: our S-CSCF with the HSS in its process; our S-CSCF with the HSS in a process of its own, over Diameter; Kamailio as
`keyferry kamailio` configures it, with the same HSS. They take turns in each round, so what disturbs the machine disturbs all.
Each registration is REGISTER, 401, REGISTER, 200 with rspauth checked, and one key pushed to an application server. The S-CSCF,
or all of Kamailio's processes, has one core; the load and an HSS of its own share the other.

Kamailio 5.6.3 sends the 401 before it has stored the vector, and challenges once more who answers sooner. So every UE, of all rows
alike, waits between challenge and answer, as it does for its card (--pause-ms); both latencies have the pause in them. Kamailio also
sends the 200 before the push leaves; ours sends it after the push is answered: its latency has the push in it, Kamailio's has not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from kamailio import KamailioMissing, running, version
from keyferry.config import ApplicationServer, Config, Kamailio, Scscf
from keyferry.errors import ConfigError, KeyferryError
from keyferry.lab.bench import state_folder
from keyferry.lab.bench_register import ANY_PORT, HOME, RegisterSetup, config_of, run_hss, serve_hss, serve_registrations
from keyferry.lab.bench_register_load import Burst, Order, RegisterLoad, load_registrations
from keyferry.lab.bench_report import machine_of
from keyferry.lab.bench_worker import BenchFailed, Link, Worker, cores, worker
from keyferry.transports.clock import SystemClock
from keyferry.wiring.kamailio import SHARE, find_kamailio, find_python, write_kamailio
from loopback import free_port

READY_LIMIT = 30.0  # seconds until Kamailio and the HSS know each other
PROBE = Order(1, 0.01)
PARTS = ("scscf", "hss", "kamailio", "load")
WHAT = {
    "in-process": "our S-CSCF, HSS in its process",
    "diameter": "our S-CSCF, HSS over Diameter",
    "kamailio": "Kamailio, our HSS over Diameter",
}


class Subject(NamedTuple):
    """One row while it is measured."""

    name: str
    load: Worker
    cpu: dict[str, Callable[[], float]]  # part → processor time so far, seconds


class Round(NamedTuple):
    """One burst, and the processor time of each part meanwhile, seconds."""

    burst: Burst
    cpu: dict[str, float]


def kamailio_config(setup: RegisterSetup, scscf: str, hss: str, folder: Path) -> Config:
    """Return what the HSS and Kamailio are configured from; both addresses are HOST:PORT."""
    base = config_of(setup)
    servers = [
        ApplicationServer(as_id=f"as{number}.{HOME}", sip_uri=f"sip:{address}", listen_sip=ANY_PORT, listen_https=ANY_PORT)
        for number, address in enumerate(setup.as_addresses, 1)
    ]
    name = base.scscf.name
    return msgspec.structs.replace(
        base,
        scscf=Scscf(listen=scscf),
        hss=msgspec.structs.replace(base.hss, name="localhost", listen_diameter=hss, marker_for=[name]),
        kamailio=Kamailio(user=str(os.geteuid()), rspauth_socket=str(folder / "r.sock"), trusted_peers=["127.0.0.1"]),
        application_servers=servers,
        hosts={name: scscf},
    )


async def serve_marked_hss(link: Link, setup: RegisterSetup, scscf: str, folder: Path) -> None:
    """Be the HSS of Kamailio: with the marker in the nonce, and rspauth over a local socket."""
    await run_hss(link, kamailio_config(setup, scscf, ANY_PORT, folder), setup)


class Bench:
    """Everything that runs, for as long as the block of its stack lasts."""

    def __init__(self, options: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        self._options, self._folder, self._stack = options, folder, stack
        self._core, self._load_core = cores()
        self.skipped: dict[str, str] = {}

    def subjects(self) -> list[Subject]:
        """Start the rows; one that cannot be is in `skipped`, with the reason."""
        found = [self._ours("in-process"), self._ours("diameter")]
        try:
            found.append(self._kamailio())
        except (KamailioMissing, ConfigError) as problem:
            self.skipped["kamailio"] = str(problem)
            sys.stderr.write(f"cx: without Kamailio: {problem}\n")
        return found

    def _ours(self, name: str) -> Subject:
        load, setup = self._load(name)
        cpu = {"load": _nothing}
        if name == "diameter":
            hss = self._worker(serve_hss, self._load_core, setup._replace(state=self._folder / "diameter-hss"))
            setup = setup._replace(hss=hss.answer(_progress))
            cpu["hss"] = lambda: _used(hss)
        scscf = self._worker(serve_registrations, self._core, setup)
        cpu["scscf"] = lambda: _used(scscf)
        load.ask(scscf.answer(_progress))
        return Subject(name, load, cpu)

    def _kamailio(self) -> Subject:
        version()
        directory, port = self._folder / "kamailio", free_port()
        scscf = f"127.0.0.1:{port}"
        find_python(find_kamailio(None, SHARE).python, self._options.python, directory)  # before anything is started in vain
        load, setup = self._load("kamailio")
        hss = self._worker(serve_marked_hss, self._load_core, setup, scscf, self._folder)
        door = str(hss.answer(_progress)).removeprefix("aaa://")
        config = kamailio_config(setup, scscf, door, self._folder)
        config = msgspec.structs.replace(config, kamailio=msgspec.structs.replace(config.kamailio, children=self._options.workers))
        write_kamailio(config, self._folder / "kamailio-as", directory, python=self._options.python, log_stderror=True)
        run = ("-Y", str(directory), "-w", str(directory), "-m", "512", "-M", "16")
        command = ["kamailio", "-DD", "-E", "-f", str(directory / "scscf.cfg"), *run]
        before = _confine(self._core)
        try:
            peer = self._stack.enter_context(running(command, port, self._folder / "kamailio.log"))
        finally:
            _restore(before)
        load.ask(("127.0.0.1", port))
        _wait_for_hss(load)
        return Subject("kamailio", load, {"load": _nothing, "hss": lambda: _used(hss), "kamailio": peer.cpu})

    def _load(self, name: str) -> tuple[Worker, RegisterSetup]:
        load = self._worker(
            load_registrations, self._load_core, RegisterLoad(self._options.subscribers, 1, True, self._options.pause_ms / 1000)
        )
        return load, RegisterSetup(self._folder / name, self._options.subscribers, load.answer(_progress), whole_path=False)

    def _worker(self, *arguments: Any) -> Worker:
        return self._stack.enter_context(worker(*arguments))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything. Raises BenchFailed; whatever happens, no process is left, and no file."""
    with tempfile.TemporaryDirectory(prefix="kf-cx-", dir=state_folder()) as place, ExitStack() as stack:
        machine, beside = machine_of(SystemClock(), Path(place)), [os.getloadavg()[0]]
        bench = Bench(options, Path(place), stack)
        subjects = bench.subjects()
        for one in subjects:
            sys.stderr.write(f"{one.name}: each subscriber once\n")
            _burst(one, Order(options.in_flight, None))
        rounds: dict[str, list[Round]] = {one.name: [] for one in subjects}
        for number in range(options.rounds):
            for one in subjects:
                sys.stderr.write(f"{one.name}: round {number + 1} of {options.rounds}\n")
                rounds[one.name].append(_burst(one, Order(options.in_flight, options.seconds)))
        beside.append(os.getloadavg()[0])
    if "kamailio" in rounds:
        machine["kamailio"] = version()
    given = {name: getattr(options, name) for name in ("subscribers", "in_flight", "rounds", "seconds", "pause_ms", "workers")}
    rows = [row(name, found) for name, found in rounds.items()]
    return {"machine": machine, "load_average": beside, "options": given, "rows": rows, "skipped": bench.skipped}


def row(name: str, rounds: list[Round]) -> dict[str, Any]:
    """Return what is said of one row: medians of the rounds, and what failed in all of them."""
    rates = [one.burst.done / one.burst.seconds for one in rounds]
    done = sum(one.burst.done for one in rounds)
    cpu = {part: statistics.median(one.cpu[part] / one.burst.done * 1e6 for one in rounds) for part in PARTS if part in rounds[0].cpu}
    return {
        "name": name, "what": WHAT[name], "per_second": {"median": statistics.median(rates), "low": min(rates), "high": max(rates)},
        "p50_ms": statistics.median(one.burst.p50 for one in rounds) * 1e3,
        "p99_ms": statistics.median(one.burst.p99 for one in rounds) * 1e3,
        "done": done, "failed": sum(one.burst.errors for one in rounds), "sent_again": sum(one.burst.retransmissions for one in rounds),
        "pushes": sum(one.burst.pushes for one in rounds), "cpu_us": cpu,
        "problems": sorted({problem for one in rounds for problem in one.burst.problems}),
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """Return it for people."""
    options = report["options"]
    lines = [
        "| | registrations/s | p50, ms | p99, ms | failed | pushes each | S-CSCF, µs | HSS, µs | Kamailio, µs | load, µs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in report["rows"]:
        rate, cpu = one["per_second"], one["cpu_us"]
        cells = [f"{cpu[part]:,.0f}" if part in cpu else "" for part in PARTS]
        if one["name"] == "in-process":
            cells[0] += ", both"
        lines.append(
            f"| {one['what']} | {rate['median']:,.0f} ({rate['low']:,.0f} to {rate['high']:,.0f}) "
            f"| {one['p50_ms']:.0f} | {one['p99_ms']:.0f} | {one['failed']} | {one['pushes'] / one['done']:.2f} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        f"µs of processor time a registration, by process. {options['in_flight']} registrations under way, {options['rounds']} rounds.",
        f"Every UE waits {options['pause_ms']:g} ms between challenge and answer, in p50 and p99 too: Kamailio 5.6.3 sends the 401",
        "before it has stored the vector, and challenges once more, a failure here, who answers sooner.",
        f"Load average {report['load_average'][0]:.1f} before, {report['load_average'][1]:.1f} at the end.",
    ]
    lines += [f"Not measured: {name}: {reason}" for name, reason in report["skipped"].items()]
    lines += [f"{one['what']}: {problem}" for one in report["rows"] for problem in one["problems"]]
    return "\n".join(lines) + "\n"


def _burst(one: Subject, order: Order) -> Round:
    before = {part: cpu() for part, cpu in one.cpu.items()}
    burst: Burst = one.load.ask(order)
    if not burst.done:
        raise BenchFailed(f"{one.name}: nothing succeeded: {'; '.join(burst.problems) or 'no answer'}")
    used = {part: cpu() - before[part] for part, cpu in one.cpu.items()}
    return Round(burst, used | {"load": burst.cpu})


def _wait_for_hss(load: Worker) -> None:
    """Register until it works: cdp connects to its peer when Kamailio answers already. Raises KamailioMissing."""
    deadline = monotonic() + READY_LIMIT
    while True:
        burst: Burst = load.ask(PROBE)
        if burst.done:
            return
        if monotonic() > deadline:
            raise KamailioMissing(f"Kamailio registers nobody: {'; '.join(burst.problems)}")


def _used(one: Worker) -> float:
    used = one.ask("usage")
    return float(used.cpu_user + used.cpu_system)


def _nothing() -> float:
    """Stand for the load, which tells its own with each burst."""
    return 0.0


def _progress(what: str, done: int, total: int) -> None:
    sys.stderr.write(f"{what}: {done} of {total}\n")


def _confine(core: int | None) -> set[int]:
    """Have what is started now on one core; return what was before."""
    if core is None:
        return set()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    return before


def _restore(before: set[int]) -> None:
    if before:
        os.sched_setaffinity(0, before)


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("1 at least")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("more than 0")
    return value


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=_at_least_one, default=5_000)
    parser.add_argument("--in-flight", type=_at_least_one, default=64, help="registrations under way")
    parser.add_argument("--rounds", type=_at_least_one, default=5)
    parser.add_argument("--seconds", type=_positive, default=4.0, help="of a round of one row")
    parser.add_argument("--pause-ms", type=_positive, default=30.0, help="between challenge and answer")
    parser.add_argument("--kamailio-workers", dest="workers", type=_at_least_one, default=4, help="its UDP processes, all on one core")
    parser.add_argument("--python", help="Python of the version that Kamailio embeds, with `cryptography`")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        report = measure(options)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except KeyferryError as problem:
        sys.stderr.write(f"cx: {problem}\n")
        return 1
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
