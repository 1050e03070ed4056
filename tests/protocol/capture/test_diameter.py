# SPDX-License-Identifier: Apache-2.0
"""Diameter messages in a trace (RFC 6733 §3, §4.1; TS 29.229 §6.3)."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.protocol.capture.diameter import (
    MAX_AVPS,
    VENDOR_3GPP,
    Avp,
    describe,
    find_avp,
    group_of,
    message_length,
    parse_avps,
    parse_diameter,
)
from protocol.capture.capturekit import avp, diameter

KEY = b"\xc0\xff\xee" * 5 + b"!"
ITEM = avp(612, avp(608, b"Digest-AKAv1-MD5", VENDOR_3GPP) + avp(610, KEY[:8], VENDOR_3GPP) + avp(625, KEY, VENDOR_3GPP), VENDOR_3GPP)


def test_a_message_is_read_with_its_avps() -> None:
    """RFC 6733 §3."""
    message = parse_diameter(diameter(303, avp(1, b"a@b") + avp(268, struct.pack(">I", 2001)) + ITEM, request=False, hop=9))
    assert (message.name, message.request, message.application, message.hop_by_hop) == ("MAA", False, 16_777_216, 9)
    name, result = message.find(1), message.find(268)
    assert name is not None
    assert name.text == "a@b"
    assert result is not None
    assert result.number == 2001
    item = message.find(612, VENDOR_3GPP)
    assert item is not None
    assert find_avp(group_of(item), 608, VENDOR_3GPP) == Avp(608, VENDOR_3GPP, b"Digest-AKAv1-MD5")
    assert message.find(609) is None
    assert parse_diameter(diameter(9999, b"")).name == "command 9999 R"


def test_keys_are_lengths_only() -> None:
    """Confidentiality-Key, Integrity-Key, XRES, HA1, User-Data: no octet of them, however they are shown."""
    for code in (606, 610, 625, 626, 635, 405, 406, 40_000):
        found = Avp(code, VENDOR_3GPP, KEY)
        for text in (describe(found), repr(found), str(parse_diameter(diameter(303, avp(code, KEY, VENDOR_3GPP))))):
            assert "xc0" not in text
            assert KEY.hex() not in text
        assert describe(found).endswith(" 16 octets")
    assert describe(parse_avps(ITEM)[0]) == (
        "SIP-Auth-Data-Item {SIP-Authentication-Scheme Digest-AKAv1-MD5, SIP-Authorization 8 octets, Confidentiality-Key 16 octets}"
    )


def test_an_avp_is_described() -> None:
    """Text for a terminal, numbers, groups to a depth, what is not known."""
    assert describe(Avp(1, 0, b"a\x1b[2J@b\xff")) == "User-Name a?[2J@b\ufffd"
    assert describe(Avp(268, 0, struct.pack(">I", 2001))) == "Result-Code 2001"
    assert describe(Avp(268, 0, b"abc")) == "Result-Code 3 octets"
    assert describe(Avp(77, 0, b"abc")) == "AVP 77 3 octets"
    assert describe(Avp(77, 5, b"abc")) == "AVP 77 of vendor 5 3 octets"
    assert describe(Avp(612, VENDOR_3GPP, b"abc")) == "SIP-Auth-Data-Item {}"
    deep = ITEM
    for _ in range(5):
        deep = avp(612, deep, VENDOR_3GPP)
    assert describe(parse_avps(deep)[0]).count("{") == 2


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        diameter(303, b"")[:-1],
        diameter(303, b"") + b"\0\0\0\0",
        b"\x02" + diameter(303, b"")[1:],
        diameter(303, avp(1, b"abcd")[:-4]),
        diameter(303, b"\0\0\0\0"),
        diameter(303, struct.pack(">II", 1, 0x80 << 24 | 8)),
        diameter(303, struct.pack(">II", 1, 7)),
        diameter(303, struct.pack(">II", 1, 12)),
        diameter(303, avp(1, b"") * (MAX_AVPS + 1)),
    ],
)
def test_what_is_no_message_is_refused(wrong: bytes) -> None:
    """ParseError."""
    with pytest.raises(ParseError):
        parse_diameter(wrong)


def test_a_length_is_known_from_four_octets() -> None:
    """RFC 6733 §3: a multiple of 4, 20 at least."""
    assert message_length(diameter(303, b"")[:4]) == 20
    assert message_length(b"\x01\0\0") is None
    assert message_length(b"\x01\0\0\x15") is None
    assert message_length(b"\x01\0\0\x10") is None
    assert message_length(b"\x01\xff\xff\xfc") is None


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=80).map(lambda data: diameter(303, data + bytes(-len(data) % 4)))))
def test_any_octets_give_a_message_or_a_parse_error(data: bytes) -> None:
    """And every AVP can be described."""
    try:
        message = parse_diameter(data)
    except ParseError:
        return
    for one in message.avps:
        assert describe(one).isprintable()


def test_time_is_linear() -> None:
    """Groups in groups, AVPs without data."""
    deep = b""
    for _ in range(2_000):
        deep = avp(612, deep, VENDOR_3GPP)
    began = time.process_time()
    describe(parse_avps(deep)[0])
    parse_avps(avp(1, b"") * MAX_AVPS)
    assert time.process_time() - began < 0.5
