# SPDX-License-Identifier: Apache-2.0
"""tshark, whose dissector shares no code with ours, reads every message that we render (RFC 6733, TS 29.229)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from interop.peers import program
from keyferry.protocol.diameter.message import render_message
from protocol.diameter.cxkit import RESYNCHRONISATION, VECTOR, every_message, requests

pytestmark = pytest.mark.interop

LIMIT = 60.0  # seconds
PORT = 3868
FIELDS = (
    "diameter.cmd.code",
    "diameter.flags.request",
    "diameter.applicationId",
    "diameter.3GPP-SIP-Authenticate",
    "diameter.3GPP-SIP-Authorization",
    "diameter.Confidentiality-Key",
    "diameter.Integrity-Key",
    "diameter.User-Name",
    "diameter.Public-Identity",
    "diameter.Server-Name",
)


def write_pcap(path: Path, payloads: Sequence[bytes]) -> None:
    """Write the messages as one direction of a TCP connection over raw IPv4; checksums are left 0, which tshark does not look at."""
    records, sequence = [], 1
    for at, payload in enumerate(payloads):
        tcp = struct.pack("!HHIIBBHHH", 40_000, PORT, sequence, 1, 5 << 4, 0x18, 65_535, 0, 0)
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), at, 0, 64, 6, 0, b"\x7f\0\0\1", b"\x7f\0\0\2")
        frame = ip + tcp + payload
        records.append(struct.pack("<IIII", at, 0, len(frame), len(frame)) + frame)
        sequence += len(payload)
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101) + b"".join(records))


def tshark(path: Path, *arguments: str) -> str:
    """Return what tshark prints of a capture."""
    command = [program("tshark"), "-r", str(path), "-d", f"tcp.port=={PORT},diameter", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", every_message())
def test_tshark_finds_nothing_malformed_and_knows_every_avp(tmp_path: Path, name: str) -> None:
    capture = tmp_path / "cx.pcap"
    write_pcap(capture, [render_message(every_message()[name])])
    shown = tshark(capture, "-V", "-Y", "diameter")
    assert "Diameter Protocol" in shown
    for complaint in ("alformed", "Unknown AVP", "Expert Info (Error", "Expert Info (Warning", "Data is empty", "Wrong"):
        assert complaint not in shown, shown


def test_tshark_reads_what_we_meant(tmp_path: Path) -> None:
    """Several messages behind each other in one stream."""
    capture = tmp_path / "cx.pcap"
    messages = every_message()
    write_pcap(capture, [render_message(messages[name]) for name in ("MAR", "MAA", "SAR")])
    arguments = ["-Y", "diameter", "-T", "fields", "-E", "occurrence=f"]
    for field in FIELDS:
        arguments += ["-e", field]
    mar, maa, sar = [dict(zip(FIELDS, line.split("\t"), strict=True)) for line in tshark(capture, *arguments).splitlines()]
    assert (mar["diameter.cmd.code"], mar["diameter.applicationId"]) == ("303", "16777216")
    assert mar["diameter.flags.request"] in {"1", "True"}
    assert mar["diameter.3GPP-SIP-Authorization"] == (RESYNCHRONISATION.rand + RESYNCHRONISATION.auts).hex()
    assert maa["diameter.3GPP-SIP-Authenticate"] == (VECTOR.rand + VECTOR.autn + b"3G\x06\x07").hex()
    assert maa["diameter.3GPP-SIP-Authorization"] == VECTOR.xres.reveal().hex()
    assert maa["diameter.Confidentiality-Key"] == VECTOR.ck.reveal().hex()
    assert maa["diameter.Integrity-Key"] == VECTOR.ik.reveal().hex()
    assert (sar["diameter.User-Name"], sar["diameter.Public-Identity"]) == ("user1_private@home1.net", "sip:user1_public1@home1.net")
    assert sar["diameter.Server-Name"] == "sip:scscf1.home1.net:6060"


def test_tshark_does_complain_of_what_is_wrong(tmp_path: Path) -> None:
    """Else the first test would say nothing."""
    octets = bytearray(render_message(requests()["LIR"]))
    octets[27] = 200  # the length of Session-Id
    write_pcap(tmp_path / "cx.pcap", [bytes(octets)])
    shown = tshark(tmp_path / "cx.pcap", "-V", "-Y", "diameter")
    assert any(complaint in shown for complaint in ("alformed", "Expert Info (Error", "Expert Info (Warning", "Unknown AVP"))
