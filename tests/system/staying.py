# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue stay` as a real process, and the operator's commands to a process that serves."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from system.serving import EVENT_LIMIT, STOP_LIMIT, Lab, Served, environment, until


@dataclass(slots=True)
class Staying:
    """A UE that stays registered, and what it has said so far."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def names(self) -> list[str]:
        return [str(event.get("event")) for event in self.events]

    def next(self, name: str, *, after: int = 0) -> dict[str, Any]:
        """Return the first event of a name after the first `after` of them."""

        def found() -> list[dict[str, Any]]:
            return [event for event in self.events if event.get("event") == name][after:]

        return until(found, seconds=EVENT_LIMIT, what=f"{name} after {self.names()}")[0]

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_LIMIT)


@contextmanager
def staying(lab: Lab, *, state: Path | None = None) -> Iterator[Staying]:
    """Start the UE of a lab; it is killed in the end if it still runs."""
    command = [sys.executable, "-m", "keyferry", "ue", "stay", "--config", str(lab.ue), "--state", str(state or lab.state), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()) as process:
        ue = Staying(process)
        reader = threading.Thread(target=_read, args=(process, ue.events.append), daemon=True)
        reader.start()
        try:
            yield ue
        finally:
            if process.poll() is None:
                process.kill()
            reader.join(STOP_LIMIT)


def _read(process: subprocess.Popen[str], take: Callable[[dict[str, Any]], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        take(json.loads(line))


def operate(served: Served, impi: str, command: str, **members: Any) -> int:
    """Give a command on a user's registrations; return how many devices it was for."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port("admin"), timeout=60)
    try:
        body, headers = json.dumps(members), {"Content-Type": "application/json"}
        connection.request("POST", f"/registrations/{impi}/{command}", body, headers)
        response = connection.getresponse()
        text = response.read().decode("utf-8")
        assert response.status == 200, text
        return int(json.loads(text)["devices"])
    finally:
        connection.close()


def metric(served: Served, name: str) -> float:
    """Return a metric, written as on /metrics; 0 if it is not there yet."""
    status, text = served.admin("/metrics")
    assert status == 200
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)
