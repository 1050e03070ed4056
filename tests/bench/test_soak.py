# SPDX-License-Identifier: Apache-2.0
"""bench/soak.py runs, judges, and leaves nothing behind."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest

from bench.benchrun import interrupted, nothing_runs, script
from soaking.network import Life, Process, read_lines
from soaking.phones import Failure
from soaking.verdict import growth, unexplained

SMALL = ("--users", "30", "--rate", "15", "--calibrate", "0.5", "--every", "2")


def test_a_short_soak_kills_loses_and_finds_every_key(tmp_path: Path) -> None:
    """What an hour does, in some seconds."""
    done = script("soak.py", *SMALL, "--minutes", "0.12", "--kill-every", "1", "--away", "0.5", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert len(report["kills"]) >= 1
    assert report["totals"]["registered"] > 30  # everybody once, and some again
    assert report["minutes"]
    assert "2.0%" in report["loss"]
    nothing_runs(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == []


def test_ctrl_c_ends_a_soak_with_a_report_and_leaves_nothing(tmp_path: Path) -> None:
    """130, what was measured until then, no process, no state."""
    code, errors = interrupted("soak.py", *SMALL, "--output", "report.json", folder=tmp_path, when=lambda text: "from now on" in text)
    assert code == 130, errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["interrupted"], report["ok"], report["totals"]["registered"] >= 30) == (True, True, True)
    nothing_runs(tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {"stderr", "report.json"}


def test_ctrl_c_before_there_is_anything_to_report_ends_at_once(tmp_path: Path) -> None:
    """130, no process, no state."""
    code, errors = interrupted("soak.py", *SMALL, folder=tmp_path, when=lambda text: "measuring" in text)
    assert (code, "interrupted" in errors.splitlines()) == (130, True)  # one that was just starting may still complain after it
    nothing_runs(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["stderr"]


def test_what_it_is_for_is_said_with_an_example() -> None:
    """--help."""
    done = script("soak.py", "--help", folder=Path.cwd())
    assert done.returncode == 0
    assert "python bench/soak.py --minutes 3" in done.stdout


def test_bad_lines_of_a_log_are_found() -> None:
    """Errors, tracebacks, what libraries say, and lines that are no event; a line that kill -9 cut off is none of them."""
    lines = [
        b'{"event": "registered", "level": "info"}',
        b'{"event": "third-party-register-not-delivered", "level": "warning"}',
        b'{"event": "library", "level": "warning", "text": "Task exception was never retrieved"}',
        b'{"event": "x", "level": "warning", "traceback": "Traceback"}',
        b'{"event": "x", "level": "error"}',
        b"Traceback (most recent call last):",
        b'{"event": "regist{"event": "ready", "level": "info"}',
    ]
    found = read_lines(lines)
    assert len(found.bad) == 4
    assert found.events["info registered"] == 1


@pytest.mark.parametrize(("octets_a_minute", "grows"), [(0, False), (2_000_000, True)])
def test_growth_is_one_slope_over_all_lives(octets_a_minute: int, grows: bool) -> None:
    """Each life has a level of its own: that a new process weighs more or less than the last is no growth."""
    lives = [
        Life("as", 0.0, [(float(age), level + octets_a_minute * age // 60) for age in range(0, 200, 5)])
        for level in (80_000_000, 70_000_000, 95_000_000)
    ]
    slope = growth(lives).slope
    assert slope is not None
    assert (slope > 1_000_000) is grows
    assert abs(slope - octets_a_minute) < 10_000


def test_of_short_lives_nothing_is_said() -> None:
    """A minute of warm-up is all they had."""
    assert growth([Life("as", 0.0, [(float(age), age) for age in range(70)])]).slope is None


def test_a_kill_explains_what_failed_around_it(tmp_path: Path) -> None:
    """And nothing else."""
    process = Process("network", tmp_path, tmp_path, tmp_path, down=[(10.0, 12.0), (50.0, inf)])
    failures = [Failure(began, ended, "no answer") for began, ended in ((1.0, 9.0), (9.0, 11.0), (13.0, 20.0), (20.0, 40.0), (51.0, 52.0))]
    assert [one.began for one in unexplained(failures, process)] == [1.0, 20.0]
