# SPDX-License-Identifier: Apache-2.0
"""A key agent and workers of an application as real processes, and a Digest client that may do wrong at each."""

from __future__ import annotations

import base64
import contextlib
import http.client
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.ims.keys import first_nonce
from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import Certificate, Pki
from system.serving import START_LIMIT, STOP_LIMIT, Lab, environment, free_port, make_lab, ready_line, ue, until

WIKI, MAIL = "wiki.home1.net", "mail.home1.net"
APP = Path(__file__).with_name("agent_app.py")


@dataclass(frozen=True, slots=True)
class AgentLab:
    """A network whose S-CSCF pushes for two AS_IDs to one SIP URI, the agent's file, and where the agent's socket is."""

    lab: Lab
    agent: Path
    socket: Path
    port: int


def make_agent_lab(folder: Path, socket_folder: Path, more: str = "") -> AgentLab:
    """Write the files; `more` is added to the agent's."""
    port = free_port()
    servers = "".join(
        f'\n[[application_servers]]\nas_id = "{as_id}"\nsip_uri = "sip:agent.home1.net:{port}"\napp = "agent"\n' for as_id in (WIKI, MAIL)
    )
    hosts = f'\n[hosts]\n"agent.home1.net" = "127.0.0.1:{port}"\n'
    lab = make_lab(folder, lambda text: text.replace("\n# K and OPc", f"{servers}\n# K and OPc") + hosts)
    text = (Path(__file__).parents[2] / "examples" / "agent.toml").read_text("utf-8").replace(":5095", f":{port}")
    path = socket_folder / "agent.sock"
    file = folder / "agent.toml"
    file.write_text(text.replace("[agent]\n", f'[agent]\nsocket = "{path}"\n') + more, "utf-8")
    return AgentLab(lab, file, path, port)


@dataclass(slots=True)
class RunningAgent:
    """A key agent's process."""

    process: subprocess.Popen[str]
    log: Path
    told: dict[str, object]
    gone: bool = False

    def kill(self) -> None:
        """Kill -9."""
        self.gone = True
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_LIMIT)

    def end(self) -> None:
        """End it as a service manager does; it must say so and have logged no traceback."""
        self.gone = True
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=STOP_LIMIT)
        assert self.process.returncode == 0, self.log.read_text()
        assert rest == "stopped\n"
        assert "Traceback" not in self.log.read_text()


@contextlib.contextmanager
def running_agent(made: AgentLab) -> Iterator[RunningAgent]:
    """Run `keyferry agent` over the state directory of the network."""
    log = made.agent.with_suffix(".log")
    command = [sys.executable, "-m", "keyferry", "agent", "--config", str(made.agent), "--state", str(made.lab.state)]
    with (
        log.open("ab") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment()) as process,
    ):
        try:
            running = RunningAgent(process, log, ready_line(process, log))
            yield running
            if not running.gone:
                running.end()
        finally:
            if process.poll() is None:
                process.kill()


class Login(NamedTuple):
    """A user's key at one server, as `keyferry ue status --show-http-password` prints it."""

    as_id: str
    username: str
    realm: str
    ha1: Secret
    k_ua: Secret

    @classmethod
    def of(cls, lab: Lab, as_id: str) -> Login:
        told = ue(lab, "status", "--show-http-password", as_id)
        password = Secret(told["password"].encode())
        ha1 = digest.hash_a1("SHA-256", told["username"], told["realm"], password)
        return cls(as_id, told["username"], told["realm"], ha1, Secret(base64.b64decode(password.reveal())))

    def authorization(self, nonce: str, count: int, uri: str = "/") -> str:
        nc, cnonce = f"{count:08x}", "0123456789abcdef"
        response = digest.respond("SHA-256", self.ha1, method="GET", uri=uri, nonce=nonce, qop="auth", nc=nc, cnonce=cnonce)
        credentials = digest.Credentials(
            self.username, self.realm, nonce, uri, response, "SHA-256", cnonce=cnonce, qop="auth", nc=nc
        )  # fmt: skip
        return digest.build_credentials(credentials)

    @property
    def first(self) -> str:
        """The first nonce of this key."""
        return first_nonce(self.k_ua)


class Answer(NamedTuple):
    """What a worker answered."""

    status: int
    body: str
    challenge: str

    @property
    def nonce(self) -> str:
        return digest.parse_challenge(self.challenge).nonce

    @property
    def stale(self) -> bool:
        return digest.parse_challenge(self.challenge).stale


@dataclass(slots=True)
class Worker:
    """A process that serves an application behind SimLogin."""

    port: int
    ca: Path
    as_id: str = WIKI

    def get(self, authorization: str | None = None) -> Answer:
        """GET / over a connection of its own."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection(self.as_id, self.port, timeout=60, context=context)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sock = context.wrap_socket(plain, server_hostname=self.as_id)
        try:
            connection.request("GET", "/", headers={"Authorization": authorization} if authorization else {})
            response = connection.getresponse()
            return Answer(response.status, response.read().decode(), response.getheader("WWW-Authenticate") or "")
        finally:
            connection.close()


@contextlib.contextmanager
def running_workers(made: AgentLab, count: int = 2, as_id: str = WIKI) -> Iterator[list[Worker]]:
    """Run workers of one application that share the agent and nothing else."""
    pki = Pki(made.lab.state, SystemClock())
    certificate = pki.ensure(as_id, "as")
    with contextlib.ExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        for port in ports:
            stack.enter_context(_worker(made, certificate, as_id, port))
        workers = [Worker(port, pki.ca_file, as_id) for port in ports]
        for worker in workers:
            until(lambda worker=worker: _answers(worker), seconds=START_LIMIT, what="a worker answers")  # type: ignore[misc]
        yield workers


@contextlib.contextmanager
def _worker(made: AgentLab, certificate: Certificate, as_id: str, port: int) -> Iterator[None]:
    command = [sys.executable, str(APP), as_id, str(port), str(certificate.certificate), str(certificate.key)]
    log = made.agent.with_name(f"worker-{port}.log")
    with (
        log.open("ab") as errors,
        subprocess.Popen(command, stdout=errors, stderr=errors, env={**environment(), "KEYFERRY_AGENT": f"unix:{made.socket}"}) as process,
    ):
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_LIMIT)
            assert "Traceback" not in log.read_text(), log.read_text()


def _answers(worker: Worker) -> bool:
    try:
        return worker.get().status in {401, 503}
    except OSError:
        return False


def at_once(workers: list[Worker], authorization: str) -> list[Answer]:
    """Send the same request to each worker at the same time."""
    with ThreadPoolExecutor(len(workers)) as threads:
        return list(threads.map(lambda worker: worker.get(authorization), workers))
