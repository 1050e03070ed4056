# SPDX-License-Identifier: Apache-2.0
"""Two I-CSCFs, Kamailio's and ours, each with a P-CSCF of ours, the first with one of Kamailio's, too; two S-CSCFs, Kamailio's and ours."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from interop.kamailio_kit import AS_ID, START_LIMIT, kamailio_python, started
from interop.peer_table import meet
from interop.peers import program
from keyferry.client.session import UeSession, ue_session
from keyferry.client.ue import http_credentials
from keyferry.config import UeConfig, load_ue_config
from keyferry.errors import RegistrationFailed
from keyferry.ports import UeState
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.selection import ranked
from keyferry.roles.icscf import ANSWER_WITHIN
from keyferry.wiring.observability import StructLog
from system.serving import EXAMPLES, Served, free_port, keyferry, serving, until

USERS = 16
OPC = "ab" * 16
KAMAILIO, OURS = "scscf1.home1.net", "scscf2.home1.net"
PATIENCE = 1.0  # seconds
WHOLE = 6.0  # seconds that Kamailio's I-CSCF has for all of a REGISTER here; as it is written, ANSWER_WITHIN


@dataclass(frozen=True, slots=True)
class Network:
    """What runs, and where its logs are."""

    folder: Path
    ports: dict[str, int]
    parts: Served
    hss: Served
    scscf: Served  # ours
    kamailios: dict[str, subprocess.Popen[bytes]]

    def log(self, name: str) -> Path:
        """Return everything that a Kamailio logged."""
        return self.folder / f"kamailio-{name}.log"

    def alive(self, name: str) -> bool:
        """Tell whether a Kamailio still runs, and no process of its has died."""
        return self.kamailios[name].poll() is None and "exited by a signal" not in self.log(name).read_text("utf-8", "replace")

    def server_uri(self, name: str) -> str:
        """Return the Server-Name of an S-CSCF."""
        return f"sip:{name}:{self.ports[name]}"

    def users_of(self, name: str) -> list[int]:
        """Return whom the HSS would have at this S-CSCF."""
        servers = [self.server_uri(KAMAILIO), self.server_uri(OURS)]
        return [number for number in range(USERS) if ranked(_impi(number), servers)[0] == self.server_uri(name)]

    def serving(self, number: int) -> str | None:
        """Return the S-CSCF that the HSS has for a user."""
        with closing(sqlite3.connect(f"file:{self.folder / 'state/hss.db'}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT server_name FROM subscriber WHERE impi = ?", (_impi(number),)).fetchone()[0]
        return str(found) if found else None

    def pushed(self) -> list[str]:
        """Return the fingerprints of the keys that the AS took."""
        found = re.findall(r"push-taken .*?keys=(\[[^\]]*\])", self.parts.log.read_text())
        return [key for one in found for key in re.findall(r"'([0-9a-f]{16})'", one)]

    def keys_at_as(self) -> int:
        """Return how many keys the AS holds."""
        return int(self.parts.health()["keys"][AS_ID])

    def ue(self, number: int, icscf: str, **more: object) -> UeConfig:
        """Return the configuration of a user's UE, at the P-CSCF before an I-CSCF; "all": at Kamailio's."""
        config = load_ue_config(self.folder / "ue.toml")
        own = {
            "impi": _impi(number), "impu": _impu(number), "k": Secret(_k(number)), "opc": Secret(bytes.fromhex(OPC)),
            "ca": str(self.parts.ca), "pcscf": f"127.0.0.1:{self.ports[f'pcscf-{icscf}']}",
        }  # fmt: skip
        return msgspec.structs.replace(config, ue=msgspec.structs.replace(config.ue, **(own | more)))

    @contextmanager
    def paused(self, process: Served) -> Iterator[None]:
        """Let a process be silent."""
        process.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.process.send_signal(signal.SIGCONT)


def _impi(number: int) -> Impi:
    return Impi(f"crowd{number}@home1.net")


def _impu(number: int) -> str:
    return f"sip:crowd{number}@home1.net"


def _k(number: int) -> bytes:
    return bytes.fromhex(f"{number + 1:032x}")


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Start everything, and end it; each Kamailio must end without a process that died."""
    program("kamailio")
    for role in ("I-CSCF", "P-CSCF"):
        meet(f"kamailio ({role})")
    python = kamailio_python()
    names = ("pcscf-kamailio", "pcscf-ours", "pcscf-all", "kamailio", "ours", KAMAILIO, OURS, "hss", "as", "https", "admin")
    ports = {name: free_port() for name in names}
    files, state, directory = _files(folder, ports), folder / "state", folder / "kamailio"
    common = ("--config", files["kamailio"], "--state", state, "--role", "scscf", "--role", "icscf")
    written = keyferry("kamailio", directory, *common, "--python", python, "--stderr", "--json")
    if written.returncode == 2 and "apt install" in written.stderr:
        pytest.skip(written.stderr)
    assert written.returncode == 0, written.stderr
    icscf = directory / "icscf.cfg"
    text = icscf.read_text("utf-8")
    left = f"$var(kf_left) = {ANSWER_WITHIN * 1000:.0f} - "
    assert text.count(left) == 1
    icscf.write_text(text.replace(left, f"$var(kf_left) = {WHOLE * 1000:.0f} - "), "utf-8")
    written = keyferry("kamailio", directory, "--config", files["pcscf"], "--role", "pcscf", "--stderr", "--json")
    assert written.returncode == 0, written.stderr
    with ExitStack() as stack:
        hss = stack.enter_context(serving(files["kamailio"], state, "--role", "hss"))
        for name in ("parts", "scscf"):
            (folder / name).symlink_to(state)
        parts = stack.enter_context(serving(files["kamailio"], folder / "parts", "--role", "pcscf", "--role", "as", "--role", "admin"))
        scscf = stack.enter_context(serving(files["scscf"], folder / "scscf", "--role", "scscf"))
        stack.enter_context(serving(files["ours"], folder / "ours", "--role", "pcscf", "--role", "icscf"))
        kamailios = {
            name: stack.enter_context(started(directory / f"{name}.cfg", folder / f"kamailio-{name}.log"))
            for name in ("scscf", "icscf", "pcscf")
        }
        found = Network(folder, ports, parts, hss, scscf, kamailios)
        for peer in (KAMAILIO, OURS, "icscf.home1.net", "icscf2.home1.net"):
            until(lambda: f"peer={peer}" in hss.log.read_text(), seconds=START_LIMIT, what=f"{peer} is connected to the HSS")  # noqa: B023
        yield found
        for name in kamailios:
            said = found.log(name).read_text("utf-8", "replace")
            assert found.alive(name), said[-4000:]
            assert not re.search(r"(?i)\b[ci]k *=|authorization: ", said), f"{name} logs messages with keys"


