# SPDX-License-Identifier: Apache-2.0
"""RFC 9110 §11.2, §5.6: whatever way a grammar allows to write credentials, they read the same; whatever else comes, in bounded time."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.protocol.digest_header import MAX_HEADER, build_credentials, parse_credentials

NAMES = ("username", "realm", "nonce", "uri", "response", "algorithm", "cnonce", "opaque", "qop", "nc")
MANDATORY = NAMES[:5]
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
CONTROLS = "\x7f" + "".join(map(chr, range(0x80, 0xA0)))
SPACES = st.text(" \t", max_size=3)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x17F, exclude_characters=CONTROLS), max_size=12)
QUADRATIC = 0.05
"""Seconds; the longest header takes 0.2 ms, and 50 times as long would still be linear on a machine that is busy."""


@st.composite
def written(draw: st.DrawFn) -> tuple[dict[str, str], str]:
    """Return parameters and one of the ways to write them."""
    names = list(MANDATORY) + draw(st.lists(st.sampled_from((*NAMES[5:], "extra", "x-1")), unique=True))
    values = {name: draw(VALUES) for name in names}
    parts = []
    for name in draw(st.permutations(names)):
        letters = "".join(letter.upper() if draw(st.booleans()) else letter for letter in name)
        parts.append(f"{letters}{draw(SPACES)}={draw(SPACES)}{_value(draw, values[name])}{draw(SPACES)}")
    commas = [draw(st.sampled_from([",", ", ", " ,\t", ",, ", ", ,"])) for _ in parts]
    scheme = draw(st.sampled_from(["Digest ", "DIGEST\t", "digest  ", "dIgEsT , "]))
    text = "".join(part + comma for part, comma in zip(parts, commas, strict=True))
    return values, scheme + (text if draw(st.booleans()) else text.rstrip(" \t,") if parts[-1][-1] not in " \t" else text)


def _value(draw: st.DrawFn, value: str) -> str:
    if TOKEN.fullmatch(value) and draw(st.booleans()):
        return value
    escaped = "".join(f"\\{char}" if char in '"\\' or (ord(char) < 0x7F and draw(st.booleans())) else char for char in value)
    return f'"{escaped}"'


@given(case=written())
def test_every_way_to_write_credentials_reads_the_same(case: tuple[dict[str, str], str]) -> None:
    values, text = case
    read = parse_credentials(text)
    for name in NAMES:
        assert getattr(read, name) == values.get(name), name
    assert dict(read.parameters) == {name: value for name, value in values.items() if name not in NAMES}
    assert parse_credentials(build_credentials(read)) == read


@given(case=written(), name=st.sampled_from(NAMES), place=st.integers(0, 20))
def test_no_parameter_comes_twice(case: tuple[dict[str, str], str], name: str, place: int) -> None:
    values, text = case
    if name not in values:
        return
    with pytest.raises(ParseError):
        parse_credentials(text.rstrip(" \t,") + f", {name.capitalize() if place % 2 else name}=x")


@given(case=written(), cut=st.integers(0, 400), more=st.text(max_size=5))
@settings(max_examples=60)
def test_what_is_broken_is_refused_or_read_and_nothing_else(case: tuple[dict[str, str], str], cut: int, more: str) -> None:
    text = case[1]
    for broken in (text[:cut], text[:cut] + more + text[cut:], text[:cut] + text[cut + 1 :]):
        try:
            parse_credentials(broken)
        except ParseError as problem:
            assert str(problem).startswith("Digest credentials: ")  # never the input itself


UNITS = ['a="', 'a=",', "a=b,", '\\"', "\\", ",", " ", "\t=", '"', "=", "a", "a= ", 'a="\\', ' , "', "\x00", "é"]


@given(unit=st.lists(st.sampled_from(UNITS), min_size=1, max_size=4).map("".join), head=st.sampled_from(["Digest ", "", 'Digest a="']))
@example(unit='\\"', head='Digest a="')
@example(unit=" ", head="Digest a")
def test_the_longest_header_takes_no_time(unit: str, head: str) -> None:
    """MAX_HEADER bounds it, and every repetition of the grammar is possessive."""
    text = (head + unit * MAX_HEADER)[:MAX_HEADER]
    best = 1.0
    for _ in range(3):  # the best of three: the machine may be busy, a bad expression never is fast
        began = time.thread_time()
        with pytest.raises(ParseError):
            parse_credentials(text)
        best = min(best, time.thread_time() - began)
        if best < QUADRATIC:
            break
    assert best < QUADRATIC
