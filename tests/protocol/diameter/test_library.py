# SPDX-License-Identifier: Apache-2.0
"""What python-diameter 0.9.0 does that docs/diameter.md warns of: where one of these fails, the library was mended and the page is old."""

from __future__ import annotations

import subprocess
import sys

import pytest
from diameter.message import Message, constants
from diameter.message.avp import Avp, AvpDecodeError, AvpEncodeError
from diameter.message.commands import MultimediaAuthRequest

from keyferry.errors import ParseError
from keyferry.protocol.diameter.message import parse_message, render_message
from protocol.diameter.cxkit import requests
from protocol.diameter.test_message import framed, raw

KEY = b"\xc0\xff\xee" * 5 + b"!"


def test_its_package_imports_its_node() -> None:
    """So `socket`, `threading` and `select` come with the codec."""
    code = "import sys, diameter.message; print('diameter.node.node' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout == "True\n"


def test_it_takes_lengths_that_are_too_short() -> None:
    octets = framed(raw(1, b"", length=3) + raw(1, b"a@b"))
    assert [avp.payload for avp in Message.from_bytes(octets, plain_msg=True).avps] == [b"", b"a@b"]
    with pytest.raises(ParseError):
        parse_message(octets)


@pytest.mark.parametrize("octets", [framed(raw(1, b"a@b"), length=20), framed(raw(1, b"a@b"), length=4000), framed(b"", version=9)])
def test_it_does_not_look_at_the_length_or_version_of_a_message(octets: bytes) -> None:
    Message.from_bytes(octets)
    with pytest.raises(ParseError):
        parse_message(octets)


def test_it_drops_a_vendor_id_of_zero() -> None:
    octets = raw(1, b"a@b", vendor=0)
    assert len(Avp.from_bytes(octets).as_bytes()) == len(octets) - 4


def test_it_goes_as_deep_as_a_message_of_an_unknown_command_wants() -> None:
    body = b""
    for _ in range(2_000):
        body = raw(260, body)
    with pytest.raises(RecursionError):
        Message.from_bytes(framed(body, code=999))


def test_its_errors_hold_the_value() -> None:
    """A key, if it is one."""
    with pytest.raises(AvpEncodeError, match="c0ffee"):
        Avp.new(constants.AVP_TGPP_CONFIDENTIALITY_KEY, constants.VENDOR_TGPP, value=KEY.hex())
    with pytest.raises(AvpDecodeError) as problem:
        _ = Avp.from_bytes(raw(1, KEY)).value
    assert "xc0" in str(problem.value)
    assert "Val: " in str(Avp.from_bytes(raw(1, b"user@home1.net")))


def test_addresses_that_are_none_raise_whatever_comes() -> None:
    for octets, error in ((b"", Exception), (b"\0\1\x7f", ValueError), (b"\0\x08\xff", UnicodeDecodeError)):
        with pytest.raises(error) as problem:
            _ = Avp.from_bytes(raw(257, octets)).value
        assert not isinstance(problem.value, AvpDecodeError)


def test_its_multimedia_auth_knows_not_the_avps_of_3gpp() -> None:
    """It looks for those of RFC 4740."""
    read = Message.from_bytes(render_message(requests()["MAR"]))
    assert isinstance(read, MultimediaAuthRequest)
    assert read.sip_auth_data_item is None
    assert read.sip_number_auth_items is None


def test_a_search_in_a_list_is_answered_from_another_list() -> None:
    """`find_avps` caches by path alone."""
    message = Message.from_bytes(framed(raw(1, b"a@b")), plain_msg=True)
    assert [avp.value for avp in message.find_avps((1, 0))] == ["a@b"]
    assert [avp.value for avp in message.find_avps((1, 0), alt_list=[Avp.from_bytes(raw(1, b"c@d"))])] == ["a@b"]
