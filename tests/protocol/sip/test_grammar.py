# SPDX-License-Identifier: Apache-2.0
"""Shared rules (RFC 3261 §25)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.sip import grammar

TEXT = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=60)


@given(TEXT)
def test_unquote_reverses_quote(text: str) -> None:
    """RFC 3261 §25.1, quoted-string."""
    assert grammar.unquote(grammar.quote(text)) == text
    ((name, value),), end = grammar.scan_parameters(f";a={grammar.quote(text)}", 0, "test")
    assert (name, end) == ("a", len(f";a={grammar.quote(text)}"))
    assert value is not None
    assert grammar.unquote(value) == text


def test_parameters_keep_their_order_and_quotes_and_lose_their_case() -> None:
    """RFC 3261 §7.3.1."""
    text = ' ; LR ;q= 0.5; x = "a\\"b;c" ,next'
    parameters, end = grammar.scan_parameters(text, 0, "test")
    assert parameters == (("lr", None), ("q", "0.5"), ("x", '"a\\"b;c"'))
    assert text[end:] == ",next"
    assert grammar.build_parameters(parameters) == ';lr;q=0.5;x="a\\"b;c"'
    assert grammar.parameter_of(parameters, "X") == 'a"b;c'
    assert grammar.parameter_of(parameters, "Lr") == ""
    assert grammar.parameter_of(parameters, "y") is None


def test_a_parameter_that_appears_twice_is_refused() -> None:
    """RFC 3261 §7.3.1: any given parameter-name MUST NOT appear more than once."""
    with pytest.raises(ParseError):
        grammar.scan_parameters(";tag=1;TAG=2", 0, "test")


def test_too_many_parameters_are_refused() -> None:
    """MAX_PARAMETERS."""
    with pytest.raises(ParseError):
        grammar.scan_parameters("".join(f";p{number}" for number in range(65)), 0, "test")


def test_with_parameter_replaces_or_appends() -> None:
    """RFC 3581 §4: rport keeps its place."""
    assert grammar.with_parameter((("rport", None), ("branch", "1")), "rport", "5") == (("rport", "5"), ("branch", "1"))
    assert grammar.with_parameter((("branch", "1"),), "received", "::1") == (("branch", "1"), ("received", "::1"))


def test_hosts_and_ports_are_checked() -> None:
    """RFC 3261 §25.1, host and port."""
    assert grammar.host_of("Home1.NET", "test") == "home1.net"
    assert grammar.host_of("[2001:DB8::1]", "test") == "[2001:db8::1]"
    assert grammar.port_of(None, "test") is None
    assert grammar.port_of("05060", "test") == 5060
    for wrong in ("[::1::2]", "a" * 256):
        with pytest.raises(ParseError):
            grammar.host_of(wrong, "test")
    with pytest.raises(ParseError):
        grammar.port_of("65536", "test")


@pytest.mark.parametrize(
    "hostile", [";a=" + '"' + "\\a" * 30_000, ";a" + " " * 60_000 + "x", ";a=" * 20_000, ";" * 60_000, ";a = " + " " * 60_000]
)
def test_hostile_parameters_take_linear_time(hostile: str) -> None:
    """No backtracking."""
    with costs_under(0.5), contextlib.suppress(ParseError):
        grammar.scan_parameters(hostile, 0, "test")
