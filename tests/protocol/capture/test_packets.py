# SPDX-License-Identifier: Apache-2.0
"""Frames to payloads: link layers, IP, tunnels, transports."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.capture.packets import MAX_DEPTH, Endpoint, PacketDecoder, Payload, decode
from keyferry.protocol.capture.pcap import Record
from protocol.capture.capturekit import PCSCF, START, UE, ethernet, fragments, ip, tcp, tcp_header, udp, udp_header

UE6, PCSCF6 = Endpoint("2001:db8::1", 40_000), Endpoint("2001:db8::2", 5060)
DATA = b"REGISTER sip:home1.net SIP/2.0\r\n"
PACKET = udp(UE, PCSCF, DATA)
PACKET6 = udp(UE6, PCSCF6, DATA)


def records(*frames: bytes, link: int = 1) -> list[Record]:
    return [Record(number, START, link, frame, len(frame)) for number, frame in enumerate(frames, 1)]


def only(*frames: bytes, link: int = 1) -> Payload:
    (found,) = decode(records(*frames, link=link))
    return found


def unread(*frames: bytes, link: int = 1) -> dict[str, int]:
    decoder = PacketDecoder()
    for record in records(*frames, link=link):
        assert decoder.feed(record) == []
    return dict(decoder.unread + decoder.lost)


@pytest.mark.parametrize(
    ("link", "frame"),
    [
        (1, ethernet(PACKET)),
        (1, ethernet(PACKET, tags=1)),
        (1, ethernet(PACKET, tags=2)),
        (1, ethernet(PACKET) + bytes(12)),
        (113, bytes(14) + b"\x08\x00" + PACKET),
        (113, bytes(14) + b"\x81\x00\x00\x05\x08\x00" + PACKET),
        (276, b"\x08\x00" + bytes(18) + PACKET),
        (276, b"\x81\x00" + bytes(18) + b"\x00\x05\x08\x00" + PACKET),
        (0, b"\x02\0\0\0" + PACKET),
        (0, b"\0\0\0\x02" + PACKET),
        (108, b"\0\0\0\x02" + PACKET),
        (12, PACKET),
        (101, PACKET),
        (228, PACKET),
    ],
)
def test_ip_is_found_behind_each_link_layer(link: int, frame: bytes) -> None:
    """LINKTYPE_ETHERNET, _LINUX_SLL, _LINUX_SLL2, _NULL, _LOOP, _RAW, _IPV4."""
    assert only(frame, link=link) == Payload(1, START, "UDP", UE, PCSCF, DATA)


@pytest.mark.parametrize("frame", [(1, ethernet(PACKET6)), (0, b"\x1e\0\0\0" + PACKET6), (0, b"\0\0\0\x0a" + PACKET6), (229, PACKET6)])
def test_ipv6_is_found_too(frame: tuple[int, bytes]) -> None:
    """RFC 8200."""
    found = only(frame[1], link=frame[0])
    assert (found.source, found.target, found.data) == (UE6, PCSCF6, DATA)
    assert str(found.target) == "[2001:db8::2]:5060"
    assert str(PCSCF) == "10.0.0.2:5060"


def test_ipv6_extension_headers_are_passed_over() -> None:
    """RFC 8200 §4; RFC 4302."""
    datagram = udp_header(1, 2, DATA)
    chain = b"\x3c\0" + bytes(6) + b"\x2b\0" + bytes(6) + b"\x33\x01" + bytes(14) + b"\x11\x02" + bytes(14) + datagram
    assert only(ethernet(ip(UE6.host, PCSCF6.host, 0, chain))).data == DATA
    endless = b"\0\0" + bytes(6)
    assert unread(ethernet(ip(UE6.host, PCSCF6.host, 0, endless * 20))) == {"IP not readable": 1}
    assert unread(ethernet(ip(UE6.host, PCSCF6.host, 0, b"\x11\0\0"))) == {"IP not readable": 1}


def test_fragments_of_both_versions_are_put_together() -> None:
    """RFC 791 §3.2; RFC 8200 §4.5; RFC 6946."""
    large = udp(UE, PCSCF, DATA * 60)
    assert only(*map(ethernet, reversed(fragments(large, 800)))).data == DATA * 60
    datagram = udp_header(1, 2, DATA)
    first, last = (
        ip(UE6.host, PCSCF6.host, 44, b"\x11\0" + struct.pack(">HI", offset | more, 5) + data)
        for offset, more, data in ((0, 1, datagram[:16]), (16, 0, datagram[16:]))
    )
    assert only(ethernet(last), ethernet(first)).data == DATA
    assert only(ethernet(ip(UE6.host, PCSCF6.host, 44, b"\x11\0\0\0\0\0\0\5" + datagram))).data == DATA
    assert unread(ethernet(first)) == {"datagrams with a fragment missing": 1}
    cut = Record(1, START, 1, ethernet(fragments(large, 800)[0])[:100], 834)
    decoder = PacketDecoder()
    assert decoder.feed(cut) == []
    assert decoder.unread == {"cut by the capture": 1}


def test_a_gtp_tunnel_is_opened() -> None:
    """TS 29.281 §5.1, with sequence number and extension header."""
    ends = Endpoint("192.0.2.1", 2152), Endpoint("192.0.2.2", 2152)
    plain = b"\x30\xff" + struct.pack(">HI", len(PACKET), 7) + PACKET
    extended = b"\x34\xff" + struct.pack(">HI", len(PACKET) + 8, 7) + b"\0\0\0\x85" + b"\x01\x10\x09\0" + PACKET
    for gtp in (plain, extended):
        assert only(ethernet(udp(*ends, gtp)))[3:6] == (UE, PCSCF, DATA)
    echo = only(ethernet(udp(*ends, b"\x32\x01\0\x04" + bytes(8))))
    assert echo.source == ends[0]
    assert only(ethernet(udp(*ends, b"\x30\xff\0\x04\0\0\0\7\xff"))).target == ends[1]
    assert only(ethernet(udp(*ends, b"\x34\xff\0\x04\0\0\0\7\0\0\0\x85\xff"))).target == ends[1]


def esp(protocol: int, data: bytes, *, icv: int = 12) -> bytes:
    """ESP whose encryption is NULL."""
    padding = bytes(range(1, 1 + (-len(data) - 2) % 4))
    return struct.pack(">II", 77, 1) + data + padding + bytes((len(padding), protocol)) + b"\xaa" * icv


@pytest.mark.parametrize("icv", [12, 16])
def test_esp_without_encryption_is_opened(icv: int) -> None:
    """RFC 4303 with RFC 2410, as TS 33.203 allows on Gm; also in UDP (RFC 3948)."""
    inner = esp(17, udp_header(UE.port, PCSCF.port, DATA), icv=icv)
    assert only(ethernet(ip(UE.host, PCSCF.host, 50, inner)))[3:6] == (UE, PCSCF, DATA)
    segment = esp(6, tcp_header(1, 2, 5, DATA), icv=icv)
    assert only(ethernet(ip(UE.host, PCSCF.host, 50, segment))).transport == "TCP"
    assert only(ethernet(udp(Endpoint(UE.host, 4500), Endpoint(PCSCF.host, 4500), inner))).data == DATA


def test_encrypted_esp_is_counted() -> None:
    """Nobody can read it without the keys."""
    noise = bytes((7 * place + place // 5) % 251 for place in range(120))
    short = struct.pack(">II", 77, 1)
    assert unread(*(ethernet(ip(UE.host, PCSCF.host, 50, data)) for data in (noise, short))) == {"ESP encrypted": 2}
    ike = udp(Endpoint(UE.host, 4500), Endpoint(PCSCF.host, 4500), bytes(30))
    assert only(ethernet(ike)).data == bytes(30)


def test_ip_in_ip_is_opened_to_a_depth() -> None:
    """RFC 2003."""
    assert only(ethernet(ip("192.0.2.1", "192.0.2.2", 4, PACKET))).data == DATA
    assert only(ethernet(ip("192.0.2.1", "192.0.2.2", 41, PACKET6))).data == DATA
    deep = PACKET
    for _ in range(MAX_DEPTH):
        deep = ip("192.0.2.1", "192.0.2.2", 4, deep)
    assert unread(ethernet(deep)) == {"IP not readable": 1}
    nested = udp_header(1, 2, DATA)
    for _ in range(2_000):
        nested = esp(17, nested) if len(nested) < 60_000 else nested
        nested = udp_header(4500, 4500, nested)
    assert unread(Record(1, START, 101, ip(UE.host, PCSCF.host, 17, nested[:60_000]), 60_020).data, link=101).keys() <= {
        "ESP encrypted", "IP not readable", "cut by the capture",
    }  # fmt: skip


def test_a_tcp_stream_is_put_in_order_with_its_gaps() -> None:
    """Whole streams are the business of tcp.py."""
    found = decode(
        records(
            *map(ethernet, (tcp(UE, PCSCF, 9, flags=2), tcp(UE, PCSCF, 13, b"def"), tcp(UE, PCSCF, 10, b"abc"), tcp(UE, PCSCF, 20, b"z")))
        )
    )
    assert [(one.transport, one.data, one.begins, one.gap) for one in found] == [
        ("TCP", b"abc", True, False),
        ("TCP", b"def", False, False),
        ("TCP", b"z", False, True),
    ]
    assert decode(records(ethernet(tcp(UE, PCSCF, 9)))) == []


def test_segments_that_the_card_was_to_cut_are_read() -> None:
    """Total Length and UDP Length 0: segmentation offload."""
    packet = bytearray(tcp(UE, PCSCF, 9, b"abc"))
    packet[2:4] = b"\0\0"
    assert only(ethernet(bytes(packet))).data == b"abc"
    datagram = bytearray(PACKET)
    datagram[24:26] = b"\0\0"
    assert only(ethernet(bytes(datagram))).data == DATA
    packet6 = bytearray(PACKET6)
    packet6[4:6] = b"\0\0"
    assert only(ethernet(bytes(packet6))).data == DATA


def test_sctp_messages_come_out() -> None:
    """RFC 9260."""
    chunk = struct.pack(">BBHIHHI", 0, 3, 20, 1, 0, 0, 46) + b"data"
    assert only(ethernet(ip(UE.host, PCSCF.host, 132, struct.pack(">HHII", 1, 2, 0, 0) + chunk)))[2:6] == (
        "SCTP", Endpoint(UE.host, 1), Endpoint(PCSCF.host, 2), b"data",
    )  # fmt: skip


def test_what_the_capture_cut_is_marked() -> None:
    """tcpdump -s 60."""
    frame = ethernet(PACKET)
    decoder = PacketDecoder()
    (found,) = decoder.feed(Record(1, START, 1, frame[:50], len(frame)))
    assert found.cut
    segment = ethernet(tcp(UE, PCSCF, 9, b"abcdef"))
    (found,) = decoder.feed(Record(2, START, 1, segment[:-3], len(segment)))
    assert found.data == b"abc"
    assert decoder.unread == {"cut by the capture": 2}


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (b"", "not IP"),
        (ethernet(PACKET)[:12] + b"\x08\x06" + bytes(28), "not IP"),
        (ethernet(b"", tags=9), "not IP"),
        (ethernet(b""), "IP not readable"),
        (ethernet(PACKET6)[:14] + PACKET, "IP not readable"),
        (ethernet(PACKET[:12]), "IP not readable"),
        (ethernet(b"\x41" + PACKET[1:]), "IP not readable"),
        (ethernet(PACKET[:2] + b"\0\x08" + PACKET[4:]), "IP not readable"),
        (ethernet(PACKET6[:30]), "IP not readable"),
        (ethernet(ip(UE.host, PCSCF.host, 17, b"abc")), "UDP not readable"),
        (ethernet(ip(UE.host, PCSCF.host, 6, b"abc")), "TCP not readable"),
        (ethernet(ip(UE.host, PCSCF.host, 6, bytes(20))), "TCP not readable"),
        (ethernet(ip(UE.host, PCSCF.host, 132, b"abc")), "SCTP not readable"),
        (ethernet(ip(UE.host, PCSCF.host, 1, b"ping")), "another transport"),
    ],
)
def test_what_cannot_be_read_is_counted(frame: bytes, word: str) -> None:
    """By a fixed set of words."""
    assert unread(frame) == {word: 1}


def test_a_link_layer_not_known_is_counted() -> None:
    """LINKTYPE_USB_LINUX and the like."""
    assert unread(PACKET, link=189) == {"link layer not known": 1}
    assert unread(b"", link=101) == {"not IP": 1}
    assert unread(b"\x1f\0\0\0" + PACKET, link=0) == {"not IP": 1}


@given(
    st.sampled_from([0, 1, 101, 113, 276, 9]),
    st.binary(max_size=120),
    st.sampled_from([b"", PACKET[:20], PACKET6[:40], ethernet(PACKET)[:34]]),
)
def test_any_octets_are_taken(link: int, data: bytes, head: bytes) -> None:
    """Payloads or a count, never an exception."""
    decode(records(head + data, data, link=link))


@given(st.integers(0, 255), st.binary(max_size=120), st.integers(0, 0xFFFF))
def test_any_ip_payload_is_taken(protocol: int, data: bytes, word: int) -> None:
    """The same below IP."""
    decode(records(ip(UE.host, PCSCF.host, protocol, data, word=word), ip(UE6.host, PCSCF6.host, protocol, data), link=101))


def test_a_frame_costs_microseconds() -> None:
    """A capture may have millions."""
    batch = records(ethernet(PACKET), ethernet(tcp(UE, PCSCF, 9, b"abc"))) * 5_000
    began = time.process_time()
    decode(batch)
    assert (time.process_time() - began) / len(batch) < 50e-6
