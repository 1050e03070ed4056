# SPDX-License-Identifier: Apache-2.0
"""ESP in UDP (RFC 4303, RFC 3948), keyed as TS 33.203 annex I says."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import EspRejected, LocalProtocolError
from keyferry.protocol.crypto.cbc import AesCbc, HmacSha196
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.esp import (
    IPV4,
    IPV6,
    MAX_PACKET,
    MAX_SEQUENCE,
    EspKeys,
    InboundSa,
    Kind,
    OutboundSa,
    expand_keys,
    kind_of,
    spi_of,
)
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.keys import access_keys
from keyferry.protocol.ip_packet import InnerDatagram, build_datagram, datagram_octets

CK, IK = Secret(bytes.fromhex("b40ba9a3c58b2a05bbf0d987b21bf8cb")), Secret(bytes.fromhex("f769bcd751044604127672711c6d3441"))
CBC = expand_keys(CK, IK, alg="hmac-sha-1-96", ealg="aes-cbc")
NULL = expand_keys(CK, IK, alg="hmac-sha-1-96", ealg="null")
SUITES = pytest.mark.parametrize("keys", [CBC, NULL], ids=["aes-cbc", "null"])
SPI = 0x1234_5678
IV = bytes(range(16))
DATAGRAM = InnerDatagram(IPv4Address("192.0.2.1"), 5062, IPv4Address("198.51.100.7"), 5064, b"REGISTER sip:home1.net SIP/2.0\r\n")
INNER = build_datagram(DATAGRAM)


def iv_for(sa: OutboundSa) -> bytes:
    return IV[: sa.iv_octets]


def sealed(keys: EspKeys, count: int = 1, *, inner: bytes = INNER, next_header: int = IPV4) -> list[bytes]:
    """Return the first packets of an SA."""
    sa = OutboundSa(SPI, keys)
    return [sa.seal(inner, next_header, iv_for(sa)) for _ in range(count)]


def forged(keys: EspKeys, plain: bytes, *, sequence: int = 1) -> bytes:
    """Return a packet with a right ICV and any content, as only somebody who has the keys could send."""
    body = IV + AesCbc(keys.encryption).encrypt(IV, plain) if len(keys.encryption) else plain
    packet = SPI.to_bytes(4, "big") + sequence.to_bytes(4, "big") + body
    return packet + HmacSha196(keys.integrity).icv(packet)


def reason(sa: InboundSa, packet: bytes) -> str:
    """Return why a packet is refused."""
    with pytest.raises(EspRejected) as refusal:
        sa.open(packet)
    return refusal.value.reason


def test_the_keys_are_expanded_as_annex_i_says() -> None:
    """TS 33.203 annex I."""
    assert CBC.encryption == CK
    assert CBC.integrity == Secret(IK.reveal() + bytes(4))
    assert NULL.encryption == Secret(b"")
    assert CK.reveal().hex() not in repr(CBC)


@pytest.mark.parametrize(
    ("ck", "ik", "alg", "ealg"),
    [
        (15, 16, "hmac-sha-1-96", "null"),
        (16, 20, "hmac-sha-1-96", "null"),
        (16, 16, "hmac-md5-96", "null"),
        (16, 16, "hmac-sha-1-96", "des-ede3-cbc"),
    ],
)
def test_other_algorithms_and_lengths_are_our_bug(ck: int, ik: int, alg: str, ealg: str) -> None:
    with pytest.raises(LocalProtocolError):
        expand_keys(Secret(bytes(ck)), Secret(bytes(ik)), alg=alg, ealg=ealg)


def test_a_packet_octet_by_octet() -> None:
    """RFC 4303 §2, RFC 3602 §3: SPI, sequence number, IV, ciphertext with padding 1, 2, 3 …, ICV over all before it."""
    (packet,) = sealed(CBC, inner=b"abc")
    assert packet[:8].hex() == "1234567800000001"
    assert packet[8:24] == IV
    assert AesCbc(CK).decrypt(IV, packet[24:-12]).hex() == "6162630102030405060708090a0b0b04"
    assert packet[-12:] == HmacSha196(CBC.integrity).icv(packet[:-12])


def test_without_encryption_there_is_no_iv_and_padding_goes_to_a_word() -> None:
    """RFC 2410, RFC 4303 §2.4."""
    (packet,) = sealed(NULL, inner=b"abc")
    assert packet[8:-12].hex() == "6162630102030304"
    (packet,) = sealed(NULL, inner=b"ab")
    assert packet[8:-12].hex() == "61620004"


@SUITES
@given(inner=st.binary(max_size=80), next_header=st.sampled_from([IPV4, IPV6]), iv=st.binary(min_size=16, max_size=16))
def test_what_was_sealed_opens_once(keys: EspKeys, inner: bytes, next_header: int, iv: bytes) -> None:
    """RFC 4303 §3."""
    out, into = OutboundSa(SPI, keys), InboundSa(SPI, keys)
    packet = out.seal(inner, next_header, iv[: out.iv_octets])
    assert spi_of(packet) == SPI
    assert kind_of(packet) is Kind.ESP
    assert into.open(packet) == (next_header, inner)
    assert reason(into, packet) == "replay"


@SUITES
@pytest.mark.parametrize("datagram", [DATAGRAM, InnerDatagram(IPv6Address("::1"), 1, IPv6Address("::2"), 2, b"")])
def test_datagrams_go_through_the_tunnel(keys: EspKeys, datagram: InnerDatagram) -> None:
    """RFC 4303 §3.1.2: tunnel mode."""
    out = OutboundSa(SPI, keys)
    assert InboundSa(SPI, keys).open_datagram(out.seal_datagram(datagram, iv_for(out))) == datagram


@SUITES
def test_every_changed_octet_is_noticed(keys: EspKeys) -> None:
    """RFC 4303 §3.4.4: integrity first; SPI and sequence number are covered too."""
    packet = sealed(keys)[0]
    into = InboundSa(SPI, keys)
    for at in range(len(packet)):
        for bit in (1, 0x80):
            bad = packet[:at] + bytes([packet[at] ^ bit]) + packet[at + 1 :]
            # Sequence number 1 with its lowest bit changed is 0, which is never sent.
            expected = "spi" if at < 4 else "replay" if (at, bit) == (7, 1) else "icv"
            assert reason(into, bad) == expected
    assert into.highest == 0
    assert into.open(packet) == (IPV4, INNER)


@SUITES
def test_a_packet_cut_or_lengthened_is_refused(keys: EspKeys) -> None:
    packet = sealed(keys)[0]
    into = InboundSa(SPI, keys)
    for end in range(len(packet)):
        assert reason(into, packet[:end]) == ("length" if end <= 20 else "icv")
    assert reason(into, packet + b"\0") == "icv"
    assert reason(into, packet + bytes(MAX_PACKET)) == "length"


def test_the_raw_keys_do_not_open_what_the_masked_ones_sealed() -> None:
    """DESIGN §5: CK', IK' protect Gm; a side that kept CK, IK fails at the ICV, before anything is decrypted."""
    masked = access_keys(CK, IK, bytes(16), Impi("user1_private@home1.net"))
    keys = expand_keys(masked.ck, masked.ik, alg="hmac-sha-1-96", ealg="aes-cbc")
    assert reason(InboundSa(SPI, CBC), sealed(keys)[0]) == "icv"
    assert reason(InboundSa(SPI, keys), sealed(CBC)[0]) == "icv"
    assert InboundSa(SPI, keys).open(sealed(keys)[0]) == (IPV4, INNER)


def test_a_wrong_cipher_key_alone_still_fails_closed() -> None:
    """RFC 4303 §3.4.4: the ICV is right, what it decrypts to is no packet."""
    into = InboundSa(SPI, EspKeys(Secret(bytes(16)), CBC.integrity))
    with pytest.raises(EspRejected) as refusal:
        into.open_datagram(sealed(CBC)[0])
    assert refusal.value.reason in {"padding", "next-header", "inner"}


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (bytes(14) + b"\x0f\x04", "padding"),  # longer than the packet
        (bytes(13) + b"\x02\x01\x04", "padding"),  # does not begin with 1
        (bytes(12) + b"\x01\x03\x02\x04", "padding"),
        (bytes(14) + b"\x00\x3b", "next-header"),  # a dummy packet (TS 33.203 §M.6.2)
        (bytes(14) + b"\x00\x11", "next-header"),  # UDP: transport mode
    ],
)
def test_what_the_trailer_may_not_hold(plain: bytes, expected: str) -> None:
    """RFC 4303 §2.4, §2.6."""
    assert reason(InboundSa(SPI, CBC), forged(CBC, plain)) == expected
    assert reason(InboundSa(SPI, NULL), forged(NULL, plain)) == expected


def test_what_is_no_whole_number_of_blocks_is_refused() -> None:
    packet = SPI.to_bytes(4, "big") + b"\0\0\0\1"
    for keys, octets in ((CBC, 16), (CBC, 24), (CBC, 40), (NULL, 3), (NULL, 6)):
        body = packet + bytes(octets)
        assert reason(InboundSa(SPI, keys), body + HmacSha196(keys.integrity).icv(body)) == "length"


def test_padding_up_to_255_octets_is_taken() -> None:
    """RFC 4303 §2.4: a sender may add 0 to 255."""
    plain = b"xxx" + bytes(range(1, 256)) + bytes((255, 4))
    assert InboundSa(SPI, NULL).open(forged(NULL, plain)) == (4, b"xxx")


@pytest.mark.parametrize(
    ("inner", "next_header", "expected"), [(b"\x45", IPV4, "inner"), (INNER, IPV6, "next-header"), (b"", IPV4, "inner")]
)
def test_what_is_inside_must_be_a_datagram_of_the_family_announced(inner: bytes, next_header: int, expected: str) -> None:
    with pytest.raises(EspRejected) as refusal:
        InboundSa(SPI, CBC).open_datagram(sealed(CBC, inner=inner, next_header=next_header)[0])
    assert refusal.value.reason == expected


def test_sequence_numbers_end_before_they_begin_again() -> None:
    """RFC 4303 §3.3.3: MUST NOT cycle without extended numbers."""
    sa = OutboundSa(SPI, NULL, sequence=MAX_SEQUENCE - 1)
    last = sa.seal(INNER, IPV4, b"")
    assert last[4:8] == b"\xff\xff\xff\xff"
    assert InboundSa(SPI, NULL).open(last) == (IPV4, INNER)
    for _ in range(2):
        with pytest.raises(LocalProtocolError, match="used up"):
            sa.seal(INNER, IPV4, b"")
    assert sa.sequence == MAX_SEQUENCE


def test_a_packet_that_was_not_sealed_costs_no_number() -> None:
    sa = OutboundSa(SPI, CBC)
    for inner, iv in ((INNER, b""), (INNER, bytes(15)), (bytes(MAX_PACKET), IV)):
        with pytest.raises(LocalProtocolError):
            sa.seal(inner, IPV4, iv)
    assert sa.sequence == 0


def test_the_longest_packet_goes_through() -> None:
    longest = MAX_PACKET - 8 - 12 - 2
    sa = OutboundSa(SPI, NULL)
    with pytest.raises(LocalProtocolError):
        sa.seal(bytes(longest + 1), IPV4, b"")
    inner = bytes(longest - (longest + 2) % 4)
    packet = sa.seal(inner, IPV4, b"")
    assert len(packet) <= MAX_PACKET
    assert InboundSa(SPI, NULL).open(packet) == (IPV4, inner)


@pytest.mark.parametrize("spi", [0, 1, 255, 2**32])
def test_reserved_spis_are_our_bug(spi: int) -> None:
    """RFC 4303 §2.1."""
    for sa in (OutboundSa, InboundSa):
        with pytest.raises(LocalProtocolError):
            sa(spi, NULL)


def test_senseless_arguments_are_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        OutboundSa(SPI, NULL, sequence=-1)
    with pytest.raises(LocalProtocolError):
        InboundSa(SPI, NULL, window=31)


# ---- anti-replay (RFC 4303 §3.4.3)

PACKETS = sealed(NULL, 300)


@given(st.lists(st.integers(1, 300), max_size=60), st.sampled_from([32, 64, 100]))
def test_a_number_is_taken_once_and_only_within_the_window(numbers: list[int], window: int) -> None:
    """RFC 4303 §3.4.3, against a model that remembers every number."""
    into, seen, highest = InboundSa(SPI, NULL, window=window), set[int](), 0
    for number in numbers:
        if number in seen or number <= highest - window:
            assert reason(into, PACKETS[number - 1]) == "replay"
        else:
            assert into.open(PACKETS[number - 1]) == (IPV4, INNER)
            seen.add(number)
            highest = max(highest, number)
        assert into.highest == highest


@given(st.permutations(range(64)))
def test_any_order_within_the_window_is_taken(order: list[int]) -> None:
    into = InboundSa(SPI, NULL)
    for at in order:
        into.open(PACKETS[at])
    assert {reason(into, packet) for packet in PACKETS[:64]} == {"replay"}


def test_a_forged_number_does_not_move_the_window() -> None:
    """RFC 4303 §3.4.3: the window is updated only if the integrity verification succeeds."""
    into = InboundSa(SPI, NULL)
    into.open(PACKETS[0])
    far = PACKETS[1][:4] + b"\xff\xff\xff\xf0" + PACKETS[1][8:]
    assert reason(into, far) == "icv"
    assert into.open(PACKETS[1]) == (IPV4, INNER)


def test_a_jump_over_the_window_forgets_it_at_once() -> None:
    into = InboundSa(SPI, NULL)
    into.open(PACKETS[0])
    far = OutboundSa(SPI, NULL, sequence=2**32 - 3).seal(INNER, IPV4, b"")
    with costs_under(0.1):
        into.open(far)
    assert reason(into, PACKETS[1]) == "replay"


def test_number_zero_is_never_taken() -> None:
    assert reason(InboundSa(SPI, NULL), forged(NULL, bytes(14) + b"\0\4", sequence=0)) == "replay"


# ---- UDP encapsulation


def test_keep_alives_and_ike_are_told_from_esp() -> None:
    """RFC 3948 §2.2, §2.3."""
    assert kind_of(b"\xff") is Kind.KEEPALIVE
    assert kind_of(b"\0\0\0\0" + bytes(28)) is Kind.NON_ESP
    assert kind_of(b"\xff\xff") is Kind.ESP
    assert kind_of(b"") is Kind.ESP
    for data in (b"", b"\xff\xff", bytes(7), bytes(MAX_PACKET + 1)):
        with pytest.raises(EspRejected) as refusal:
            spi_of(data)
        assert refusal.value.reason == "length"


@SUITES
@given(data=st.binary(max_size=120) | st.binary(max_size=80).map(lambda tail: SPI.to_bytes(4, "big") + tail))
def test_any_octets_are_refused_and_change_nothing(keys: EspKeys, data: bytes) -> None:
    into = InboundSa(SPI, keys)
    kind_of(data)
    with contextlib.suppress(EspRejected):
        spi_of(data)
    with pytest.raises(EspRejected):
        into.open_datagram(data)
    assert into.highest == 0


@given(plain=st.binary(max_size=64))
def test_any_content_under_a_right_icv_is_a_datagram_or_refused(plain: bytes) -> None:
    with contextlib.suppress(EspRejected):
        InboundSa(SPI, NULL).open_datagram(forged(NULL, plain))
    with contextlib.suppress(EspRejected):
        InboundSa(SPI, CBC).open_datagram(forged(CBC, plain + bytes(-len(plain) % 16)))


def test_a_refusal_of_64_kb_takes_no_time() -> None:
    into = InboundSa(SPI, CBC)
    packet = SPI.to_bytes(4, "big") + b"\0\0\0\1" + bytes(MAX_PACKET - 8)
    with costs_under(0.1):
        assert reason(into, packet) == "icv"


def test_a_refusal_holds_no_octet_of_the_packet() -> None:
    with pytest.raises(EspRejected) as refusal:
        InboundSa(SPI, EspKeys(CK, Secret(bytes(20)))).open(sealed(CBC)[0])
    assert str(refusal.value) == "icv"


@pytest.mark.parametrize("ealg", ["aes-cbc", "null"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_length_of_a_packet_is_known_before_it_is_made(ealg: str, version: int) -> None:
    """RFC 4303 §2.4: padding to whole blocks, or to words."""
    keys = expand_keys(Secret(b"c" * 16), Secret(b"i" * 16), alg="hmac-sha-1-96", ealg=ealg)
    near, far = (IPv4Address(number) if version == 4 else IPv6Address(number) for number in (1, 2))
    sa = OutboundSa(256, keys)
    for octets in range(40):
        packet = sa.seal_datagram(InnerDatagram(near, 1, far, 2, bytes(octets)), bytes(sa.iv_octets))
        assert sa.packet_octets(datagram_octets(version, octets)) == len(packet)
