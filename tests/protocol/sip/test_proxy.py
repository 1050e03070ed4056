# SPDX-License-Identifier: Apache-2.0
"""RFC 3261 §16.3, §16.4, §16.6."""

from __future__ import annotations

import pytest

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.sip.message import Request
from keyferry.protocol.sip.proxy import forwarded, next_hop, own_route, routed, routes


def request(*hops: str) -> Request:
    return Request("REGISTER", "sip:home1.net", (("To", "<sip:alice@home1.net>"), *(("Max-Forwards", each) for each in hops)), b"body")


def test_one_hop_less_is_left_and_nothing_else_changes() -> None:
    """RFC 3261 §16.6 step 3."""
    onward = forwarded(request("70"))
    assert onward.all("Max-Forwards") == ["69"]
    assert (onward.method, onward.uri, onward.body) == ("REGISTER", "sip:home1.net", b"body")
    assert onward.get("To") == "<sip:alice@home1.net>"


def test_a_request_without_max_forwards_gets_one() -> None:
    """RFC 3261 §16.6 step 3: SHOULD be 70."""
    assert forwarded(request()).all("Max-Forwards") == ["69"]


def test_the_last_hop_may_still_be_used() -> None:
    assert forwarded(request("1")).get("Max-Forwards") == "0"


def test_no_hop_left_is_483() -> None:
    """RFC 3261 §16.3 step 3."""
    with pytest.raises(RemoteProtocolError) as caught:
        forwarded(request("0"))
    assert caught.value.status == 483


@pytest.mark.parametrize(
    ("text", "left"), [("0068", "67"), ("00000000255", "254"), ("0" * 5_000 + "1", "0")], ids=["rfc4475", "many", "very many"]
)
def test_zeros_in_front_of_the_number_change_nothing(text: str, left: str) -> None:
    """RFC 4475 §3.1.1.1."""
    assert forwarded(request(text)).get("Max-Forwards") == left


def test_more_hops_than_the_field_can_hold_are_cut() -> None:
    assert forwarded(request("999")).get("Max-Forwards") == "254"


@pytest.mark.parametrize("text", ["", "-1", "7O", "1000", "0x10", "٧", "7 0"])  # noqa: RUF001 - an Arabic digit is meant
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ParseError) as caught:
        forwarded(request(text))
    assert caught.value.status == 400


def test_the_request_uri_can_be_exchanged() -> None:
    """RFC 3261 §16.6 step 2."""
    onward = forwarded(request("5"), uri="sip:scscf1.home1.net")
    assert (onward.method, onward.uri, onward.body, onward.get("Max-Forwards")) == ("REGISTER", "sip:scscf1.home1.net", b"body", "4")


def with_routes(*rows: str) -> Request:
    return Request("NOTIFY", "sip:alice@192.0.2.1", (("To", "<sip:alice@home1.net>"), *(("Route", row) for row in rows)))


def test_our_own_route_is_taken_off_the_top() -> None:
    """RFC 3261 §16.4."""
    onward, own = own_route(with_routes("<sip:token@P.net;lr>, <sip:s.net;lr>", "<sip:i.net>"), {"p.net"})
    assert own is not None
    assert (own.user, own.host) == ("token", "p.net")
    assert routes(onward) == ("<sip:s.net;lr>", "<sip:i.net>")
    assert own_route(with_routes("<sip:p.net;lr>"), {"p.net"})[0].all("Route") == []


@pytest.mark.parametrize("rows", [(), ("<sip:s.net;lr>, <sip:p.net;lr>",)])
def test_anothers_route_stays(rows: tuple[str, ...]) -> None:
    request = with_routes(*rows)
    assert own_route(request, {"p.net"}) == (request, None)


def test_a_request_goes_to_the_top_route_or_else_to_its_uri() -> None:
    """RFC 3261 §16.6 step 7."""
    assert next_hop(with_routes()).host == "192.0.2.1"
    assert next_hop(with_routes("<sip:s.net:6060;lr>")).host == "s.net"
    assert next_hop(routed(with_routes("<sip:s.net;lr>"), ("<sip:t.net;lr>", "<sip:u.net;lr>"))).host == "t.net"
    assert routed(with_routes("<sip:s.net;lr>"), ()).all("Route") == []


@pytest.mark.parametrize("rows", [("<sip:s.net>",) * 11, ("<tel:+1>",), ("x y",)])
def test_a_route_that_nobody_could_follow_is_an_error(rows: tuple[str, ...]) -> None:
    with pytest.raises(ParseError):
        own_route(with_routes(*rows), {"p.net"})
