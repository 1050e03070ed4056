# SPDX-License-Identifier: Apache-2.0
"""Which key store an AS has (*ours*)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.key_store_id import MAX_STORES, build_store_header, build_store_query, parse_store_header
from keyferry.protocol.sip.message import build_message, check_request, parse_message

NAME = "0123456789abcdef01234567"
AS_IDS = (AsId("notes.home1.net"), AsId("xcap.home1.net"))


def test_what_is_built_is_read() -> None:
    header, value = build_store_header(AS_IDS, NAME)
    assert (header, value) == ("Keyferry-Store", f"notes.home1.net;id={NAME}, xcap.home1.net;id={NAME}")
    assert parse_store_header([value]) == dict.fromkeys(AS_IDS, NAME)
    assert parse_store_header(value.split(",")) == dict.fromkeys(AS_IDS, NAME)
    assert parse_store_header([f"XCAP.home1.net ; id={NAME} "]) == {AS_IDS[1]: NAME}


@pytest.mark.parametrize(
    "value",
    [
        "",
        ",",
        "xcap.home1.net",
        "xcap.home1.net;id=",
        "xcap.home1.net;id=short",
        f"xcap.home1.net;id={NAME};more",
        f"xcap.home1.net;id={NAME * 3}",
        f"192.0.2.1;id={NAME}",
        f"a..b;id={NAME}",
        f"xcap.home1.net;id={NAME}, xcap.home1.net;id={NAME}",
        ", ".join(f"a{number}.net;id={NAME}" for number in range(MAX_STORES + 1)),
    ],
)
def test_anything_else_is_refused(value: str) -> None:
    with pytest.raises(ParseError):
        parse_store_header([value])


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_is_read_or_refused(values: list[str]) -> None:
    with contextlib.suppress(ParseError):
        parse_store_header(values)


def test_the_question_is_a_whole_request() -> None:
    """RFC 3261 §11."""
    query = build_store_query(server_name="sip:as.home1.net:5090", scscf_uri="sip:scscf1.home1.net", call_id="a@b", from_tag="t")
    written = parse_message(build_message(query.prepending("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1")))
    assert written == query.prepending("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1")
    check_request(query.prepending("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1"))
    assert (query.method, query.uri) == ("OPTIONS", "sip:as.home1.net:5090")
