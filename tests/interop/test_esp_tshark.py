# SPDX-License-Identifier: Apache-2.0
"""tshark, which shares no code with us, decrypts our ESP and finds its ICV right (RFC 4303, RFC 3948, TS 33.203 annex M)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from interop.peers import program
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.esp import KEEPALIVE, EspKeys, OutboundSa, expand_keys
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.keys import access_keys
from keyferry.protocol.ip_packet import InnerDatagram, IpAddress, build_datagram

pytestmark = pytest.mark.interop

CK, IK = Secret(bytes.fromhex("b40ba9a3c58b2a05bbf0d987b21bf8cb")), Secret(bytes.fromhex("f769bcd751044604127672711c6d3441"))
UE, PCSCF = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
REGISTER = b"REGISTER sip:home1.net SIP/2.0\r\nCall-ID: %d\r\nCSeq: %d REGISTER\r\nX: " + b"x" * 900 + b"\r\n\r\n"
SPI = 0x0A1B_2C3D
LIMIT = 60.0  # seconds
NAMES = {"aes-cbc": "AES-CBC [RFC3602]", "null": "NULL"}
FIELDS = (
    "esp.spi",
    "esp.sequence",
    "esp.icv_good",
    "ip.dst",
    "ipv6.dst",
    "udp.dstport",
    "udp.checksum.status",
    "sip.Call-ID",
    "sip.CSeq.seq",
)


def write_pcap(path: Path, payloads: Sequence[bytes]) -> None:
    """Write datagrams from port 4500 to port 4500 as frames of raw IP."""
    frames = [build_datagram(InnerDatagram(UE, 4_500, PCSCF, 4_500, payload)) for payload in payloads]
    records = [struct.pack("<IIII", at, 0, len(frame), len(frame)) + frame for at, frame in enumerate(frames)]
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101) + b"".join(records))


def decode(path: Path, keys: EspKeys, ealg: str, *arguments: str) -> list[list[str]]:
    """Return what tshark reads under `keys`."""
    cipher = f"0x{keys.encryption.reveal().hex()}" if len(keys.encryption) else ""
    mac = f"0x{keys.integrity.reveal().hex()}"
    association = f'"IPv4","{UE}","{PCSCF}","0x{SPI:08x}","{NAMES[ealg]}","{cipher}","HMAC-SHA-1-96 [RFC2404]","{mac}","32-bit"'
    command = [program("tshark"), "-r", str(path), "-T", "fields", "-E", "occurrence=l", "-d", "udp.port==5064,sip"]
    command += ["-o", "esp.enable_encryption_decode:TRUE", "-o", "esp.enable_authentication_check:TRUE", "-o", "ip.check_checksum:TRUE"]
    command += ["-o", "udp.check_checksum:TRUE", "-o", f"uat:esp_sa:{association}", *arguments]
    for name in FIELDS:
        command += ["-e", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def packets(keys: EspKeys, source: IpAddress, target: IpAddress) -> list[bytes]:
    """Return three REGISTERs of different lengths in ESP."""
    sa = OutboundSa(SPI, keys)
    bodies = [REGISTER % (10**number, number) for number in (1, 2, 3)]
    return [
        sa.seal_datagram(InnerDatagram(source, 40_001, target, 5_064, body), bytes([number]) * sa.iv_octets)
        for number, body in enumerate(bodies)
    ]


@pytest.mark.parametrize("ealg", ["aes-cbc", "null"])
@pytest.mark.parametrize(
    ("source", "target"), [(UE, PCSCF), (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"))], ids=["ipv4", "ipv6"]
)
def test_tshark_decrypts_our_tunnel_and_finds_the_icv_good(tmp_path: Path, ealg: str, source: IpAddress, target: IpAddress) -> None:
    """RFC 4303 §3.3, RFC 3948 §2.1; inner checksums right too."""
    keys = expand_keys(CK, IK, alg="hmac-sha-1-96", ealg=ealg)
    write_pcap(tmp_path / "esp.pcap", packets(keys, source, target))
    rows = decode(tmp_path / "esp.pcap", keys, ealg)
    assert len(rows) == 3
    for number, row in enumerate(rows, start=1):
        found = dict(zip(FIELDS, row, strict=True))
        assert found["esp.spi"] == f"0x{SPI:08x}"
        assert found["esp.sequence"] == str(number)
        assert found["esp.icv_good"] in {"1", "True"}
        assert found["ip.dst" if target.version == 4 else "ipv6.dst"] == str(target)
        assert found["udp.dstport"] == "5064"
        assert found["udp.checksum.status"] == "1"  # good
        assert (found["sip.Call-ID"], found["sip.CSeq.seq"]) == (str(10**number), str(number))


def test_with_the_raw_keys_tshark_finds_the_icv_of_the_masked_ones_bad(tmp_path: Path) -> None:
    """DESIGN §5: what CK', IK' protect, CK, IK do not open."""
    masked = access_keys(CK, IK, bytes(16), Impi("user1_private@home1.net"))
    keys = expand_keys(masked.ck, masked.ik, alg="hmac-sha-1-96", ealg="aes-cbc")
    write_pcap(tmp_path / "esp.pcap", packets(keys, UE, PCSCF))
    raw = expand_keys(CK, IK, alg="hmac-sha-1-96", ealg="aes-cbc")
    rows = decode(tmp_path / "esp.pcap", raw, "aes-cbc")
    assert len(rows) == 3
    for row in rows:
        found = dict(zip(FIELDS, row, strict=True))
        assert found["esp.icv_good"] not in {"1", "True"}
        assert found["sip.Call-ID"] == ""
    assert {row[2] for row in decode(tmp_path / "esp.pcap", keys, "aes-cbc")} <= {"1", "True"}


def test_tshark_knows_a_keep_alive(tmp_path: Path) -> None:
    """RFC 3948 §2.3."""
    write_pcap(tmp_path / "esp.pcap", [KEEPALIVE])
    done = subprocess.run([program("tshark"), "-r", str(tmp_path / "esp.pcap")], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "keepalive" in done.stdout.lower()
