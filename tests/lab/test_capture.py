# SPDX-License-Identifier: Apache-2.0
"""What `keyferry demo --capture` writes: frames of the SIP sockets as they were, and keys that open Gm, for nobody else to read."""

from __future__ import annotations

import stat
from ipaddress import ip_address
from pathlib import Path

import pytest

from keyferry.errors import ConfigError
from keyferry.lab.capture import MAX_PACKETS, Capture, Suite
from keyferry.lab.trace import trace_capture
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.esp import EspKeys, expand_keys
from keyferry.protocol.ims.gm_association import Endpoint, GmAssociations
from keyferry.protocol.ip_packet import parse_datagram
from keyferry.protocol.sip.message import Request
from keyferry.transports.esp_sas import EspSas, Outer
from transports.sipkit import FakeClock, Numbers

LOOPBACK = ip_address("127.0.0.1")
UE, PCSCF = Outer("127.0.0.1", 40_000), Outer("127.0.0.1", 14_500)
MESSAGE = Request("REGISTER", "sip:home1.net", (("Via", "SIP/2.0/UDP 127.0.0.1:1;branch=z9hG4bK1"), ("Call-ID", "one")), b"")


def keys(ealg: str = "aes-cbc") -> EspKeys:
    return expand_keys(Secret(b"c" * 16), Secret(b"i" * 16), alg="hmac-sha-1-96", ealg=ealg)


def pair(capture: Capture, ealg: str = "aes-cbc") -> tuple[EspSas, EspSas]:
    """A UE and a P-CSCF that agreed, both recorded."""
    clock = FakeClock()
    ue = EspSas(GmAssociations("ue"), clock, Numbers(), LOOPBACK, (40_002, 40_001), PCSCF, LOOPBACK, UE)
    pcscf = EspSas(GmAssociations("pcscf"), clock, Numbers(), LOOPBACK, (14_502, 14_501), bound=PCSCF)
    for sas in (ue, pcscf):
        capture.attach(sas)
    ends = Endpoint(LOOPBACK, 1_001, 1_002, *ue.ports), Endpoint(LOOPBACK, 2_001, 2_002, *pcscf.ports)
    for sas in (ue, pcscf):
        sas.begin("a", *ends, keys(ealg))
    return ue, pcscf


def event(transport: str, *, outgoing: bool = True, ports: tuple[int, int] = (5_060, 5_062), at: float = 1.0) -> SipEvent:
    local, peer = (SipPeer(transport, "127.0.0.1", port) for port in ports)
    return SipEvent(at, "P-CSCF", outgoing, local, peer, 1, MESSAGE, retransmission=False)


def test_a_sealed_packet_is_kept_between_the_outer_addresses_and_opens_on_the_other_side() -> None:
    capture = Capture(FakeClock(), keep=True)
    ue, pcscf = pair(capture)
    packet = ue.seal(ue.tunnel_of(1_002), b"REGISTER")
    datagram = parse_datagram(capture.packets[0][1])
    assert (datagram.source_port, datagram.target_port, datagram.payload) == (40_000, 14_500, packet)
    assert pcscf.open(packet, UE)[1].payload == b"REGISTER"
    assert len(packet) == ue.tunnel_of(1_002).wire_octets(len(b"REGISTER"))


@pytest.mark.parametrize("ealg", ["aes-cbc", "null"])
def test_the_profile_has_the_keys_of_all_four_sas_once_and_is_for_its_owner_alone(tmp_path: Path, ealg: str) -> None:
    capture = Capture(FakeClock(), keep=True)
    pair(capture, ealg)
    (tmp_path / "lab.pcap").write_bytes(b"old")
    (tmp_path / "lab.pcap").chmod(0o644)
    profile = capture.write(tmp_path / "lab.pcap")
    assert profile == tmp_path / "lab.wireshark"
    assert stat.S_IMODE(profile.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "lab.pcap", *profile.iterdir())} == {0o600}
    rows = [line.split(",") for line in (profile / "esp_sa").read_text().splitlines()]
    assert [row[3] for row in rows] == ['"0x000003e9"', '"0x000003ea"', '"0x000007d1"', '"0x000007d2"']
    assert {row[5] for row in rows} == {f'"0x{keys(ealg).encryption.reveal().hex()}"' if ealg == "aes-cbc" else '""'}
    assert {row[7] for row in rows} == {f'"0x{keys().integrity.reveal().hex()}"'}
    assert (profile / "decode_as_entries").read_text() == "decode_as_entry: udp.port,14500,(none),UDPENCAP\n"
    assert capture.suites == [Suite("hmac-sha-1-96", ealg)]


def test_messages_in_clear_are_read_again_by_our_own_reader(tmp_path: Path) -> None:
    """UDP as a datagram, TCP as segments whose numbers go on; what came in was seen where it went out."""
    capture = Capture(FakeClock(), keep=True)
    for one in (event("UDP"), event("UDP", outgoing=False), event("TCP", at=2.0), event("TCP", at=3.0), event("ESP"), event("TLS")):
        capture.observe(one)
    capture.observe(event("TCP", ports=(5_062, 5_060), at=4.0))
    capture.write(tmp_path / "lab.pcap")
    with (tmp_path / "lab.pcap").open("rb") as file:
        trace = trace_capture(file)
    assert (trace.frames, trace.messages, trace.unread) == (4, 4, {})


def test_nothing_is_kept_unless_asked_and_never_more_than_the_bound() -> None:
    capture = Capture(FakeClock(), keep=False)
    ue, _ = pair(capture)
    ue.seal(ue.tunnel_of(1_002), b"REGISTER")
    capture.observe(event("UDP"))
    assert (capture.packets, capture._keys, len(capture.suites)) == ([], {}, 1)
    capture.keep, capture.packets = True, [(0.0, b"")] * MAX_PACKETS
    capture.observe(event("UDP"))
    assert len(capture.packets) == MAX_PACKETS
    assert "packets" in repr(capture)
    assert "_keys" not in repr(capture)


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    capture = Capture(FakeClock(), keep=True)
    with pytest.raises(ConfigError, match="cannot be written"):
        capture.write(tmp_path / "no" / "lab.pcap")
    (tmp_path / "lab.wireshark").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        capture.write(tmp_path / "lab.pcap")
