# SPDX-License-Identifier: Apache-2.0
"""SCTP data chunks (RFC 9260 §3.3.1)."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.capture.sctp import MAX_ASSOCIATIONS, MAX_CHUNKS, MAX_MESSAGE, REMEMBERED, SctpMessages


def chunk(sequence: int, data: bytes, flags: int = 3, kind: int = 0) -> bytes:
    return struct.pack(">BBHIHHI", kind, flags, 16 + len(data), sequence % 2**32, 0, 0, 46) + data + bytes(-len(data) % 4)


def packet(*chunks: bytes) -> bytes:
    return bytes(12) + b"".join(chunks)


def test_whole_messages_and_those_in_parts_come_out_once() -> None:
    """B and E flags; a retransmission brings nothing."""
    messages = SctpMessages()
    heartbeat = struct.pack(">BBH", 4, 0, 8) + bytes(4)
    assert messages.add("a", packet(heartbeat, chunk(1, b"one"), chunk(2, b"tw", 2))) == [b"one"]
    assert messages.add("a", packet(chunk(2, b"tw", 2), chunk(3, b"o-", 0))) == []
    assert messages.add("a", packet(chunk(4, b"parts", 1), chunk(1, b"one"))) == [b"two-parts"]
    assert messages.add("b", packet(chunk(1, b"another direction"))) == [b"another direction"]


def test_parts_that_do_not_follow_each_other_are_left_out() -> None:
    """A lost chunk."""
    messages = SctpMessages()
    assert messages.add("a", packet(chunk(1, b"be", 2), chunk(3, b"gin", 1), chunk(4, b"next"))) == [b"next"]
    assert messages.add("a", packet(chunk(5, b"end only", 1))) == []


def test_the_sequence_number_wraps() -> None:
    """RFC 9260 §1.6."""
    messages = SctpMessages()
    assert messages.add("a", packet(chunk(2**32 - 1, b"a", 2), chunk(0, b"b", 1))) == [b"ab"]


def test_what_is_remembered_is_bounded() -> None:
    """Directions, sequence numbers, chunks, octets."""
    messages = SctpMessages()
    for number in range(REMEMBERED + 1):
        messages.add("a", packet(chunk(number, b"x")))
    assert messages.add("a", packet(chunk(0, b"again"))) == [b"again"]
    for number in range(MAX_ASSOCIATIONS):
        messages.add(number, packet(chunk(1, b"x")))
    assert messages.add("a", packet(chunk(1, b"forgotten"))) == [b"forgotten"]
    assert len(messages.add("c", packet(*[chunk(number, b"x") for number in range(MAX_CHUNKS + 9)]))) == MAX_CHUNKS
    part = bytes(60_000)
    for number in range(MAX_MESSAGE // 60_000 + 2):
        assert messages.add("d", packet(chunk(number, part, 2 if number == 0 else 0))) == []
    assert messages.add("d", packet(chunk(number + 1, b"", 1))) == []


@given(st.binary(max_size=120))
def test_any_octets_are_taken(data: bytes) -> None:
    """A value, never an exception."""
    messages = SctpMessages()
    messages.add("a", data)
    assert all(len(found) <= len(data) for found in messages.add("a", packet(data)))
