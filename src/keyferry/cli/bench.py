# SPDX-License-Identifier: Apache-2.0
"""`keyferry bench`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from keyferry.cli.output import JsonOption, console, errors, show_json
from keyferry.errors import ConfigError
from keyferry.lab.bench import measure
from keyferry.lab.bench_report import NAMES, BenchOptions, BenchReport, Name, Row
from keyferry.lab.bench_worker import BenchFailed


def bench(
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write every round to a JSON file too.")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.05, max=60, help="Length of each round.")] = 4.0,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help=f"One of: {', '.join(NAMES)}. Repeatable.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=99, help="Rounds of each figure.")] = 3,
    subscribers: Annotated[int, typer.Option("--subscribers", min=1, max=1_000_000, help="Subscribers, and users with documents.")] = 5_000,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, max=1_000, help="Registrations under way at a time.")] = 64,
    connections: Annotated[int, typer.Option("--connections", min=1, max=1_000, help="HTTPS connections, one request on each.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Measure registrations and authenticated GETs a second: the measured process on one core, the load on another.

    There is no --state: it is a temporary directory on a disk, every commit durable. For figures to compare, let nothing else run.

    Example: keyferry bench --seconds 2 --only get --output bench.json
    """
    options = BenchOptions(_names(only), seconds, rounds, subscribers, in_flight, connections)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: neither leaves a process or a file
    try:
        with _Bar() as bar:
            report = measure(options, bar.tell)
    finally:
        signal.signal(signal.SIGTERM, before)
    data = {**report.data(), "command": " ".join(["keyferry", *sys.argv[1:]])}
    if output is not None:
        output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if as_json:
        show_json(data)
    else:
        _show(report)
    if report.errors:
        raise BenchFailed(f"{report.errors} operations failed: {'; '.join(report.problems)}")


def _names(only: list[str] | None) -> tuple[Name, ...]:
    unknown = [name for name in only or () if name not in NAMES]
    if unknown:
        raise ConfigError("--only", f"{unknown[0]!r} is not one of {', '.join(NAMES)}")
    return cast("tuple[Name, ...]", tuple(only)) if only else NAMES


class _Bar:
    """Show on standard error what goes on."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=errors, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        """Take what `measure` tells."""
        if self._task is None:
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)


def _show(report: BenchReport) -> None:
    machine, options = report.machine, report.options
    console.print(f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, state on {machine['state_filesystem']}", markup=False)
    console.print(f"{machine['python']}, {machine['openssl']}, {machine['date']}", markup=False)
    table = Table("one core", "per second", "min - max", "CPU µs", "core busy", "p50 ms", "p99 ms", "errors", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for row in report.rows:
        table.add_row(*_cells(row))
    console.print(table)
    console.print(f"median of {options.rounds} rounds of {options.seconds:g} s; CPU µs: all threads of the measured process, an operation")
    for text in _derived(report.derived):
        console.print(text)
    for name, why in report.skipped.items():
        console.print(f"{name}: skipped, {why}")


def _cells(row: Row) -> tuple[str, ...]:
    rate, data = row.rate, row.data()
    low_high = f"{rate.low:,.0f} - {rate.high:,.0f}" if len(row.rounds) > 1 else ""
    busy = f"{row.busy:.0%}"
    return (
        row.what, f"{rate.median:,.0f}", low_high, f"{row.cost.median:.0f}", busy, f"{data['latency_p50_ms']:.1f}",
        f"{data['latency_p99_ms']:.1f}", str(row.errors),
    )  # fmt: skip


def _derived(derived: dict[str, float]) -> list[str]:
    lines = []
    if "further_push_microseconds" in derived:
        lines.append(f"each further push costs {derived['further_push_microseconds']:.0f} µs")
    if "cx_over_diameter_microseconds" in derived:
        cost = derived["cx_over_diameter_microseconds"]
        lines.append(f"Cx over Diameter costs {cost:.0f} µs a registration, of both processes, more than in one process")
    for prefix, server in (("", "uvicorn"), ("granian_", "granian")):
        if f"{prefix}login_microseconds" in derived:
            cost, open_share, share = (derived[f"{prefix}login_{what}"] for what in ("microseconds", "share_of_open_get", "share_of_get"))
            lines.append(f"{server}: the SIM login costs {cost:.0f} µs a GET, {share:.0%} of it, {open_share:.2f} of an open GET")
    handshakes = {name: rate for name, rate in derived.items() if name.startswith("handshake_")}
    if handshakes:
        each = ", ".join(f"{rate:,.0f} ({name.split('_')[1]})" for name, rate in handshakes.items())
        lines.append(f"by its CPU time a core does {each} handshakes a second; the client's side costs more, and limits the rate above")
    if "proxy_microseconds" in derived:
        share = derived["proxied_rate_of_direct"]
        lines.append(
            f"the proxy costs {derived['proxy_microseconds']:.0f} µs a GET, and does {share:.0%} of what the same login does without one"
        )
    return lines
