# SPDX-License-Identifier: Apache-2.0
"""tshark decodes what our HSS, I-CSCF and S-CSCF say to each other; logs of the run hold no key (TS 29.229; docs/security.md).

Named exception: a capture of Cx without TLS holds CK, IK and XRES, as the specification has it. Here that is the proof that the
search finds what is there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interop.capturing import capturing
from interop.peers import program
from system.serving import Lab, free_port, make_lab, until
from system.test_diameter import over_tcp
from system.test_profiles import IMPI, PROFILES
from system.test_secrets import KEY_FILES, Recorded

pytestmark = pytest.mark.interop

LIMIT = 30.0  # seconds
COMMANDS = range(300, 306)
"""UAR, SAR, LIR, MAR, RTR, PPR."""


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """A folder that holds nothing but what the run writes."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_tshark_finds_nothing_malformed_and_a_search_of_all_that_was_written_no_key(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    # The P-CSCF's subscription to the registration state makes the I-CSCF ask for the location: LIR.
    lab = make_lab(folder, lambda text: text.replace("[icscf]", "reg_event = true\n\n[icscf]", 1) + PROFILES + over_tcp(port))
    admin = free_port()
    own = lab.serve.with_name("hss.toml")  # an admin listener of its own
    own.write_text(lab.serve.read_text().replace(f":{lab.ports['8080']}", f":{admin}"))
    recorded = Recorded(folder, tmp_path / "ledger")
    with capturing(tmp_path / "cx.pcapng", f"tcp port {port}") as file:
        with _serving(recorded, lab, own):
            common = ("--config", lab.ue, "--state", lab.state)
            recorded.run("ue", "register", *common)
            recorded.run("ue", "register", *common)
            _be_refused(recorded, lab)
            at_home = ("--admin", f"127.0.0.1:{admin}", "--state", lab.state.with_name("hss"))
            recorded.run("subscriber", "profile", IMPI, "basic", *at_home)
            recorded.run("ue", "deregister", *common)
            recorded.run("ue", "register", *common)
            recorded.run("subscriber", "terminate", IMPI, *at_home)
        until(lambda: len(_fields(port, file, "diameter.cmd.code == 282 && diameter.flags.request == 0", "frame.number")) >= 2,
              seconds=LIMIT, what="both connections have ended with a DPA")  # fmt: skip
        commands = _fields(port, file, "diameter", "diameter.cmd.code", "diameter.flags.request")
        seen = {
            (code, flag in {"1", "True"})
            for codes, flags in commands
            for code, flag in zip(codes.split(","), flags.split(","), strict=True)
        }
        assert {(str(code), asked) for code in COMMANDS for asked in (True, False)} <= seen
        assert _fields(port, file, "_ws.malformed || diameter.avp.invalid-data || diameter.avp.invalid-len", "frame.number") == []
        assert _fields(port, file, "diameter && _ws.expert.severity >= 0x00600000", "frame.number", "_ws.expert.message") == []
        unknown = _fields(port, file, "diameter.avp.unknown", "frame.number")
        assert unknown == []
    search = recorded.search()
    leave_out = KEY_FILES | {"hss.toml"} | {f"{state}/kek" for state in ("hss", "state-wrong")} | {"hss/user-ids"}
    leave_out |= {path.relative_to(folder).as_posix() for path in folder.glob("*/isc/*")}
    assert list(folder.glob("*.err")), "there are logs to search"
    assert search.in_files(folder, leave_out=leave_out) == []
    assert search.in_octets("the capture", file.read_bytes()), "CK and IK are in a capture of Cx without TLS"


@contextmanager
def _serving(recorded: Recorded, lab: Lab, own: Path) -> Iterator[None]:
    """Run the HSS and the others, with every key noted."""
    processes = []
    try:
        for file, state, roles in ((own, lab.state.with_name("hss"), ("--role", "hss", "--role", "admin")), (lab.serve, lab.state, ())):
            before = _ready(recorded.folder)
            processes.append(recorded.start("serve", "--config", file, "--state", state, "--log", "json", *roles))
            until(lambda: _ready(recorded.folder) > before, seconds=LIMIT, what="serve is ready")  # noqa: B023
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            assert process.wait(LIMIT) == 0


def _ready(folder: Path) -> int:
    return sum(b'"ready"' in path.read_bytes() for path in folder.glob("*-serve.out"))


def _be_refused(recorded: Recorded, lab: Lab) -> None:
    """Register as nobody, and with a wrong K, so that refusals are on the wire too."""
    text, wrong = lab.ue.read_text("utf-8"), lab.ue.with_name("wrong.toml")
    k = "465b5ce8b199b49faa5f0a2ee238a6bc"
    for old, new in (("user1_private", "nobody"), (k, k[::-1])):
        wrong.write_text(text.replace(old, new), "utf-8")
        recorded.fail("ue", "register", "--config", wrong, "--state", lab.state.with_name("state-wrong"), "--json")
    wrong.unlink()


def _fields(port: int, file: Path, where: str, *names: str) -> list[tuple[str, ...]]:
    """Return fields of the frames that a display filter selects."""
    command = [program("tshark"), "-r", str(file), "-d", f"tcp.port=={port},diameter", "-Y", where, "-T", "fields"]
    for name in names:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]
