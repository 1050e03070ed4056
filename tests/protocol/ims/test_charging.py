# SPDX-License-Identifier: Apache-2.0
"""P-Charging-Vector: RFC 7315 §4.6, §5.6; TS 24.229 §5.2.2.1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.ims.charging import MAX_VECTOR, build_charging_vector, correlation_of, first_icid

FIRST = first_icid(bytes(range(16)))
ID = "000102030405060708090a0b0c0d0e0f"


def test_every_register_of_a_registration_has_an_icid_of_its_own_and_one_id_in_common() -> None:
    """RFC 7315 §4.6: unique for each transaction outside a dialog."""
    second = FIRST.following()
    assert (str(FIRST), str(second)) == (f"{ID}-1", f"{ID}-2")
    assert build_charging_vector(FIRST) == f'icid-value="{ID}-1"'
    assert correlation_of(build_charging_vector(FIRST)) == correlation_of(build_charging_vector(second)) == ID


@pytest.mark.parametrize(
    ("vector", "id_"),
    [
        (None, ""),
        ("", ""),
        ("orig-ioi=home1.net", ""),
        ("icid-value=1234bc9876e", "1234bc9876e"),
        ('ICID-VALUE = "AyretyU0dm+6O2IrT5tAFrbHLso="; icid-generated-at=[5555::55]', "44a7ef2b7c1c7d5a0ed1bd9d36c67bd2"),
        ("orig-ioi=a; icid-value=abc;icid-generated-at=192.0.2.1", "abc"),
        ('icid-value=""', ""),
        ('x="icid-value=abc"', ""),
        ("icid-value=abc, icid-value=def", "abc"),
    ],
)
def test_the_id_of_other_networks_vectors(vector: str | None, id_: str) -> None:
    """RFC 7315 §5.6: gen-value is a token, a host or a quoted string."""
    found = correlation_of(vector)
    assert (len(found) == 32 and found != vector) if "+" in (vector or "") else found == id_


def test_what_could_break_a_line_or_is_long_is_hashed_or_left_out() -> None:
    """The id stands in logs, and may come from another network."""
    assert len(correlation_of(f'icid-value="{"x" * 65}"')) == 32
    assert len(correlation_of('icid-value="sip:user1@home1.net"')) == 32
    assert correlation_of(f'icid-value="{"x" * MAX_VECTOR}"') == ""


@given(st.text(max_size=200))
def test_any_text_gives_an_id_that_a_log_can_hold(text: str) -> None:
    """Whatever a peer sends."""
    for vector in (text, f"icid-value={text}", f'icid-value="{text}"'):
        found = correlation_of(vector)
        assert len(found) <= 64
        assert all(c.isascii() and (c.isalnum() or c in "._~-") for c in found)
