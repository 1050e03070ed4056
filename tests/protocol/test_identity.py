# SPDX-License-Identifier: Apache-2.0
"""TS 23.003 §13; RFC 3261 §10.3, §25.1; RFC 3966."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import ParseError
from keyferry.protocol.identity import parse_as_id, parse_impi, parse_impu, reg_of

SAFE = re.compile(r"[\x21-\x7e]+")
TEXT = st.one_of(st.text(max_size=60), st.text("sipel:@[]%+;?.-0123ab\r\n \x00", max_size=40).map("sip:".__add__))


@given(TEXT)
@example("sip:a@home1.net:\r\nEvil: 1")
@example("sip:a@[\r\nEvil]")
@example("sip:a@home1.net:x")
def test_any_text_is_an_identity_of_printable_ascii_or_an_error(text: str) -> None:
    """An identity goes into header fields: none may carry white space, a line end or a control character."""
    for parse in (parse_impi, parse_impu, parse_as_id):
        with contextlib.suppress(ParseError):
            identity = parse(text)
            assert SAFE.fullmatch(identity)
            assert len(identity) <= 300


@given(TEXT)
def test_an_error_does_not_show_the_text(text: str) -> None:
    for parse in (parse_impi, parse_impu, parse_as_id):
        with pytest.raises(ParseError) as problem:
            parse(f"{text}\0Zq9")
        assert "Zq9" not in str(problem.value)


@given(TEXT)
def test_a_canonical_form_is_its_own_canonical_form(text: str) -> None:
    try:
        canonical = parse_impu(text)
    except ParseError:
        return
    assert parse_impu(canonical) == canonical


@given(TEXT)
def test_an_as_id_is_its_own_as_id_and_never_an_address(text: str) -> None:
    try:
        as_id = parse_as_id(text)
    except ParseError:
        return
    assert parse_as_id(as_id) == as_id
    with pytest.raises(ValueError, match="does not appear to be"):
        ipaddress.ip_address(as_id)


@pytest.mark.parametrize(
    "text", ["user1_private@home1.net", "001010000000001@ims.mnc001.mcc001.3gppnetwork.org", "A.b+c@localhost", "a'b/c@x-y.net"]
)
def test_a_private_identity_stays_as_it_is(text: str) -> None:
    """TS 23.003 §13.3; it is an input of every key, so nothing is changed."""
    assert parse_impi(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user",
        "@home1.net",
        "user@",
        "a b@home1.net",
        "a@b@c",
        "a:b@c",
        'a"@c',
        "a@home1.net\n",
        "a@.net",
        "a@net.",
        "a@a..b",
        "é@c",
        f"{'a' * 129}@c",
        f"a@{'b' * 64}",
        f"a@{'b.' * 127}c",
        "a@b,c",
    ],
)
def test_what_is_no_private_identity_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="IMPI"):
        parse_impi(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("sip:user1_public1@home1.net", "sip:user1_public1@home1.net"),
        ("SIP:Alice@HOME1.net", "sip:Alice@home1.net"),
        ("sips:alice@home1.net.", "sips:alice@home1.net"),
        ("sip:+15551234@home1.net;user=phone", "sip:+15551234@home1.net"),
        ("sip:+1555;phone-context=x@home1.net", "sip:+1555;phone-context=x@home1.net"),
        ("sip:alice@home1.net?Subject=x", "sip:alice@home1.net"),
        ("sip:alice:1234@home1.net", "sip:alice@home1.net"),
        ("sip:%61lice%40x%3a@home1.net", "sip:alice%40x%3A@home1.net"),
        ("sip:alice@home1.net:5070", "sip:alice@home1.net:5070"),
        ("sip:alice@192.0.2.1:5060;lr", "sip:alice@192.0.2.1:5060"),
        ("sip:alice@[2001:DB8:0::1]:5060", "sip:alice@[2001:db8::1]:5060"),
        ("sip:alice@[2001:db8::1]", "sip:alice@[2001:db8::1]"),
        ("sip:alice@bücher.example", "sip:alice@xn--bcher-kva.example"),
        ("tel:+1-555-(123).4", "tel:+15551234"),
        ("TEL:+15551234;npdi", "tel:+15551234"),
    ],
)
def test_a_public_identity_has_one_canonical_form(text: str, canonical: str) -> None:
    """RFC 3261 §10.3 step 5, RFC 3966 §5.1.1."""
    assert parse_impu(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alice@home1.net",
        "http://home1.net",
        "sip:",
        "sip:home1.net",
        "sip:@home1.net",
        "sip::secret@home1.net",
        "sip:alice@",
        "sip:a lice@home1.net",
        "sip:alice@home 1.net",
        "sip:al<ice@home1.net",
        "sip:al%4@home1.net",
        "sip:al%zz@home1.net",
        "sip:alice:pass word@home1.net",
        "sip:alice@home1.net:",
        "sip:alice@home1.net:x",
        "sip:alice@home1.net:123456",
        "sip:alice@home1.net:5060:5061",
        "sip:alice@home1.net:\r\nX: y",
        "sip:alice@[::1",
        "sip:alice@[::1]x",
        "sip:alice@[::1]:",
        "sip:alice@[fe80::1%eth0]",
        "sip:alice@[1.2.3.4]",
        "sip:alice@[\r\nX: y]",
        "sip:alice@::1",
        "sip:alice@-home1.net",
        "sip:alice@home1..net",
        "sip:alice@home1.net/x",
        "sip:alice@bob@home1.net",
        "sip:alice@\udc80.net",
        "sip:\udc80@home1.net",
        f"sip:{'a' * 256}@b",
        f"sip:a@{'b' * 64}",
        "tel:",
        "tel:+",
        "tel:+-",
        "tel:7042",
        "tel:7042;phone-context=home1.net",
        "tel:+1555x",
        "tel:+1 555",
        f"tel:+{'1' * 41}",
    ],
)
def test_what_is_no_public_identity_is_refused(text: str) -> None:
    with pytest.raises(ParseError, match="IMPU") as problem:
        parse_impu(text)
    assert "secret" not in str(problem.value)


@pytest.mark.parametrize(
    ("host", "as_id"),
    [
        ("xcap.home1.net", "xcap.home1.net"),
        ("XCAP.Home1.NET.", "xcap.home1.net"),
        ("localhost", "localhost"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a。b。", "a.b"),
        ("3gpp.1.example", "3gpp.1.example"),
    ],
)
def test_an_as_id_is_the_host_name_in_lower_case_a_labels(host: str, as_id: str) -> None:
    assert parse_as_id(host) == as_id


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "xcap.home1.net:443",
        "xcap..net",
        "xcap.home1.net..",
        "192.0.2.1",
        "[2001:db8::1]",
        "2001:db8::1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "1.2.3.0x4",
        "-a.net",
        "a-.net",
        "a b",
        "a/b",
        "a\n",
        "a@b",
        "*.home1.net",
        "\udc80",
        f"{'a' * 64}.net",
        "a." * 127 + "ab",
    ],
)
def test_what_is_no_host_name_has_no_as_id(host: str) -> None:
    with pytest.raises(ParseError, match="AS_ID"):
        parse_as_id(host)


def test_a_long_international_name_costs_no_time() -> None:
    with costs_under(0.1):
        for parse in (parse_as_id, parse_impu):
            with pytest.raises(ParseError):
                parse("sip:a@" + "é" * 60_000)
            with pytest.raises(ParseError):
                parse("sip:" + "%41" * 20_000)


def test_a_device_is_named_by_nine_octets_of_a_hash() -> None:
    instance = "<urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6>"
    assert reg_of(instance) == base64.urlsafe_b64encode(hashlib.sha256(instance.encode()).digest()[:9]).decode()
    assert len(reg_of("\udc80")) == 12
