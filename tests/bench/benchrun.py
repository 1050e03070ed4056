# SPDX-License-Identifier: Apache-2.0
"""A script of bench/ as a process of its own, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from system.serving import environment, until

BENCH = Path(__file__).resolve().parents[2] / "bench"
LIMIT = 300.0  # seconds; two cores may be busy with other tests
FIRST_WORD_LIMIT = 120.0
GONE_LIMIT = 60.0


def script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, with `folder` for its temporary files."""
    command = _command(name, arguments)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=_environment(folder)
    ) as process:
        try:
            out, errors = process.communicate(timeout=LIMIT)
        finally:
            _end(process)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def interrupted(name: str, *arguments: str, folder: Path, when: Callable[[str], bool]) -> tuple[int, str]:
    """Send SIGINT as soon as standard error is as wanted; return the exit code and standard error."""
    errors = folder / "stderr"
    with (
        errors.open("wb") as file,
        subprocess.Popen(
            _command(name, arguments), stdout=subprocess.DEVNULL, stderr=file, cwd=folder, env=_environment(folder)
        ) as process,
    ):
        try:
            until(lambda: when(errors.read_text()) or process.poll() is not None, seconds=FIRST_WORD_LIMIT, what="its first words")
            process.send_signal(signal.SIGINT)
            code = process.wait(LIMIT)
        finally:
            _end(process)
    return code, errors.read_text()


def _end(process: subprocess.Popen[Any]) -> None:
    """Kill a script that still runs, and what it has started: a test that fails leaves no server behind."""
    if process.poll() is None:
        family = [process.pid, *_descendants(process.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all processes that name a folder or work in it."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            where = str((place / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command or where.startswith(str(folder)):
            found.append(command)
    return found


def nothing_runs(folder: Path) -> None:
    """Fail if a process of a script is still there; the one by which Python tidies up goes a moment after its parent."""
    until(lambda: not processes_of(folder), seconds=GONE_LIMIT, what=f"no process is left of {folder}")


def _command(name: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, str(BENCH / name), *arguments]


def _environment(folder: Path) -> dict[str, str]:
    return {**environment(), "TMPDIR": str(folder)}
