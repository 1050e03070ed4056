# SPDX-License-Identifier: Apache-2.0
"""SIGHUP to a process that serves, or is about to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from system.serving import RUN_LIMIT, START_LIMIT, make_lab, until


def caught(process: subprocess.Popen[bytes]) -> int:
    """Return the signals that a process handles, as a mask."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


def test_a_process_that_is_still_starting_is_not_ended(tmp_path: Path) -> None:
    """Whoever copies certificates does not know how far it is."""
    lab = make_lab(tmp_path)
    command = (sys.executable, "-m", "keyferry", "serve", "--config", str(lab.serve), "--state", str(lab.state), "--log", "none")
    # Where coverage is measured, it takes SIGTERM long before the process does.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            mask = 1 << (signal.SIGTERM - 1)
            until(lambda: caught(process) & mask, seconds=START_LIMIT, what="a process that takes signals")
            process.send_signal(signal.SIGHUP)
            assert process.stdout is not None
            assert b'"ready"' in process.stdout.readline()
        finally:
            process.terminate()
            assert process.wait(RUN_LIMIT) == 0
