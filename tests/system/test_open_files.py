# SPDX-License-Identifier: Apache-2.0
"""A process that serves may have as many connections as its doors take."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from keyferry.transports.http_server import MAX_CONNECTIONS
from system.serving import Lab, environment, ready_line


def test_a_process_that_serves_raises_its_limit_as_it_starts(lab: Lab, tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", sys.executable, "-m", "keyferry", "serve"]
    log = tmp_path / "log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [*command, "--config", str(lab.serve), "--state", str(lab.state)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment(),
        ) as process,
    ):
        try:
            ready_line(process, log)
            soft = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0]
        finally:
            process.terminate()
            process.wait(30)
    assert soft >= (MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, hard))
    assert "Traceback" not in log.read_text()
