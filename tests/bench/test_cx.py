# SPDX-License-Identifier: Apache-2.0
"""bench/cx.py measures S-CSCF and HSS by process; only its form is asserted, the figures are in docs/measurements.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.benchrun import interrupted, nothing_runs, processes_of, script
from cx import Round, kamailio_config, row, table
from interop.kamailio_kit import kamailio_python
from interop.peers import program
from keyferry.lab.bench_register import RegisterSetup
from keyferry.lab.bench_register_load import Burst

QUICK = ("--subscribers", "20", "--rounds", "1", "--seconds", "0.3", "--in-flight", "4")
NOBODY = ("--python", "/nowhere/python")  # so Kamailio is left out, installed or not


def test_without_kamailio_both_of_ours_are_measured_and_it_is_said(tmp_path: Path) -> None:
    """A push for each registration, processor time of each process; nothing is left."""
    done = script("cx.py", *QUICK, *NOBODY, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    whole, apart = report["rows"]
    assert [(one["name"], one["failed"], one["pushes"] == one["done"] > 0) for one in (whole, apart)] == [
        ("in-process", 0, True),
        ("diameter", 0, True),
    ]
    assert (set(whole["cpu_us"]), set(apart["cpu_us"])) == ({"scscf", "load"}, {"scscf", "hss", "load"})
    assert 30 < whole["p50_ms"] <= whole["p99_ms"]  # the pause is in it
    assert set(report["skipped"]) == {"kamailio"}
    assert "without Kamailio: " in done.stderr
    nothing_runs(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.interop
def test_kamailio_takes_its_turn(tmp_path: Path) -> None:
    """Same load, same HSS: users registered, keys pushed, nobody challenged twice."""
    program("kamailio")
    done = script("cx.py", *QUICK, "--python", kamailio_python(), "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    if "apt install" in report["skipped"].get("kamailio", ""):
        pytest.skip(report["skipped"]["kamailio"])
    assert [one["name"] for one in report["rows"]] == ["in-process", "diameter", "kamailio"], report["skipped"]
    found = report["rows"][2]
    assert found["done"] > 0
    assert found["failed"] == 0, found["problems"]
    assert found["pushes"] > 0.8 * found["done"]  # the last ones leave after their 200
    assert set(found["cpu_us"]) == {"hss", "kamailio", "load"}
    assert "kamailio" in report["machine"]
    nothing_runs(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.interop
def test_ctrl_c_ends_kamailio_too(tmp_path: Path) -> None:
    """130, and no process is left; Kamailio has a session of its own, so the terminal's Ctrl-C does not reach it."""
    program("kamailio")
    options = ("--subscribers", "20", "--seconds", "60", "--python", kamailio_python())
    code, errors = interrupted(
        "cx.py", *options, folder=tmp_path, when=lambda _: any(one.startswith("kamailio ") for one in processes_of(tmp_path))
    )
    assert (code, "interrupted" in errors.splitlines()) == (130, True), errors
    nothing_runs(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["stderr"]


def test_ctrl_c_ends_ours(tmp_path: Path) -> None:
    """130, and no process left."""
    code, errors = interrupted("cx.py", *NOBODY, "--seconds", "60", folder=tmp_path, when=lambda text: "each subscriber once" in text)
    assert (code, "interrupted" in errors.splitlines()) == (130, True), errors
    nothing_runs(tmp_path)


def test_the_table_gives_processor_time_by_process_and_names_the_pause() -> None:
    """Medians of the rounds; failures of all; what is not in a process of its own has no figure."""
    rounds = [
        Round(
            Burst(100, errors, 1.0, 0.05, 0.08, cpu, pushes=99, problems=("SIP/2.0 500",) * errors),
            {"kamailio": 0.2, "hss": 0.05, "load": cpu},
        )
        for errors, cpu in ((0, 0.01), (1, 0.03), (0, 0.02))
    ]
    found = row("kamailio", rounds)
    options = {"in_flight": 4, "rounds": 3, "pause_ms": 30.0}
    text = table({"options": options, "load_average": [0.5, 1.0], "rows": [found], "skipped": {"diameter": "no time"}})
    head, _, line, *rest = text.splitlines()
    assert head.count("|") == line.count("|") == 11
    assert line == "| Kamailio, our HSS over Diameter | 100 (100 to 100) | 50 | 80 | 1 | 0.99 |  | 500 | 2,000 | 200 |"
    assert "waits 30 ms between challenge and answer" in text
    assert rest[-2:] == ["Not measured: diameter: no time", "Kamailio, our HSS over Diameter: SIP/2.0 500"]


def test_kamailio_listens_on_loopback_alone_and_its_nonces_have_the_marker(tmp_path: Path) -> None:
    """The load is its only application server."""
    config = kamailio_config(
        RegisterSetup(tmp_path, 1, ("127.0.0.1:5099",), whole_path=False), "127.0.0.1:6060", "127.0.0.1:3868", tmp_path
    )
    assert (config.scscf.listen, config.hss.listen_diameter) == ("127.0.0.1:6060", "127.0.0.1:3868")
    assert config.hss.marker_for == [config.scscf.name]
    assert [one.sip_uri for one in config.application_servers] == ["sip:127.0.0.1:5099"]
    assert config.kamailio.user == str(os.geteuid())


@pytest.mark.parametrize("wrong", [("--rounds", "0"), ("--in-flight", "many"), ("--seconds", "0"), ("--pause-ms", "nan"), ("--pause-ms",)])
def test_what_cannot_be_measured_is_a_mistake_of_the_user(tmp_path: Path, wrong: tuple[str, ...]) -> None:
    """Exit code 2."""
    done = script("cx.py", *wrong, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_help_says_what_is_compared(tmp_path: Path) -> None:
    """And shows an example."""
    text = script("cx.py", "--help", folder=tmp_path).stdout
    assert "python bench/cx.py --rounds 9 --json" in text
    assert "--pause-ms" in text
