# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio as S-CSCF beside our HSS, P-CSCF, I-CSCF and AS; and a UE of hand-made octets, whose P-CSCF may be hostile."""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from interop.peers import program
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Credentials, build_credentials, hash_a1, respond
from keyferry.protocol.identity import AsId, Impi
from keyferry.protocol.ims.keys import access_keys, application_master_key, as_key, digest_password, ua_key
from system.serving import EXAMPLES, Served, free_port, keyferry, serving, until

IMPI, IMPU, REALM, AS_ID = Impi("user1_private@home1.net"), "sip:user1_public1@home1.net", "home1.net", AsId("xcap.home1.net")
K = Secret(bytes.fromhex("465b5ce8b199b49faa5f0a2ee238a6bc"))
OPC = Secret(bytes.fromhex("cd63cb71954a9f4e48a5994e37a02baf"))
PORTS = ("5060", "5062", "6060", "8080", "5090", "8443", "3868", "HSS")
START_LIMIT = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class Network:
    """What runs, and where its logs are."""

    folder: Path
    ports: dict[str, int]
    parts: Served
    hss: Served
    config: Path
    ue: Path
    kamailio: subprocess.Popen[bytes]

    @property
    def kamailio_log(self) -> Path:
        """Everything that Kamailio logged, at the level that it is shipped with."""
        return self.folder / "kamailio.log"

    def pushed(self) -> list[list[str]]:
        """Return the fingerprints of each push that the AS took."""
        return [
            re.findall(r"'([0-9a-f]{16})'", found) for found in re.findall(r"push-taken .*?keys=(\[[^\]]*\])", self.parts.log.read_text())
        ]

    def has_pushed(self, before: int) -> bool:
        """Tell whether the AS has taken more than so many pushes."""
        return len(self.pushed()) > before

    def keys_at_as(self) -> int:
        """Return how many keys the AS holds."""
        return int(self.parts.health()["keys"][AS_ID])

    def alive(self) -> bool:
        """Tell whether Kamailio still runs, and no process of its has died."""
        return self.kamailio.poll() is None and "exited by a signal" not in self.kamailio_log.read_text("utf-8", "replace")


def long_lived(running: Network) -> list[tuple[str, bytes]]:
    """Return the keys that no registration makes: the card's, the KEKs, the transport key of the pushes."""
    found = [("K", K.reveal()), ("OPc", OPC.reveal())]
    for folder in (running.folder / "state", running.folder / "kamailio/state"):
        for file in (folder / "kek", *sorted((folder / "isc").iterdir())):
            found += [(file.name, base64.b64decode(line.split()[1])) for line in file.read_text().splitlines()]
    assert len(found) >= 6
    return found


def kamailio_python() -> str:
    """Return a Python that Kamailio's can import from, or skip."""
    for place in (os.environ.get("KEYFERRY_KAMAILIO_PYTHON", ""), sys.executable, shutil.which("python3.11") or "", _beside_us()):
        if place and _has_cryptography(place):
            return place
    pytest.skip(
        "no Python 3.11 with cryptography; make one (python3.11 -m venv V && V/bin/pip install cryptography) and name it in "
        "KEYFERRY_KAMAILIO_PYTHON=V/bin/python"
    )


def _beside_us() -> str:
    """Return the environment of the oldest Python that `make check` makes, if it is there."""
    for folder in (Path(sys.prefix), *map(Path, sys.path)):
        found = folder.parent / ".venv-oldest/bin/python"
        if found.exists():
            return str(found)
    return ""


def _has_cryptography(place: str) -> bool:
    probe = "import sys, cryptography; sys.exit(sys.version_info[:2] != (3, 11))"
    return subprocess.run([place, "-I", "-c", probe], capture_output=True, check=False).returncode == 0


def written_whole(directory: Path, ports: dict[str, int]) -> Path:
    """Take the configuration as `keyferry kamailio` writes it."""
    del ports
    # Transactions are freed soon, so that their AVPs are freed memory when the next REGISTER comes (docs/kamailio.md).
    (directory / "local.cfg").write_text('modparam("tm", "wt_timer", 100)\n')
    return directory / "scscf.cfg"


