# SPDX-License-Identifier: Apache-2.0
"""Whether a SIGHUP says that the terminal was closed; tests/system/test_hangup.py has whole processes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

PROGRAM = """
import fcntl, os, signal, sys, termios
from keyferry.transports.terminal import closing

if sys.argv[1] != "no terminal":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
closed = closing()
if sys.argv[1] != "nohup":
    signal.signal(signal.SIGHUP, lambda *_: None)
before = closed()
print("begun", flush=True)
sys.stderr.flush()
os.read(int(sys.argv[2]), 1)
print(before, closed(), flush=True)
sys.stderr.write("late")
"""


@pytest.mark.parametrize(("how", "told"), [("terminal", "False True"), ("no terminal", "False False"), ("nohup", "False False")])
def test_a_closed_terminal_is_seen_where_there_was_one(how: str, told: str) -> None:
    ours, theirs = pty.openpty()
    wait, go = os.pipe()
    error = subprocess.DEVNULL if how == "nohup" else theirs
    command = [sys.executable, "-c", PROGRAM, how, str(wait)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=error, text=True, start_new_session=True, pass_fds=(wait,)
    ) as process:
        assert process.stdout is not None
        os.close(theirs)
        assert process.stdout.readline() == "begun\n"
        os.close(ours)
        os.write(go, b"x")
        assert process.communicate(timeout=60)[0] == f"{told}\n"
        assert how != "terminal" or process.returncode == 0, "what it wrote after the end of the terminal spoilt its exit code"
    os.close(wait)
    os.close(go)
