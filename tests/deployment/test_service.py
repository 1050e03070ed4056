# SPDX-License-Identifier: Apache-2.0
"""`keyferry serve` and `agent` as a service manager runs them: what it is told, the KEK as a credential, confined calls and memory."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.request import urlopen

import pytest

from deployment import confined
from deployment.units import PACKAGING
from system.serving import Lab, environment, keyferry, make_lab, ready_line, ue

LIMIT: Final = 30.0  # seconds
UNITS: Final = {"agent": "keyferry-agent.service", "proxy": "keyferry-proxy@.service"}
KEK = "0a1b2c3d " + "QUFB" * 21 + "QQ==\n"


class Manager:
    """What systemd is to a service: a socket that it reads, credentials, a watchdog."""

    def __init__(self, folder: Path, seconds: float) -> None:
        address, credentials = folder / "notify", folder / "credentials"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(address))
        credentials.mkdir(mode=0o700)
        (credentials / "kek").write_text(KEK)
        (credentials / "kek").chmod(0o400)
        watchdog = str(int(seconds * 1e6))
        self.variables = {"NOTIFY_SOCKET": str(address), "CREDENTIALS_DIRECTORY": str(credentials), "WATCHDOG_USEC": watchdog}
        self.states: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while data := self.socket.recv(1_000):
            for state in data.decode().split("\n"):
                self.states.put(state)

    def told(self, word: str) -> None:
        """Wait until it says this."""
        while self.states.get(timeout=LIMIT) != word:
            pass

    def close(self) -> None:
        """Go."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.variables["NOTIFY_SOCKET"])
        self.reader.join(LIMIT)
        self.socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path, 0.2)
    yield manager
    manager.close()


class Managed(NamedTuple):
    """A process, and what it said when it was ready."""

    process: subprocess.Popen[str]
    told: dict[str, Any]


@contextmanager
def managed(manager: Manager, folder: Path, *words: str | Path) -> Iterator[Managed]:
    """Run a command as its unit does, as confined as can be here; end it as systemctl stop does."""
    unit = PACKAGING / "systemd" / UNITS.get(str(words[0]), "keyferry.service")
    command = [sys.executable, confined.__file__, str(unit), "-m", "keyferry", *(str(word) for word in words)]
    log = folder / "service.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**environment(), **manager.variables}) as process,
    ):
        try:
            yield Managed(process, ready_line(process, log))
            process.send_signal(signal.SIGTERM)
            manager.told("STOPPING=1")
            process.communicate(timeout=LIMIT)
            assert process.returncode == 0, log.read_text()
            assert "Traceback" not in log.read_text()
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path)


def test_the_manager_is_told_of_every_state(manager: Manager, lab: Lab, tmp_path: Path) -> None:
    """sd_notify(3): READY, the watchdog, RELOADING and READY on SIGHUP, STOPPING; a phone registers meanwhile."""
    with managed(manager, tmp_path, "serve", "--config", lab.serve, "--state", lab.state, "--log", "json") as (process, _):
        manager.told("READY=1")
        for _number in range(3):
            manager.told("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        manager.told("RELOADING=1")
        manager.told("READY=1")
        assert not (lab.state / "kek").exists()
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file size")] == [["0", "0"]]
        assert ue(lab, "register", state=tmp_path / "phone")["registered"] is True
    events = [json.loads(line)["event"] for line in (tmp_path / "service.log").read_text().splitlines()]
    assert {"certificates-read-again", "configuration-read-again"} < set(events)  # as confined as the unit is
    assert events[-1] == "stopping"


def test_an_agent_is_a_service_too_and_answers_its_operator(manager: Manager, lab: Lab, tmp_path: Path) -> None:
    """/health, /ready and /metrics of its own listener."""
    config = tmp_path / "agent.toml"
    config.write_text(
        '[agent]\nas_ids = ["wiki.home1.net"]\nsip_uri = "sip:agent.home1.net:5095"\nlisten_sip = "127.0.0.1:0"\n'
        'pushers = ["scscf1.home1.net"]\nlisten_admin = "127.0.0.1:0"\n'
    )
    with managed(manager, tmp_path, "agent", "--config", config, "--state", lab.state, "--log", "json") as running:
        manager.told("READY=1")
        port = next(listener["port"] for listener in running.told["listen"] if listener["role"] == "admin")
        answers = {path: urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10).read() for path in ("health", "ready", "metrics")}
    assert json.loads(answers["health"]) == {"ok": True, "keys": {"wiki.home1.net": 0}}
    assert json.loads(answers["ready"]) == {"ready": True}
    assert b'keyferry_as_keys{as_id="wiki.home1.net"} 0.0' in answers["metrics"]


