# SPDX-License-Identifier: Apache-2.0
"""UDP in IPv4 and IPv6 (RFC 768, RFC 791, RFC 8200)."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.ip_packet import MAX_PAYLOAD, InnerDatagram, build_datagram, parse_datagram

V4 = InnerDatagram(IPv4Address("192.0.2.1"), 5062, IPv4Address("198.51.100.7"), 5064, b"REGISTER")
V6 = InnerDatagram(IPv6Address("2001:db8::1"), 5062, IPv6Address("2001:db8::2"), 5064, b"REGISTER")

PORTS = st.integers(1, 65_535)
PAYLOADS = st.binary(max_size=70)
DATAGRAMS = st.builds(InnerDatagram, st.ip_addresses(v=4), PORTS, st.ip_addresses(v=4), PORTS, PAYLOADS) | st.builds(
    InnerDatagram, st.ip_addresses(v=6), PORTS, st.ip_addresses(v=6), PORTS, PAYLOADS
)


def words(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words, as RFC 1071 §4.1 computes it."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def changed(packet: bytes, at: int, value: bytes, *, checksum: bool = True) -> bytes:
    """Return `packet` with octets replaced, and an IPv4 header checksum that is right again."""
    packet = packet[:at] + value + packet[at + len(value) :]
    if checksum and packet[0] >> 4 == 4:
        packet = packet[:10] + b"\0\0" + packet[12:]
        packet = packet[:10] + (0xFFFF - words(packet[:20])).to_bytes(2, "big") + packet[12:]
    return packet


def test_an_ipv4_packet_octet_by_octet() -> None:
    """RFC 791 §3.1, RFC 768; checksums by RFC 1071's own method."""
    packet = build_datagram(V4)
    assert packet[:10].hex() == "45000024000040004011"
    assert packet[12:20].hex() == "c0000201c6336407"
    assert packet[20:26].hex() == "13c613c80010"
    assert packet[28:] == b"REGISTER"
    assert words(packet[:20]) == 0xFFFF
    assert words(packet[12:20] + b"\0\x11\0\x10" + packet[20:]) == 0xFFFF


def test_an_ipv6_packet_octet_by_octet() -> None:
    """RFC 8200 §3, §8.1."""
    packet = build_datagram(V6)
    assert packet[:8].hex() == "6000000000101140"
    assert packet[8:40].hex() == "20010db800000000000000000000000120010db8000000000000000000000002"
    assert words(packet[8:40] + b"\0\0\0\x10\0\0\0\x11" + packet[40:]) == 0xFFFF


@given(DATAGRAMS)
def test_a_datagram_is_read_back_with_right_checksums(datagram: InnerDatagram) -> None:
    packet = build_datagram(datagram)
    assert parse_datagram(packet) == datagram
    at = 20 if datagram.source.version == 4 else 40
    length = len(packet) - at
    assert words(datagram.source.packed + datagram.target.packed + b"\0\x11" + length.to_bytes(2, "big") + packet[at:]) == 0xFFFF
    assert packet[at + 6 : at + 8] != b"\0\0"
    if at == 20:
        assert words(packet[:20]) == 0xFFFF


def test_a_checksum_of_zero_is_sent_as_its_other_form() -> None:
    """RFC 768: an all-zero checksum means that none was computed."""
    for tail in range(65_536):
        packet = build_datagram(V4._replace(payload=tail.to_bytes(2, "big")))
        if packet[26:28] == b"\xff\xff":
            assert parse_datagram(packet).payload == tail.to_bytes(2, "big")
            return
    raise AssertionError("no payload has that checksum")


def test_ipv4_may_leave_the_udp_checksum_out_and_ipv6_may_not() -> None:
    """RFC 768; RFC 8200 §8.1."""
    assert parse_datagram(changed(build_datagram(V4), 26, b"\0\0")) == V4
    with pytest.raises(ParseError, match="no UDP checksum"):
        parse_datagram(changed(build_datagram(V6), 46, b"\0\0"))


@pytest.mark.parametrize(
    ("datagram", "at", "value", "problem"),
    [
        (V4, 0, b"\x46", "options"),
        (V4, 0, b"\x44", "options"),
        (V4, 0, b"\x55", "neither"),
        (V4, 2, b"\x00\x25", "length"),
        (V4, 6, b"\x20\x00", "fragment"),  # more fragments
        (V4, 6, b"\x00\x01", "fragment"),  # an offset
        (V4, 6, b"\x80\x00", "fragment"),  # the reserved bit
        (V4, 9, b"\x06", "not UDP"),
        (V4, 20, b"\x00\x00", "port 0"),
        (V4, 22, b"\x00\x00", "port 0"),
        (V4, 24, b"\x00\x0f", "UDP length"),
        (V4, 26, b"\x00\x01", "wrong UDP checksum"),
        (V4, 30, b"x", "wrong UDP checksum"),
        (V6, 4, b"\x00\x11", "length"),
        (V6, 6, b"\x2c", "fragment"),
        (V6, 6, b"\x00", "extension"),
        (V6, 40, b"\x00\x00", "port 0"),
        (V6, 44, b"\x00\x0f", "UDP length"),
        (V6, 50, b"x", "wrong UDP checksum"),
    ],
)
def test_what_is_refused(datagram: InnerDatagram, at: int, value: bytes, problem: str) -> None:
    """RFC 791 §3.2 and RFC 8200 §4: no options, extension headers or fragments inside our tunnel."""
    with pytest.raises(ParseError, match=problem):
        parse_datagram(changed(build_datagram(datagram), at, value))


def test_a_wrong_ipv4_header_checksum_is_refused() -> None:
    with pytest.raises(ParseError, match="header checksum"):
        parse_datagram(changed(build_datagram(V4), 8, b"\x3f", checksum=False))


@pytest.mark.parametrize("datagram", [V4, V6])
def test_a_packet_is_read_to_its_end_and_not_before(datagram: InnerDatagram) -> None:
    packet = build_datagram(datagram)
    for end in range(len(packet)):
        with pytest.raises(ParseError):
            parse_datagram(packet[:end])
    with pytest.raises(ParseError):
        parse_datagram(packet + b"\0")


@pytest.mark.parametrize(
    "wrong",
    [
        V4._replace(source_port=0),
        V4._replace(target_port=65_536),
        V4._replace(target=IPv6Address("::1")),
        V4._replace(payload=bytes(MAX_PAYLOAD + 1)),
    ],
)
def test_what_cannot_be_built_is_our_bug(wrong: InnerDatagram) -> None:
    with pytest.raises(LocalProtocolError):
        build_datagram(wrong)


def test_the_longest_payload_fits() -> None:
    longest = V4._replace(payload=bytes(MAX_PAYLOAD))
    assert len(build_datagram(longest)) == 65_535
    assert parse_datagram(build_datagram(longest)) == longest


@given(
    st.binary(max_size=80)
    | st.tuples(st.sampled_from([build_datagram(V4), build_datagram(V6)]), st.integers(0, 50)).map(lambda x: x[0][x[1] :])
)
@example(b"")
def test_any_octets_give_a_datagram_or_a_parse_error(data: bytes) -> None:
    with contextlib.suppress(ParseError):
        datagram = parse_datagram(data)
        assert ip_address(str(datagram.source)) == datagram.source


def test_a_packet_of_64_kb_takes_no_time() -> None:
    with costs_under(0.2):
        for first in (0x45, 0x60):
            with contextlib.suppress(ParseError):
                parse_datagram(bytes([first]) + bytes(65_534))
