# SPDX-License-Identifier: Apache-2.0
"""Frames to transport payloads: link layers (tcpdump.org LINKTYPE_), IPv4, IPv6, GTP-U (TS 29.281), ESP (RFC 4303), UDP (RFC 768)."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from keyferry.protocol.capture.fragments import FragmentKey, Fragments
from keyferry.protocol.capture.pcap import Record
from keyferry.protocol.capture.sctp import SctpMessages
from keyferry.protocol.capture.tcp import Piece, Segment, TcpStreams

MAX_TAGS: Final = 4
"""VLAN tags of one frame; providers stack two."""
MAX_EXTENSIONS: Final = 8
"""IPv6 extension headers, or GTP-U ones."""
MAX_DEPTH: Final = 3
"""IP packets inside each other: a GTP-U tunnel, an IPsec tunnel in it."""
GTP_PORT: Final = 2152
ESP_PORT: Final = 4500
"""ESP in UDP (RFC 3948)."""

TransportName: TypeAlias = Literal["UDP", "TCP", "SCTP"]
_ETHERTYPES = {0x0800: 4, 0x86DD: 6}
_TAGS = frozenset({0x8100, 0x88A8, 0x9100})
_FAMILY_6 = frozenset({10, 24, 28, 30})  # AF_INET6 of Linux, the BSDs, FreeBSD and macOS
_IPV6_OPTIONS = frozenset({0, 43, 60})
_ICV = (12, 16, 8, 24, 32, 0)  # octets: HMAC-96, HMAC-SHA-256-128, rare ones, none
_TCP, _UDP, _SCTP, _ESP, _AH, _FRAGMENT, _IPIP, _IPV6 = 6, 17, 132, 50, 51, 44, 4, 41


class Endpoint(NamedTuple):
    """An address and a port."""

    host: str  # numeric, IPv6 without brackets
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Payload(NamedTuple):
    """What a transport carried: a datagram, an SCTP message, or the next octets of a TCP stream."""

    number: int  # of the frame that completed it
    at: float  # seconds since the epoch
    transport: TransportName
    source: Endpoint
    target: Endpoint
    data: bytes
    cut: bool = False  # a datagram of which the capture kept less than was sent
    gap: bool = False  # octets of the stream before these are missing
    begins: bool = False  # the first octets of a connection


class _Ip(NamedTuple):
    """An IP payload; `length` is what was sent, more than `data` if the capture cut it."""

    source: bytes
    target: bytes
    protocol: int
    data: bytes
    length: int
    depth: int


class PacketDecoder:
    """Turn frames into payloads. What cannot be read is counted in `unread` by a fixed set of words; nothing raises."""

    def __init__(self) -> None:
        self._fragments = Fragments()
        self._streams = TcpStreams[tuple[Endpoint, Endpoint]]()
        self._sctp = SctpMessages()
        self._record = Record(0, 0.0, 0, b"", 0)
        self._found: list[Payload] = []
        self.unread: Counter[str] = Counter()

    def feed(self, record: Record) -> list[Payload]:
        """Take one frame."""
        self._record = record
        self._found = []
        data, link = record.data, _LINKS.get(record.link)
        if link is None:
            self.unread["link layer not known"] += 1
            return self._found
        start, version = link(data)
        if version is None:
            self.unread["not IP"] += 1
        else:
            self._network(data[start:], version, max(record.length - start, 0), 1)
        return self._found

    def finish(self) -> list[Payload]:
        """Give out the octets of streams that still wait for others."""
        left = self._streams.finish()
        return [_of_piece(piece, source, target) for (source, target), pieces in left for piece in pieces]

    @property
    def lost(self) -> Counter[str]:
        """What the capture, or a limit, lost."""
        counts = {"datagrams with a fragment missing": self._fragments.lost + self._fragments.waiting, "gaps in TCP": self._streams.gaps}
        return Counter({name: count for name, count in counts.items() if count})

    # ---- IP

    def _network(self, packet: bytes, version: int, length: int, depth: int) -> None:
        if depth > MAX_DEPTH or not packet or packet[0] >> 4 != version:
            self.unread["IP not readable"] += 1
            return
        ip = self._ipv4(packet, length, depth) if version == 4 else self._ipv6(packet, length, depth)
        if ip is not None:
            self._transport(ip)

    def _ipv4(self, packet: bytes, length: int, depth: int) -> _Ip | None:
        header = (packet[0] & 0x0F) * 4
        if len(packet) < 20 or header < 20 or len(packet) < header:
            self.unread["IP not readable"] += 1
            return None
        total, identification, word, _, protocol = struct.unpack_from(">HHHBB", packet, 2)
        total = total or length  # 0: segments that the network card was to cut
        if total < header:
            self.unread["IP not readable"] += 1
            return None
        source, target, data = packet[12:16], packet[16:20], packet[header:total]
        if not word & 0x3FFF:
            return _Ip(source, target, protocol, data, total - header, depth)
        return self._fragment(FragmentKey(source, target, protocol, identification), word, data, total - header, depth)

    def _ipv6(self, packet: bytes, length: int, depth: int) -> _Ip | None:
        if len(packet) < 40:
            self.unread["IP not readable"] += 1
            return None
        declared, protocol = struct.unpack_from(">HB", packet, 4)
        end = 40 + declared if declared else length
        source, target, pos = packet[8:24], packet[24:40], 40
        for _ in range(MAX_EXTENSIONS):
            if protocol not in _IPV6_OPTIONS and protocol not in (_FRAGMENT, _AH):
                return _Ip(source, target, protocol, packet[pos:end], max(end - pos, 0), depth)
            if pos + 8 > len(packet):
                break
            following, size = packet[pos], packet[pos + 1]
            if protocol == _FRAGMENT:
                word, identification = struct.unpack_from(">HI", packet, pos + 2)
                key = FragmentKey(source, target, following, identification)
                as_ipv4 = word >> 3 | (0x2000 if word & 1 else 0)
                data = packet[pos + 8 : end]
                if not as_ipv4:  # an atomic fragment (RFC 6946)
                    return _Ip(source, target, following, data, max(end - pos - 8, 0), depth)
                return self._fragment(key, as_ipv4, data, end - pos - 8, depth)
            pos += (size + 2) * 4 if protocol == _AH else (size + 1) * 8
            protocol = following
        self.unread["IP not readable"] += 1
        return None

    def _fragment(self, key: FragmentKey, word: int, data: bytes, length: int, depth: int) -> _Ip | None:
        if len(data) < length:
            self.unread["cut by the capture"] += 1
            return None
        offset = (word & 0x1FFF) * 8
        whole = self._fragments.add(key, offset, data, more=bool(word & 0x2000), at=self._record.at)
        return None if whole is None else _Ip(key.source, key.target, key.protocol, whole, len(whole), depth)

    # ---- transports

    def _transport(self, ip: _Ip) -> None:
        reader = {_UDP: self._udp, _TCP: self._tcp, _SCTP: self._of_sctp, _ESP: self._esp, _IPIP: self._inner, _IPV6: self._inner}.get(
            ip.protocol
        )
        if ip.depth > MAX_DEPTH:
            self.unread["IP not readable"] += 1
        elif reader is None:
            self.unread["another transport"] += 1
        else:
            reader(ip)

    def _inner(self, ip: _Ip) -> None:
        self._network(ip.data, 4 if ip.protocol == _IPIP else 6, ip.length, ip.depth + 1)

    def _udp(self, ip: _Ip) -> None:
        if len(ip.data) < 8:
            self.unread["UDP not readable"] += 1
            return
        source, target, length = struct.unpack_from(">HHH", ip.data)
        length = length or ip.length  # 0: a datagram over 64 kB, or one that the network card was to cut
        data = ip.data[8:length]
        if GTP_PORT in (source, target) and self._gtp(data, ip.depth):
            return
        if ESP_PORT in (source, target) and len(data) > 4 and data[:4] != b"\0\0\0\0":
            self._esp(ip._replace(protocol=_ESP, data=data, length=length - 8))
            return
        self._add("UDP", _endpoint(ip.source, source), _endpoint(ip.target, target), data, cut=len(data) < length - 8)

    def _gtp(self, data: bytes, depth: int) -> bool:
        """Open a G-PDU (TS 29.281 §5.1); false if it is none."""
        if len(data) < 8 or data[0] & 0xF0 != 0x30 or data[1] != 255:
            return False
        pos = 8
        if data[0] & 0x07:
            pos, following = 12, data[11] if len(data) > 11 and data[0] & 0x04 else 0
            for _ in range(MAX_EXTENSIONS):
                if not following or pos >= len(data) or not data[pos]:
                    break
                size = data[pos] * 4
                following = data[pos + size - 1] if pos + size <= len(data) else 0
                pos += size
        inner = data[pos:]
        if not inner or inner[0] >> 4 not in (4, 6):
            return False
        self._network(inner, inner[0] >> 4, len(inner), depth + 1)
        return True

    def _tcp(self, ip: _Ip) -> None:
        if len(ip.data) < 20 or not 20 <= (header := ip.data[12] >> 4 << 2) <= len(ip.data):
            self.unread["TCP not readable"] += 1
            return
        source, target, sequence = struct.unpack_from(">HHI", ip.data)
        syn = bool(ip.data[13] & 0x02)
        if len(ip.data) == header and not syn:
            return
        if len(ip.data) < ip.length:
            self.unread["cut by the capture"] += 1
        key = (_endpoint(ip.source, source), _endpoint(ip.target, target))
        segment = Segment(self._record.number, self._record.at, sequence, ip.data[header:], syn)
        self._found += [_of_piece(piece, *key) for piece in self._streams.add(key, segment)]

    def _of_sctp(self, ip: _Ip) -> None:
        if len(ip.data) < 12:
            self.unread["SCTP not readable"] += 1
            return
        source, target = struct.unpack_from(">HH", ip.data)
        key = (_endpoint(ip.source, source), _endpoint(ip.target, target))
        for message in self._sctp.add(key, ip.data):
            self._add("SCTP", *key, message)

    def _esp(self, ip: _Ip) -> None:
        """Open ESP whose encryption is NULL, as many IMS networks use it on Gm (TS 33.203 §6.2): the SPI does not say, the trailer does."""
        if len(ip.data) == ip.length:
            for icv in _ICV:
                opened = _unencrypted(ip.data[8 : len(ip.data) - icv])
                if opened is not None:
                    protocol, data = opened
                    self._transport(ip._replace(protocol=protocol, data=data, length=len(data), depth=ip.depth + 1))
                    return
        self.unread["ESP encrypted"] += 1

    def _add(self, transport: TransportName, source: Endpoint, target: Endpoint, data: bytes, *, cut: bool = False) -> None:
        if cut:
            self.unread["cut by the capture"] += 1
        self._found.append(Payload(self._record.number, self._record.at, transport, source, target, data, cut))


def _of_piece(piece: Piece, source: Endpoint, target: Endpoint) -> Payload:
    return Payload(piece.number, piece.at, "TCP", source, target, piece.data, gap=piece.gap, begins=piece.begins)


def _unencrypted(payload: bytes) -> tuple[int, bytes] | None:
    """Return the next header and the content if the trailer is one (RFC 4303 §2.4, §2.6) and the content is UDP or TCP."""
    if len(payload) < 10:
        return None
    padding, following = payload[-2], payload[-1]
    end = len(payload) - 2 - padding
    if following not in (_UDP, _TCP) or end < 8 or payload[end:-2] != bytes(range(1, padding + 1)):
        return None
    data = payload[:end]
    if following == _UDP:
        return (_UDP, data) if int.from_bytes(data[4:6], "big") == len(data) else None
    return (_TCP, data) if len(data) >= 20 and 20 <= data[12] >> 4 << 2 <= len(data) else None


@lru_cache(maxsize=8_192)
def _endpoint(address: bytes, port: int) -> Endpoint:
    if len(address) == 4:
        return Endpoint(".".join(map(str, address)), port)
    return Endpoint(ipaddress.IPv6Address(address).compressed, port)


# ---- link layers: where IP begins, and which

_Place: TypeAlias = tuple[int, int | None]


def _by_ethertype(data: bytes, pos: int) -> _Place:
    for _ in range(MAX_TAGS):
        kind = int.from_bytes(data[pos : pos + 2], "big")
        if kind not in _TAGS:
            return pos + 2, _ETHERTYPES.get(kind)
        pos += 4
    return pos, None


def _ethernet(data: bytes) -> _Place:
    return _by_ethertype(data, 12)


def _cooked(data: bytes) -> _Place:
    return _by_ethertype(data, 14)


def _cooked_2(data: bytes) -> _Place:
    kind = int.from_bytes(data[:2], "big")
    return _by_ethertype(data, 22) if kind in _TAGS else (20, _ETHERTYPES.get(kind))


def _loopback(data: bytes) -> _Place:
    family = max(data[:4].strip(b"\0") or b"\0")  # in the byte order of whoever captured
    return 4, 4 if family == 2 else 6 if family in _FAMILY_6 else None


def _raw(data: bytes) -> _Place:
    version = data[0] >> 4 if data else 0
    return 0, version if version in (4, 6) else None


_Link: TypeAlias = Callable[[bytes], _Place]
_LINKS: dict[int, _Link] = {
    0: _loopback, 1: _ethernet, 12: _raw, 14: _raw, 101: _raw, 108: _loopback, 113: _cooked, 228: _raw, 229: _raw, 276: _cooked_2,
}  # fmt: skip


def decode(records: Iterable[Record]) -> list[Payload]:
    """Return the payloads of a whole capture."""
    decoder = PacketDecoder()
    found = [payload for record in records for payload in decoder.feed(record)]
    return found + decoder.finish()