@contextmanager
def network(
    folder: Path, *, shared: int = 64, change: Callable[[str], str] = str, edit: Callable[[str], str] = str,
    configured: Callable[[Path, dict[str, int]], Path] = written_whole,
) -> Iterator[Network]:  # fmt: skip
    """Start everything, and end it; Kamailio must end without a process that died.

    `configured` is given the folder that `keyferry kamailio` wrote, and the ports, and returns the file that Kamailio starts with, which
    `change` changes, as a test of one part without another needs. `edit` changes the TOML file; `shared` is Kamailio's shared memory in
    megabytes.
    """
    program("kamailio")
    python = kamailio_python()
    ports = {port: free_port() for port in PORTS}
    config, ue = _files(folder, ports)
    config.write_text(edit(config.read_text("utf-8")), "utf-8")
    directory, state = folder / "kamailio", folder / "state"
    written = keyferry("kamailio", directory, "--config", config, "--state", state, "--python", python, "--stderr", "--json")
    if written.returncode == 2 and "apt install" in written.stderr:
        pytest.skip(written.stderr)
    assert written.returncode == 0, written.stderr
    file = configured(directory, ports)
    file.write_text(change(file.read_text("utf-8")), "utf-8")
    with ExitStack() as stack:
        at_hss = folder / "hss.toml"  # its operator's listener is its own
        at_hss.write_text(config.read_text("utf-8").replace(f":{ports['8080']}", f":{ports['HSS']}"), "utf-8")
        hss = stack.enter_context(serving(at_hss, state, "--role", "hss", "--role", "admin"))
        others = folder / "parts"
        others.symlink_to(state)
        roles = [word for role in ("pcscf", "icscf", "as", "admin") for word in ("--role", role)]
        parts = stack.enter_context(serving(config, others, *roles))
        kamailio = stack.enter_context(started(file, folder / "kamailio.log", shared))
        found = Network(folder, ports, parts, hss, config, ue, kamailio)
        log = state.with_suffix(".log")
        until(lambda: "peer=scscf1.home1.net" in log.read_text(), seconds=START_LIMIT, what="Kamailio is connected to the HSS")
        yield found
        assert found.alive(), found.kamailio_log.read_text("utf-8", "replace")[-4000:]


