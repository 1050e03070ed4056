# SPDX-License-Identifier: Apache-2.0
"""Whoever runs a page leaves no process behind, whatever fails in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.benchrun import nothing_runs
from docs import console
from docs.console import run_page

SERVER = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("serving" if "ready" in sys.argv else "beginning", flush=True)
time.sleep(600)
"""


def page(folder: Path, *commands: str) -> Path:
    """Write a page whose server is a command that stays, and has a child of its own."""
    file = folder / "page.md"
    steps = "".join(f"```console\n$ {command}\n```\n" for command in commands)
    file.write_text(f"<!-- file: old.py -->\n```python\n{SERVER}```\n{steps}", "utf-8")
    return file


@pytest.mark.parametrize("server", ["python old.py ready", "python old.py ready deaf"])
def test_a_step_that_fails_ends_the_servers(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that does not end when it is told to, and what it has started."""
    monkeypatch.setattr(console, "STOP_LIMIT", 0.5)
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        run_page(page(tmp_path, server, "sleep 600 >/dev/null 2>&1 & false"), tmp_path, peers=False, copied=())
    nothing_runs(tmp_path)


def test_a_server_that_does_not_end_keeps_no_other_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "STOP_LIMIT", 0.5)
    monkeypatch.setattr(console, "STAYS", (*console.STAYS, ("python ./old.py ", "out", "serving")))
    with pytest.raises(subprocess.TimeoutExpired):
        run_page(page(tmp_path, "python ./old.py ready", "python old.py ready deaf"), tmp_path, peers=False, copied=())
    nothing_runs(tmp_path)


def test_a_step_or_a_server_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LIMIT", 0.5)
    monkeypatch.setattr(console, "READY_LIMIT", 0.5)
    for place, command in enumerate(("sleep 600 | sleep 600", "python old.py never")):
        folder = tmp_path / str(place)
        folder.mkdir()
        with pytest.raises(subprocess.TimeoutExpired):
            run_page(page(folder, command), folder, peers=False, copied=())
    nothing_runs(tmp_path)