def _files(folder: Path, ports: dict[str, int]) -> dict[str, Path]:
    """Write one configuration for the HSS, the AS and the Kamailios, one for our S-CSCF and one for our I-CSCF, and the UE's."""
    run = folder / "run"
    run.mkdir(mode=0o755)
    text = (EXAMPLES / "kamailio.toml").read_text("utf-8")
    text = text.replace("/run/keyferry/rspauth.sock", str(run / "r.sock")).replace('user = "kamailio"', f'user = "{os.geteuid()}"')
    old = {"5060": "pcscf-kamailio", "5062": "kamailio", "6060": KAMAILIO, "8080": "admin", "5090": "as", "8443": "https", "3868": "hss"}
    for port, name in old.items():
        text = text.replace(f":{port}", f":{ports[name]}")
    text = text.replace("[icscf]", f"[icscf]\npatience = {PATIENCE}").replace("[pcscf]", "[pcscf]\nreg_event = true")
    hosts = {OURS: OURS, "icscf.home1.net": "kamailio"}
    text += "".join(f'"{host}" = "127.0.0.1:{ports[name]}"\n' for host, name in hosts.items())
    second = f'name = "{OURS}"\nlisten = "127.0.0.1:{ports[OURS]}"\n'
    crowd = "".join(
        f'[[subscribers]]\nimpi = "{_impi(number)}"\nimpus = ["{_impu(number)}"]\nk = "{_k(number).hex()}"\nopc = "{OPC}"\nrelease = 6\n'
        for number in range(USERS)
    )
    both = text.replace("[[application_servers]]", f"[[further_scscfs]]\n{second}{crowd}[[application_servers]]")
    own = re.sub(r"(?m)^\[scscf\][^\[]*", f"[scscf]\n{second}\n", text)
    ours = both.replace("[icscf]", '[icscf]\nname = "icscf2.home1.net"').replace("icscf.home1.net:", "icscf2.home1.net:")
    ours = ours.replace(f":{ports['kamailio']}", f":{ports['ours']}").replace(f":{ports['pcscf-kamailio']}", f":{ports['pcscf-ours']}")
    pcscf = both.replace(f":{ports['pcscf-kamailio']}", f":{ports['pcscf-all']}")
    ue = (EXAMPLES / "ue.toml").read_text("utf-8").replace('gm = "required"', 'gm = "off"')
    written = {}
    for name, content in {"kamailio": both, "scscf": own, "ours": ours, "pcscf": pcscf, "ue": ue}.items():
        written[name] = folder / f"{name}.toml"
        written[name].write_text(content, "utf-8")
    return written


async def registered(session: UeSession) -> UeState:
    """Register; one retry where Kamailio challenged once more, as ims_auth sends the 401 before it stores the vector."""
    try:
        return await session.client.register()
    except RegistrationFailed as problem:
        if problem.status != 401:
            raise
    return await session.client.register()


async def life(running: Network, config: UeConfig, state: Path, expected: Sequence[str]) -> list[str]:
    """Register, renew, use the key, leave; return the fingerprints of K_AS at the UE, each of which the AS has taken, too."""
    number = int(re.sub(r"\D", "", config.ue.impi.partition("@")[0]))
    found = []
    path = f"simservs.ngn.etsi.org/users/{config.ue.impu}/simservs.xml"
    async with ue_session(config, state, StructLog("none")) as session:
        for server in expected:
            one = await registered(session)
            assert one.rspauth
            assert one.masked
            assert running.serving(number) == running.server_uri(server)
            k_as = http_credentials(one, AS_ID).k_as.fingerprint()
            await asyncio.to_thread(until, lambda: k_as in running.pushed(), seconds=5, what="the AS has the UE's key")  # noqa: B023
            async with session.http(f"https://{AS_ID}:{running.ports['https']}/", base=True) as client:
                assert (await client.get(path)).status_code == 200
            found.append(k_as)
        await session.client.deregister()
    return found
