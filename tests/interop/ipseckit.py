# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces of the test's own, a charon in each, keyferry's S-CSCF in one and an application server in the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from interop.peer_table import meet
from keyferry.protocol.vici import Kind, parse_packet, split
from keyferry.transports.vici import STREAMED
from system.serving import environment, keyferry, ready_line, until

LIMIT = 30.0  # seconds
S, A = "10.99.0.1", "10.99.0.2"
S6, A6 = "2001:db8:99::1", "2001:db8:99::2"
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"
PROGRAMS = {
    "ip": "iproute2", "nft": "nftables", "charon-systemd": "charon-systemd", "swanctl": "strongswan-swanctl", "tcpdump": "tcpdump",
    "tshark": "tshark", "curl": "curl",
}  # fmt: skip
SERVE = f"""
[network]
home_domain = "home1.net"
[pcscf]
name = "pcscf1.home1.net"
listen = "127.0.0.1:5060"
icscf = "sip:icscf.home1.net:5062"
[icscf]
name = "icscf.home1.net"
listen = "127.0.0.1:5062"
scscf = "sip:scscf1.home1.net:6060"
[scscf]
name = "scscf1.home1.net"
listen = "{S}:6060"
as_probe = 0
trusted_peers = ["{S}"]
[admin]
listen = "127.0.0.1:8080"
[ipsec]
vici = "@VICI@"
[hosts]
"xcap-as.home1.net" = "{A}:5090"
[[application_servers]]
as_id = "xcap.home1.net"
sip_uri = "sip:xcap-as.home1.net:5090"
protection = "ipsec"
listen_sip = "{A}:5090"
listen_https = "{A}:8443"
[[subscribers]]
impi = "user1_private@home1.net"
impus = ["sip:user1_public1@home1.net"]
k = "465b5ce8b199b49faa5f0a2ee238a6bc"
opc = "cd63cb71954a9f4e48a5994e37a02baf"
"""
UE = f"""
[ue]
impi = "user1_private@home1.net"
impu = "sip:user1_public1@home1.net"
k = "465b5ce8b199b49faa5f0a2ee238a6bc"
opc = "cd63cb71954a9f4e48a5994e37a02baf"
home_domain = "home1.net"
pcscf = "127.0.0.1:5060"
[hosts]
"xcap.home1.net" = "{A}"
"""


def skipped(reason: str) -> None:
    """Skip, aloud; in CI fail unless it was said that tests may be skipped."""
    if os.environ.get("KEYFERRY_CI") and os.environ.get("KEYFERRY_ALLOW_SKIP") != "1":
        pytest.fail(f"{reason} (KEYFERRY_ALLOW_SKIP=1 skips it)")
    pytest.skip(reason)


def needed(name: str) -> str:
    """Return the path of a program, or skip."""
    meet(name)
    path = shutil.which(name, path=SEARCH)
    if path is None:
        skipped(f"{name} is not installed; on Debian: apt install {PACKAGES_OF.get(name, name)}")
        raise AssertionError
    return path


PACKAGES_OF = PROGRAMS


def run(*words: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False, **more)
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done


@dataclass
class Namespace:
    """A network namespace with one end of the wire."""

    name: str
    device: str
    address: str

    def inside(self, *words: str) -> list[str]:
        """Return the command that runs another one in here; it has the same process id."""
        return [needed("ip"), "netns", "exec", self.name, *words]

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run(*self.inside(*words), check=check)


