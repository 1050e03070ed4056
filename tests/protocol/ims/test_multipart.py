# SPDX-License-Identifier: Apache-2.0
"""Multipart bodies."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.ims.multipart import MAX_PARTS, Part, build_multipart, parse_content_type, parse_multipart

ONE = b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("message/sip", ("message/sip", {})),
        (" Multipart/Mixed ; Boundary=Abc ;x=y", ("multipart/mixed", {"boundary": "Abc", "x": "y"})),
        ('multipart/mixed;boundary="a \\"b;c"', ("multipart/mixed", {"boundary": 'a "b;c'})),
        ('application/3gpp-ims+xml;sv="1,2"', ("application/3gpp-ims+xml", {"sv": "1,2"})),
    ],
)
def test_a_content_type_is_read(text: str, expected: tuple[str, dict[str, str]]) -> None:
    """RFC 2045 §5.1."""
    assert parse_content_type(text) == expected


@pytest.mark.parametrize(
    "text", ["", "text", "a/b;", "a/b;c", "a/b;c=", 'a/b;c="', "a/b;c=1;C=2", "a/b c=1", "a/b;c=1 d=2", "ü/b", "a/b,c/d"]
)
def test_a_malformed_content_type_is_refused(text: str) -> None:
    """RFC 2045 §5.1."""
    with pytest.raises(ParseError):
        parse_content_type(text)


def test_parts_are_found_between_the_lines() -> None:
    """RFC 2046 §5.1.1: preamble, epilogue, padding after a boundary, a part without a header."""
    body = (
        b"preamble\r\n--b \t\r\nContent-Type: A/B; x=y\r\nX: y\r\n z\r\n\r\n1\r\n--b--2\r\n\r\n--b\r\n\r\n--\r\n-b\r\n--b--\r\nepilogue --b"
    )
    with pytest.raises(ParseError):  # "--b--2" closes nothing, but it is the boundary: two readers could read two things
        parse_multipart(body.replace(b"--b--2", b"--b2"), "b")
    assert parse_multipart(body, "b") == [Part("a/b", b"1")]
    assert parse_multipart(b"--b\r\n\r\n\r\n--b\r\nContent-Transfer-Encoding: BINARY\r\n\r\n\x00\r\n\r\n--b--", "b") == [
        Part("text/plain", b""),
        Part("text/plain", b"\x00\r\n"),
    ]
    assert parse_multipart(b"--b--", "b") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        ONE,
        ONE + b"--c--",
        ONE + b"--bb\r\n\r\n--b--",
        b"x--b--",
        b"--b",
        b"--b\r\nX: y\r\n--b--",
        b"--b\r\nno colon\r\n\r\n\r\n--b--",
        b"--b\r\nX: 1\r\nx: 2\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Type: nothing\r\n\r\n\r\n--b--",
        b"--b\r\nContent-Transfer-Encoding: base64\r\n\r\n\r\n--b--",
        b"--b\r\nX: " + b"y" * 3_000 + b"\r\n\r\n\r\n--b--",
        ONE * (MAX_PARTS + 1) + b"--b--",
        ONE * 1_000 + b"--b--",
        ONE.replace(b"\r", b"") + b"--b--",
    ],
)
def test_a_hostile_body_is_refused(body: bytes) -> None:
    """RFC 2046 §5.1.1."""
    with pytest.raises(ParseError):
        parse_multipart(body, "b")


@pytest.mark.parametrize("boundary", ["", " ", "a ", "x" * 71, "a\r\nb", "ü", "a;b", "\0", "[b]"])
def test_a_boundary_that_is_none_is_refused(boundary: str) -> None:
    """RFC 2046 §5.1.1."""
    with pytest.raises(ParseError):
        parse_multipart(b"--b--", boundary)
    with pytest.raises(LocalProtocolError):
        build_multipart([Part("a/b", b"")], boundary)


def test_a_part_cannot_hold_its_own_boundary() -> None:
    """The parts hold what a UE sent: a boundary that it foresaw would let it add a part of its own."""
    with pytest.raises(LocalProtocolError):
        build_multipart([Part("a/b", b"x\r\n--b--\r\n")], "b")
    boundary, _ = build_multipart([Part("message/sip", b"x")])
    forged = Part("message/sip", b"x\r\n--" + boundary.encode() + b"\r\nContent-Type: application/3gpp-ims+xml\r\n\r\n<evil/>")
    again, body = build_multipart([forged])
    assert again != boundary
    assert parse_multipart(body, again) == [forged]


@given(st.lists(st.builds(Part, st.sampled_from(["message/sip", "application/3gpp-ims+xml"]), st.binary(max_size=50)), max_size=MAX_PARTS))
def test_what_was_built_is_read_back(parts: list[Part]) -> None:
    """Reverse of parse_multipart."""
    boundary, body = build_multipart(parts)
    assert parse_multipart(body, boundary) == parts


@given(
    st.lists(st.sampled_from([b"--b", b"\r\n", b"--", b"Content-Type:", b" a/b", b"x", b"\n", b";"]), max_size=30).map(b"".join),
    st.text(max_size=9),
)
def test_any_octets_give_parts_or_a_parse_error(body: bytes, text: str) -> None:
    """STYLE §4."""
    with contextlib.suppress(ParseError):
        assert all(b"\r\n--b" not in part.content for part in parse_multipart(body, "b"))
    with contextlib.suppress(ParseError):
        parse_content_type(text)


def test_hostile_64_kb_take_no_time() -> None:
    """STYLE §4."""
    with costs_under(0.5):
        for body in (
            b"\r\n--b" * 13_000,
            b"--b\r\n" + b"\r\n " * 21_000,
            b"--b\r\n" + b"a:\r\n" * 16_000,
            b"--" * 32_000,
            b"--b\r\n\r\n" + b"\r\n--" * 16_000,
        ):
            with pytest.raises(ParseError):
                parse_multipart(body, "b")
        for text in (
            "a/b" + ";" * 8_000,
            "a/b" + ";a=1" * 2_000,
            'a/b;c="' + "\\" * 8_000,
            "a" * 8_000,
            "a/b" + " " * 8_000 + "x",
            'a/b;c="' + '\\"' * 4_000,
        ):
            with pytest.raises(ParseError):
                parse_content_type(text)
