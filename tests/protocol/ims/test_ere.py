# SPDX-License-Identifier: Apache-2.0
"""Extended regular expressions."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.ims.ere import MAX_TEXT, Ere, compile_ere


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("home1.net", "sip:USER@Home1.Net", True),
        ("home1.net", "sip:user@home1xnet", True),
        (r"home1\.net", "sip:user@home1xnet", False),
        ("", "", True),
        ("", "x", True),
        ("abc", "ab", False),
        ("^sip:", "sip:x", True),
        ("^sip:", "<sip:x", False),
        ("net$", "home1.net", True),
        ("net$", "home1.net>", False),
        ("^$", "", True),
        ("^$", "x", False),
        ("^a|b$", "xb", True),
        ("^a|b$", "bx", False),
        ("a^b", "a^b", False),
        ("a*", "", True),
        ("xa*y", "xy", True),
        ("xa+y", "xy", False),
        ("xa?y", "xay", True),
        ("xa{2}y", "xaay", True),
        ("xa{2}y", "xaaay", False),
        ("xa{2,}y", "xaaaay", True),
        ("xa{0,1}y", "xaay", False),
        ("xa{0}y", "xy", True),
        ("(ab|cd)+e", "xcdabe", True),
        ("(ab|cd)+e", "xcbe", False),
        ("(a||b)c", "c", True),
        ("()x", "x", True),
        ("(a*)*b", "aaab", True),
        ("(a*)+$", "aaa", True),
        ("[a-c]x", "Bx", True),
        ("[A-C]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[]x]y", "]y", True),
        ("[^]x]y", "]y", False),
        ("[a-]y", "-y", True),
        (r"[\]y", "\\y", True),
        ("[[:digit:]]{3}", "x123", True),
        ("[[:alpha:]_]+@", "a_b@", True),
        ("[^[:space:]]", " \t", False),
        ("[[:upper:]]x", "ax", True),
        ("[[:blank:]]", "\t", True),
        ("[[:punct:]]", "a;", True),
        ("[[:graph:][:print:]]", "\x01", False),
        ("[[:cntrl:]]", "\x7f", True),
        ("^[[:xdigit:]]+$", "BEEF", True),
        ("[[:alnum:][:lower:]]", "-", False),
        (r"\d\w\s", "1a ", True),
        (r"\D\W\S", "a-x", True),
        (r"\D", "1", False),
        (r"\$\^\+\\", "$^+\\", True),
        ("v2.1", "G.723 v2.1", True),
        (r"\+g\.3gpp\.icsi-ref=.*mmtel", '<sip:a>;+g.3gpp.icsi-ref="urn%3Aurn-7%3A3gpp-service.ims.icsi.mmtel"', True),
        ("grüß", "GRÜß", True),
    ],
)
def test_patterns_match_as_posix_says(pattern: str, text: str, found: bool) -> None:
    """IEEE Std 1003.1-2004 §9.4; case is ignored (RFC 3261 §7.3.1)."""
    assert Ere(pattern).search(text) is found


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("contact", "Contact", True),
        ("contact", "m-Contact", False),
        ("p-.*", "P-Access-Network-Info", True),
        ("p-.", "P-X-", False),
        ("a|ab", "ab", True),
    ],
)
def test_a_header_name_matches_as_a_whole(pattern: str, text: str, found: bool) -> None:
    """TS 29.228 annex F."""
    assert Ere(pattern).fullmatch(text) is found


@pytest.mark.parametrize(
    "pattern",
    [
        *[
            "(",
            ")",
            "a)",
            "(a",
            "[",
            "[a",
            "[]",
            "[^]",
            "[b-a]",
            "[[:x:]]",
            "[[.a.]]",
            "[[=a=]]",
            "[[:alpha:",
            "*",
            "+a",
            "?",
            "{2}",
            "(*a)",
        ],
        *["a{", "a{x}", "a{,2}", "a{2,1}", "a{256}", "a{1,2,3}", "\\", r"\1", r"\b", "a{100}{100}", "x" * 256, "(" * 17 + ")" * 17],
        *["(a{255}){3}", "((a{0}){255}){255}", "(((){255}){255}){255}"],
    ],
)
def test_what_is_no_pattern_or_too_large_is_refused(pattern: str) -> None:
    """IEEE Std 1003.1-2004 §9.4."""
    with pytest.raises(ParseError) as problem:
        compile_ere(pattern)
    assert pattern not in {"(", ")"} or "pattern" not in str(problem.value)


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*c", "(a|a)*c", "(a|aa)+$", "(.*)(.*)(.*)(.*)c", "a{0,60}a{60}c", "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$", "(a?){50}a{50}c"],
)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    """A pattern from the HSS meets a header from a UE."""
    compiled = Ere(pattern)
    with costs_under(1.0):
        compiled.search("a" * MAX_TEXT)
        compiled.search("ab" * (MAX_TEXT // 2))


def test_a_pattern_that_makes_ever_new_states_keeps_its_memory_bounded() -> None:
    """The cache of transitions is emptied when it is full."""
    compiled = Ere("(a|b)*a(a|b){20}c")
    text = "".join(random.Random(20).choices("ab", k=MAX_TEXT))  # the same at each run
    with costs_under(2.0):
        assert not compiled.search(text)
        assert len(compiled._moves) <= 2_048


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "c"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: f"({'|'.join(some)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=5,
)


@given(PATTERNS, st.text("abcd", max_size=8), st.sampled_from(["", "^"]), st.sampled_from(["", "$"]))
def test_it_agrees_with_re(pattern: str, text: str, begin: str, end: str) -> None:
    """For what both languages mean alike."""
    pattern = f"{begin}({pattern}){end}"
    try:
        compiled = Ere(pattern)
    except ParseError:
        return
    assert compiled.search(text) is (re.search(pattern, text) is not None)
    assert compiled.fullmatch(text) is (re.fullmatch(pattern, text) is not None)


@given(st.text(st.sampled_from("ab()[]{}*+?|^$\\.:-,0123=ü"), max_size=20), st.text(max_size=20))
def test_any_pattern_compiles_or_is_refused(pattern: str, text: str) -> None:
    """STYLE §4."""
    try:
        compiled = Ere(pattern)
    except ParseError:
        return
    compiled.search(text)
    compiled.fullmatch(text)
