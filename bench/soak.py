# SPDX-License-Identifier: Apache-2.0
"""Run a network for an hour at half of what it can do, lose packets, kill its processes, and look whether anything goes wrong.

    python bench/soak.py                              an hour
    python bench/soak.py --minutes 3 --kill-every 20  a first look
    python bench/soak.py --json --output build/soak.json

Two `keyferry serve` processes on one state directory: P-CSCF, I-CSCF, S-CSCF and HSS; and the application server. UEs (this process)
register, register again and de-register over UDP. After a measurement of what the network can do, registrations begin at half that
rate, the kernel drops 2 % of all packets (in a network namespace of this program's own; UDP and TCP, both ways), and one process or both
are killed with SIGKILL at random moments and started again, mostly at once. Everything drawn by lot comes from --seed.

Where no namespace can be had (it needs Linux, unshare and nft), the UEs lose 2 % of what they send and receive, and nothing else is lost.

Ctrl-C ends the load and prints the report of what was measured; a second one ends at once.

Exit code: 0 every criterion holds, 1 one does not, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple

from keyferry.lab.bench import state_folder
from keyferry.lab.bench_register_load import quantiles
from keyferry.lab.bench_report import machine_of
from keyferry.transports.clock import SystemClock
from soaking import loss, network
from soaking.keys import SETTLED, KeyWatch
from soaking.network import LogReader, Part, Process
from soaking.phones import AS_ID, Failure, Load
from soaking.verdict import MAX_SLOPE, Criterion, Growth, growth, is_refusal, unexplained

IN_FLIGHT = 64  # while the capacity is measured
LOOK = 1.0  # seconds between two looks at every key
WEIGH = 5.0  # seconds between two looks at the memory
LOGIN = 0.25  # seconds between two HTTPS requests
LAST_LOGINS = 100
SOONEST = 3.0  # seconds between the end of a restart and the next kill
BOTH = 0.2  # share of the kills that take both processes
LONG = 0.3  # share of the kills after which --away counts
SHOWN = 10  # of each kind of trouble, in the report


class Row(NamedTuple):
    """What one minute brought."""

    seconds: float  # since the soak began
    registered: int
    left: int
    rate: float  # of both, a second
    p50: float  # seconds
    p99: float
    resent: int
    refused: int  # by overload control, 503
    failed: int  # otherwise
    kills: int
    users_checked: int
    logins: int
    keys_wrong: int
    log_bad: int
    network_rss: int  # octets
    as_rss: int
    state: int  # octets of the databases
    cpu: float  # of one processor, what the network's process had
    machine: float  # processes that wanted one, on average (1 minute): over the number of processors, nobody had what he wanted


@dataclass(slots=True)
class Kill:
    """One SIGKILL."""

    at: float  # seconds since the soak began
    part: Part
    away: float  # seconds until it was ready again


@dataclass(slots=True)
class Soak:
    """One run."""

    options: argparse.Namespace
    processes: dict[Part, Process]
    load: Load
    watch: KeyWatch
    random: Random
    began: float = 0.0
    capacity: float = 0.0
    rate: float = 0.0
    rows: list[Row] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    events: dict[str, Counter[str]] = field(default_factory=lambda: {part: Counter() for part in network.PARTS})
    log_bad: list[str] = field(default_factory=list)
    end_problems: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    readers: dict[Part, LogReader] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)

    async def calibrate(self) -> None:
        """Register everybody once, and find out what the network can do."""
        await self.load.everybody(IN_FLIGHT)
        self._note(self.load.take())
        await self.load.closed(self.options.calibrate, IN_FLIGHT)
        tally = self.load.take()
        self.capacity = (tally.registered + tally.left) / self.options.calibrate
        self.rate = self.options.rate or self.capacity / 2
        self._note(tally)

    async def run(self) -> None:
        """Load, lose, kill and look until the time is over."""
        self.began = monotonic()
        async with asyncio.TaskGroup() as group:
            works = [group.create_task(work()) for work in (self._looking, self._logging_in, self._weighing, self._reporting)]
            others = [group.create_task(self._killing()), group.create_task(self.load.open(self.rate, self.ended))]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.minutes * 60):
                    await self.interrupted.wait()
            self.ended.set()
            await asyncio.wait(others)  # who was killed last is there again
            await self.load.drain()
            for work in works:
                work.cancel()

    def interrupt(self, task: asyncio.Task[Any]) -> None:
        """End early, with a report; at once when asked again."""
        if self.interrupted.is_set():
            task.cancel()
        tell("interrupted: a report of what was measured follows; once more ends it now")
        self.interrupted.set()

    async def finish(self) -> None:
        """Look at everything once more with the network at rest, and end it."""
        await asyncio.sleep(SETTLED + 1)
        self.watch.look(self.load.phones)
        some = [phone for phone in self.load.phones if phone.registered]
        for phone in self.random.sample(some, min(LAST_LOGINS, len(some))):
            await self.watch.login(phone)
        known = await asyncio.to_thread(health, network.port_of(self.processes["network"], "admin"))
        if known.get("registrations") != len(some):
            self.end_problems.append(f"{len(some)} UEs are registered, the S-CSCF knows {known.get('registrations')}")
        for process in self.processes.values():
            problem = await process.stop()
            if problem:
                self.end_problems.append(problem)
        self._read_logs()
        self._note(self.load.take())

    def up_since(self) -> float | None:
        """Return since when both ends are there, None while one is not."""
        since = [process.ready_since for process in self.processes.values()]
        known = [one for one in since if one is not None]
        return max(known) if len(known) == len(since) else None

    async def _killing(self) -> None:
        mean = self.options.kill_every
        while not await self._ends_within(max(SOONEST, self.random.expovariate(1 / mean))):
            parts = network.PARTS if self.random.random() < BOTH else (self.random.choice(network.PARTS),)
            at = monotonic() - self.began
            pause = self.random.uniform(0.0, self.options.away) if self.random.random() < LONG else 0.0
            away = await asyncio.gather(*(self.processes[part].kill_and_restart(pause) for part in parts))
            for part, seconds in zip(parts, away, strict=True):
                self.kills.append(Kill(at, part, seconds))
                tell(f"killed {part} at {at:.1f} s, ready again after {seconds:.1f} s")

    async def _ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.ended.wait()
        return False

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            before = len(self.watch.wrong)
            self.watch.look(self.load.phones)
            for one in self.watch.wrong[before : before + SHOWN]:
                tell(f"{one.impi} at {one.at - self.began:.1f} s: {one.what}, for {one.for_seconds:.1f} s")

    async def _logging_in(self) -> None:
        while True:
            await asyncio.sleep(LOGIN)
            settled = monotonic() - SETTLED
            ready = [phone for phone in self.load.phones if phone.registered and phone.sure and not phone.busy and phone.since < settled]
            if ready:
                phone = self.random.choice(ready)
                with self.load.held(phone):
                    await self.watch.login(phone)

    async def _weighing(self) -> None:
        while True:
            await asyncio.sleep(WEIGH)
            for process in self.processes.values():
                process.weigh()

    async def _reporting(self) -> None:
        while True:
            await asyncio.sleep(self.options.every)
            self._report()

    def _report(self) -> None:
        self._read_logs()
        tally = self.load.take()
        self._note(tally)
        sizes = {part: process.weigh() for part, process in self.processes.items()}
        p50, p99 = quantiles(tally.latencies)
        refused = [one for one in tally.failures if is_refusal(one)]
        watch, network_process = self.watch, self.processes["network"]
        row = Row(
            monotonic() - self.began, tally.registered, tally.left, (tally.registered + tally.left) / self.options.every, p50, p99,
            tally.resent, len(refused), len(tally.failures) - len(refused), len(self.kills), watch.checks, watch.logins, len(watch.wrong),
            len(self.log_bad), sizes["network"], sizes["as"], network.state_size(network_process.state),
            network_process.cpu() / self.options.every, os.getloadavg()[0],
        )  # fmt: skip
        self.rows.append(row)
        if not self.options.json:
            print(_line(row), flush=True)

    def _note(self, tally: Any) -> None:
        self.failures += tally.failures
        self.statuses += tally.statuses
        self.totals.update(
            registered=tally.registered, left=tally.left, resent=tally.resent, again_challenged=tally.again_challenged, begun=tally.begun
        )

    def _read_logs(self) -> None:
        for part, reader in self.readers.items():
            lines = reader.read()
            self.events[part] += lines.events
            self.log_bad += [f"{part}: {line}" for line in lines.bad]

    def memory(self) -> dict[str, Growth]:
        """Return what each part weighed."""
        return {part: growth(process.lives) for part, process in self.processes.items()}

    def criteria(self) -> list[Criterion]:
        """Judge."""
        strange = unexplained(self.failures, self.processes["network"])
        reasons = Counter(one.why for one in strange)
        told_to_wait = [one for one in strange if is_refusal(one)]
        found = [
            Criterion(
                "no registered user without its key 5 s after both ends are up, and no key after a de-registration",
                not self.watch.wrong,
                f"{self.watch.checks} looks, {self.watch.logins} logins, {len(self.watch.wrong)} wrong, latest {self.watch.latest:.1f} s",
            ),
            Criterion("no traceback, no task exception, no error in the logs", not self.log_bad, f"{len(self.log_bad)} lines"),
            Criterion(
                "no failure that neither a kill nor overload control (503) explains",
                len(strange) == len(told_to_wait),
                f"{len(self.failures)} failures, without a kill {dict(reasons)}",
            ),
            Criterion("both processes end as they should", not self.end_problems, "; ".join(self.end_problems)),
        ]
        for part, one in self.memory().items():
            slope = "too short to say" if one.slope is None else f"{one.slope / 1e6:+.3f} MB/min in {one.looked_at:.0f} s"
            sizes = f"{one.first / 1e6:.1f} MB warm, {one.last / 1e6:.1f} MB at the end, {one.most / 1e6:.1f} MB at most"
            found.append(Criterion(f"{part}: memory does not grow", one.slope is None or one.slope <= MAX_SLOPE, f"{slope}; {sizes}"))
        return found

    def data(self, lost: str, packets: int) -> dict[str, Any]:
        """Return what the JSON file holds."""
        criteria = self.criteria()
        return {
            "ok": all(one.holds for one in criteria), "criteria": [one._asdict() for one in criteria],
            "machine": machine_of(SystemClock(), state_folder()), "options": vars(self.options), "loss": lost, "packets_dropped": packets,
            "capacity": self.capacity, "rate": self.rate, "totals": dict(self.totals), "statuses": dict(self.statuses),
            "minutes": [row._asdict() for row in self.rows], "kills": [asdict(kill) for kill in self.kills],
            "failures": [one._asdict() for one in self.failures[:1000]], "keys_wrong": [one._asdict() for one in self.watch.wrong[:1000]],
            "log_events": {part: dict(events) for part, events in self.events.items()}, "log_bad": self.log_bad[:100],
            "memory": {part: one._asdict() for part, one in self.memory().items()},
            "lives": [life._asdict() for process in self.processes.values() for life in process.lives],
        }  # fmt: skip


def health(port: int) -> dict[str, Any]:
    """Ask the administrator's listener."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            report: dict[str, Any] = json.load(response)
            return report
    except (urllib.error.URLError, OSError, ValueError) as problem:
        return {"problem": str(problem)}


