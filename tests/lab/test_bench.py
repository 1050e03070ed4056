# SPDX-License-Identifier: Apache-2.0
"""The benchmark as a whole, for a moment: the report has its shape and nothing fails. Nothing here is timed."""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keyferry.cli.app import application
from keyferry.lab.bench import _check_pushes, _fine, state_folder
from keyferry.lab.bench_http import why_no_psk
from keyferry.lab.bench_register_load import Burst
from keyferry.lab.bench_report import Round, filesystem_of
from keyferry.lab.bench_worker import BenchFailed

MOMENT = ("--seconds", "0.1", "--rounds", "1", "--subscribers", "8", "--in-flight", "4", "--connections", "2")
GETS = ("--only", "get", "--only", "get-granian", "--only", "proxied")


def test_a_moment_of_each_figure_has_no_errors_and_leaves_nothing(tmp_path: Path) -> None:
    """`keyferry bench`, real processes; the report of make bench."""
    before = set(state_folder().glob("keyferry-bench-*"))
    output = tmp_path / "bench.json"
    done = CliRunner().invoke(application("bench"), ["bench", *MOMENT, "--only", "register-3", *GETS, "--json", "--output", str(output)])
    assert done.exit_code == 0, done.output
    data = json.loads(output.read_text())
    assert json.loads(done.stdout) == data
    assert data["ok"] is True
    assert [figure["name"] for figure in data["figures"]] == [
        "register-3",
        "register-3-first",
        "get-open",
        "get",
        "get-granian-open",
        "get-granian",
        "proxied-direct",
        "proxied",
    ]
    for figure in data["figures"]:
        assert figure["errors"] == 0
        assert 0 < figure["per_second"]["low"] <= figure["per_second"]["median"] <= figure["per_second"]["high"]
        assert figure["cpu_microseconds"]["median"] > 0
        assert figure["latency_p50_ms"] <= figure["latency_p99_ms"]
        assert len(figure["rounds"]) == 1
    first = data["figures"][1]["rounds"][0]
    assert (first["done"], first["pushes"]) == (8, 24)
    assert set(data["machine"]) == {"cpu", "cores", "kernel", "python", "openssl", "state_filesystem", "date"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", data["machine"]["date"])
    shares = {"login_microseconds", "login_share_of_open_get", "login_share_of_get"}
    assert set(data["derived"]) == shares | {f"granian_{name}" for name in shares} | {"proxy_microseconds", "proxied_rate_of_direct"}
    assert data["skipped"] == {}
    assert data["command"].startswith("keyferry")
    assert multiprocessing.active_children() == []
    assert set(state_folder().glob("keyferry-bench-*")) == before


def test_a_moment_of_handshakes_and_first_requests() -> None:
    """With pre-shared keys where Python has them; else the report says so."""
    done = CliRunner().invoke(application("bench"), ["bench", *MOMENT, "--only", "handshake", "--only", "first-request", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    psk = why_no_psk() is None
    handshakes = ["handshake-certificate", *(["handshake-psk13", "handshake-psk12"] if psk else [])]
    assert [one["name"] for one in data["figures"]] == [
        *handshakes,
        "first-401",
        "first-nonce",
        *(["first-psk13", "first-psk12"] if psk else []),
    ]
    assert set(data["skipped"]) == (set() if psk else {f"{name} with a pre-shared key" for name in ("handshake", "first-request")})
    p50 = {one["name"]: one["latency_p50_ms"] for one in data["figures"]}
    assert p50["first-401"] > 380  # uvloop's timers go off up to a millisecond early
    assert p50["first-nonce"] > 280


def test_a_moment_of_registrations_with_the_hss_over_diameter() -> None:
    """What each of both processes has used is told."""
    done = CliRunner().invoke(application("bench"), ["bench", *MOMENT, "--only", "register", "--only", "register-cx", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    figures = {one["name"]: one for one in data["figures"]}
    assert list(figures) == ["register", "register-first", "register-cx", "register-cx-hss"]
    assert all(one["errors"] == 0 and one["cpu_microseconds"]["median"] > 0 for one in figures.values())
    assert figures["register-cx"]["rounds"][0]["done"] == figures["register-cx-hss"]["rounds"][0]["done"] > 0
    assert "cx_over_diameter_microseconds" in data["derived"]


def test_a_figure_whose_server_is_not_installed_is_skipped_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """granian is no dependency of ours."""
    monkeypatch.setitem(sys.modules, "granian", None)
    done = CliRunner().invoke(application("bench"), ["bench", *MOMENT, "--only", "get-granian"])
    assert done.exit_code == 0, done.output
    assert "get-granian: skipped, granian is not installed" in done.stdout


def test_an_unknown_figure_is_refused() -> None:
    """`--only` names one of the figures."""
    done = CliRunner().invoke(application("bench"), ["bench", "--only", "everything"])
    assert done.exit_code != 0
    assert "is not one of register" in str(done.exception)


def burst(done: int, pushes: int = 0) -> Burst:
    return Burst(done, 0, 1.0, 0.001, 0.002, 0.1, pushes, problems=("status 500",))


def test_a_burst_in_which_nothing_succeeded_says_why() -> None:
    """No figure without an operation."""
    with pytest.raises(BenchFailed, match="status 500"):
        _fine(burst(0))
    assert _fine(burst(1)).done == 1


def test_registrations_without_their_pushes_are_no_figure() -> None:
    """A third-party REGISTER for each AS of each registration."""
    _check_pushes(2, [Round(burst(3, 6), 0.1, 0.1, 0)])
    with pytest.raises(BenchFailed, match="3 registrations made only 5 pushes"):
        _check_pushes(2, [Round(burst(3, 5), 0.1, 0.1, 0)])


def test_the_state_is_not_put_into_memory() -> None:
    """A commit that no disk has seen costs nothing."""
    assert filesystem_of(state_folder()) != "tmpfs" or state_folder() == Path.cwd()
