# SPDX-License-Identifier: Apache-2.0
"""Captures written by the tests: files, frames, packets, segments, SIP and Diameter messages."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence

from keyferry.protocol.capture.packets import Endpoint
from keyferry.protocol.digest import aka_nonce
from keyferry.protocol.sip.message import Message, build_message

ETHERNET = 1
UE, PCSCF, ICSCF, SCSCF, AS, HSS = (
    Endpoint("10.0.0.1", 40_000), Endpoint("10.0.0.2", 5060), Endpoint("10.0.0.3", 5062), Endpoint("10.0.0.4", 6060),
    Endpoint("10.0.0.5", 5090), Endpoint("10.0.0.6", 3868),
)  # fmt: skip
START = 1_800_000_000.0


# ---- files


def pcap(frames: Sequence[tuple[float, bytes]], *, order: str = "<", nano: bool = False, link: int = ETHERNET, cut: int = 262_144) -> bytes:
    """Return a pcap file."""
    magic, ticks = (0xA1B23C4D, 10**9) if nano else (0xA1B2C3D4, 10**6)
    parts = [struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 262_144, link)]
    for at, frame in frames:
        parts += [struct.pack(f"{order}IIII", int(at), round(at % 1 * ticks), min(len(frame), cut), len(frame)), frame[:cut]]
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """Return a pcapng block."""
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return struct.pack(f"{order}II", kind, length) + body + struct.pack(f"{order}I", length)


def section(order: str = "<") -> bytes:
    """Return a section header block."""
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int = ETHERNET, *, order: str = "<", snaplen: int = 0, options: bytes = b"") -> bytes:
    """Return an interface description block."""
    return block(1, struct.pack(f"{order}HHI", link, 0, snaplen) + options, order)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    """Return an option."""
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(frame: bytes, ticks: int, *, number: int = 0, order: str = "<", captured: int | None = None) -> bytes:
    """Return an enhanced packet block."""
    kept = len(frame) if captured is None else captured
    head = struct.pack(f"{order}IIIII", number, ticks >> 32, ticks & 0xFFFF_FFFF, kept, len(frame))
    return block(6, head + frame[:kept], order)


# ---- frames and packets


def ethernet(packet: bytes, *, tags: int = 0) -> bytes:
    """Return a frame."""
    kind = b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\x00"
    return bytes(12) + b"\x81\x00\x00\x01" * tags + kind + packet


def ip(source: str, target: str, protocol: int, data: bytes, *, word: int = 0, identification: int = 7) -> bytes:
    """Return an IP packet; `word` holds the flags and the offset of IPv4."""
    if ":" in source:
        head = struct.pack(">IHBB", 6 << 28, len(data), protocol, 64)
        return head + ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed + data
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), identification, word, 64, protocol, 0)
    return head + ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed + data


def udp_header(source: int, target: int, data: bytes) -> bytes:
    """Return a datagram without its IP header."""
    return struct.pack(">HHHH", source, target, 8 + len(data), 0) + data


def udp(source: Endpoint, target: Endpoint, data: bytes) -> bytes:
    """Return an IP packet with a datagram."""
    return ip(source.host, target.host, 17, udp_header(source.port, target.port, data))


def tcp_header(source: int, target: int, sequence: int, data: bytes = b"", *, flags: int = 0x10) -> bytes:
    """Return a segment without its IP header."""
    return struct.pack(">HHIIBBHHH", source, target, sequence % 2**32, 0, 0x50, flags, 65_535, 0, 0) + data


def tcp(source: Endpoint, target: Endpoint, sequence: int, data: bytes = b"", *, flags: int = 0x10) -> bytes:
    """Return an IP packet with a segment."""
    return ip(source.host, target.host, 6, tcp_header(source.port, target.port, sequence, data, flags=flags))


def fragments(packet: bytes, size: int) -> list[bytes]:
    """Cut an IPv4 packet; `size` is a multiple of 8."""
    source, target = str(ipaddress.ip_address(packet[12:16])), str(ipaddress.ip_address(packet[16:20]))
    data = packet[20:]
    return [
        ip(source, target, packet[9], data[pos : pos + size], word=pos // 8 | (0x2000 if pos + size < len(data) else 0))
        for pos in range(0, len(data), size)
    ]


# ---- messages


def nonce(server_data: bytes = b"3G\x06\x07", rand: int = 1) -> str:
    """Return an AKA nonce."""
    return aka_nonce(bytes((rand,)) * 16, bytes(range(16)), server_data)


def sent(source: Endpoint, target: Endpoint, message: Message | bytes) -> bytes:
    """Return a frame with a SIP message over UDP."""
    return ethernet(udp(source, target, message if isinstance(message, bytes) else build_message(message)))


def avp(code: int, data: bytes, vendor: int = 0) -> bytes:
    """Return an AVP with its padding."""
    head = struct.pack(">I", vendor) if vendor else b""
    length = 8 + len(head) + len(data)
    return struct.pack(">II", code, (0x80 if vendor else 0) << 24 | 0x40 << 24 | length) + head + data + bytes(-len(data) % 4)


def diameter(command: int, avps: bytes, *, request: bool = True, hop: int = 1, application: int = 16_777_216) -> bytes:
    """Return a Diameter message."""
    length = 20 + len(avps)
    head = struct.pack(">II", 1 << 24 | length, (0x80 if request else 0) << 24 | command)
    return head + struct.pack(">III", application, hop, hop) + avps
