# SPDX-License-Identifier: Apache-2.0
"""`keyferry trace` on what dumpcap captured of a real run, against what tshark sees in the same file."""

from __future__ import annotations

import json
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from interop.peers import program
from system.serving import Lab, Served, in_clear, keyferry, make_lab, serving, ue, until

pytestmark = pytest.mark.interop

LIMIT = 30.0  # seconds
SIP = ("5060", "5062", "6060", "5090", "5091")


@pytest.fixture(name="lab")
def lab_in_clear_fixture(tmp_path: Path) -> Lab:
    """Gm in clear."""
    return make_lab(tmp_path, edit_ue=in_clear)


@pytest.mark.parametrize("device", ["lo", "any"])
def test_a_real_registration_is_explained(served: Served, lab: Lab, tmp_path: Path, device: str) -> None:
    """Two interfaces may see each packet: it is shown once."""
    file = tmp_path / "real.pcapng"
    with _capturing(lab, file, device):
        assert ue(lab, "register")["keys"]
        ue(lab, "deregister")
        _until_whole(lab, file, 32)
    found = _trace(file)
    (one,) = found["subscribers"]
    assert one["impi"] == "user1_private@home1.net"
    assert [step["what"] for step in one["ladder"]].count("401 Unauthorized") == 6
    assert {step["source"] for step in one["ladder"]} == {"UE", "P-CSCF", "I-CSCF", "S-CSCF", "AS xcap-as", "AS notes-as"}
    assert {step["phase"].split(",")[0] for step in one["ladder"]} == {"1. registration", "2. de-registration"}
    assert one["hints"] == []
    assert sum("key_block" in step for step in one["ladder"]) == 4
    assert _nonces(lab, file) == {step["challenge"]["nonce"] for step in one["ladder"] if "challenge" in step}
    assert served.health()["ok"]


def test_every_message_that_tshark_sees_over_udp_and_tcp_is_found(tmp_path: Path) -> None:
    """A push over 1,300 octets goes over TCP (RFC 3261 §18.1.1); pcap and pcapng, whole and cut to 200 octets a frame."""
    lab = make_lab(tmp_path, _with_a_long_push_and_no_probes, in_clear)
    file = tmp_path / "tcp.pcapng"
    with serving(lab.serve, lab.state), _capturing(lab, file, "lo"):
        ue(lab, "register")
        _until_whole(lab, file, 16)
    seen = len(_fields(lab, file, "sip", "frame.number"))
    found = _trace(file)
    assert found["messages"] == seen == 16
    (one,) = found["subscribers"]
    assert [step["transport"] for step in one["ladder"] if "key_block" in step] == ["TCP", "TCP"]
    assert one["hints"] == []
    old = tmp_path / "old.pcap"
    editcap = str(Path(program("dumpcap")).with_name("editcap"))  # of the same package
    subprocess.run([editcap, "-F", "nsecpcap", str(file), str(old)], check=True, timeout=LIMIT, capture_output=True)
    again = _trace(old)["subscribers"][0]["ladder"]
    assert [(step["frame"], step["what"]) for step in again] == [(step["frame"], step["what"]) for step in one["ladder"]]
    cut = tmp_path / "cut.pcapng"
    subprocess.run([editcap, "-s", "200", str(file), str(cut)], check=True, timeout=LIMIT, capture_output=True)
    assert any("tcpdump -s 0" in hint for hint in _trace(cut)["hints"])


def _with_a_long_push_and_no_probes(text: str) -> str:
    text = text.replace('app = "xcap" ', f'service_info = "{"x" * 400}"\napp = "xcap" ')
    return text.replace("\n[scscf]\n", "\n[scscf]\nas_probe = 0.0\n")


def _trace(file: Path) -> dict[str, Any]:
    done = keyferry("trace", file, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _nonces(lab: Lab, file: Path) -> set[str]:
    return {text.strip('"') for (text,) in _fields(lab, file, "sip.Status-Code == 401", "sip.auth.nonce")}


def _until_whole(lab: Lab, file: Path, count: int) -> None:
    until(lambda: len(set(_fields(lab, file, "sip", "sip.Via.branch", "sip.CSeq", "sip.Status-Code"))) >= count, seconds=LIMIT, what="SIP")


def _fields(lab: Lab, file: Path, where: str, *names: str) -> Sequence[tuple[str, ...]]:
    command = [program("tshark"), "-r", str(file), "-Y", where, "-T", "fields"]
    for port in SIP:
        command += ["-d", f"udp.port=={lab.ports[port]},sip", "-d", f"tcp.port=={lab.ports[port]},sip"]
    for name in names:
        command += ["-e", name]
    # A capture that is still being written may end in the middle of a frame; tshark says so and exits with 2.
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


@contextmanager
def _capturing(lab: Lab, file: Path, device: str) -> Iterator[None]:
    """Capture the lab's SIP, or skip without the right to."""
    ports = " or ".join(f"port {lab.ports[port]}" for port in SIP)
    command = [program("dumpcap"), "-i", device, "-f", ports, "-q", "-w", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stderr is not None
        said = b""
        while b"File:" not in said and select.select([process.stderr], [], [], LIMIT)[0]:
            line = process.stderr.read(4096)
            if not line:
                pytest.skip(f"no right to capture on {device}: {said.decode()[:200]}")
            said += line
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT)
