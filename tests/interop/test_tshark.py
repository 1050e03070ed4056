# SPDX-License-Identifier: Apache-2.0
"""tshark decodes what is on the wire, and a script without keyferry opens the seal (DESIGN §4, §6)."""

from __future__ import annotations

import base64
import html
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interop.capturing import capturing
from interop.peers import program
from system.serving import Lab, Served, in_clear, make_lab, serving, ue, until

pytestmark = pytest.mark.interop

OPEN_SEAL = Path(__file__).parent / "open_seal.py"
LIMIT = 30.0  # seconds
SIP = ("5060", "5062", "6060", "5090", "5091")
SERVERS = ("xcap.home1.net", "notes.home1.net")


@pytest.fixture(name="lab")
def lab_in_clear_fixture(tmp_path: Path) -> Lab:
    """Gm in clear; what tshark makes of a protected one is in test_esp_tshark.py."""
    return make_lab(tmp_path, edit_ue=in_clear)


@pytest.fixture(name="capture")
def capture_fixture(served: Served, lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """Capture one registration with keys."""
    del served
    with capturing(tmp_path / "lo.pcapng", _sip(lab)) as file:
        registered = ue(lab, "register")
        assert registered["keys"]
        _complete(lab, file)
        yield file


def test_tshark_reads_the_release_marker_in_the_challenge(lab: Lab, capture: Path) -> None:
    """RFC 3310 §3.2: base64(RAND, AUTN, server-specific data); ours is 3347, release, flags (DESIGN §4)."""
    nonces = {text for (text,) in _fields(lab, capture, "sip.Status-Code == 401", "sip.auth.nonce")}
    assert len(nonces) == 1  # unchanged from S-CSCF to UE
    decoded = base64.b64decode(nonces.pop().strip('"'), validate=True)
    assert len(decoded) == 36
    assert decoded[32:].hex() == "33470607"


def test_tshark_sees_no_access_keys_towards_the_ue(lab: Lab, capture: Path) -> None:
    """TS 33.203 §6.1: the P-CSCF takes ck and ik out."""
    gm = f"udp.srcport == {lab.ports['5060']} && !(udp.dstport == {lab.ports['5062']})"
    challenges = _fields(lab, capture, f"sip.Status-Code == 401 && {gm}", "sip.auth")
    assert len(challenges) == 1
    assert "ck=" not in challenges[0][0]
    assert "ik=" not in challenges[0][0]
    inside = _fields(lab, capture, f"sip.Status-Code == 401 && udp.dstport == {lab.ports['5062']}", "sip.auth")
    assert "ck=" in inside[0][0]


@pytest.mark.parametrize("as_id", SERVERS)
def test_the_seal_opens_without_keyferry_and_holds_the_key_of_the_ue(lab: Lab, capture: Path, as_id: str) -> None:
    """DESIGN §6: AES-256-SIV under the transport key of S-CSCF and AS; the key is the one that the UE derived."""
    sealed = _sealed(lab, capture, as_id)
    shown = ue(lab, "status", "--show-http-password", as_id)
    assert _open(lab, as_id, sealed) == [shown["fingerprint"]]


def test_the_seal_of_one_server_does_not_open_with_the_key_of_another(lab: Lab, capture: Path) -> None:
    """DESIGN §6, S4: one transport key per S-CSCF and AS."""
    sealed = _sealed(lab, capture, SERVERS[0])
    with pytest.raises(subprocess.CalledProcessError):
        _open(lab, SERVERS[1], sealed)


def test_tshark_sees_a_large_push_over_tcp(tmp_path: Path) -> None:
    """RFC 3261 §18.1.1: over 1,300 octets, a congestion-controlled transport."""
    info = "x" * 400
    lab = make_lab(tmp_path, lambda text: text.replace('app = "xcap" ', f'service_info = "{info}"\napp = "xcap" '), in_clear)
    with serving(lab.serve, lab.state), capturing(tmp_path / "lo.pcapng", _sip(lab)) as file:
        ue(lab, "register")
        _complete(lab, file)
        ports = {host: port for host, port in _fields(lab, file, 'sip.Method == "REGISTER" && xml', "sip.r-uri.host", "tcp.dstport")}
        assert ports == {"xcap-as.home1.net": str(lab.ports["5090"]), "notes-as.home1.net": str(lab.ports["5091"])}
        sealed = _sealed(lab, file, SERVERS[0])
        assert _open(lab, SERVERS[0], sealed) == [ue(lab, "status", "--show-http-password", SERVERS[0])["fingerprint"]]


def _open(lab: Lab, as_id: str, sealed: str) -> list[str]:
    key_file = lab.state / "isc" / f"scscf1.home1.net--{as_id}"
    command = [sys.executable, "-I", str(OPEN_SEAL), str(key_file)]
    done = subprocess.run(command, input=sealed, capture_output=True, text=True, timeout=LIMIT, check=True)
    return done.stdout.split()


def _sealed(lab: Lab, file: Path, as_id: str) -> str:
    """Return the text of <service-info>, read from the XML that tshark dissects."""
    found = [
        html.unescape(text)
        for kind, text in _fields(lab, file, 'sip.Method == "REGISTER" && xml', "sip.Content-Type", "xml.cdata")
        if kind == "application/3gpp-ims+xml" and f'as="{as_id}"' in html.unescape(text)
    ]
    assert len(found) == 1
    return found[0]


def _sip(lab: Lab) -> str:
    """Select the lab's own messages: others may be busy on the interface."""
    return " or ".join(f"port {lab.ports[port]}" for port in SIP)


def _complete(lab: Lab, file: Path) -> None:
    """Wait until the file holds both pushes and the 200 that reached the UE."""
    pushes = 'sip.Method == "REGISTER" && xml'
    ok = f"sip.Status-Code == 200 && udp.srcport == {lab.ports['5060']}"
    until(
        lambda: len(_fields(lab, file, pushes, "frame.number")) == 2 and _fields(lab, file, ok, "frame.number"),
        seconds=LIMIT,
        what="a whole registration in the capture",
    )


def _fields(lab: Lab, file: Path, where: str, *names: str) -> list[tuple[str, ...]]:
    """Return fields of the frames that a display filter selects; the ports of the lab are SIP ports."""
    command = [program("tshark"), "-r", str(file), "-Y", where, "-T", "fields"]
    for port in SIP:
        command += ["-d", f"udp.port=={lab.ports[port]},sip", "-d", f"tcp.port=={lab.ports[port]},sip"]
    for name in names:
        command += ["-e", name]
    # A capture that is still being written may end in the middle of a frame; tshark says so and exits with 2.
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]