def tell(text: str) -> None:
    """Say what goes on, on standard error."""
    print(text, file=sys.stderr, flush=True)


HEAD = (
    "minute registered left    /s  p50 ms p99 ms resent   503 failed kills     looks logins wrong bad log netw. MB AS MB state MB  cpu load"
)


def _line(row: Row) -> str:
    return (
        f"{row.seconds / 60:6.1f} {row.registered:10} {row.left:4} {row.rate:5.0f} {row.p50 * 1e3:7.1f} {row.p99 * 1e3:6.0f}"
        f" {row.resent:6} {row.refused:5} {row.failed:6} {row.kills:5} {row.users_checked:9} {row.logins:6} {row.keys_wrong:5}"
        f" {row.log_bad:7} {row.network_rss / 1e6:8.1f} {row.as_rss / 1e6:5.1f} {row.state / 1e6:8.1f} {row.cpu:4.0%} {row.machine:4.1f}"
    )


async def soak(options: argparse.Namespace, folder: Path, without: str) -> dict[str, Any]:
    """Run; whatever happens, no process is left."""
    processes = network.make(folder)
    random = Random(options.seed)
    load = None
    try:
        await network.provision(folder / "state", options.users, sys.stderr)
        for part in ("as", "network"):
            await processes[part].start()
        target = ("127.0.0.1", network.port_of(processes["network"], "pcscf"))
        load = Load(target, options.users, random, leave=options.leave)
        watch = KeyWatch(
            folder / "state" / f"as-{AS_ID}.db", network.port_of(processes["as"], "https"), folder / "state" / "ca.pem",
            up_since=lambda: run.up_since(), generation=lambda: len(run.kills),
        )  # fmt: skip
        run = Soak(options, processes, load, watch, random, readers={part: LogReader(one.log) for part, one in processes.items()})
        tell("measuring what the network can do")
        await run.calibrate()
        lost = f"{options.loss:.1%} of " + (f"what the UEs send and receive ({without})" if without else "all packets")
        task = asyncio.current_task()
        if task is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, run.interrupt, task)
        tell(f"{run.capacity:.0f} registrations/s; from now on {run.rate:.0f}/s begin; lost: {lost}")
        if without:
            load.lose(options.loss)
        else:
            loss.drop(options.loss)
        if not options.json:
            print(HEAD)
        await run.run()
        tell("at rest: a last look")
        await run.finish()
        return run.data(lost, 0 if without else loss.dropped()) | {"interrupted": run.interrupted.is_set()}
    finally:
        if load is not None:
            load.close()
        for process in processes.values():
            await process.end()


