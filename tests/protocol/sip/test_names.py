# SPDX-License-Identifier: Apache-2.0
"""Header field names (RFC 3261 §7.3)."""

from __future__ import annotations

import pytest

from keyferry.protocol.sip.names import KNOWN, canonical_name, lookup_key


@pytest.mark.parametrize("name", KNOWN)
def test_every_spelling_of_a_known_name_is_one_name(name: str) -> None:
    """RFC 3261 §7.3.1: field names are case-insensitive."""
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        assert canonical_name(spelling) == lookup_key(spelling) == name


def test_compact_forms_are_expanded_and_unknown_names_stay() -> None:
    """RFC 3261 §7.3.3."""
    assert [canonical_name(letter) for letter in "vVfTimM"] == ["Via", "Via", "From", "To", "Call-ID", "Contact", "Contact"]
    assert canonical_name("X-KeyFerry") == "X-KeyFerry"
    assert lookup_key("X-KeyFerry") == lookup_key("x-keyferry")
