# SPDX-License-Identifier: Apache-2.0
"""Notes beside the arrows of a ladder (TS 24.229 §5); those of a registration are tested with the ladder."""

from __future__ import annotations

import pytest

from keyferry.protocol.ims.notes import is_third_party, note_of, plain, word
from keyferry.protocol.ims.third_party import build_third_party_register
from keyferry.protocol.sip.message import Request, Response

PLAIN = '<kf:push xmlns:kf="urn:keyferry:isc:1" seq="1" impi="a@b.c" as="xcap.home1.net" reg="abcdefghijkl"></kf:push>'


def third_party(expires: int, service_info: str | None) -> Request:
    return build_third_party_register(
        server_name="sip:as", scscf_uri="sip:scscf1.home1.net", impu="sip:a@home1.net", expires=expires, call_id="c", cseq=1,
        from_tag="t", service_info=service_info,
    )  # fmt: skip


def test_a_third_party_register_is_known_by_who_sends_it() -> None:
    """RFC 3261 §10.2: a UE has the same identity in From and To."""
    push = third_party(600, None)
    assert is_third_party(push)
    assert not is_third_party(push.replacing("From", "<sip:a@home1.net>;tag=t"))
    assert not is_third_party(push.replacing("Authorization", "Digest x"))
    assert not is_third_party(push.without("From"))
    assert not is_third_party(Request("OPTIONS", "sip:a", push.headers))


@pytest.mark.parametrize(
    ("expires", "service_info", "note"),
    [
        (600, None, "no service-info"),
        (0, None, "ends the keys: no service-info"),
        (600, "naf=x", "service-info without a key block"),
        (600, PLAIN, "key block for xcap.home1.net IN CLEAR"),
    ],
)
def test_a_push_is_named(expires: int, service_info: str | None, note: str) -> None:
    """TS 24.229 §5.4.1.7A."""
    assert note_of(third_party(expires, service_info)) == note


def test_other_messages_have_no_note() -> None:
    """A MESSAGE, its answer, a challenge that is no AKA, what cannot be read."""
    assert note_of(Request("MESSAGE", "sip:a", (), b"secret")) == ""
    assert note_of(Response(202, "Accepted", ())) == ""
    assert note_of(Response(401, "Unauthorized", (("WWW-Authenticate", 'Digest realm="r", nonce="n"'),))) == "challenge: MD5, no AKA"
    assert note_of(Response(401, "Unauthorized", (("WWW-Authenticate", "Basic"),))).startswith("not readable: ")
    assert note_of(Request("REGISTER", "sip:a", (("Contact", "*"),))) == ""


def test_a_value_that_may_be_a_key_is_not_repeated() -> None:
    """Whatever parameter it stands in."""
    assert (word("AKAv1-MD5"), word("c0ffee" * 6), word("a b")) == ("AKAv1-MD5", "(odd value)", "(odd value)")
    assert (plain("user1@home1.net"), plain("c0ffee" * 5)) == ("user1@home1.net", "(not shown: it may hold a key)")
