# SPDX-License-Identifier: Apache-2.0
"""`keyferry proxy` as a process between `keyferry ue` and a server that knows nothing of SIMs (TS 33.222 §6)."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx

from keyferry.client import Ue
from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import Pki
from system.agents import MAIL, WIKI, make_agent_lab, running_agent
from system.serving import START_LIMIT, STOP_LIMIT, Lab, Served, running, serving, ue, until
from transports.agentkit import short_folder

NAME = "notes.home1.net"
ADMIN = ("--admin", "127.0.0.1:0")
ALICE = '"sip:user1_public1@home1.net"'
BIG = 100_000_000
GROWTH = 40_000  # kB that the proxy may grow by while 100 MB go through it


@dataclass
class Behind:
    """A plain HTTP/1.1 server, and what it was told."""

    port: int = 0
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)  # somebody who asked for /never or /big did not wait

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.seen]


class Server(ThreadingHTTPServer):
    """Has what it was told at hand."""

    behind: Behind


class Handler(BaseHTTPRequestHandler):
    """Give five octets, or many; take a body and keep its hash."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behind = self._note()
        if self.path == "/never":
            self.rfile.read(1)
            self.close_connection = True
            behind.left.set()
            return
        size = BIG if self.path == "/big" else 5
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        try:
            for start in range(0, size, 1_000_000):
                self.wfile.write(b"h" * min(1_000_000, size - start))
        except ConnectionError:
            behind.left.set()

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        for piece in self._body():
            digest.update(piece)
        self._note().hashes.append(digest.hexdigest())
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 1_000_000))
            left -= len(piece)
            yield piece

    def _note(self) -> Behind:
        assert isinstance(self.server, Server)
        self.server.behind.seen.append((self.command, self.path, dict(self.headers.items())))
        return self.server.behind

    def log_message(self, format: str, *arguments: Any) -> None: ...


