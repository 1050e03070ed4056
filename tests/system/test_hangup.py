# SPDX-License-Identifier: Apache-2.0
"""A terminal that is closed, and a process that is killed: neither leaves a process or a key behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyferry.lab.scratch import scratch
from system.serving import RUN_LIMIT, environment, make_lab, running

HANGING_UP = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "keyferry", *sys.argv[1:]])
"""


@contextmanager
def on_terminal(folder: Path, *words: str | Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a command with a terminal of its own as controlling terminal; give the process when it is ready, and our end of that."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", HANGING_UP, *map(str, words)]
    env = {**environment(), "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True, env=env, cwd=folder) as process:
        os.close(theirs)
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["ready"]
            yield process, ours
        finally:
            if process.poll() is None:
                process.kill()


def test_a_closed_terminal_ends_serve_and_a_hangup_beside_one_does_not(tmp_path: Path) -> None:
    lab = make_lab(tmp_path)
    words = ("serve", "--config", lab.serve, "--state", lab.state, "--log", "text")
    with on_terminal(tmp_path, *words) as (process, terminal):
        process.send_signal(signal.SIGHUP)
        said = b""
        while b"certificates-read-again" not in said:
            said += os.read(terminal, 65_536)
        assert process.poll() is None
        os.close(terminal)
        assert process.wait(RUN_LIMIT) == 0


def test_a_closed_terminal_ends_dev_and_leaves_no_card(tmp_path: Path) -> None:
    with on_terminal(tmp_path, "dev", "--json") as (process, terminal):
        assert list(tmp_path.glob("keyferry-dev-*"))
        os.close(terminal)
        assert process.wait(RUN_LIMIT) == 0
    assert not list(tmp_path.glob("keyferry-dev-*"))


def test_what_a_killed_process_left_goes_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with scratch("dev", tmp_path) as other:  # in use; made first, for it removes what was left, too
        with on_terminal(tmp_path, "dev", "--json") as (process, terminal):
            process.kill()
            process.wait(RUN_LIMIT)
            os.close(terminal)
        (left,) = set(tmp_path.glob("keyferry-dev-*")) - {other}
        with running("dev", "--json", log=tmp_path / "dev.log", folder=tmp_path) as (_, ready):
            assert not left.exists()
            assert other.exists()
            assert Path(ready["state"]).exists()
    assert not list(tmp_path.glob("keyferry-dev-*"))


def test_nobody_elses_folder_and_no_link_is_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "keyferry-dev-link").symlink_to(kept)
    with scratch("dev", tmp_path):
        assert kept.exists()
