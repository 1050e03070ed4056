# SPDX-License-Identifier: Apache-2.0
"""RFC 9110 §8.8.3, §13."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.xcap.conditions import (
    MAX_HEADER,
    NO_CONDITIONS,
    Conditions,
    EntityTag,
    check_write,
    etag_of,
    not_modified,
    parse_entity_tags,
)


def test_a_tag_depends_on_the_octets_alone() -> None:
    """RFC 9110 §8.8.3: strong."""
    assert etag_of(b"a") == etag_of(b"a") != etag_of(b"b")
    assert len(etag_of(b"")) == 22


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("*", None),
        (" * ", None),
        ('"a"', [EntityTag("a", False)]),
        ('W/"a", "b" ,, ""', [EntityTag("a", True), EntityTag("b", False), EntityTag("", False)]),
        ('"a,b"', [EntityTag("a,b", False)]),
        ("a", [EntityTag("a", False)]),
        (' a,W/b , "c"', [EntityTag("a", False), EntityTag("b", True), EntityTag("c", False)]),
    ],
)
def test_tags_are_read(text: str, tags: list[EntityTag] | None) -> None:
    """RFC 9110 §13.1.1."""
    assert parse_entity_tags(text) == tags


@pytest.mark.parametrize(
    "text", ["", ",", " ", '"a', "a b", 'a"b"', "a, *", '"a" "b"', '*, "a"', '"a b"', 'w/"a"', '"' + "a" * MAX_HEADER + '"']
)
def test_what_is_no_list_of_tags_is_refused(text: str) -> None:
    """RFC 9110 §8.8.3."""
    with pytest.raises(ParseError):
        parse_entity_tags(text)


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "etag", "passes"),
    [
        (None, None, None, True),
        ("*", None, None, False),
        ("*", None, "a", True),
        ('"a"', None, "a", True),
        ('W/"a"', None, "a", False),  # strong comparison
        ('"b", "a"', None, "a", True),
        ('"b"', None, "a", False),
        ('"a"', None, None, False),
        (None, "*", None, True),
        (None, "*", "a", False),
        (None, '"a"', "a", False),
        (None, 'W/"a"', "a", False),  # weak comparison
        (None, '"b"', "a", True),
        ('"a"', '"b"', "a", True),
    ],
)
def test_a_write_depends_on_what_is_there(if_match: str | None, if_none_match: str | None, etag: str | None, passes: bool) -> None:
    """RFC 9110 §13.2.2."""
    if passes:
        check_write(Conditions(if_match, if_none_match), etag)
    else:
        with pytest.raises(RemoteProtocolError) as caught:
            check_write(Conditions(if_match, if_none_match), etag)
        assert caught.value.status == 412


def test_a_read_may_be_saved() -> None:
    """RFC 9110 §13.1.2."""
    assert not_modified(Conditions(None, 'W/"a"'), "a")
    assert not not_modified(Conditions(None, '"b"'), "a")
    assert not not_modified(NO_CONDITIONS, "a")


@given(st.text(max_size=100) | st.text('W/"ab, \t*', max_size=100))
def test_any_text_gives_tags_or_a_parse_error(text: str) -> None:
    """STYLE: parser property."""
    with contextlib.suppress(ParseError):
        parse_entity_tags(text)


@pytest.mark.parametrize("text", ['"' * MAX_HEADER, " " * MAX_HEADER, "," * MAX_HEADER, " ," * (MAX_HEADER // 2) + "x"])
def test_hostile_text_takes_no_time(text: str) -> None:
    """Linear."""
    with costs_under(0.1), pytest.raises(ParseError):
        parse_entity_tags(text[:MAX_HEADER])
