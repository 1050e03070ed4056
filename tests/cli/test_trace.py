# SPDX-License-Identifier: Apache-2.0
"""`keyferry trace`."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from keyferry.cli.trace import LARGE
from lab.tracekit import IMPI, SECRETS, cx, cx_exchange, registration
from protocol.capture.capturekit import START, avp, diameter, pcap
from system.serving import environment, keyferry


@pytest.fixture(name="capture")
def capture_fixture(tmp_path: Path) -> Path:
    """A registration."""
    file = tmp_path / "lo.pcap"
    file.write_bytes(pcap(registration()))
    return file


def test_a_capture_is_explained(capture: Path) -> None:
    """Text, and one JSON object; --impi and --ports."""
    shown = keyferry("trace", capture)
    assert shown.returncode == 0, shown.stderr
    assert "REGISTER  key block for xcap.home1.net" in shown.stdout
    as_json = keyferry("trace", capture, "--impi", IMPI, "--ports", "5060, 5062", "--json")
    assert json.loads(as_json.stdout)["subscribers"][0]["impi"] == IMPI
    for secret in SECRETS:
        assert secret not in shown.stdout + as_json.stdout


def test_cx_of_a_capture_is_explained_without_its_keys(tmp_path: Path) -> None:
    """TS 29.229 §6.3: MAR and MAA with AUTS, a vector and a refusal; CK, IK and XRES by their length alone."""
    file = tmp_path / "cx.pcap"
    refusal = diameter(303, avp(297, avp(298, struct.pack(">I", 5002))), request=False, hop=1)
    asked = diameter(303, avp(1, IMPI.encode()))
    file.write_bytes(pcap([*registration(), *cx(START + 1, resync=True), *cx_exchange(START + 2, asked, refusal, first=2)]))
    shown = keyferry("trace", file)
    assert shown.returncode == 0, shown.stderr
    assert "MAR" in shown.stdout
    assert "RAND and AUTS: resynchronisation" in shown.stdout
    assert "Confidentiality-Key 16 octets" in shown.stdout
    assert "5002 IDENTITIES_DONT_MATCH, the IMPU is not one of this IMPI's." in shown.stdout
    as_json = keyferry("trace", file, "--json")
    for secret in (*SECRETS, "XRES-XRES"[:8]):
        assert secret not in shown.stdout + as_json.stdout


def test_a_capture_comes_from_standard_input_too(capture: Path) -> None:
    """tcpdump -w - | keyferry trace -."""
    command = [sys.executable, "-m", "keyferry", "trace", "-", "--json"]
    done = subprocess.run(command, input=capture.read_bytes(), capture_output=True, timeout=60, check=True, env=environment())
    assert json.loads(done.stdout)["messages"] == 14


def test_a_large_file_is_read_with_a_progress_bar_on_a_terminal_only(tmp_path: Path) -> None:
    """Standard output stays clean."""
    file = tmp_path / "large.pcap"
    frames = registration()
    file.write_bytes(pcap([*frames, *[(frames[0][0], bytes(200_000))] * (LARGE // 200_000 + 1)]))
    done = keyferry("trace", file, "--json")
    assert json.loads(done.stdout)["messages"] == 14
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "a file or --follow"),
        (("FILE", "--follow", IMPI), 2, "a file or --follow"),
        (("absent.pcap",), 2, "absent.pcap: cannot be read"),
        (("FILE", "--ports", "5060,x"), 2, "--ports: not port numbers"),
        (("FILE", "--ports", "70000"), 2, "--ports: not port numbers"),
        (("FILE", "--impi", "nobody"), 2, "IMPI"),
        (("FILE", "--impi", "nobody@home1.net"), 1, "no message of nobody@home1.net in 14"),
        (("TEXT",), 2, "neither pcap nor pcapng"),
        (("--follow", "nobody"), 2, "IMPI"),
        (("--follow", IMPI, "--admin", "127.0.0.1:1"), 1, "is `keyferry serve` running"),
    ],
)
def test_what_is_wrong_is_one_line_with_an_exit_code(arguments: tuple[str, ...], status: int, says: str, capture: Path) -> None:
    """2 usage, 1 failed."""
    text = capture.with_name("text")
    text.write_text("GET / HTTP/1.1\r\n")
    files = {"FILE": str(capture), "TEXT": str(text)}
    done = keyferry("trace", *(files.get(word, word) for word in arguments))
    assert (done.returncode, says in done.stderr) == (status, True), done.stderr
    assert "Traceback" not in done.stderr