@contextmanager
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Make two, with a wire between them, or skip; whatever happens, they are gone afterwards, and with them the wire."""
    for program in PROGRAMS:
        needed(program)
    ip = needed("ip")
    home, far = (Namespace(f"kfi{os.getpid()}{end}", f"kfi{os.getpid()}{end}", address) for end, address in (("s", S), ("a", A)))
    with ExitStack() as stack:
        for each in (home, far):
            made = run(ip, "netns", "add", each.name, check=False)
            if made.returncode:
                skipped(f"no network namespace can be made; be root ({made.stderr.strip()[:120]})")
            stack.callback(run, ip, "netns", "del", each.name, check=False)
        run(ip, "link", "add", home.device, "netns", home.name, "type", "veth", "peer", "name", far.device, "netns", far.name)
        for each in (home, far):
            run(ip, "-n", each.name, "addr", "add", f"{each.address}/24", "dev", each.device)
            run(ip, "-n", each.name, "addr", "add", f"{S6 if each is home else A6}/64", "dev", each.device, "nodad")
            for device in ("lo", each.device):
                run(ip, "-n", each.name, "link", "set", device, "up")
        yield home, far


@dataclass
class Charon:
    """One charon with a folder that `keyferry ipsec write` made."""

    namespace: Namespace
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "charon.vici"

    def start(self) -> None:
        """Start it, and load what was written."""
        command = self.namespace.inside(needed("charon-systemd"))
        surroundings = {**os.environ, "STRONGSWAN_CONF": str(self.folder / "strongswan.conf")}
        self.socket.unlink(missing_ok=True)
        with (self.folder / "charon.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=surroundings, stdout=log, stderr=log)
        until(self._listens, seconds=LIMIT, what="charon listens on its control socket")
        self.load()

    def dies_before_the_body(self, relay: Relay, *, tcp: bool) -> None:
        """Have it killed when it has answered the last question before a body is sent, and before keyferry has the answer.

        Over TCP the question before that is whether there may be a connection.
        """
        relay.passing = 1 if tcp else 0
        relay.hides_the_end = True
        relay.before_answer = self.kill

    def load(self) -> None:
        """Load what was written, as its comment says."""
        surroundings = {**os.environ, "SWANCTL_DIR": str(self.folder)}
        run(needed("swanctl"), "--load-all", "--noprompt", "--uri", f"unix://{self.socket}", env=surroundings)

    def initiate(self, child: str = "isc-xcap-as-home1-net") -> int:
        """Try to set up a CHILD_SA now; return 0 if that worked."""
        words = ("--initiate", "--child", child, "--timeout", "10", "--uri", f"unix://{self.socket}")
        return run(needed("swanctl"), *words, check=False).returncode

    def rekey(self, child: str = "isc-xcap-as-home1-net") -> None:
        """Have a CHILD_SA replaced by one with new keys."""
        run(needed("swanctl"), "--rekey", "--child", child, "--uri", f"unix://{self.socket}")

    def rekey_ike(self) -> None:
        """Have the IKE_SA replaced; its CHILD_SAs go over to the new one."""
        run(needed("swanctl"), "--rekey", "--ike", "isc-10-99-0-1-10-99-0-2", "--uri", f"unix://{self.socket}")

    def terminate(self, child: str = "isc-xcap-as-home1-net") -> None:
        """Delete a CHILD_SA, as its administrator would."""
        run(needed("swanctl"), "--terminate", "--child", child, "--timeout", "10", "--uri", f"unix://{self.socket}")

    def sas(self) -> str:
        """Return what swanctl lists."""
        return run(needed("swanctl"), "--list-sas", "--uri", f"unix://{self.socket}").stdout

    def stop(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP, and later SIGCONT."""
        assert self.process is not None
        self.process.send_signal(number)

    def rules(self) -> None:
        """Load the drop rules."""
        self.namespace.run(needed("nft"), "-f", str(self.folder / "isc.nft"))

    def without_rules(self) -> None:
        self.namespace.run(needed("nft"), "delete", "table", "inet", self._table())

    def dropped(self) -> int:
        """Return how many packets its drop rules have stopped on their way out."""
        return self._counted("to_peer")

    def dropped_in(self) -> int:
        """Return how many packets they have stopped that came from the other side."""
        return self._counted("from_peer")

    def _counted(self, chain: str) -> int:
        text = self.namespace.run(needed("nft"), "list", "chain", "inet", self._table(), chain).stdout
        return int(re.search(r"counter packets (\d+) ", text)[1])  # type: ignore[index]

    def _table(self) -> str:
        return re.search(r"(?m)^table inet (\S+) \{", (self.folder / "isc.nft").read_text())[1]  # type: ignore[index]

    def kill(self) -> None:
        """Kill -9, and wait until nothing of it is left."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)  # also where it was stopped
            self.process.wait(LIMIT)
            self.process = None

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "charon.log").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket)) == 0


class Relay:
    """Stand between keyferry and charon's socket; `before_answer` runs when charon has answered a question, before keyferry hears it.

    The last part of every question is that of policies.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self.before_answer: Callable[[], None] = lambda: None
        self.passing = 0  # answers that pass before that
        self.hides_the_end = False  # keyferry does not hear at once that charon is gone
        self._target = target
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._sockets: list[socket.socket] = [self._server]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(str(self._target))
                except OSError:
                    near.close()
                    far.close()
                    continue
                self._sockets += [near, far]
                asked: deque[str] = deque()
                threading.Thread(target=self._up, args=(near, far, asked), daemon=True).start()
                threading.Thread(target=self._down, args=(far, near, asked), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket, asked: deque[str]) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := near.recv(65_536):
                packets, rest = split(rest + data)
                asked += (packet.name for packet in map(parse_packet, packets) if packet.kind is Kind.CMD_REQUEST)
                far.sendall(data)
            far.shutdown(socket.SHUT_RDWR)

    def _before(self) -> None:
        if self.passing:
            self.passing -= 1
            return
        before, self.before_answer = self.before_answer, lambda: None
        before()

    def _down(self, far: socket.socket, near: socket.socket, asked: deque[str]) -> None:
        rest, held = b"", b""
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                packets, rest = split(rest + data)
                for packet in packets:
                    held += len(packet).to_bytes(4) + packet
                    parsed = parse_packet(packet)
                    if parsed.kind is Kind.CMD_RESPONSE and asked.popleft() == "list-policies":
                        self._before()
                    if not (parsed.kind is Kind.EVENT and parsed.name in STREAMED):
                        near.sendall(held)
                        held = b""
        with contextlib.suppress(OSError):
            if not self.hides_the_end:
                near.shutdown(socket.SHUT_RDWR)


