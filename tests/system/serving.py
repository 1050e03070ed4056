# SPDX-License-Identifier: Apache-2.0
"""`keyferry serve` as a real process on free ports, for the tests of the whole system and of interoperability."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from loopback import free_port as free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE_PORTS = ("5060", "5062", "6060", "8080", "5090", "8443", "5091", "8444", "14500", "8453", "8454", "8463")
START_LIMIT = 120.0  # seconds, as all limits here so long that nothing is proved by them but that something hangs
STOP_LIMIT = 60.0
RUN_LIMIT = 180.0
EVENT_LIMIT = 60.0

T = TypeVar("T")


def until(wanted: Callable[[], T], *, seconds: float, what: str) -> T:
    """Return the first true value of `wanted`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = wanted()
        if found:
            return found
        assert time.monotonic() < deadline, f"after {seconds:g} s still not so: {what}"
        time.sleep(0.02)


def outlive_this_second() -> None:
    """Wait for the next second of the clock: a key's not-before is of whole seconds, and a store refuses first nonces of older keys."""
    second = int(time.time())
    until(lambda: int(time.time()) != second, seconds=5, what="the next second")


@dataclass(frozen=True, slots=True)
class Lab:
    """Configuration files of a network and its first UE, and the state directories of both."""

    serve: Path
    ue: Path
    state: Path
    ports: Mapping[str, int]  # the port in examples/ → the port here


def make_lab(folder: Path, edit: Callable[[str], str] = str, edit_ue: Callable[[str], str] = str) -> Lab:
    """Write the files of examples/ with free ports, changed by `edit` and `edit_ue`; they must change something if given."""
    ports = {port: free_port() for port in EXAMPLE_PORTS}
    files = []
    for name, change in (("lab.toml", edit), ("ue.toml", edit_ue)):
        text = (EXAMPLES / name).read_text("utf-8")
        changed = change(text)
        assert change is str or changed != text, f"the edit found nothing to change in {name}"
        changed = patient(changed)
        for old, new in ports.items():
            changed = changed.replace(f":{old}", f":{new}")
        file = folder / name
        file.write_text(changed, "utf-8")
        files.append(file)
    return Lab(files[0], files[1], folder / "state", ports)


def patient(text: str) -> str:
    """Let a network of examples/lab.toml bear a machine that is busy with other tests.

    A 200 waits as long as it may for the keys, and nobody is refused where the processor was away; unless a text says itself what it wants.
    """
    text = text.replace("push_wait = 0.25 ", "push_wait = 0.45 ")
    return text if "\noverload = " in text else text.replace("[network]\n", '[network]\noverload = "off"\n')


def shedding(text: str) -> str:
    """Let the network of examples/lab.toml refuse what is too much for it, as it does if nothing is said."""
    return text.replace("[network]\n", '[network]\noverload = "on"\n')


def in_clear(text: str) -> str:
    """Let the UE of examples/ue.toml register without protection of Gm: for those who look at its messages there."""
    return text.replace('gm = "required"', 'gm = "off"')


@dataclass(slots=True)
class Served:
    """A process that serves."""

    process: subprocess.Popen[str]
    listen: list[dict[str, Any]]
    ca: Path
    state: Path
    log: Path
    killed: bool = False

    def port(self, role: str, name: str = "", proto: str = "") -> int:
        """Return the port of a listener."""
        for one in self.listen:
            if one["role"] == role and name in ("", one["name"]) and proto in ("", one["proto"]):
                return int(one["port"])
        raise AssertionError(f"nothing listens as {role} {name} {proto}")

    def admin(self, path: str) -> tuple[int, str]:
        """GET from the administrator's listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port("admin"), timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8")
        finally:
            connection.close()

    def health(self) -> dict[str, Any]:
        """Return /health, which must be 200."""
        status, body = self.admin("/health")
        assert status == 200, body
        report: dict[str, Any] = json.loads(body)
        return report

    def kill(self) -> None:
        """Kill -9: what a power cut does to a process."""
        self.killed = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_LIMIT)


@contextmanager
def running(
    *words: str | Path, log: Path, folder: Path | None = None, end: signal.Signals = signal.SIGTERM, last: str | None = None
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run a command of keyferry's; give the process, and what it said when it was ready.

    At the end, of which a signal tells it, it must exit with 0, have said nothing more but `last`, if given, and logged no traceback.
    """
    command = [sys.executable, "-m", "keyferry", *(str(word) for word in words)]
    with (
        log.open("ab") as errors,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()) as process,
    ):
        try:
            yield process, ready_line(process, log)
            process.send_signal(end)
            rest, _ = process.communicate(timeout=STOP_LIMIT)
            assert process.returncode == 0, log.read_text()
            assert last in {None, rest}
            assert "Traceback" not in log.read_text()
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def serving(config: Path, state: Path, *arguments: str, log: Path | None = None) -> Iterator[Served]:
    """Serve, wait until it is ready, and end it with SIGTERM: it must exit with 0, say so, and have logged no traceback."""
    log = log or state.with_suffix(".log")
    command = [sys.executable, "-m", "keyferry", "serve", "--config", str(config), "--state", str(state), *arguments]
    with (
        log.open("ab") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()) as process,
    ):
        try:
            ready = ready_line(process, log)
            served = Served(process, ready["listen"], Path(ready["ca"]), state, log)
            yield served
            if served.killed:
                return
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=STOP_LIMIT)
            assert process.returncode == 0, log.read_text()
            assert rest == "stopped\n"
            assert "Traceback" not in log.read_text()
        finally:
            if process.poll() is None:
                process.kill()


def keyferry(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; the caller looks at the exit code."""
    command = [sys.executable, "-m", "keyferry", *(str(argument) for argument in arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=RUN_LIMIT, check=False, env=environment())


def ue(lab: Lab, *arguments: str | Path, state: Path | None = None) -> dict[str, Any]:
    """Run `keyferry ue … --json`, which must succeed, and return what it printed."""
    command, *rest = arguments
    done = keyferry("ue", command, "--config", lab.ue, "--state", state or lab.state, "--json", *rest)
    assert done.returncode == 0, done.stdout + done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def environment() -> dict[str, str]:
    """Return the environment for a command: no setting of the developer's own gets in, and no terminal's colours or width."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYFERRY_")}
    return {**kept, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}


def ready_line(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """Return the line by which a process says that it listens."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_LIMIT)
    assert readable, f"not ready after {START_LIMIT:g} s"
    line = process.stdout.readline()
    assert line, f"ended with {process.wait(STOP_LIMIT)} before it was ready: {log.read_text()}"
    told: dict[str, Any] = json.loads(line)
    assert told["ready"] is True
    return told


@pytest.fixture(name="lab")
def lab_fixture(tmp_path: Path) -> Lab:
    """Return the files of examples/ on free ports, not served yet."""
    return make_lab(tmp_path)


@pytest.fixture(name="served")
def served_fixture(lab: Lab) -> Iterator[Served]:
    """Serve them."""
    with serving(lab.serve, lab.state) as running:
        yield running