@contextmanager
def started(file: Path, log: Path, shared: int = 64) -> Iterator[subprocess.Popen[bytes]]:
    """Look at a configuration, and let a Kamailio run with it."""
    checked = subprocess.run(["kamailio", "-c", "-f", file], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()
    command = ["kamailio", "-DD", "-E", "-f", str(file), "-m", str(shared), "-M", "8", "-w", str(file.parent)]
    with log.open("wb") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _files(folder: Path, ports: dict[str, int]) -> tuple[Path, Path]:
    run = folder / "run"
    run.mkdir(mode=0o755)
    text = (EXAMPLES / "kamailio.toml").read_text("utf-8")
    text = text.replace("/run/keyferry/rspauth.sock", str(run / "r.sock")).replace('user = "kamailio"', f'user = "{os.geteuid()}"')
    ue = (EXAMPLES / "ue.toml").read_text("utf-8").replace('gm = "required"', 'gm = "off"')
    for old, new in ports.items():
        text, ue = text.replace(f":{old}", f":{new}"), ue.replace(f":{old}", f":{new}")
    files = folder / "kamailio.toml", folder / "ue.toml"
    for file, content in zip(files, (text, ue), strict=True):
        file.write_text(content, "utf-8")
    return files


@dataclass(frozen=True, slots=True)
class Run:
    """One AKA run, as the card and the HSS know it."""

    nonce: str
    rand: bytes
    ck: Secret
    ik: Secret
    res: Secret

    @property
    def k_m(self) -> Secret:
        """K_M."""
        return application_master_key(self.ck, self.ik, self.rand, IMPI)

    @property
    def k_as(self) -> Secret:
        """K_AS of the example's AS."""
        return as_key(self.k_m, AS_ID)

    @property
    def masked(self) -> tuple[str, str]:
        """CK', IK' in hexadecimal."""
        keys = access_keys(self.ck, self.ik, self.rand, IMPI)
        return keys.ck.reveal().hex(), keys.ik.reveal().hex()

    def secrets(self) -> list[tuple[str, bytes]]:
        """Return what may be nowhere: not in a log, and not on any wire but Cx."""
        ha1 = hash_a1("AKAv1-MD5", IMPI, REALM, self.res)
        k_ua = ua_key(self.k_as)
        return [
            ("CK", self.ck.reveal()), ("IK", self.ik.reveal()), ("XRES", self.res.reveal()), ("HA1", bytes.fromhex(ha1.reveal().decode())),
            ("K_M", self.k_m.reveal()), ("K_AS", self.k_as.reveal()), ("K_UA", k_ua.reveal()), ("password", digest_password(k_ua).reveal()),
        ]  # fmt: skip

    def access(self) -> list[tuple[str, bytes]]:
        """Return CK', IK', which are on the way to the P-CSCF and nowhere else."""
        return [(name, bytes.fromhex(key)) for name, key in zip(("CK'", "IK'"), self.masked, strict=True)]


def run_of(nonce: str, k: Secret = K, opc: Secret = OPC) -> Run:
    """Return the run of a nonce of the example's first subscriber, or of another card; its keys of our own are the first's."""
    rand = base64.b64decode(nonce)[:16]
    made = Milenage(k, opc).f2345(rand)
    return Run(nonce, rand, made.ck, made.ik, made.res)


class RawUe:
    """A UE and its P-CSCF in one, over UDP straight to the S-CSCF: every octet as the test wants it."""

    def __init__(self, port: int, impi: Impi = IMPI, impu: str = IMPU) -> None:
        self._impi, self._impu = impi, impu
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(10)
        self._to = ("127.0.0.1", port)
        self._port = self._socket.getsockname()[1]
        self._call_id, self._cseq = secrets.token_hex(8), 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def request(self, authorization: str, *, expires: int = 600, contact: str = "") -> str:
        """Return a REGISTER; the Contact states no release."""
        self._cseq += 1
        contact = contact or f"<sip:raw@127.0.0.1:{self._port}>"
        return (
            f"REGISTER sip:{REALM} SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:{self._port};branch=z9hG4bK{secrets.token_hex(8)}\r\n"
            f"Max-Forwards: 70\r\nFrom: <{self._impu}>;tag={secrets.token_hex(4)}\r\nTo: <{self._impu}>\r\nCall-ID: {self._call_id}\r\n"
            f"CSeq: {self._cseq} REGISTER\r\nContact: {contact}\r\nSupported: path\r\n"
            f"Expires: {expires}\r\n"
            f"Authorization: {authorization}\r\nContent-Length: 0\r\n\r\n"
        )

    def moved(self, request: str) -> str:
        """Return another UE's request in a transaction of this one's."""
        via = f"SIP/2.0/UDP 127.0.0.1:{self._port};branch=z9hG4bK{secrets.token_hex(8)}"
        return re.sub(r"SIP/2\.0/UDP 127\.0\.0\.1:\d+;branch=\w+", via, request, count=1)

    def send(self, request: str) -> str:
        """Send, and return the final response."""
        self._socket.sendto(request.encode(), self._to)
        while True:
            data = self._socket.recv(65535).decode()
            if not data.startswith("SIP/2.0 1"):
                return data

    def challenged(self, *, expires: int = 600, contact: str = "") -> str:
        """Send the first REGISTER; return the 401."""
        empty = f'Digest username="{self._impi}", realm="{REALM}", nonce="", uri="sip:{REALM}", response=""'
        return self.send(self.request(empty, expires=expires, contact=contact))

    def answer(self, run: Run, *, expires: int = 600, contact: str = "") -> str:
        """Return the REGISTER that answers a challenge."""
        ha1 = hash_a1("AKAv1-MD5", self._impi, REALM, run.res)
        cnonce, uri = secrets.token_hex(16), f"sip:{REALM}"
        response = respond("AKAv1-MD5", ha1, method="REGISTER", uri=uri, nonce=run.nonce, qop="auth", nc="00000001", cnonce=cnonce)
        credentials = Credentials(self._impi, REALM, run.nonce, uri, response, "AKAv1-MD5", cnonce, qop="auth", nc="00000001")
        return self.request(build_credentials(credentials), expires=expires, contact=contact)


def nonce_of(response: str) -> str:
    """Return the nonce of a 401."""
    found = re.search(r'^WWW-Authenticate: .*?nonce="([^"]+)"', response, re.MULTILINE)
    assert found, response
    return found[1]


def keys_of(response: str) -> tuple[str, str]:
    """Return ck and ik of a 401."""
    found = re.search(r'ck="([0-9a-f]{32})".*?ik="([0-9a-f]{32})"', response)
    assert found, response
    return found[1], found[2]
