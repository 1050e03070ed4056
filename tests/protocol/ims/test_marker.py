# SPDX-License-Identifier: Apache-2.0
"""The release marker (*ours*; RFC 3310 §3.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError
from keyferry.protocol.ims.marker import MAX_SERVER_DATA, Marker, build_marker, parse_marker

MARKERS = st.builds(Marker, st.integers(6, 255), st.booleans(), st.booleans(), st.booleans())


@given(MARKERS, st.binary(max_size=MAX_SERVER_DATA - 4))
def test_a_marker_is_read_as_it_was_written_whatever_follows(marker: Marker, rest: bytes) -> None:
    built = build_marker(marker)
    assert len(built) == 4
    assert parse_marker(built) == marker
    assert parse_marker(built + rest) == marker


@given(st.binary(max_size=80))
def test_any_octets_are_a_marker_or_none(server_data: bytes) -> None:
    marker = parse_marker(server_data)
    if marker is not None:
        assert build_marker(marker)[:3] == server_data[:3]


@given(MARKERS, st.integers(4, MAX_SERVER_DATA))
def test_a_marker_is_filled_up_with_zeros_to_the_length_that_is_asked_for(marker: Marker, octets: int) -> None:
    built = build_marker(marker, octets)
    assert built == build_marker(marker) + bytes(octets - 4)
    assert parse_marker(built) == marker


@pytest.mark.parametrize("octets", [-1, 0, 3, 65])
def test_a_marker_of_another_length_is_refused(octets: int) -> None:
    with pytest.raises(LocalProtocolError):
        build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=True), octets)


def test_the_octets_are_those_of_the_definition() -> None:
    assert build_marker(Marker(6, access_keys=True, as_keys=True, rspauth=True)) == b"3G\x06\x07"
    assert build_marker(Marker(17, access_keys=True, as_keys=False, rspauth=False)) == b"3G\x11\x01"
    assert build_marker(Marker(6, access_keys=False, as_keys=True, rspauth=False)) == b"3G\x06\x02"
    assert build_marker(Marker(6, access_keys=False, as_keys=False, rspauth=True)) == b"3G\x06\x04"


@pytest.mark.parametrize(
    "server_data",
    [
        b"",
        b"3",
        b"3G",
        b"3G\x06",
        b"3g\x06\x07",
        b"G3\x06\x07",
        b"3G\x05\x07",
        b"3G\x00\x00",
        b"\x003G\x06\x07",
        b"3G\x06\x07".ljust(65, b"\0"),
    ],
)
def test_anything_else_is_release_5(server_data: bytes) -> None:
    assert parse_marker(server_data) is None


def test_flags_of_a_later_release_are_ignored() -> None:
    assert parse_marker(b"3G\x12\xff") == Marker(18, access_keys=True, as_keys=True, rspauth=True)
    assert parse_marker(b"3G\x12\xf8") == Marker(18, access_keys=False, as_keys=False, rspauth=False)


@pytest.mark.parametrize("release", [-1, 0, 5, 256])
def test_a_release_that_needs_no_marker_or_has_none_is_refused(release: int) -> None:
    with pytest.raises(LocalProtocolError):
        build_marker(Marker(release, access_keys=True, as_keys=True, rspauth=True))


@given(MARKERS)
def test_only_all_three_flags_make_a_complete_marker(marker: Marker) -> None:
    assert marker.complete == (build_marker(marker)[3] == 7)