def main() -> int:
    """Print a table, or JSON."""
    options = _options()
    without = loss.enter() if not options.no_namespace else "not wanted"
    if not without:
        loss.loopback_up()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    folder = Path(tempfile.mkdtemp(prefix="keyferry-soak-", dir=state_folder()))
    report: dict[str, Any] = {}
    try:
        report = asyncio.run(soak(options, folder, without))
    except (KeyboardInterrupt, asyncio.CancelledError):
        tell("interrupted")
        return 130
    finally:
        shutil.rmtree(folder / "state", ignore_errors=True)
        if report.get("ok") or not report:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            tell(f"the logs are in {folder}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1, default=str) + "\n", "utf-8")
    if options.json:
        print(json.dumps(report, default=str))
    else:
        _show(report)
    return 130 if report["interrupted"] else 0 if report["ok"] else 1


def _show(report: dict[str, Any]) -> None:
    print(f"\n{report['totals']}, {report['statuses']}, {report['packets_dropped']} packets dropped, {len(report['kills'])} kills")
    for one in report["criteria"]:
        print(f"{'holds' if one['holds'] else 'FAILS'}  {one['name']}: {one['figures']}")
    for name in ("keys_wrong", "log_bad"):
        for trouble in report[name][:SHOWN]:
            print(f"  {name}: {trouble}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--users", type=int, default=3_000)
    parser.add_argument("--rate", type=float, default=0.0, help="registrations/s instead of half of what was measured")
    parser.add_argument("--loss", type=float, default=0.02, help="share of the packets")
    parser.add_argument("--leave", type=float, default=0.05, help="share of the registrations that are de-registrations")
    parser.add_argument("--kill-every", type=float, default=150.0, help="seconds between two kills, on average")
    parser.add_argument("--away", type=float, default=10.0, help="seconds that a process stays away at most, after three kills in ten")
    parser.add_argument("--calibrate", type=float, default=10.0, help="seconds in which the capacity is measured")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two lines of the table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-namespace", action="store_true", help="lose packets between UE and P-CSCF alone")
    parser.add_argument("--output", type=Path, help="write everything to a JSON file too")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    return parser.parse_args()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
