# SPDX-License-Identifier: Apache-2.0
"""`keyferry lab up` on real namespaces: a UE logs in over delay and loss, and what `lab down` leaves is nothing of the lab's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interop.ipseckit import needed, skipped
from interop.kamailio_kit import kamailio_python
from keyferry.lab.topology_record import MARK, marked
from system.serving import environment, until

pytestmark = pytest.mark.interop

LIMIT = 180.0  # seconds of `lab up`: seven processes start on a machine that may be busy
ID = f"t{os.getpid() % 1_000_000}"
CONNECT = """
import socket, sys, time
began = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2])), 20).close()
print(time.monotonic() - began)
"""


@pytest.fixture(name="labs", scope="module")
def labs_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return where labs are, on a machine that can have some, or skip; at the end none of ours may be there."""
    for program in ("ip", "tc"):
        needed(program)
    trial = f"kf-{ID}-trial"
    made = run("ip", "netns", "add", trial)
    if made.returncode:
        skipped(f"no network namespace can be made; be root ({made.stderr.strip()[:120]})")
    netem = run("tc", "-n", trial, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms").returncode == 0
    run("ip", "netns", "delete", trial)
    if not netem and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        skipped("no link can be delayed: the kernel has neither netem nor /dev/net/tun")
    labs = tmp_path_factory.mktemp("labs") / "labs"
    try:
        yield labs
    finally:
        done = keyferry("lab", "down", "--all", "--state", labs)
    assert done.returncode == 0, done.stderr
    assert not namespaces()
    assert not processes()


@pytest.fixture(name="lab", scope="module")
def lab_fixture(labs: Path) -> dict[str, Any]:
    """Return a lab that is up: 10, 8, 3 ms and 1 % each way."""
    return up(labs, f"{ID}a", "--delay", "access=10ms", "--delay", "interconnect=8ms", "--delay", "core=3ms", "--loss", "1%")


def run(*words: str | Path, limit: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=limit, check=False, env=environment())


def keyferry(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "keyferry", *words, limit=LIMIT)


def up(labs: Path, lab: str, *options: str) -> dict[str, Any]:
    done = keyferry("lab", "up", "--id", lab, "--state", labs, "--json", *options)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def namespaces() -> set[str]:
    """Return the namespaces of this test that are there."""
    return {line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines() if line.startswith(f"kf-{ID}")}


def processes() -> list[int]:
    """Return the processes of labs of this test that run."""
    mark = f"{MARK}={ID}".encode()
    found = []
    for each in Path("/proc").iterdir():
        try:
            words = (each / "environ").read_bytes().split(b"\0") if each.name.isdigit() else []
        except OSError:
            continue
        found += [int(each.name)] if any(word.startswith(mark) for word in words) else []
    return found


ISC_TABLE = "keyferry_isc_198.18.20.2_198.18.30.1"


def inside(lab: dict[str, Any], side: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return run("ip", "netns", "exec", f"kf-{lab['id']}-{side}", *words)


def ue(lab: dict[str, Any], *words: str) -> dict[str, Any]:
    name, *rest = words
    files = ("--config", f"{lab['directory']}/ue.toml", "--state", f"{lab['directory']}/state/ue", "--json")
    done = inside(lab, "ue", sys.executable, "-m", "keyferry", "ue", name, *files, *rest)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_it_ends_in_a_registered_ue_and_a_written_document(lab: dict[str, Any], labs: Path) -> None:
    """TS 24.229 §5.1.1, TS 24.623: each function is a process in its network's namespace; the key came over mutual TLS."""
    assert lab["ok"] is True
    assert lab["registration"]["rspauth"] == "verified"
    assert lab["registration"]["release"] == 6
    assert lab["pushes"] == {"stored": 1}
    assert lab["document"]["status"] in {200, 201}
    parts = {part["name"]: part for part in lab["parts"]}
    expected = {"hss": "home", "scscf": "home", "icscf": "home", "pcscf": "visited", "as": "as"}
    assert {name: parts[name]["namespace"] for name in expected} == {name: f"kf-{ID}a-{side}" for name, side in expected.items()}
    assert len({part["pid"] for part in parts.values()}) == len(parts)
    for name, side in expected.items():
        assert os.stat(f"/proc/{parts[name]['pid']}/ns/net").st_ino == os.stat(f"/run/netns/kf-{ID}a-{side}").st_ino
    assert ue(lab, "status")["keys"] is True
    document = ue(lab, "get", lab["document"]["url"].removeprefix("https://xcap.home1.net/"))
    assert document["body"] == Path(lab["directory"], "simservs.xml").read_text("utf-8")
    told = json.loads(keyferry("lab", "status", "--state", labs, "--json").stdout)
    assert told == lab


def test_packets_between_ue_and_as_take_the_time_of_three_links(lab: dict[str, Any]) -> None:
    """There and back over 10, 8 and 3 ms; a lost SYN takes a second more, so the shortest of some counts."""
    times = [float(inside(lab, "ue", sys.executable, "-I", "-c", CONNECT, "198.18.30.2", "8443").stdout) for _ in range(5)]
    assert 0.042 <= min(times) < 1.0, times


def test_packets_are_lost(lab: dict[str, Any]) -> None:
    """Each way 1 % on each of three links: of 2,000 datagrams there and back by far not all, and nearly all, come again."""
    lost = 2_000 - _echoed(lab, 2_000)
    assert 30 <= lost <= 300, lost


def _echoed(lab: dict[str, Any], count: int) -> int:
    """Return how many of so many datagrams to the AS's namespace and back have arrived."""
    echo = (
        "import socket\ns = socket.socket(2, 2)\ns.bind(('198.18.30.2', 9))\nprint('up', flush=True)\nwhile True: s.sendto(*s.recvfrom(99))"
    )
    send = (
        "import socket, time\ns = socket.socket(2, 2)\ns.setsockopt(1, 8, 1 << 22)\ns.settimeout(1)\n"
        f"for n in range({count}):\n  s.sendto(b'x', ('198.18.30.2', 9))\n  n % 20 or time.sleep(0.01)\n"
        "got = 0\ntry:\n  while True: got += len(s.recv(99))\nexcept TimeoutError: print(got)"
    )
    command = ["ip", "netns", "exec", f"kf-{lab['id']}-as", sys.executable, "-I", "-c", echo]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as echoing:
        try:
            assert echoing.stdout is not None
            assert echoing.stdout.readline() == b"up\n"
            return int(inside(lab, "ue", sys.executable, "-I", "-c", send).stdout)
        finally:
            echoing.kill()


def test_no_key_is_in_a_log_of_the_lab(lab: dict[str, Any]) -> None:
    """Neither K nor OPc, nor what the UE's state prints on demand."""
    status = ue(lab, "status", "--show-http-password", "xcap.home1.net")
    secrets = [
        line.split('"')[1] for line in Path(lab["directory"], "ue.toml").read_text().splitlines() if line.startswith(("k =", "opc ="))
    ]
    assert len(secrets) == 2
    for log in Path(lab["directory"], "log").iterdir():
        text = log.read_text("utf-8", "replace").lower()
        assert not [secret for secret in (*secrets, status["password"].lower()) if secret in text], log


def test_two_labs_at_once_and_each_is_ended_alone(lab: dict[str, Any], labs: Path) -> None:
    """A process of somebody else in a namespace of the lab is not the lab's to end; its namespace goes all the same."""
    other = up(labs, f"{ID}b", "--delay", "1ms", "--loss", "0")
    command = ["ip", "netns", "exec", f"kf-{other['id']}-home", shutil.which("sleep") or "sleep", "600"]
    with subprocess.Popen(command) as foreign:
        try:
            both = keyferry("lab", "down", "--state", labs)
            assert (both.returncode, "there are 2 labs" in both.stderr) == (1, True)
            done = keyferry("lab", "down", other["id"], "--state", labs, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["ended"] == [{"id": other["id"], "was": True, "processes": len(other["parts"]), "namespaces": 4}]
            assert foreign.poll() is None
        finally:
            foreign.kill()
    assert namespaces() == set(lab["namespaces"])
    assert sorted(processes()) == sorted(part["pid"] for part in lab["parts"])
    assert keyferry("lab", "status", lab["id"], "--state", labs).returncode == 0
    again = keyferry("lab", "down", other["id"], "--state", labs)
    assert (again.returncode, "was not there" in again.stdout) == (0, True)


def test_the_same_with_ipsec_between_scscf_and_as(labs: Path) -> None:
    """TS 33.210: charon says so to the policy; the rules would have dropped a packet in clear, and had none to drop."""
    for program in ("charon-systemd", "swanctl", "nft"):
        needed(program)
    made = up(labs, f"{ID}f", "--isc", "ipsec", "--delay", "5ms", "--loss", "1%")
    assert (made["isc"], made["pushes"], made["document"]["status"]) == ("ipsec", {"stored": 1}, 200)
    check = (sys.executable, "-m", "keyferry", "ipsec", "check", "--json", "--config", f"{made['directory']}/scscf.toml")
    found = json.loads(inside(made, "home", *check).stdout)
    assert found["ok"] is True, found
    rules = inside(made, "home", "nft", "list", "chain", "inet", ISC_TABLE, "to_peer").stdout
    assert "counter packets 0 " in rules, rules
    (device,) = json.loads(inside(made, "home", "ip", "-s", "-j", "link", "show", "dev", "ipsec0").stdout)
    assert device["stats64"]["tx"]["packets"] > 0  # into charon's tunnel
    assert keyferry("lab", "down", made["id"], "--state", labs).returncode == 0


def test_the_same_with_a_stock_kamailio_as_scscf_and_another_as_icscf(labs: Path) -> None:
    """DESIGN §10, over delay and loss: its script pushes the key through IPsec, the HSS gives rspauth."""
    for program in ("kamailio", "charon-systemd", "swanctl", "nft"):
        needed(program)
    made = up(labs, f"{ID}k", "--kamailio", "--kamailio-icscf", "--python", kamailio_python(), "--delay", "5ms", "--loss", "1%")
    assert (made["isc"], made["pushes"], made["document"]["status"]) == ("ipsec", {"stored": 1}, 200)
    assert made["registration"]["rspauth"] == "verified"
    names = {part["name"] for part in made["parts"]}
    assert {"kamailio", "kamailio-icscf"} <= names
    assert not {"scscf", "icscf"} & names
    rules = inside(made, "home", "nft", "list", "chain", "inet", ISC_TABLE, "to_peer").stdout
    assert "counter packets 0 " in rules, rules
    assert keyferry("lab", "down", made["id"], "--state", labs).returncode == 0
    assert not _of(made["id"])


def test_a_part_that_is_gone_is_told_by_status(labs: Path) -> None:
    made = up(labs, f"{ID}c", "--delay", "0", "--loss", "0")
    assert made["shaping"] == "none"
    victim = next(part for part in made["parts"] if part["name"] == "icscf")
    os.kill(victim["pid"], signal.SIGKILL)
    done = until(lambda: _not_ok(labs, made["id"]), seconds=20, what="status tells of the I-CSCF's end") or {}
    assert [part["name"] for part in done["parts"] if not part["alive"]] == ["icscf"]
    assert keyferry("lab", "down", made["id"], "--state", labs).returncode == 0


def test_the_commands_that_up_prints_at_its_end_work_from_anywhere(labs: Path, tmp_path: Path) -> None:
    """Of a lab that is not where labs are by default: be its UE, and end it."""
    done = keyferry("lab", "up", "--id", f"{ID}g", "--state", labs, "--delay", "0", "--loss", "0")
    assert done.returncode == 0, done.stderr
    status, down = (line.strip() for line in done.stdout.splitlines()[-2:])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line, says in ((status, "registered"), (down, f"lab {ID}g: ended")):
        did = subprocess.run(
            ["sh", "-c", line],
            cwd=tmp_path,
            env={**environment(), "PATH": path},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (did.returncode, says in did.stdout) == (0, True), (line, did.stdout, did.stderr)
    assert not _of(f"{ID}g")


def _not_ok(labs: Path, lab: str) -> dict[str, Any] | None:
    done = keyferry("lab", "status", lab, "--state", labs, "--json")
    told: dict[str, Any] = json.loads(done.stdout)
    return told if done.returncode == 1 and not told["ok"] else None


@contextmanager
def upping(labs: Path, lab: str, step: str) -> Iterator[subprocess.Popen[str]]:
    """Run `lab up` until it takes a step."""
    command = [sys.executable, "-m", "keyferry", "lab", "up", "--id", lab, "--state", str(labs), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            _read_until(process, step)
            yield process
        finally:
            process.kill()


def _read_until(process: subprocess.Popen[str], step: str) -> None:
    assert process.stderr is not None
    deadline = time.monotonic() + LIMIT
    for line in process.stderr:
        if step in line:
            return
        assert time.monotonic() < deadline
    raise AssertionError(f"it ended with {process.wait(10)} before {step!r}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_signal_ends_what_was_made_so_far(labs: Path, number: signal.Signals, code: int) -> None:
    name = f"{ID}d"
    with upping(labs, name, "starting scscf") as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "ending what was made" in said
    assert "Traceback" not in said
    assert not _of(name)
    assert not (labs / name).exists()


def test_what_a_kill_leaves_is_ended_by_down(labs: Path) -> None:
    """A power cut would leave less."""
    name = f"{ID}e"
    with upping(labs, name, "starting scscf") as process:
        process.kill()
        process.wait(10)
    assert _of(name)
    assert keyferry("lab", "down", name, "--state", labs).returncode == 0
    assert not _of(name)
    assert not (labs / name).exists()


def _of(name: str) -> Sequence[object]:
    """Return the namespaces and processes of one lab."""
    there = [each for each in namespaces() if each.startswith(f"kf-{name}-")]
    record = [each for each in processes() if f"{MARK}={name}-".encode() in Path(f"/proc/{each}/environ").read_bytes()]
    return [*there, *record]


def test_the_mark_is_what_tells_a_labs_process(lab: dict[str, Any]) -> None:
    """And not its id alone."""
    token = json.loads(Path(lab["directory"], "lab.json").read_text())["token"]
    assert all(marked(part["pid"], token) for part in lab["parts"])
    assert not marked(os.getpid(), token)
    assert Path(lab["directory"], "lab.json").stat().st_mode & 0o777 == 0o600
