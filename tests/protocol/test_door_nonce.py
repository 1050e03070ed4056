# SPDX-License-Identifier: Apache-2.0
"""Nonces of the HTTP door (RFC 7616 §3.3; DESIGN §7)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import DigestRejected
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.door_nonce import CHANCE, build_nonce, parse_nonce

KEY, SCOPE = Secret(b"k" * 32), b"notes.home1.net"


@given(st.floats(0, 1e9), st.binary(min_size=CHANCE, max_size=CHANCE))
def test_a_nonce_says_when_it_was_issued(now: float, chance: bytes) -> None:
    """Reverse of each other, to the microsecond; and no character of it needs an escape anywhere."""
    nonce = build_nonce(KEY, SCOPE, now, chance)
    assert re.fullmatch(r"[A-Za-z0-9_-]{40}", nonce)
    assert parse_nonce(KEY, SCOPE, nonce) == int(now * 1e6)


@pytest.mark.parametrize(("key", "scope"), [(Secret(b"K" * 32), SCOPE), (KEY, b"xcap.home1.net")])
def test_a_nonce_of_another_door_is_none_of_this(key: Secret, scope: bytes) -> None:
    """§5.4: the HMAC binds the key and the server."""
    with pytest.raises(DigestRejected) as problem:
        parse_nonce(KEY, SCOPE, build_nonce(key, scope, 5.0, bytes(CHANCE)))
    assert problem.value.stale


@given(st.text(max_size=60))
def test_any_text_is_a_nonce_or_refused(text: str) -> None:
    """Nothing but DigestRejected comes out."""
    with pytest.raises(DigestRejected):
        parse_nonce(KEY, SCOPE, text)


@given(st.integers(0, 39), st.characters(min_codepoint=33, max_codepoint=126))
def test_a_changed_character_is_refused(place: int, other: str) -> None:
    """One nonce has one text."""
    nonce = build_nonce(KEY, SCOPE, 5.0, bytes(CHANCE))
    changed = nonce[:place] + other + nonce[place + 1 :]
    if changed != nonce:
        with pytest.raises(DigestRejected):
            parse_nonce(KEY, SCOPE, changed)
