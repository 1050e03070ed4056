# SPDX-License-Identifier: Apache-2.0
"""No key in anything we write: state, logs, output, captures (docs/security.md).

Every key that any process makes a Secret of is recorded, and keys are recomputed from the challenges on the wire. Then every
file is searched for each of them. Named exceptions: the key-encryption key and the transport keys in the files made for them,
the configuration that the operator wrote, ck and ik in the 401 of a Release 5 registration between S-CSCF and P-CSCF.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from keyferry.client.ue import Isim, open_ue
from keyferry.config import Subscriber
from keyferry.lab.demo import demo_config
from keyferry.ports import SipEvent, SipPeer, UeState
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import hash_a1, parse_aka_nonce, parse_challenge
from keyferry.protocol.identity import parse_impi, parse_impu
from keyferry.protocol.ims.keys import application_master_key, as_key, digest_password, digest_realm, key_id, ua_key
from keyferry.protocol.sip.message import Response, build_message
from keyferry.roles.ue import UeProfile
from keyferry.stores.memory import MemoryUeStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.system import System
from system.key_search import KeySearch
from system.serving import EVENT_LIMIT, EXAMPLES, Lab, environment, make_lab, until

RECORDING = Path(__file__).with_name("recording.py")
KEY_FILES = frozenset({"state/kek", "state/user-ids", "lab.toml", "ue.toml"})
DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"


class Recorded:
    """Run commands of keyferry with a ledger of their keys, their output kept in the folder that is searched."""

    def __init__(self, folder: Path, ledger: Path) -> None:
        self.folder = folder
        self.ledger = ledger
        self._count = 0

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start a command."""
        self._count += 1
        out = self.folder / f"{self._count}-{arguments[0]}.out"
        command = [sys.executable, str(RECORDING), str(self.ledger), *(str(argument) for argument in arguments)]
        with out.open("wb") as stdout, out.with_suffix(".err").open("wb") as stderr:
            return subprocess.Popen(command, stdout=stdout, stderr=stderr, env={**environment(), "TMPDIR": str(self.folder)})

    def run(self, *arguments: str | Path) -> None:
        """Run a command, which must succeed."""
        assert self.start(*arguments).wait(60) == 0, arguments

    def fail(self, *arguments: str | Path) -> None:
        """Run a command, which must fail."""
        assert self.start(*arguments).wait(60) == 1, arguments

    def search(self) -> KeySearch:
        """Return a search for every key that was recorded."""
        keys = {bytes.fromhex(line) for line in self.ledger.read_text().split()}
        return KeySearch(("a recorded key", key) for key in keys)


