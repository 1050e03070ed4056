# SPDX-License-Identifier: Apache-2.0
"""Messages out of a stream (RFC 3261 §7.5, §18.3; RFC 5626 §3.5.1)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.sip.framing import StreamFramer

ONE = b"OPTIONS sip:a SIP/2.0\r\nX: y\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
TWO = b"SIP/2.0 200 OK\r\nl\t:\r\n 0\r\n\r\n"


def test_messages_come_out_whole_octet_by_octet() -> None:
    """RFC 3261 §18.3."""
    stream = b"\r\n\r\n" + ONE + TWO + b"\r\n" + ONE + b"\r\n\r\n"
    framer = StreamFramer()
    found = [message for octet in stream for message in framer.feed(bytes((octet,)))]
    assert found == [ONE, TWO, ONE]
    assert framer.pings == 2
    assert not framer.partial
    whole = StreamFramer()
    assert whole.feed(stream) == found
    assert whole.pings == 2


@given(st.lists(st.sampled_from([ONE, TWO, b"\r\n\r\n", b"\r\n"]), max_size=6).map(b"".join), st.lists(st.integers(0, 300), max_size=8))
def test_how_the_stream_is_cut_does_not_matter(stream: bytes, cuts: list[int]) -> None:
    """RFC 3261 §18.3."""
    whole, pieces = StreamFramer(), StreamFramer()
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    found = [message for start, end in itertools.pairwise(places) for message in pieces.feed(stream[start:end])]
    assert found == whole.feed(stream)
    assert (pieces.pings, pieces.partial) == (whole.pings, whole.partial)


@pytest.mark.parametrize(
    "wrong",
    [
        b"OPTIONS sip:a SIP/2.0\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: -1\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: \r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 1\r\nl: 2\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 65536\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_a_stream_that_cannot_be_cut_ends(wrong: bytes) -> None:
    """RFC 3261 §20.14: Content-Length MUST be there on a stream."""
    framer = StreamFramer()
    with pytest.raises(ParseError):
        framer.feed(wrong)
    assert not framer.partial
    assert framer.problem is not None
    with pytest.raises(ParseError):
        framer.feed(ONE)


def test_messages_before_the_fault_are_not_lost() -> None:
    """The same messages come out however the octets were cut."""
    framer = StreamFramer()
    assert framer.feed(ONE + b"x\r\n\r\n") == [ONE]
    assert framer.problem is not None
    with pytest.raises(ParseError):
        framer.feed(b"")


def test_a_message_that_is_not_all_there_waits() -> None:
    """RFC 3261 §18.3."""
    framer = StreamFramer()
    assert framer.feed(ONE[:-1]) == []
    assert framer.partial
    assert framer.feed(ONE[-1:]) == [ONE]


def test_time_stays_linear_octet_by_octet() -> None:
    """A header of 60 kB that comes in single octets is searched once."""
    framer = StreamFramer()
    with costs_under(1):
        for _ in range(60_000):
            framer.feed(b"a")
    framer = StreamFramer()
    with costs_under(2):
        assert len(framer.feed(TWO * 20_000)) == 20_000
        assert framer.feed(b"\r\n" * 200_000) == []


@given(st.binary(max_size=300))
def test_any_octets_give_messages_or_parse_error(data: bytes) -> None:
    """Parser property."""
    framer = StreamFramer()
    try:
        framer.feed(data)
    except ParseError:
        assert framer.problem is not None
