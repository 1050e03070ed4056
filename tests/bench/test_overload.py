# SPDX-License-Identifier: Apache-2.0
"""bench/overload.py measures a server of ours, and Kamailio's registrar beside it where there is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.benchrun import interrupted, nothing_runs, script
from kamailio import configuration

QUICK = ("--seconds", "1.2", "--phones", "60", "--factor", "0.5")


def rows(text: str) -> list[dict[str, float | str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_s_cscf_is_measured_at_half_of_its_capacity(tmp_path: Path) -> None:
    """Registrations with AKA, all answered; and no process is left."""
    done = script("overload.py", *QUICK, "--server", "scscf", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    capacity, half = rows(done.stdout)
    assert (capacity["server"], capacity["factor"], half["factor"]) == ("scscf", 0.0, 0.5)
    assert float(capacity["goodput"]) > 0
    assert float(half["offered"]) < float(capacity["offered"])
    nothing_runs(tmp_path)


def test_kamailio_takes_its_turn(tmp_path: Path) -> None:
    """Same load, same table; where it is missing that is said, and the rest is measured."""
    done = script("overload.py", *QUICK, "--server", "fixed", "--server", "kamailio", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    if shutil.which("kamailio") is None:
        assert [row["server"] for row in found] == ["fixed"] * 2
        assert "Kamailio is not installed" in done.stderr
    else:
        assert [row["server"] for row in found] == ["fixed", "fixed", "kamailio", "kamailio"], done.stderr
        assert float(found[2]["goodput"]) > 0
        assert found[2]["failed"] == 0
    nothing_runs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_every_server(tmp_path: Path) -> None:
    """130, and no process left."""
    servers = ("--server", "fixed", "--server", "kamailio", "--seconds", "60")
    code, errors = interrupted("overload.py", *servers, folder=tmp_path, when=lambda text: "warming up" in text)
    assert (code, "interrupted" in errors.splitlines()) == (130, True)  # one that was just starting may still complain after it
    nothing_runs(tmp_path)


def test_kamailio_listens_on_loopback_alone() -> None:
    """Its configuration is written for the run."""
    text = configuration(5070, 2)
    assert [line for line in text.splitlines() if line.startswith("listen")] == ["listen=udp:127.0.0.1:5070"]
    assert "children=2" in text


@pytest.mark.parametrize("server", ["fixed", "scscf"])
def test_the_table_is_for_people(tmp_path: Path, server: str) -> None:
    """Without --json."""
    done = script("overload.py", *QUICK, "--server", server, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    head, capacity, half = done.stdout.splitlines()
    assert head.split()[:4] == ["server", "offered", "reg/s", "goodput"]
    assert capacity.split()[:2] == [server, "capacity"]
    assert half.split()[:2] == [server, "0.5x"]
