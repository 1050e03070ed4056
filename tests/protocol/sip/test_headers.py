# SPDX-License-Identifier: Apache-2.0
"""Header field values (RFC 3261 §20)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.sip.headers import (
    MAX_REMEMBERED_LENGTH,
    MAX_WARNING,
    CSeq,
    NameAddr,
    Via,
    build_cseq,
    build_name_addr,
    build_via,
    build_warning,
    check_name_addr,
    parse_cseq,
    parse_expires,
    parse_name_addr,
    parse_name_addr_list,
    parse_via,
    parse_via_list,
    parse_warning,
    split_list,
    top_via,
)


def test_a_warning_is_for_people() -> None:
    """RFC 3261 §20.43."""
    value = build_warning("icscf.home1.net", 'S-CSCF "1"\r\nVia: x')
    assert value == '399 icscf.home1.net "S-CSCF \\"1\\"??Via: x"'
    assert parse_warning(value) == ("icscf.home1.net", 'S-CSCF "1"??Via: x')
    assert len(parse_warning(build_warning("[::1]:5060", "x" * 9_000))[1]) == MAX_WARNING
    for wrong in ("", "399 h", '39 h "x"', '399 h "x'):
        with pytest.raises(ParseError):
            parse_warning(wrong)


def test_a_name_addr_has_display_uri_and_parameters() -> None:
    """RFC 3261 §20.10."""
    value = parse_name_addr('"Mr. \\"W\\"" <sip:watson@example.com;lr>;q=0.7; Expires=3600;+sip.instance="<urn:uuid:1>";lr')
    assert (value.display, value.uri) == ('Mr. "W"', "sip:watson@example.com;lr")
    assert value.parameter("EXPIRES") == "3600"
    assert value.parameter("+sip.instance") == "<urn:uuid:1>"
    assert value.parameter("lr") == ""
    assert value.parameter("tag") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sip:a@example.com;tag=1", NameAddr("", "sip:a@example.com", (("tag", "1"),))),
        ("Alice Smith  <sips:a@example.com> ; tag = 1", NameAddr("Alice Smith", "sips:a@example.com", (("tag", "1"),))),
        ("<tel:+12125551111;phone-context=x>", NameAddr("", "tel:+12125551111;phone-context=x")),
        ("Jörg <sip:j@example.com>", NameAddr("Jörg", "sip:j@example.com")),
        ('""<sip:a@b>', NameAddr("", "sip:a@b")),
        ("<sip:a@b?x=%20,y>", NameAddr("", "sip:a@b?x=%20,y")),
    ],
)
def test_forms_of_addresses(text: str, expected: NameAddr) -> None:
    """RFC 3261 §20.10, §20.34."""
    assert parse_name_addr(text) == expected
    assert parse_name_addr(build_name_addr(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "Bell, Alexander <sip:a@example.com>",  # RFC 4475 §3.1.2.15
        "<sip:a@example.com",
        "sip:a@example.com>",
        "<sip: a@example.com>",
        "< sip:a@example.com>",
        '"open <sip:a@example.com>',
        "<a@example.com>",
        "<sip:a@example.com>tag=1",
        "<sip:a@example.com>;",
        "<sip:a@example.com>;=1",
        "<sip:a@example.com>;tag=1;tag=2",
        "<sip:a@example.com>, <sip:b@example.com>",
        "sip:a@example.com?x=y",  # RFC 4475 §3.1.2.13: must be in <>
        "<sip:" + "a" * 3000 + ">",
    ],
)
def test_what_is_no_single_address_is_refused(text: str) -> None:
    """RFC 3261 §25.1, RFC 4475 §3.1.2."""
    with pytest.raises(ParseError):
        parse_name_addr(text)


def test_lists_of_addresses_split_only_at_outer_commas() -> None:
    """RFC 3261 §7.3.1."""
    text = '"a,b" <sip:a,b@example.com>;x="1,2" ,<sip:c@example.com>,\tsip:d@example.com;q=1'
    assert [value.uri for value in parse_name_addr_list(text)] == ["sip:a,b@example.com", "sip:c@example.com", "sip:d@example.com"]
    for wrong in ("<sip:a@b>,", ",<sip:a@b>", "<sip:a@b> <sip:c@d>", ",".join(["<sip:a@b>"] * 200)):
        with pytest.raises(ParseError):
            parse_name_addr_list(wrong)


def test_a_via_has_transport_sent_by_and_parameters() -> None:
    """RFC 3261 §20.42, RFC 3581 §3."""
    via = parse_via("SIP / 2.0 / udp  [5555::AAA]:1357 ; branch = z9hG4bK1;received=192.0.2.1;rport;comp=sigcomp")
    assert via[:3] == ("UDP", "[5555::aaa]", 1357)
    assert (via.branch, via.received, via.rport, via.parameter("comp")) == ("z9hG4bK1", "192.0.2.1", "", "sigcomp")
    assert build_via(via) == "SIP/2.0/UDP [5555::aaa]:1357;branch=z9hG4bK1;received=192.0.2.1;rport;comp=sigcomp"
    bare = parse_via("SIP/2.0/TLS-SCTP example.com")
    assert (bare.port, bare.branch, bare.received, bare.rport) == (None, "", None, None)


def test_the_top_via_is_cut_off_its_list() -> None:
    """RFC 3261 §18.1.2."""
    assert top_via("SIP/2.0/UDP a;branch=1") == (Via("UDP", "a", None, (("branch", "1"),)), "")
    assert top_via("SIP/2.0/UDP a , SIP/2.0/TCP b , nonsense") == (Via("UDP", "a", None), "SIP/2.0/TCP b , nonsense")
    assert [via.host for via in parse_via_list("SIP/2.0/UDP a, SIP/2.0/TCP b")] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SIP/2.0/UDP",
        "SIP/1.0/UDP a",
        "SIP/2.0/UDP a:99999",
        "SIP/2.0/UDP [::x]",
        "SIP/2.0/UDP a b",
        "SIP/2.0/UDPa",
        "HTTP/2.0/UDP a",
        "SIP/2.0/UDP a, b",
    ],
)
def test_what_is_no_via_is_refused(text: str) -> None:
    """RFC 3261 §25.1."""
    with pytest.raises(ParseError):
        parse_via(text)


def test_cseq() -> None:
    """RFC 3261 §20.16, §8.1.1.5."""
    assert parse_cseq("0009 \t REGISTER") == CSeq(9, "REGISTER")
    assert build_cseq(CSeq(2, "MESSAGE")) == "2 MESSAGE"
    for wrong in (
        "",
        "1",
        "REGISTER",
        "1REGISTER",
        "-1 REGISTER",
        "2147483648 REGISTER",
        "36893488147419103232 REGISTER",
        "1 RE GISTER",
        "\u0661 REGISTER",
    ):
        with pytest.raises(ParseError):
            parse_cseq(wrong)


def test_expires() -> None:
    """RFC 3261 §20.19."""
    assert parse_expires("0") == 0
    assert parse_expires("4294967295") == 2**32 - 1
    for wrong in ("", "-1", "4294967296", "10000000000000000", "1.5", "\u0661", " 1"):
        with pytest.raises(ParseError):
            parse_expires(wrong)


def test_split_list() -> None:
    """RFC 3261 §7.3.1."""
    assert split_list("path, gruu") == ["path", "gruu"]
    assert split_list('<sip:a,b>;x="c,\\"d" , e') == ['<sip:a,b>;x="c,\\"d"', "e"]
    assert split_list(" ") == []
    for wrong in ("a,", ",a", "a,,b", '"a', "<a", "a>", "a" * 9000, "a," * 200 + "a"):
        with pytest.raises(ParseError):
            split_list(wrong)


SCRAPS = st.lists(
    st.sampled_from(
        ['"', "<", ">", ";", ",", "=", "\\", " ", "\t", "sip:a@b", "SIP/2.0/UDP ", "host:5060", "tag", "a", "[::1]", "é", "1 REGISTER"]
    ),
    max_size=14,
).map("".join)


@given(SCRAPS | st.text(max_size=60))
def test_any_text_gives_a_value_that_round_trips_or_parse_error(text: str) -> None:
    """Parser property."""
    with contextlib.suppress(ParseError):
        address = parse_name_addr(text)
        assert parse_name_addr(build_name_addr(address)) == address
    with contextlib.suppress(ParseError):
        assert parse_name_addr_list(text)
    with contextlib.suppress(ParseError):
        via = parse_via(text)
        assert parse_via(build_via(via)) == via
    with contextlib.suppress(ParseError):
        cseq = parse_cseq(text)
        assert parse_cseq(build_cseq(cseq)) == cseq
    with contextlib.suppress(ParseError):
        assert 0 <= parse_expires(text) < 2**32
    with contextlib.suppress(ParseError):
        for item in split_list(text):
            assert split_list(item) == [item]


def refuses(read: Callable[[str], object], text: str) -> bool:
    """Tell whether a reader raises ParseError."""
    try:
        read(text)
    except ParseError:
        return True
    return False


@given(SCRAPS | st.text(max_size=60) | SCRAPS.map("<sip:a@b>;tag".__add__))
@example("<sip:alice@home1.net>;tag=1928301774")
@example("<sip:a@b>;tag=1;tag=2")
@example('<sip:a@b>;tag="1"')
@example("<sip:a@b>;tag=1, <sip:c@d>")
@example("<sip:a b>;tag=1")
@example(f"<sip:{2_050 * 'a'}>;tag=1")
def test_an_address_is_checked_as_it_is_parsed(text: str) -> None:
    """The usual form is told without parsing, and nothing else is taken for it."""
    assert refuses(check_name_addr, text) is refuses(parse_name_addr, text)


HOSTILE = [
    "a" + " " * 64_000,
    '"' + "\\" * 64_000,
    '"' + 'a"' * 32_000,
    "<" * 64_000,
    "<sip:" + "a" * 64_000,
    "sip:a" + ";" * 64_000,
    "sip:a;b=" + '"' * 64_000,
    "a " * 32_000 + "<",
    "SIP/2.0/UDP " + "a." * 32_000,
    "SIP" + " " * 64_000 + "/",
    "SIP/2.0/UDP a" + ";b=c " * 13_000,
    "sip:a@b," * 8_000,
    "1" * 64_000,
    "1" + " " * 64_000,
]


@pytest.mark.parametrize(
    "parse",
    [check_name_addr, parse_name_addr, parse_name_addr_list, parse_via, parse_via_list, top_via, parse_cseq, parse_expires, split_list],
)
def test_hostile_values_take_linear_time(parse: Callable[[str], object]) -> None:
    """64 kB values, far over what a message may hold; the prototype took seconds on the first."""
    for text in HOSTILE:
        with costs_under(0.5), contextlib.suppress(ParseError):
            parse(text)


def test_a_value_too_long_to_be_remembered_is_read_the_same() -> None:
    long = "x" * MAX_REMEMBERED_LENGTH
    assert parse_name_addr(f"<sip:{long}@a>;tag=1") == NameAddr("", f"sip:{long}@a", (("tag", "1"),))
    assert parse_name_addr_list(f"<sip:{long}@a>, <sip:b@c>") == [NameAddr("", f"sip:{long}@a"), NameAddr("", "sip:b@c")]
    assert top_via(f"SIP/2.0/UDP a;branch={long}, rest") == (Via("UDP", "a", None, (("branch", long),)), "rest")


def test_what_is_remembered_cannot_be_changed_by_a_reader() -> None:
    parse_name_addr_list("<sip:a@b>").clear()
    assert parse_name_addr_list("<sip:a@b>") == [NameAddr("", "sip:a@b")]
