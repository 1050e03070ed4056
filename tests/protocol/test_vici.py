# SPDX-License-Identifier: Apache-2.0
"""strongSwan's vici plugin, README.md: packets and messages."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.protocol.vici import MAX_DEPTH, MAX_ELEMENTS, MAX_PACKET, Kind, Section, build_packet, parse_packet, split

TEXT = st.text(min_size=1, max_size=20)
SECTIONS: st.SearchStrategy[Section] = st.recursive(
    st.dictionaries(TEXT, st.one_of(st.text(max_size=40), st.lists(st.text(max_size=10), max_size=4)), max_size=4),
    lambda inner: st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
SAS: Section = {
    "isc": {"version": "2", "state": "ESTABLISHED", "child-sas": {"isc-1": {"name": "isc", "local-ts": ["10.99.0.1/32"], "remote-ts": []}}}
}  # fmt: skip


def nested(depth: int) -> bytes:
    return bytes([Kind.CMD_RESPONSE]) + b"\x01\x01a" * depth + b"\x02" * depth


def test_the_readme_s_example_of_a_message() -> None:
    """The encoding that strongSwan's own documentation shows."""
    octets = (
        b"\x03\x04key1\x00\x06value1" b"\x01\x08section1" b"\x01\x0bsub-section" b"\x03\x04key2\x00\x06value2" b"\x02"
        b"\x04\x05list1" b"\x05\x00\x05item1" b"\x05\x00\x05item2" b"\x06" b"\x02"
    )  # fmt: skip
    message: Section = {"key1": "value1", "section1": {"sub-section": {"key2": "value2"}, "list1": ["item1", "item2"]}}
    assert parse_packet(bytes([Kind.CMD_RESPONSE]) + octets) == (Kind.CMD_RESPONSE, "", message)
    assert build_packet(Kind.CMD_RESPONSE, "", message)[5:] == octets


@given(SECTIONS)
def test_what_is_built_is_read_again(message: Section) -> None:
    for kind, name in ((Kind.EVENT, "child-updown"), (Kind.CMD_REQUEST, "list-sas"), (Kind.CMD_RESPONSE, "")):
        (packet,), rest = split(build_packet(kind, name, message))
        assert (parse_packet(packet), rest) == ((kind, name, message), b"")


@given(st.lists(st.sampled_from([("list-sas", SAS), ("version", {})]), max_size=4), st.integers(1, 40))
def test_packets_come_out_however_the_stream_is_cut(sent: list[tuple[str, Any]], size: int) -> None:
    stream = b"".join(build_packet(Kind.CMD_REQUEST, *each) for each in sent)
    seen, rest = [], b""
    for place in range(0, len(stream), size):
        packets, rest = split(rest + stream[place : place + size])
        seen += [parse_packet(packet) for packet in packets]
    assert ([(packet.name, packet.message) for packet in seen], rest) == (sent, b"")


@given(st.binary(max_size=200))
def test_any_octets_give_packets_or_a_parse_error(octets: bytes) -> None:
    for parse in (split, parse_packet):
        with contextlib.suppress(ParseError):
            parse(octets)


@given(st.data())
def test_a_packet_that_was_changed_in_a_place_gives_a_packet_or_a_parse_error(data: st.DataObject) -> None:
    packet = bytearray(build_packet(Kind.EVENT, "list-sa", SAS)[4:])
    packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ParseError):
        parse_packet(bytes(packet))


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x08",
        b"\x00\x05abc",
        b"\x05x",  # EVENT_CONFIRM has no message
        b"\x01\x07",  # no such element
        b"\x01\x02",  # a section ends that did not begin
        b"\x01\x01\x01a",  # a section that does not end
        b"\x01\x04\x01a",  # a list that does not end
        b"\x01\x04\x01a\x03\x01b\x00\x01c\x06",  # a value within a list
        b"\x01\x05\x00\x01a",  # an item without a list
        b"\x01\x06",
        b"\x01\x03\x01a\x00\x05bc",  # shorter than it says
        b"\x01\x03\x01a\x00\x01b\x03\x01a\x00\x01c",  # a name twice
    ],
)
def test_what_is_no_packet_is_refused(packet: bytes) -> None:
    with pytest.raises(ParseError):
        parse_packet(packet)


def test_bounds() -> None:
    """Octets, elements, depth: none grows with what the other side sends."""
    assert parse_packet(nested(MAX_DEPTH))
    with pytest.raises(ParseError, match="deep"):
        parse_packet(nested(MAX_DEPTH + 1))
    many = bytes([Kind.CMD_RESPONSE]) + b"\x04\x01a" + b"\x05\x00\x00" * MAX_ELEMENTS + b"\x06"
    with pytest.raises(ParseError, match="elements"):
        parse_packet(many)
    for length in (0, MAX_PACKET + 1):
        with pytest.raises(ParseError):
            split(length.to_bytes(4))
    with pytest.raises(ValueError):
        build_packet(Kind.CMD_REQUEST, "x", {str(number): "v" * 60_000 for number in range(9)})
    for wrong in ({"": "x"}, {"x" * 256: "x"}, {"x": "x" * 65_536}):
        with pytest.raises(ValueError):
            build_packet(Kind.CMD_REQUEST, "x", wrong)


def test_octets_that_are_no_text_come_back_as_they_were() -> None:
    """Identities may be any octets; they are compared, so two of them must not become one."""
    message = parse_packet(bytes([Kind.CMD_RESPONSE]) + b"\x03\x01a\x00\x02\xff\xfe").message
    assert build_packet(Kind.CMD_RESPONSE, "", message).endswith(b"\xff\xfe")
