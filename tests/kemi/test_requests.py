# SPDX-License-Identifier: Apache-2.0
"""Whatever could be read in two ways is refused before Kamailio's modules read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kemi.kemikit import IMPI, IMPU, NONCE, REALM, answer, empty, register, response
from keyferry.errors import ParseError
from keyferry.kemi.requests import read_registering, transaction_of
from keyferry.protocol.sip.message import parse_message


def test_a_first_register_names_its_user_and_answers_nothing() -> None:
    found = read_registering(register(empty()), REALM)
    assert (found.impi, found.impu, found.credentials, found.expires) == (IMPI, IMPU, None, 600)
    assert read_registering(register(), REALM).impi == "user1_public1@home1.net"  # TS 24.229 §5.4.1.1: without Authorization, from To


def test_an_answer_names_its_nonce() -> None:
    found = read_registering(register(answer(), expires=0), REALM)
    assert found.credentials is not None
    assert (found.credentials.nonce, found.expires) == (NONCE, 0)


@pytest.mark.parametrize(
    "data",
    [
        register(empty()).replace(b"REGISTER", b"OPTIONS"),
        register(empty()).replace(b"From: <sip:", b"From: <sip:another"),
        register(empty(), more="From: <sip:user2@home1.net>;tag=2\r\n"),
        register(empty(), more="P-Asserted-Identity: <sip:user2@home1.net>\r\n"),
        register(empty(), contact="<sip:u@192.0.2.1>;expires=0"),
        register(empty(), contact="<sip:u@192.0.2.1>;expires=60", expires=0),
        register(empty(), more="Expires: 0\r\n"),
        register(empty()).replace(b"Expires: 600\r\n", b""),
        register(empty(), more=f"Authorization: {empty('user2_private@home1.net')}\r\n"),
        register(empty(), more=f"authorization : {empty()}\r\n"),
        register(empty(), more=f"Proxy-Authorization: {empty()}\r\n"),
        register(empty().replace(", nonce", ",\r\n nonce")),
        register(empty().replace('realm="home1.net"', 'realm="other.net"')),
        register(empty().replace("user1_", "us\\er1_")),
        register(empty("user1;x@home1.net")),
        register(empty("user1 x@home1.net")),
        register(empty("us%65r1_private@home1.net")),
        register(empty() + ', username="user2_private@home1.net"'),
        register("Basic dXNlcjE6eA=="),
        register(empty(), more=f"To: <{IMPU}>\r\n"),
        register(empty(), more=f"t: <{IMPU}>\r\n"),
        register(empty(), contact="<sip:a@192.0.2.1>, <sip:b@192.0.2.1>"),
        register(empty()).replace(b"\r\n\r\n", b""),
        *(register(empty()).replace(b"\r\n" + name, b"\r\nX-") for name in (b"Via", b"Call-ID", b"CSeq", b"From", b"To")),
        response("200 OK"),
        b"\xff\x00",
    ],
    ids=range(30),
)
def test_what_two_readers_could_take_for_two_users_is_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        read_registering(data, REALM)


def test_a_request_and_its_responses_share_their_key_and_no_other() -> None:
    key = read_registering(register(empty()), REALM).transaction
    assert transaction_of(parse_message(response("401 No"))) == key
    others = (response("401 No", cseq=2), response("401 No", branch="z9hG4bK2"), response("401 No", call_id="c2"))
    assert key not in {transaction_of(parse_message(other)) for other in others}


@given(st.binary(max_size=200), st.integers(0, 500))
def test_any_octets_are_read_or_refused(noise: bytes, place: int) -> None:
    data = register(empty())
    try:
        found = read_registering(data[:place] + noise + data[place:], REALM)
    except ParseError:
        return
    assert found.impi
