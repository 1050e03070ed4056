# SPDX-License-Identifier: Apache-2.0
"""SIP URIs (RFC 3261 §19.1)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.sip.uri import build_sip_uri, parse_sip_uri, same_uri

VALID = [
    "sip:home1.net",
    "sip:user1_public1@home1.net",
    "sips:alice:s%3Dcret@gateway.com:5061;transport=tcp;lr?subject=a%20b&priority=urgent",
    "sip:+1-212-555-1111:1234@gateway.com;user=phone",
    "sip:user;par=u%40example.net@example.com",
    "sip:[5555::aaa:bbb:ccc:ddd]:1357;comp=sigcomp",
    "sip:term@pcscf1.visited1.net;lr",
    "sip:192.0.2.1:5060;maddr=[2001:db8::1]",
    "sip:sip%3Auser%40example.com@company.com;other-param=summit",
    "sip:example.com.",
]


@pytest.mark.parametrize("text", VALID)
def test_valid_uris_round_trip(text: str) -> None:
    """RFC 3261 §19.1.3, RFC 4475 §3.1.1.2 and §3.1.1.9."""
    uri = parse_sip_uri(text)
    assert build_sip_uri(uri) == str(uri) == text
    assert parse_sip_uri(build_sip_uri(uri)) == uri


def test_every_part_is_found() -> None:
    """RFC 3261 §19.1.1."""
    uri = parse_sip_uri("SIPS:Alice:pw@Atlanta.COM:5061;Transport=TCP;lr?to=bob")
    assert tuple(uri) == ("sips", "Alice", "pw", "atlanta.com", 5061, (("transport", "TCP"), ("lr", None)), "to=bob")
    assert uri.parameter("TRANSPORT") == "TCP"
    assert uri.parameter("lr") == ""
    assert uri.parameter("maddr") is None


def test_repr_hides_the_password() -> None:
    """RFC 3261 §19.1.1: a password in a URI is a risk."""
    shown = repr(parse_sip_uri("sip:alice:hunter2@example.com?x=hunter3"))
    assert "hunter" not in shown
    assert "alice" in shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sip:",
        "sip:@example.com",
        "sip: a@example.com",
        "tel:+1212",
        "mailto:a@b",
        "sip:a@b@c",
        "sip:a@exa mple.com",
        "sip:a@example.com:",
        "sip:a@example.com:99999",
        "sip:a@example.com:123456",
        "sip:a%4@example.com",
        "sip:a@[::g]",
        "sip:a@[::1",
        "sip:a@-x..y",
        "sip:a@example.com;a=1;A=2",
        "sip:a@example.com;;",
        "sip:a@example.com>",
        "sip:a@example.com\r\nX: y",
        "sip:é@example.com",
        "sip:a@example.com" + "".join(f";p{number}" for number in range(65)),
        "sip:" + "a" * 3000 + "@example.com",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """RFC 3261 §25.1."""
    with pytest.raises(ParseError):
        parse_sip_uri(text)


EQUAL = [
    ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
    (
        "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
        "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
    ),
    ("sip:alice@atlanta.com?subject=project%20x&priority=urgent", "sip:alice@atlanta.com?priority=urgent&subject=project%20x"),
]
DIFFERENT = [
    ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
    ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
    ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;user=phone"),
    ("sip:carol@chicago.com", "sips:carol@chicago.com"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_uris(one: str, other: str) -> None:
    """RFC 3261 §19.1.4, its examples."""
    assert same_uri(parse_sip_uri(one), parse_sip_uri(other))
    assert same_uri(parse_sip_uri(other), parse_sip_uri(one))


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_uris(one: str, other: str) -> None:
    """RFC 3261 §19.1.4, its examples."""
    assert not same_uri(parse_sip_uri(one), parse_sip_uri(other))
    assert not same_uri(parse_sip_uri(other), parse_sip_uri(one))


@given(st.text(max_size=80) | st.from_regex(r"sips?:[a-z0-9%@:;=?\[\].]{0,60}", fullmatch=True))
def test_any_text_gives_a_value_that_round_trips_or_parse_error(text: str) -> None:
    """Parser property."""
    with contextlib.suppress(ParseError):
        uri = parse_sip_uri(text)
        assert parse_sip_uri(build_sip_uri(uri)) == uri


@pytest.mark.parametrize(
    "hostile", ["sip:" + "a" * 2000, "sip:" + "a;" * 1000, "sip:a:" + "b" * 2000, "sip:" + "a." * 1000, "sip:a@b" + ";c=d" * 500]
)
def test_hostile_uris_take_linear_time(hostile: str) -> None:
    """No backtracking."""
    with costs_under(0.5):
        for _ in range(20):
            with contextlib.suppress(ParseError):
                parse_sip_uri(hostile)