@contextmanager
def server_behind() -> Iterator[Behind]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.behind = Behind(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.behind
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Running:
    """A proxy that listens."""

    process: subprocess.Popen[str]
    listen: list[dict[str, Any]]
    log: Path

    def port(self, name: str = NAME) -> int:
        return int(next(one["port"] for one in self.listen if name in one["names"]))

    def memory(self) -> int:
        """Return the most that it ever had in memory, in kB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM")))


@contextmanager
def proxying(state: Path, *arguments: str, end: signal.Signals = signal.SIGTERM) -> Iterator[Running]:
    """Run the proxy."""
    log = state.with_name("proxy.log")
    with running("proxy", "--state", state, "--json", *arguments, log=log, end=end, last="stopped\n") as (process, ready):
        yield Running(process, ready["listen"], log)


def test_a_server_that_knows_nothing_of_sims_gets_logged_in_users(lab: Lab, served: Served) -> None:
    ue(lab, "register")
    with server_behind() as behind:
        upstream = f"{NAME}=http://127.0.0.1:{behind.port}"
        with proxying(
            lab.state, "--upstream", upstream, "--listen", "127.0.0.1:0", "--user-id-header", "X-User", "--admin", "127.0.0.1:0",
            "--audit", str(lab.state.with_name("audit.log")), end=signal.SIGINT,
        ) as proxy:  # fmt: skip
            url = f"https://{NAME}:{proxy.port()}"
            assert ue(lab, "get", f"{url}/a%2Fb?c=d")["status"] == 200
            method, path, fields = behind.seen[-1]
            assert (method, path) == ("GET", "/a%2Fb?c=d")
            assert fields["x-3gpp-asserted-identity"].startswith(ALICE)
            assert fields["x-forwarded-for"] == "127.0.0.1"
            assert (fields["host"], fields["x-forwarded-port"]) == (f"{NAME}:{proxy.port()}", str(proxy.port()))
            assert len(fields["x-user"]) == 24
            assert not {"authorization", "Authorization"} & set(fields)
            connection = http.client.HTTPConnection("127.0.0.1", proxy.port("admin"), timeout=60)
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
            connection.close()
            assert 'keyferry_proxy_total{reason="2xx"} ' in metrics
            context = ssl.create_default_context(cafile=str(served.ca))
            context.check_hostname = False  # by its address; the name is in Host
            stranger = http.client.HTTPSConnection("127.0.0.1", proxy.port(), context=context, timeout=60)
            stranger.request("GET", "/", headers={"Host": NAME, "X-3GPP-Asserted-Identity": ALICE})
            assert stranger.getresponse().status == 401
            stranger.close()
        assert len({fields["x-3gpp-asserted-identity"] for _, _, fields in behind.seen}) == 1
        audit = [json.loads(line) for line in lab.state.with_name("audit.log").read_text("utf-8").splitlines()]
        assert any(event["result"] == "granted" and fields["x-user"] in event.values() for event in audit)


def test_two_names_with_keys_of_one_agent(tmp_path: Path) -> None:
    """Each name has its own key and its own server behind; the proxy needs nothing of the network's state directory, nor its KEK."""
    with short_folder() as folder:
        made = make_agent_lab(tmp_path, folder)
        with made.lab.ue.open("a", encoding="utf-8") as file:
            file.write(f'"{MAIL}" = "127.0.0.1"\n')
        core = [word for role in ("pcscf", "icscf", "scscf") for word in ("--role", role)]
        with running_agent(made), serving(made.lab.serve, made.lab.state, *core), server_behind() as wiki, server_behind() as mail:
            upstreams = [f"{WIKI}=http://127.0.0.1:{wiki.port}", f"{MAIL}=http://127.0.0.1:{mail.port}"]
            options = [word for one in upstreams for word in ("--upstream", one)]
            ue(made.lab, "register")
            shown = Pki(made.lab.state, SystemClock()).ensure(WIKI, "proxy", also=[MAIL])
            options += ["--certificate", str(shown.certificate), "--key", str(shown.key)]
            with proxying(tmp_path / "of-its-own", *options, "--listen", "127.0.0.1:0", "--agent", f"unix:{made.socket}") as proxy:
                for name, behind in ((WIKI, wiki), (MAIL, mail)):
                    assert ue(made.lab, "get", f"https://{name}:{proxy.port(name)}/of/{name}")["status"] == 200
                    assert {path for _, path, _ in behind.seen} == {f"/of/{name}"}


async def test_a_user_who_is_gone_is_served_no_further(lab: Lab, served: Served) -> None:
    """Who leaves while waiting, or in the midst of an answer, has been asked for once, over a kept connection; the server hears of it."""
    with (
        server_behind() as behind,
        proxying(lab.state, "--upstream", f"{NAME}=http://127.0.0.1:{behind.port}", "--listen", "127.0.0.1:0", *ADMIN) as proxy,
    ):
        async with Ue.open(lab.ue, state=lab.state) as user, asyncio.timeout(START_LIMIT):
            await user.register()
            for leave in (_leave_before_the_answer, _leave_in_the_answer):
                behind.left.clear()
                async with user.http(f"https://{NAME}:{proxy.port()}") as client:
                    await client.get("/small")
                    await leave(client, behind)
                assert await asyncio.to_thread(behind.left.wait, STOP_LIMIT), behind.paths()
            async with user.http(f"https://{NAME}:{proxy.port()}") as client:
                await client.get("/after")
        assert behind.paths() == ["/small", "/never", "/small", "/big", "/after"]
        with urlopen(f"http://127.0.0.1:{proxy.port('admin')}/metrics", timeout=60) as metrics:
            counted = re.findall(r'http_responses_total{as_id="[^"]*",class="(left|5xx)",mechanism="none"} (.*)', metrics.read().decode())
        assert sorted(counted) == [("5xx", "0.0"), ("left", "1.0")]  # who left in the answer had one


async def _leave_before_the_answer(client: httpx.AsyncClient, behind: Behind) -> None:
    waiting = asyncio.get_running_loop().create_task(client.get("/never"))
    await asyncio.to_thread(until, lambda: "/never" in behind.paths(), seconds=START_LIMIT, what="asked")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def _leave_in_the_answer(client: httpx.AsyncClient, behind: Behind) -> None:
    async with client.stream("GET", "/big") as answer:
        await anext(answer.aiter_raw())
    assert "/big" in behind.paths()


def test_100_megabytes_go_through_in_little_memory(lab: Lab, served: Served, tmp_path: Path) -> None:
    """Both ways, and what arrives is what was sent."""
    big = tmp_path / "big"
    piece = bytes(range(256)) * 4_000
    with big.open("wb") as file:
        for _ in range(0, BIG, len(piece)):
            file.write(piece)
    ue(lab, "register")
    with (
        server_behind() as behind,
        proxying(lab.state, "--upstream", f"{NAME}=http://127.0.0.1:{behind.port}", "--listen", "127.0.0.1:0") as proxy,
    ):
        url = f"https://{NAME}:{proxy.port()}"
        ue(lab, "get", f"{url}/small")
        before = proxy.memory()
        ue(lab, "put", f"{url}/big", big)
        with big.open("rb") as file:
            assert behind.hashes == [hashlib.file_digest(file, "sha256").hexdigest()]
        ue(lab, "get", f"{url}/big", "--output", tmp_path / "down")
        assert (tmp_path / "down").stat().st_size == BIG
        assert proxy.memory() - before < GROWTH, f"{before} kB before, {proxy.memory()} kB after"
