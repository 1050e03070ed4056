# SPDX-License-Identifier: Apache-2.0
"""What is computed from rounds."""

from __future__ import annotations

from pathlib import Path

from keyferry.cli.bench import _cells, _derived, _show
from keyferry.lab.bench_register_load import Burst
from keyferry.lab.bench_report import BenchOptions, BenchReport, Name, Round, Row, filesystem_of, machine_of
from keyferry.transports.clock import SystemClock

MACHINE = {"cpu": "a CPU", "cores": 2, "kernel": "Linux", "python": "CPython", "openssl": "OpenSSL", "state_filesystem": "ext4", "date": ""}


def row(name: str, *microseconds: int, errors: int = 0) -> Row:
    """Rounds of 1,000 operations in one second."""
    problems = ("no answer",) if errors else ()
    bursts = [Burst(1_000, errors, 1.0, 0.001, 0.004, 0.2, problems=problems) for _ in microseconds]
    return Row(name, name, tuple(Round(one, cost / 1e3, 0.0, 1) for one, cost in zip(bursts, microseconds, strict=True)))


def test_a_figure_is_the_median_of_its_rounds() -> None:
    """The median, the lowest, the highest."""
    figure = row("get", 90, 300, 100)
    assert tuple(round(value) for value in figure.cost) == (100, 90, 300)
    assert figure.rate == (1000.0, 1000.0, 1000.0)
    assert round(figure.busy, 6) == 0.1
    assert (figure.data()["latency_p50_ms"], figure.data()["latency_p99_ms"]) == (1.0, 4.0)
    assert _cells(figure)[1:4] == ("1,000", "1,000 - 1,000", "100")


def test_a_round_without_operations_has_no_cost() -> None:
    """Nothing is divided by zero."""
    empty = Round(Burst(0, 1, 0.0, 0.0, 0.0, 0.0), 0.1, 0.1, 1)
    assert (empty.rate, empty.cost) == (0.0, 0.0)
    assert Row("get", "get", ()).rate == (0.0, 0.0, 0.0)


def test_two_figures_of_one_run_give_the_price_of_a_push_and_of_a_login() -> None:
    """The check as a ratio, in the same run."""
    rows = [row("register", 400), row("register-3", 460), row("get-open", 60), row("get", 100), row("get-granian-open", 90)]
    report = BenchReport(MACHINE, BenchOptions(), [*rows, row("get-granian", 100)], {"x": "no x"})
    found = {name: round(value, 3) for name, value in report.derived.items()}
    assert found == {
        "further_push_microseconds": 30.0,
        "login_microseconds": 40.0,
        "login_share_of_open_get": 0.667,
        "login_share_of_get": 0.4,
        "granian_login_microseconds": 10.0,
        "granian_login_share_of_open_get": 0.111,
        "granian_login_share_of_get": 0.1,
    }
    assert _derived(report.derived) == [
        "each further push costs 30 µs",
        "uvicorn: the SIM login costs 40 µs a GET, 40% of it, 0.67 of an open GET",
        "granian: the SIM login costs 10 µs a GET, 10% of it, 0.11 of an open GET",
    ]
    handshakes = BenchReport(MACHINE, BenchOptions(), [row("handshake-certificate", 400), row("handshake-psk13", 500)])
    assert _derived(handshakes.derived)[0].startswith("by its CPU time a core does 2,500 (certificate), 2,000 (psk13) handshakes a second")
    both = BenchReport(MACHINE, BenchOptions(), [row("proxied-direct", 100), row("proxied", 250)])
    assert _derived(both.derived) == ["the proxy costs 150 µs a GET, and does 100% of what the same login does without one"]
    assert report.data()["skipped"] == {"x": "no x"}
    assert report.data()["ok"] is True
    _show(report)


def test_an_error_makes_the_report_not_ok_and_is_named_once() -> None:
    """Errors are counted."""
    only: tuple[Name, ...] = ("get",)
    report = BenchReport(MACHINE, BenchOptions(only=only), [row("get", 90, 91, errors=2)])
    assert (report.errors, report.problems, report.derived, report.row("path")) == (4, ["no answer"], {}, None)
    assert report.data()["ok"] is False


def test_the_machine_is_described() -> None:
    """CPU, cores, kernel, Python, OpenSSL, disk, date."""
    machine = machine_of(SystemClock(), Path.cwd())
    assert all(machine.values())
    assert filesystem_of(Path("/proc")) in {"proc", "unknown"}
