# SPDX-License-Identifier: Apache-2.0
"""Frames and fields of the key agent's socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.protocol.identity import Impu
from keyferry.transports.agent_wire import Frames, build_frame, build_record, octets_of, parse_record, whose
from transports.agentkit import WIKI, record

LIMIT = 1000
OBJECTS = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20), st.booleans(), st.none()), max_size=5)


@given(st.lists(OBJECTS, max_size=5), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(objects: list[dict[str, Any]], size: int) -> None:
    stream = b"".join(map(build_frame, objects))
    frames = Frames(LIMIT)
    seen = [one for place in range(0, len(stream), size) for one in frames.feed(stream[place : place + size])]
    assert seen == objects


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_octets_give_objects_or_a_parse_error(octets: bytes, size: int) -> None:
    frames = Frames(LIMIT)
    try:
        for place in range(0, len(octets), size):
            assert all(isinstance(one, dict) for one in frames.feed(octets[place : place + size]))
    except ParseError:
        pass


BODIES = [b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 90_000, b'{"a":' * 15_000, b"1" * 900, b'{"a":' + b"9" * 90_000 + b"}"]


@pytest.mark.parametrize("body", BODIES)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Too deep, and a number of too many digits, are no JSON either."""
    with pytest.raises(ParseError):
        list(Frames(100_000).feed(len(body).to_bytes(4, "big") + body))


def test_a_frame_over_the_limit_is_refused_before_it_is_there() -> None:
    with pytest.raises(ParseError):
        list(Frames(LIMIT).feed((LIMIT + 1).to_bytes(4, "big")))


def test_a_record_comes_out_as_it_went_in() -> None:
    held = record("alice", WIKI, "sip:ali\udcffce@home1.net", "tel:+1")
    again = parse_record(json.loads(json.dumps(build_record(held))), WIKI)
    assert again == held
    assert repr(held.k_as) == "Secret(32 octets)"


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("wrong", [None, {}, ["x", 1]])
def test_a_record_of_another_form_is_refused(place: int, wrong: object) -> None:
    value = build_record(record())
    value[place] = wrong
    with pytest.raises(ParseError):
        parse_record(value, WIKI)


@pytest.mark.parametrize("text", [None, 5, "é", "a", "====", "YQ= ="])
def test_what_is_no_base64_is_refused(text: object) -> None:
    with pytest.raises(ParseError):
        octets_of(text)


def test_another_owner_or_other_identities_have_another_name() -> None:
    held = record()
    others = [held._replace(impus=held.impus[::-1]), held._replace(impus=(*held.impus, Impu("sip:b@home1.net"))), record("bob")]
    assert len({whose(one) for one in (held, *others)}) == 4
    assert whose(held._replace(not_after=1.0, superseded=True)) == whose(held)