@pytest.fixture(name="folder")
def folder_fixture() -> Iterator[Path]:
    """A folder that holds nothing but what the test makes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("form", [bytes, lambda key: key.hex().encode(), lambda key: __import__("base64").b64encode(b"x" + key + b"yz")])
def test_the_search_finds_a_planted_key(folder: Path, form: object) -> None:
    key = bytes(range(100, 116))
    (folder / "deep").mkdir()
    (folder / "deep" / "planted").write_bytes(b"before" + form(key) + b"after")  # type: ignore[operator]
    search = KeySearch([("K", key)])
    assert search.in_files(folder) == ["deep/planted: K"]
    assert search.in_files(folder, leave_out=frozenset({"deep/planted"})) == []
    assert KeySearch([("K", key[::-1])]).in_files(folder) == []


def test_demo_serve_and_ue_write_no_key(folder: Path, tmp_path: Path) -> None:
    lab: Lab = make_lab(folder)
    recorded = Recorded(folder, tmp_path / "ledger")
    recorded.run("demo")
    recorded.run("demo", "--json", "--names", "3gpp")
    common = ("--config", lab.ue, "--state", lab.state)
    server = recorded.start("serve", "--config", lab.serve, "--state", lab.state, "--log", "json")
    try:
        until(lambda: any(b"ready" in path.read_bytes() for path in folder.glob("*-serve.out")), seconds=EVENT_LIMIT, what="serve is ready")
        recorded.run("ue", "register", *common)
        recorded.run("ue", "put", *common, DOCUMENT, EXAMPLES / "simservs.xml")
        recorded.run("ue", "get", *common, DOCUMENT)
        recorded.run("ue", "register", *common)
        recorded.run("ue", "status", *common, "--json")
        recorded.run("subscriber", "show", "user1_private@home1.net", "--state", lab.state)
        _fail_in_every_way(recorded, lab)
        _search_finds_nothing(recorded, folder)  # while it serves: the write-ahead logs are searched too
        recorded.run("ue", "deregister", *common)
        assert f"Max core file size        {0:<20} 0" in Path(f"/proc/{server.pid}/limits").read_text()
    finally:
        server.terminate()
        assert server.wait(30) == 0
    recorded.run("keys", "rotate", "--state", lab.state)
    _search_finds_nothing(recorded, folder)
    ledger = recorded.ledger.read_text().split()
    assert "465b5ce8b199b49faa5f0a2ee238a6bc" in ledger  # K of the first subscriber: the ledger works
    assert len(set(ledger)) > 60


def _fail_in_every_way(recorded: Recorded, lab: Lab) -> None:
    """Let registrations fail, so that their causes are looked for, and look at what is told of them."""
    text = lab.ue.read_text("utf-8")
    k, opc = "465b5ce8b199b49faa5f0a2ee238a6bc", "cd63cb71954a9f4e48a5994e37a02baf"
    for old, new in ((k, k[::-1]), (f'opc = "{opc}"', f'op = "{opc}"'), ("user1_private", "nobody")):
        other = lab.ue.with_name("wrong.toml")
        other.write_text(text.replace(old, new), "utf-8")
        recorded.fail("ue", "register", "--config", other, "--state", lab.state.with_name("state-wrong"), "--json")
        other.unlink()
    admin = f"127.0.0.1:{lab.ports['8080']}"
    recorded.run("failures", "--admin", admin)
    recorded.run("failures", "--admin", admin, "--impi", "user1_private@home1.net", "--json")


def _search_finds_nothing(recorded: Recorded, folder: Path) -> None:
    search = recorded.search()
    leave_out = KEY_FILES | {"state-wrong/kek"} | {path.relative_to(folder).as_posix() for path in (folder / "state" / "isc").glob("*")}
    assert len(list(folder.rglob("*.db"))) >= 4
    assert search.in_files(folder, leave_out=leave_out) == []
    kept = search.in_files(folder)
    assert any("state/kek" in line for line in kept)  # where keys may lie, they are found


@pytest.mark.parametrize("release", [6, None])
async def test_the_wire_holds_no_key_but_those_for_the_pcscf(folder: Path, release: int | None) -> None:
    """DESIGN §5, invariant S3: a capture of Gm, Mw and ISC in clear, searched for keys recomputed from K, OPc and RAND."""
    events: list[SipEvent] = []
    k, opc = Secret(os.urandom(16)), Secret(os.urandom(16))
    settings = Subscriber(impi="a@home1.net", impus=["sip:a@home1.net"], k=k, opc=opc)
    random, clock, log = SystemRandom(), SystemClock(), StructLog("none")
    async with AsyncExitStack() as stack:
        state = stack.enter_context(open_state(folder / "state", random=random))
        system = System(demo_config("short", [settings]), state, clock, random, log, Metrics(), observer=events.append)
        stack.push_async_callback(system.stop)
        pcscf = next(one for one in await system.start() if (one.role, one.proto) == ("pcscf", "udp"))
        profile = UeProfile(parse_impi("a@home1.net"), parse_impu("sip:a@home1.net"), "home1.net", release=release)
        opened = open_ue(
            profile, Isim("milenage", k, opc), pcscf=SipPeer("UDP", pcscf.host, pcscf.port), store=MemoryUeStore(), clock=clock,
            random=random, log=log, observer=events.append,
        )  # fmt: skip
        client = await stack.enter_async_context(opened)
        registered = await client.register()
        assert registered.masked is (release == 6)
        await client.deregister()
        challenges = [event for event in events if isinstance(event.message, Response) and event.message.status == 401]
        assert len(challenges) >= 12  # two runs, three hops, seen at both ends
        search = KeySearch(_keys_of(profile, k, opc, registered, challenges))
        found = {name for event in events for name in search.in_octets(_hop(event), build_message(event.message))}
        assert found == _allowed(release)
        assert search.in_files(folder) == []


def _allowed(release: int | None) -> set[str]:
    """CK and IK of a raw vector, on the two hops from the S-CSCF to the P-CSCF; nothing at all for a masked one."""
    if release is not None:
        return set()
    hops = ("S-CSCF sends", "I-CSCF gets", "I-CSCF sends", "P-CSCF gets")
    return {f"{hop} 401: {name}" for hop in hops for name in ("CK", "IK")}


def _hop(event: SipEvent) -> str:
    status = event.message.status if isinstance(event.message, Response) else event.message.method
    return f"{event.node} {'sends' if event.outgoing else 'gets'} {status}"


def _keys_of(profile: UeProfile, k: Secret, opc: Secret, state: UeState, challenges: list[SipEvent]) -> Iterator[tuple[str, bytes]]:
    """Recompute every key of every challenge on the wire, whether or not anybody used it."""
    yield "K", k.reveal()
    yield "OPc", opc.reveal()
    for nonce in {parse_challenge(event.message.get("WWW-Authenticate") or "").nonce for event in challenges}:
        rand = parse_aka_nonce(nonce).rand
        f2345 = Milenage(k, opc).f2345(rand)
        k_m = application_master_key(f2345.ck, f2345.ik, rand, profile.impi)
        yield from (("CK", f2345.ck.reveal()), ("IK", f2345.ik.reveal()), ("XRES", f2345.res.reveal()), ("K_M", k_m.reveal()))
        yield "HA1", hash_a1("AKAv1-MD5", profile.impi, state.realm, f2345.res).reveal()
        for as_id in ("xcap.home1.net", "notes.home1.net"):
            k_as = as_key(k_m, as_id)  # type: ignore[arg-type]
            k_ua = ua_key(k_as)
            password = digest_password(k_ua)
            ha1 = hash_a1("SHA-256", key_id(k_as, state.realm), digest_realm(as_id), password)  # type: ignore[arg-type]
            yield from (("K_AS", k_as.reveal()), ("K_UA", k_ua.reveal()), ("password", password.reveal()), ("HA1", ha1.reveal()))


def test_show_json_of_status_has_no_password_unless_asked(lab: Lab) -> None:
    """`ue status` without the option that is there to print it."""
    done = subprocess.run(
        [sys.executable, "-m", "keyferry", "ue", "status", "--config", str(lab.ue), "--state", str(lab.state), "--json"],
        capture_output=True, text=True, check=False, env=environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
