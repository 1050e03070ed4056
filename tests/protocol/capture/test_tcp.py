# SPDX-License-Identifier: Apache-2.0
"""TCP streams out of segments (RFC 9293 §3.4)."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.capture import tcp
from keyferry.protocol.capture.tcp import MAX_FLOWS, MAX_HELD, PATIENCE, Piece, Segment, TcpStreams

TEXT = bytes(range(256)) * 4


def seg(place: int, data: bytes, *, first: int = 2**32 - 100, at: float = 0.0, syn: bool = False, number: int = 1) -> Segment:
    """A segment at a place of the stream; the sequence number wraps after 100 octets."""
    return Segment(number, at, (first + place + (0 if syn else 1)) % 2**32, data, syn)


def joined(pieces: list[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces)


@given(st.lists(st.integers(0, len(TEXT)), max_size=12), st.randoms(use_true_random=False), st.booleans())
def test_order_repetition_and_overlap_do_not_matter(cuts: list[int], chance: random.Random, syn: bool) -> None:
    """Every octet once, in its place; the sequence number may wrap."""
    streams = TcpStreams[str]()
    found = streams.add("a", seg(0, b"", syn=True)) if syn else streams.add("a", seg(0, TEXT[:1]))
    places = sorted({0, len(TEXT), *cuts})
    segments = [seg(start, TEXT[start : end + chance.randrange(20)]) for start, end in itertools.pairwise(places)]
    segments = segments * 2
    chance.shuffle(segments)
    for segment in segments:
        found += streams.add("a", segment)
    assert joined(found) == TEXT
    assert not any(piece.gap for piece in found)
    assert [piece.begins for piece in found].count(True) == (1 if syn else 0)
    assert streams.held_octets == 0
    assert streams.finish() == []


def test_a_lost_segment_is_a_gap_once_too_much_waits() -> None:
    """The capture lost it: the other side did not."""
    streams = TcpStreams[str]()
    streams.add("a", seg(0, b"x"))
    found = [piece for place in range(MAX_HELD + 1) for piece in streams.add("a", seg(2 * place + 11, b"yy"))]
    assert found[0].gap
    assert not found[1].gap
    assert joined(found) == b"yy" * (MAX_HELD + 1)
    assert streams.gaps == 1


def test_a_lost_segment_is_a_gap_after_a_while_and_at_the_end() -> None:
    """TCP would have sent it again."""
    streams = TcpStreams[str]()
    streams.add("a", seg(0, b"x"))
    assert streams.add("a", seg(5, b"y", at=1.0)) == []
    found = streams.add("a", seg(9, b"z", at=2.0 + PATIENCE))
    assert [(piece.data, piece.gap) for piece in found] == [(b"y", True)]
    assert [(key, [(piece.data, piece.gap) for piece in pieces]) for key, pieces in streams.finish()] == [("a", [(b"z", True)])]


def test_a_new_connection_on_the_same_ports_begins_anew() -> None:
    """RFC 9293 §3.4.1; a SYN that comes twice is one."""
    streams = TcpStreams[str]()
    streams.add("a", seg(0, b"", syn=True))
    streams.add("a", seg(0, b"", syn=True))
    assert joined(streams.add("a", seg(0, b"one"))) == b"one"
    streams.add("a", seg(10, b"late"))
    left = streams.add("a", seg(0, b"early", first=5_000, syn=True))
    assert [(piece.data, piece.gap, piece.begins) for piece in left] == [(b"late", True, False), (b"early", False, True)]


def test_directions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one longest silent goes first; octets that wait are counted over all."""
    streams = TcpStreams[int]()
    streams.add(0, seg(0, b"x"))
    streams.add(0, seg(9, b"waits"))
    for key in range(1, MAX_FLOWS + 1):
        streams.add(key, seg(0, b"x"))
    assert streams.held_octets == 0
    monkeypatch.setattr(tcp, "MAX_HELD_OCTETS", 10)
    streams.add(1, seg(0, b"x"))
    assert joined(streams.add(1, seg(50, bytes(11)))) == bytes(11)
    assert streams.held_octets == 0


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=10), st.booleans()), max_size=20))
def test_any_segments_are_taken(segments: list[tuple[int, bytes, bool]]) -> None:
    """A value, never an exception; no octet from nowhere."""
    streams = TcpStreams[str]()
    found = [piece for sequence, data, syn in segments for piece in streams.add("a", Segment(1, 0.0, sequence, data, syn))]
    found += [piece for _, pieces in streams.finish() for piece in pieces]
    assert len(joined(found)) <= sum(len(data) for _, data, _ in segments)
