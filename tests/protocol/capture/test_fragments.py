# SPDX-License-Identifier: Apache-2.0
"""IP fragments (RFC 791 §3.2; RFC 5722)."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.capture.fragments import LIFETIME, MAX_DATAGRAM, MAX_OCTETS, MAX_PIECES, MAX_WAITING, FragmentKey, Fragments

DATA = bytes(range(40))
KEY = FragmentKey(b"a", b"b", 17, 1)
PIECES = [(0, DATA[:16], True), (16, DATA[16:32], True), (32, DATA[32:], False)]


def test_fragments_come_together_in_any_order() -> None:
    """RFC 791 §3.2."""
    for order in itertools.permutations(PIECES):
        held = Fragments()
        found = [held.add(KEY, offset, data, more=more, at=0.0) for offset, data, more in (order[0], *order)]
        assert found == [None, None, None, DATA]
        assert (held.waiting, held.lost) == (0, 0)


def test_fragments_of_different_datagrams_do_not_mix() -> None:
    """The key is source, target, protocol and identification."""
    held = Fragments()
    other = KEY._replace(identification=2)
    assert held.add(KEY, 0, DATA[:8], more=True, at=0.0) is None
    assert held.add(other, 8, b"x", more=False, at=0.0) is None
    assert held.waiting == 2


def test_overlap_and_the_impossible_end_a_datagram() -> None:
    """RFC 5722 §3; a fragment but the last is a multiple of 8; nothing follows the end."""
    wrong = [
        [(0, DATA[:16], True), (8, DATA[8:24], True), (24, DATA[24:], False)],
        [(0, DATA[:16], True), (0, DATA[:8], True)],
        [(0, DATA[:7], True)],
        [(0, b"", True)],
        [(MAX_DATAGRAM - 7, DATA[:8], True)],
        [(8, DATA[:8], False), (16, DATA[:8], True)],
        [(8, DATA[:8], False), (24, DATA[:8], False)],
        [(8 * number, DATA[:8], True) for number in range(MAX_PIECES + 1)],
    ]
    for pieces in wrong:
        held = Fragments()
        assert [held.add(KEY, offset, data, more=more, at=0.0) for offset, data, more in pieces] == [None] * len(pieces)
        assert (held.waiting, held.lost) == (0, 1)


def test_what_never_becomes_whole_is_given_up() -> None:
    """By time, by number, by octets."""
    held = Fragments()
    held.add(KEY, 0, DATA[:8], more=True, at=0.0)
    held.add(KEY._replace(identification=2), 0, DATA[:8], more=True, at=LIFETIME + 1)
    assert (held.waiting, held.lost) == (1, 1)
    for number in range(MAX_WAITING + 5):
        held.add(KEY._replace(identification=number + 10), 0, DATA[:8], more=True, at=LIFETIME + 1)
    assert held.waiting == MAX_WAITING
    full = Fragments()
    for number in range(200):
        full.add(KEY._replace(identification=number), 0, bytes(64_000), more=True, at=0.0)
    assert full.waiting == MAX_OCTETS // 64_000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.binary(max_size=24), st.booleans()), max_size=30))
def test_any_fragments_are_taken(pieces: list[tuple[int, int, bytes, bool]]) -> None:
    """A value, never an exception."""
    held = Fragments()
    for number, place, data, more in pieces:
        whole = held.add(KEY._replace(identification=number), 8 * place, data, more=more, at=0.0)
        assert whole is None or len(whole) <= MAX_DATAGRAM