def test_a_proxy_is_a_service_with_nothing_of_the_others(manager: Manager, tmp_path: Path) -> None:
    """Its unit gives it no credential, and a new directory; it makes what it needs there, and listens for users and for nginx."""
    del manager.variables["CREDENTIALS_DIRECTORY"]
    state = tmp_path / "of-its-own"
    options = ("--upstream", "notes.home1.net=http://127.0.0.1:9", "--listen", "127.0.0.1:0", "--agent", f"unix:{tmp_path}/agent.sock",
               "--auth-request", f"unix:{tmp_path}/auth.sock", "--name", "wiki.home1.net")  # fmt: skip
    with managed(manager, tmp_path, "proxy", "--state", state, "--log", "json", *options) as running:
        manager.told("READY=1")
        assert [listener["proto"] for listener in running.told["listen"]] == ["https", "unix"]
        assert (state / "kek").stat().st_mode & 0o777 == 0o600
    assert not list(state.glob("*.db"))


def test_the_administrator_needs_the_same_kek(manager: Manager, lab: Lab) -> None:
    """A command without it says what is missing, and makes no other; with it, it works."""
    with_it = {**environment(), **manager.variables}
    card = ["--k", "00112233445566778899aabbccddeeff", "--opc", "ffeeddccbbaa99887766554433221100"]
    words = ["subscriber", "add", "--impi", "a@home1.net", "--impu", "sip:a@home1.net", *card]
    command = [sys.executable, "-m", "keyferry", *words, "--state", str(lab.state)]
    assert subprocess.run(command, env=with_it, capture_output=True, check=False, timeout=60).returncode == 0
    refused = keyferry("subscriber", "list", "--state", lab.state)
    assert refused.returncode == 1
    assert "kek: is missing" in refused.stderr
    assert not (lab.state / "kek").exists()


def test_the_kek_is_rotated_where_it_is_kept(manager: Manager, lab: Lab, tmp_path: Path) -> None:
    """As packaging/bin/keyferry-rotate-kek does: in a copy that may be written; the old one opens nothing afterwards."""
    copy = tmp_path / "copy"
    copy.write_text(KEK)
    copy.chmod(0o600)
    variables = {**environment(), "KEYFERRY_KEK_FILE": str(copy)}

    def run(*words: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "keyferry", *words, "--state", str(lab.state)]
        return subprocess.run(command, env={**variables, **changed}, capture_output=True, text=True, check=False, timeout=60)

    with managed(manager, tmp_path, "serve", "--config", lab.serve, "--state", lab.state, "--log", "json"):
        manager.told("READY=1")
    assert run("keys", "rotate").returncode == 0
    assert copy.read_text().split()[0] != KEK.split()[0]
    assert run("subscriber", "show", "user1_private@home1.net").returncode == 0
    old = tmp_path / "old"
    old.write_text(KEK)
    old.chmod(0o600)
    assert run("subscriber", "show", "user1_private@home1.net", KEYFERRY_KEK_FILE=str(old)).returncode == 1
    assert os.stat(copy).st_mode & 0o777 == 0o600
