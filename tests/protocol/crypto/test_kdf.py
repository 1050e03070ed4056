# SPDX-License-Identifier: Apache-2.0
"""TS 33.220 annex B.2."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.kdf import kdf
from keyferry.protocol.crypto.secret import Secret

KEY = Secret(bytes(range(32)))


def test_the_string_is_fc_then_every_parameter_and_its_length() -> None:
    """TS 33.220 §B.2.1."""
    s = b"\x01" + b"gba-me" + b"\x00\x06" + bytes(300) + b"\x01\x2c" + b"" + b"\x00\x00"
    assert kdf(KEY, b"\x01", b"gba-me", bytes(300), b"") == Secret(hmac.digest(KEY.reveal(), s, hashlib.sha256))


def test_an_fc_of_two_octets_begins_with_ff() -> None:
    assert kdf(KEY, b"\xff\xf0", b"a") != kdf(KEY, b"\xff\xf1", b"a")
    for fc in (b"", b"\x01\x02", b"\xff\xff\xff"):
        with pytest.raises(LocalProtocolError):
            kdf(KEY, fc, b"a")


@given(st.lists(st.binary(max_size=5), max_size=3), st.lists(st.binary(max_size=5), max_size=3))
def test_two_lists_of_parameters_of_equal_number_give_two_keys(one: list[bytes], other: list[bytes]) -> None:
    if len(one) == len(other):
        assert (kdf(KEY, b"\x01", *one) == kdf(KEY, b"\x01", *other)) == (one == other)


def test_a_parameter_longer_than_its_length_field_is_refused() -> None:
    assert len(kdf(KEY, b"\x01", bytes(0xFFFF))) == 32
    with pytest.raises(LocalProtocolError):
        kdf(KEY, b"\x01", bytes(0x10000))
