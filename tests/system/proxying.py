# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue proxy` as a process, for the tests of the whole system and of interoperability."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from system.serving import STOP_LIMIT, Lab, environment


@contextmanager
def proxying(lab: Lab, *arguments: str) -> Iterator[dict[str, Any]]:
    """Run it on a free port until the end; return what it said when it was ready. It must end with 0, without a traceback."""
    options = ["--config", str(lab.ue), "--state", str(lab.state), "--listen", "127.0.0.1:0", "--json", *arguments]
    command = [sys.executable, "-m", "keyferry", "ue", "proxy", *options]
    log = lab.state.with_name("proxy.log")
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()) as process,
    ):
        assert process.stdout is not None
        try:
            ready: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
            assert ready.get("ready") is True, log.read_text()
            yield ready
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=STOP_LIMIT)
            assert process.returncode == 0, log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