@contextmanager
def captured(namespace: Namespace, file: Path) -> Iterator[Path]:
    """Capture what is on the wire; the file is whole afterwards."""
    command = namespace.inside(needed("tcpdump"), "-i", namespace.device, "-U", "--immediate-mode", "-Z", "root", "-w", str(file))
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "listening on" in line, line
        try:
            yield file
            namespace.run(sys.executable, "-c", LAST)
            until(lambda: LAST_WORD in file.read_bytes(), seconds=LIMIT, what="the capture has come to its end")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT)


LAST_WORD = b"the last packet of the capture"
LAST = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
sock.sendto({LAST_WORD!r}, ("10.99.0.255", 9))
"""


def in_clear(file: Path) -> str:
    """Return what tshark sees besides ESP, IKE and the neighbours' addresses."""
    done = run(needed("tshark"), "-r", str(file), "-Y", "!(isakmp || esp || udpencap || arp || icmpv6 || igmp || mdns || udp.port == 9)")
    return done.stdout


def protected(file: Path) -> int:
    """Return how many packets are ESP in UDP."""
    return len(run(needed("tshark"), "-r", str(file), "-Y", "esp && udp.port == 4500").stdout.splitlines())


@dataclass
class Process:
    """A `keyferry serve` in a namespace."""

    namespace: Namespace
    process: subprocess.Popen[str]
    log: Path

    def get(self, path: str) -> str:
        """GET from its administrator's listener."""
        return self.namespace.run(needed("curl"), "-s", "-S", f"http://127.0.0.1:8080{path}").stdout

    def keys(self) -> int:
        """Return how many keys the application server has."""
        counts: dict[str, int] = json.loads(self.get("/health"))["keys"]
        return sum(counts.values())

    def metric(self, name: str, reason: str) -> int:
        """Return a counter."""
        match = re.search(rf'^keyferry_{name}_total{{reason="{reason}"}} ([0-9.]+)$', self.get("/metrics"), re.MULTILINE)
        return int(float(match[1])) if match else 0


@dataclass
class World:
    """Everything, as it is at the beginning: rules loaded, charons not started, keyferry on both sides serving."""

    folder: Path
    home: Charon
    far: Charon
    relay: Relay
    scscf: Process
    server: Process
    stack: ExitStack = field(default_factory=ExitStack)

    def up(self) -> None:
        """Start both charons, and wait until keyferry says that the policy is met."""
        self.far.start()
        self.home.start()
        self.met()

    def met(self) -> None:
        until(lambda: self.check().returncode == 0, seconds=LIMIT, what="keyferry ipsec check: all is well")

    def check(self, charon: Charon | None = None) -> subprocess.CompletedProcess[str]:
        """Run `keyferry ipsec check`."""
        path = str((charon or self.home).socket)
        config = str(self.folder / "serve.toml")
        command = [sys.executable, "-m", "keyferry", "ipsec", "check", "--config", config, "--vici", path, "--json"]
        return run(*self.home.namespace.inside(*command), check=False, env=environment())

    def ue(self, *words: str, stdin: str | None = None, check: bool = True) -> dict[str, Any]:
        """Run `keyferry ue` in the S-CSCF's namespace."""
        place = ["--config", str(self.folder / "ue.toml"), "--state", str(self.folder / "ue-state"), "--json"]
        command = [sys.executable, "-m", "keyferry", "ue", words[0], *place, *words[1:]]
        done = run(*self.home.namespace.inside(*command), check=check, input=stdin, env=environment())
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed


