# SPDX-License-Identifier: Apache-2.0
"""RFC 3261 §16.3, §16.6."""

from __future__ import annotations

import pytest

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.sip.message import Request
from keyferry.protocol.sip.proxy import forwarded


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
