# SPDX-License-Identifier: Apache-2.0
"""Kamailio as a plain registrar: Digest with MD5, everything in memory; a process of its own with a configuration written for the run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from loopback import free_port

REALM = "home1.net"
PASSWORD = "bench"  # noqa: S105 - of everybody
START_LIMIT = 60.0  # seconds
STOP_LIMIT = 10.0
ASK_AGAIN = 0.05  # seconds
TICKS = os.sysconf("SC_CLK_TCK")

CONFIG = """#!KAMAILIO
debug=0
fork=yes
log_stderror=yes
children={workers}
disable_tcp=yes
auto_aliases=no
listen=udp:127.0.0.1:{port}
loadmodule "sl.so"
loadmodule "pv.so"
loadmodule "auth.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
modparam("usrloc", "db_mode", 0)
modparam("usrloc", "hash_size", 14)
modparam("auth", "nonce_expire", 600)
request_route {{
    if ($rm != "REGISTER") {{ sl_send_reply("405", "Method Not Allowed"); exit; }}
    if (!pv_www_authenticate("{realm}", "{password}", "0")) {{ www_challenge("{realm}", "0"); exit; }}
    if (!save("location")) {{ sl_reply_error(); }}
}}
"""


class KamailioMissing(Exception):
    """Say why Kamailio cannot be measured."""


class Kamailio:
    """A running one."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self._process = process

    def cpu(self) -> float:
        """Return the processor time that its processes have used so far, seconds."""
        return sum(_cpu(pid) for pid in [self._process.pid, *_children(self._process.pid)])


def version() -> str:
    """Return what is installed. Raises KamailioMissing."""
    path = shutil.which("kamailio")
    if path is None:
        raise KamailioMissing("Kamailio is not installed (tools/install-peers --kamailio): measured without it")
    done = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
    return done.stdout.split("\n", 1)[0].removeprefix("version: ").strip()


@contextmanager
def kamailio(workers: int) -> Iterator[Kamailio]:
    """Run one for as long as the block lasts. Raises KamailioMissing."""
    version()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="keyferry-kamailio-") as place:
        folder = Path(place)
        file, log = folder / "kamailio.cfg", folder / "log"
        file.write_text(configuration(port, workers), "utf-8")
        command = ["kamailio", "-DD", "-E", "-f", str(file), "-Y", str(folder), "-w", str(folder), "-m", "256", "-M", "16"]
        with running(command, port, log) as peer:
            yield peer


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[Kamailio]:
    """Run one that listens at a port for as long as the block lasts. Raises KamailioMissing."""
    with log.open("wb") as errors, subprocess.Popen(command, stdout=errors, stderr=errors, start_new_session=True) as process:
        try:
            _wait(port, process, log)
            yield Kamailio(port, process)
        finally:
            _end(process)


def configuration(port: int, workers: int) -> str:
    """Return the text of its configuration."""
    return CONFIG.format(port=port, workers=workers, realm=REALM, password=PASSWORD)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a session of its own, begun by us: these are its workers
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until it answers. Raises KamailioMissing."""
    ask = (
        f"OPTIONS sip:{REALM} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bKask\r\nFrom: <sip:a@{REALM}>;tag=a\r\n"
        f"To: <sip:{REALM}>\r\nCall-ID: a\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    ).encode()
    deadline = monotonic() + START_LIMIT
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(ASK_AGAIN)
        asking.connect(("127.0.0.1", port))
        while monotonic() < deadline and process.poll() is None:
            try:
                asking.send(ask)
                asking.recv(4096)
                return
            except ConnectionRefusedError:
                sleep(ASK_AGAIN)
            except TimeoutError:
                continue
    said = log.read_text("utf-8", "replace").strip().splitlines()
    raise KamailioMissing(f"Kamailio did not start: {said[-1][:300] if said else 'it said nothing'}")


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return [int(place.name) for place in Path("/proc").glob("[0-9]*") if _parent(place) == pid]


def _parent(place: Path) -> int:
    try:
        return int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