SHORT = (
    ("xcap-as.home1.net", "y.h"), ("xcap.home1.net", "x.h"), ("user1_private@home1.net", "u@h"), ("user1_public1@home1.net", "u@h"),
    ("scscf1.home1.net", "s.h"), ("pcscf1.home1.net", "p.h"), ("icscf.home1.net", "i.h"), ("home1.net", "h"),
)  # fmt: skip


def short(text: str) -> str:
    """Make the names of a file so short that a push fits into a datagram: then `keyferry` retransmits, and not TCP."""
    for long, name in SHORT:
        text = text.replace(long, name)
    return text


def six(text: str) -> str:
    """Write a file for IPv6 before and between the two machines; the door stays where it is."""
    core = ((f"127.0.0.1:{port}", f"[::1]:{port}") for port in (5060, 5062))
    for old, new in ((f"{S}:6060", f"[{S6}]:6060"), (f'["{S}"]', f'["{S6}"]'), (f"{A}:5090", f"[{A6}]:5090"), *core):
        text = text.replace(f'"xcap-as.home1.net" = "{A}:5090"', f'"xcap-as.home1.net" = "{A6}"').replace(old, new)
    return text


def _serve(stack: ExitStack, namespace: Namespace, folder: Path, name: str, roles: Sequence[str]) -> Process:
    config = folder / ("serve-as.toml" if "as" in roles else "serve.toml")
    log = folder / f"{name}.log"
    words = [word for role in roles for word in ("--role", role)]
    command = [sys.executable, "-m", "keyferry", "serve", "--config", str(config), "--state", str(folder / "state"), *words]
    errors: IO[bytes] = stack.enter_context(log.open("ab"))
    process = stack.enter_context(
        subprocess.Popen(namespace.inside(*command), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment())
    )
    stack.callback(_end, process)
    ready_line(process, log)
    return Process(namespace, process, log)


def _end(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()


def write(folder: Path, side: str, charon: Charon, *more: str) -> None:
    """Run `keyferry ipsec write`."""
    place: list[str | Path] = ["--config", folder / "serve.toml", "--side", side, "--state", folder / "state", "--vici", charon.socket]
    done = keyferry("ipsec", "write", charon.folder, *place, *more)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def world(folder: Path, *more: str, edit: Callable[[str], str] = str) -> Iterator[World]:
    """Give everything; `more` goes to `keyferry ipsec write`, `edit` changes both configuration files."""
    with ExitStack() as stack:
        home_ns, far_ns = stack.enter_context(namespaces())
        (folder / "serve.toml").write_text(edit(SERVE).replace("@VICI@", str(folder / "relay.vici")))
        (folder / "serve-as.toml").write_text(edit(SERVE).replace("@VICI@", str(folder / "far" / "charon.vici")))
        (folder / "ue.toml").write_text(edit(UE))
        home, far = Charon(home_ns, folder / "home"), Charon(far_ns, folder / "far")
        for side, charon in (("scscf", home), ("as", far)):
            write(folder, side, charon, *more)
            charon.rules()
            stack.callback(charon.kill)
        relay = Relay(folder / "relay.vici", home.socket)
        stack.callback(relay.close)
        server = _serve(stack, far_ns, folder, "server", ["as", "admin"])
        scscf = _serve(stack, home_ns, folder, "scscf", ["pcscf", "icscf", "scscf", "admin"])
        yield World(folder, home, far, relay, scscf, server, stack)


async def vici_package(path: Path) -> list[Any]:
    """Return what strongSwan's own client says of the SAs."""
    vici = pytest.importorskip("vici")

    def listed() -> list[Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            return list(vici.Session(sock).list_sas())

    return await asyncio.to_thread(listed)
