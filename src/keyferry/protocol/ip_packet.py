# SPDX-License-Identifier: Apache-2.0
"""UDP datagrams inside an ESP tunnel: IPv4 (RFC 791), IPv6 (RFC 8200) and UDP (RFC 768) headers.

Neither options nor extension headers nor fragments are taken: no peer has a reason to send them inside a tunnel
between two hosts, and each is a way to say one thing to a filter and another to what lies behind it.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import LocalProtocolError, ParseError

IpAddress: TypeAlias = IPv4Address | IPv6Address

PROTOCOL_UDP: Final = 17
MAX_PAYLOAD = 65_507
"""Octets of a UDP payload: 65,535 less the headers of IPv4 and UDP."""

_V4 = Struct("!BBHHHBBH4s4s")
_V6 = Struct("!IHBB16s16s")
_UDP = Struct("!HHHH")
_V4_OCTETS, _V6_OCTETS, _UDP_OCTETS = _V4.size, _V6.size, _UDP.size
_V4_VERSION_AND_LENGTH = 0x45  # five words: no options
_DONT_FRAGMENT = 0x4000
_V6_VERSION = 6 << 28
_HOP_LIMIT = 64  # RFC 1700's default; nothing inside a tunnel counts it down
_WHAT = "inner packet"


class InnerDatagram(NamedTuple):
    """One UDP datagram; both addresses are of the same family."""

    source: IpAddress
    source_port: int
    target: IpAddress
    target_port: int
    payload: bytes


def datagram_octets(version: int, payload: int) -> int:
    """Return how long the IP packet of a payload of so many octets is."""
    return (_V4_OCTETS if version == 4 else _V6_OCTETS) + _UDP_OCTETS + payload


def build_datagram(datagram: InnerDatagram) -> bytes:
    """Return an IP packet, of the family of the addresses, without options and not to be fragmented.

    Raises LocalProtocolError.
    """
    source, target, payload = datagram.source, datagram.target, datagram.payload
    if source.version != target.version or len(payload) > MAX_PAYLOAD:
        raise LocalProtocolError(f"a datagram has two addresses of one family and at most {MAX_PAYLOAD} octets")
    if not (0 < datagram.source_port < 65_536 and 0 < datagram.target_port < 65_536):
        raise LocalProtocolError("a port is a number from 1 to 65535")
    length = _UDP_OCTETS + len(payload)
    header = _UDP.pack(datagram.source_port, datagram.target_port, length, 0)
    # A sum of 0 is sent as its other form, 0xFFFF: zero says that there is no checksum (RFC 768).
    checksum = -_sum(_pseudo_header(source.packed, target.packed, length) + header + payload) % 0xFFFF or 0xFFFF
    header = _UDP.pack(datagram.source_port, datagram.target_port, length, checksum)
    if source.version == 4:
        return _v4_header(source.packed, target.packed, length) + header + payload
    return _V6.pack(_V6_VERSION, length, PROTOCOL_UDP, _HOP_LIMIT, source.packed, target.packed) + header + payload


def parse_datagram(packet: bytes) -> InnerDatagram:
    """Read exactly one whole UDP datagram in IPv4 or IPv6: the reverse of `build_datagram`.

    Raises ParseError, for a wrong checksum too.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        source, target = _read_v4(packet)
        return _read_udp(packet[_V4_OCTETS:], IPv4Address(source), IPv4Address(target))
    if version == 6:
        source, target = _read_v6(packet)
        return _read_udp(packet[_V6_OCTETS:], IPv6Address(source), IPv6Address(target))
    raise ParseError(_WHAT, "neither IPv4 nor IPv6")


def _v4_header(source: bytes, target: bytes, length: int) -> bytes:
    # The identification is 0: it means nothing in a packet that must not be fragmented (RFC 6864 §4.1).
    fields = (_V4_VERSION_AND_LENGTH, 0, _V4_OCTETS + length, 0, _DONT_FRAGMENT, _HOP_LIMIT, PROTOCOL_UDP)
    checksum = -_sum(_V4.pack(*fields, 0, source, target)) % 0xFFFF
    return _V4.pack(*fields, checksum, source, target)


def _read_v4(packet: bytes) -> tuple[bytes, bytes]:
    if len(packet) < _V4_OCTETS + _UDP_OCTETS:
        raise ParseError(_WHAT, "shorter than its headers")
    first, _, length, _, fragment, _, protocol, _, source, target = _V4.unpack_from(packet)
    if first != _V4_VERSION_AND_LENGTH:
        raise ParseError(_WHAT, "an IPv4 header with options, or of less than five words")
    if length != len(packet):
        raise ParseError(_WHAT, "its length is not that of the packet")
    if fragment & ~_DONT_FRAGMENT:
        raise ParseError(_WHAT, "a fragment")
    if protocol != PROTOCOL_UDP:
        raise ParseError(_WHAT, "not UDP")
    if _sum(packet[:_V4_OCTETS]) % 0xFFFF:
        raise ParseError(_WHAT, "wrong IPv4 header checksum")
    return source, target


def _read_v6(packet: bytes) -> tuple[bytes, bytes]:
    if len(packet) < _V6_OCTETS + _UDP_OCTETS:
        raise ParseError(_WHAT, "shorter than its headers")
    _, length, next_header, _, source, target = _V6.unpack_from(packet)
    if length != len(packet) - _V6_OCTETS:
        raise ParseError(_WHAT, "its length is not that of the packet")
    if next_header != PROTOCOL_UDP:
        raise ParseError(_WHAT, "not UDP, or behind extension headers, or a fragment")
    return source, target


def _read_udp(segment: bytes, source: IpAddress, target: IpAddress) -> InnerDatagram:
    source_port, target_port, length, checksum = _UDP.unpack_from(segment)
    if length != len(segment):
        raise ParseError(_WHAT, "the UDP length is not that of the packet")
    if not source_port or not target_port:
        raise ParseError(_WHAT, "port 0")
    if not checksum:
        if source.version == 6:
            raise ParseError(_WHAT, "no UDP checksum, which IPv6 demands (RFC 8200 §8.1)")
    elif _sum(_pseudo_header(source.packed, target.packed, length) + segment) % 0xFFFF:
        raise ParseError(_WHAT, "wrong UDP checksum")
    return InnerDatagram(source, source_port, target, target_port, segment[_UDP_OCTETS:])


def _pseudo_header(source: bytes, target: bytes, length: int) -> bytes:
    """Return what the checksum covers beside the datagram; the zeros between the fields do not change a sum."""
    return source + target + length.to_bytes(4, "big") + b"\0\0\0\x11"


def _sum(data: bytes) -> int:
    """Return a number that is, modulo 0xFFFF, the sum of the 16-bit words of `data` (RFC 1071).

    2**16 is 1 modulo 0xFFFF, so the whole of it taken as one number will do; an odd octet is followed by zero.
    """
    number = int.from_bytes(data, "big")
    return number << 8 if len(data) & 1 else number
