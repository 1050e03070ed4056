# SPDX-License-Identifier: Apache-2.0
"""Capture files (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import itertools
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.protocol.capture.pcap import MAX_BLOCK, MAX_FRAME, MAX_INTERFACES, CaptureReader, Record, parse_capture
from protocol.capture.capturekit import START, block, enhanced, interface, option, pcap, section

FRAMES = [(START, b"one"), (START + 0.25, b""), (START + 1.5, bytes(1500))]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_pcap_is_read_in_both_byte_orders_and_both_resolutions(order: str, nano: bool) -> None:
    """draft-ietf-opsawg-pcap §4."""
    found = parse_capture(pcap(FRAMES, order=order, nano=nano, link=113))
    assert [(record.at, record.data) for record in found] == FRAMES
    assert [record.number for record in found] == [1, 2, 3]
    assert {record.link for record in found} == {113}


def test_a_frame_that_was_cut_says_how_long_it_was() -> None:
    """Original Packet Length."""
    (record,) = parse_capture(pcap([(START, b"abcdef")], cut=2))
    assert (record.data, record.length) == (b"ab", 6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_is_read_with_sections_interfaces_and_all_packet_blocks(order: str) -> None:
    """draft-ietf-opsawg-pcapng §4.1 to §4.4, and the obsolete packet block."""
    milli = option(9, b"\x03", order) + option(14, struct.pack(f"{order}q", 100), order) + option(0, b"", order)
    binary = option(9, b"\x81", order)
    old = block(2, struct.pack(f"{order}HHIIII", 1, 0, 0, 3, 2, 2) + b"ok", order)
    file = (
        section(order)
        + interface(1, order=order, snaplen=4)
        + interface(101, order=order, options=milli)
        + interface(101, order=order, options=binary)
        + block(0x0BAD, bytes(400), order)
        + enhanced(b"abc", 5_000_000, order=order)
        + enhanced(b"de", 2_500, number=1, order=order)
        + enhanced(b"f", 3, number=2, order=order)
        + old
        + block(3, struct.pack(f"{order}I", 9) + b"123456789", order)
        + section(order)
        + interface(228, order=order)
        + enhanced(b"z", 1_000_000, order=order, captured=0)
    )
    assert parse_capture(file) == [
        Record(1, 5.0, 1, b"abc", 3),
        Record(2, 102.5, 101, b"de", 2),
        Record(3, 1.5, 101, b"f", 1),
        Record(4, 100.003, 101, b"ok", 2),
        Record(5, 100.003, 1, b"1234", 9),
        Record(6, 1.0, 228, b"", 1),
    ]


def test_how_a_file_is_cut_does_not_matter() -> None:
    """A file is read in pieces."""
    for file in (pcap(FRAMES), section() + interface() + block(99, bytes(64)) + enhanced(b"abc", 1)):
        reader = CaptureReader()
        found = [record for octet in file for record in reader.feed(bytes((octet,)))]
        assert found == parse_capture(file)
        assert not reader.partial


def test_a_file_that_ends_within_a_frame_gives_those_before() -> None:
    """A capture that still runs."""
    reader = CaptureReader()
    assert len(reader.feed(pcap(FRAMES)[:-1])) == 2
    assert reader.partial
    skipping = CaptureReader()
    assert skipping.feed(section() + block(99, bytes(64))[:40]) == []
    assert skipping.partial


def test_a_time_that_no_calendar_has_is_0() -> None:
    """An option may claim any offset."""
    far = option(14, struct.pack("<q", 2**62))
    (record,) = parse_capture(section() + interface(options=far) + enhanced(b"a", 1))
    assert record.at == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x34\xcd\xb2\xa1" + bytes(20),
        b"\x1f\x8b\x08\x00",
        struct.pack("<IHHiIII", 0xA1B2C3D4, 3, 0, 0, 0, 0, 1),
        pcap([]) + struct.pack("<IIII", 0, 0, MAX_FRAME + 1, 0),
        b"\x0a\x0d\x0d\x0a" + bytes(8),
        section()[:8] + b"\x1a\x2b\x3c\x4d" + section()[12:],
        section() + struct.pack("<II", 1, 13) + bytes(12),
        section() + struct.pack("<II", 6, MAX_BLOCK + 4) + bytes(12),
        section() + interface()[:-1] + b"\x01",
        block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)),
        block(0x0A0D0D0A, struct.pack("<IHH", 0x1A2B3C4D, 1, 0)),
        section() + enhanced(b"a", 1),
        section() + block(3, bytes(8)),
        section() + block(3, b""),
        section() + block(1, bytes(4)),
        section() + interface() + block(6, bytes(8)),
        section() + interface() + block(6, struct.pack("<IIIII", 0, 0, 0, 99, 99)),
        section() + interface() * (MAX_INTERFACES + 1),
    ],
)
def test_what_is_no_capture_is_refused(wrong: bytes) -> None:
    """ParseError, never the octets."""
    with pytest.raises(ParseError):
        parse_capture(wrong)


def test_what_comes_before_damage_is_given() -> None:
    """A disk error in the middle."""
    reader = CaptureReader()
    damaged = pcap(FRAMES) + struct.pack("<IIII", 0, 0, MAX_FRAME + 1, 0)
    assert len(reader.feed(damaged)) == 3
    assert reader.problem is not None
    with pytest.raises(ParseError):
        reader.feed(b"more")
    with pytest.raises(ParseError):
        parse_capture(damaged)


FILES = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(lambda tail: pcap([(START, b"abc")]) + tail),
    st.lists(st.tuples(st.sampled_from([0x0A0D0D0A, 1, 2, 3, 6, 99]), st.binary(max_size=40)), max_size=6).map(
        lambda blocks: section() + interface() + b"".join(itertools.starmap(block, blocks))
    ),
)


@given(FILES)
def test_any_octets_give_frames_or_a_parse_error(data: bytes) -> None:
    """And the same ones octet by octet."""
    try:
        whole: list[Record] | None = parse_capture(data)
    except ParseError:
        whole = None
    reader = CaptureReader()
    found: list[Record] = []
    try:
        for octet in data:
            found += reader.feed(bytes((octet,)))
    except ParseError:
        assert whole is None
    else:
        assert whole in (None, found)


def test_time_is_linear_in_the_file() -> None:
    """A megabyte of blocks nobody reads, of empty frames, of octets one by one."""
    began = time.process_time()
    parse_capture(section() + block(99, b"") * 60_000)
    parse_capture(pcap([(START, b"")] * 60_000))
    reader = CaptureReader()
    for octet in pcap([(START, bytes(200_000))]):
        reader.feed(bytes((octet,)))
    assert time.process_time() - began < 3.0
