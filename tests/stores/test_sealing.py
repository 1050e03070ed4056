# SPDX-License-Identifier: Apache-2.0
"""The seal opens only in its own row (DESIGN §3)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyferry.errors import ConfigError, SealError
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.stores.sealing import Bound, Keyring, SealedColumn
from stores.made import CountedRandom, key

COLUMN = SealedColumn("t", "c", ("a", "b"))
VALUES = ("impi", 7)

bound = st.one_of(st.text(max_size=5), st.binary(max_size=5), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.none())


def test_the_format_is_the_designs(keyring: Keyring) -> None:
    """kid(4) || salt(16) || SIV, associated data in the order of DESIGN §3."""
    sealed = keyring.seal(b"secret", "t.c", ["impi", 7, 1.5, None, b"x"])
    kek, salt = Siv(Secret(CountedRandom().octets(64))), sealed[4:20]  # what the fixture has drawn first
    associated = [b"keyferry-store-1", b"t.c", b"timpi", b"i" + bytes(7) + b"\x07", b"r" + b"\x3f\xf8" + bytes(6), b"n", b"bx", salt]
    assert sealed[:4] == b"kek1"
    assert kek.open(sealed[20:], associated) == b"secret"
    assert len(sealed) == len(b"secret") + 36


@given(st.binary(max_size=50), st.lists(bound, max_size=8))
def test_what_is_sealed_opens(plaintext: bytes, values: list[Bound]) -> None:
    keyring = Keyring({b"kek1": key("kek", 64)}, b"kek1", random=CountedRandom())
    assert keyring.open(keyring.seal(b"x" + plaintext, "t.c", values), "t.c", values) == b"x" + plaintext


@given(st.lists(bound, max_size=3), st.lists(bound, max_size=3))
@example([1], [1.0])
@example(["1"], [b"1"])
@example(["ab"], ["a", "b"])
@example([None], [""])
@example([0], [None])
@example([0.0], [-0.0])
def test_other_values_do_not_open(values: list[Bound], others: list[Bound]) -> None:
    keyring = Keyring({b"kek1": key("kek", 64)}, b"kek1", random=CountedRandom())
    sealed = keyring.seal(b"secret", "t.c", values)
    if list(map(repr, values)) != list(map(repr, others)):
        with pytest.raises(SealError):
            keyring.open(sealed, "t.c", others)


def test_two_seals_of_one_secret_differ(keyring: Keyring) -> None:
    assert COLUMN.seal(keyring, b"secret", VALUES) != COLUMN.seal(keyring, b"secret", VALUES)


def test_another_column_does_not_open(keyring: Keyring) -> None:
    with pytest.raises(SealError, match=r"other\.c"):
        SealedColumn("other", "c", ("a", "b")).open(keyring, COLUMN.seal(keyring, b"secret", VALUES), VALUES)


def test_every_changed_octet_is_noticed(keyring: Keyring) -> None:
    sealed = COLUMN.seal(keyring, b"secret", VALUES)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(SealError):
            COLUMN.open(keyring, bytes(changed), VALUES)


@pytest.mark.parametrize("sealed", [None, "text", 5, b"", b"kek1", b"kek1" + bytes(31)])
def test_what_is_no_seal_does_not_open(keyring: Keyring, sealed: object) -> None:
    with pytest.raises(SealError):
        COLUMN.open(keyring, sealed, VALUES)


def test_an_older_kek_still_opens_and_another_does_not() -> None:
    random = CountedRandom()
    old = Keyring({b"old1": key("old", 64)}, b"old1", random=random)
    both = Keyring({b"old1": key("old", 64), b"new1": key("new", 64)}, b"new1", random=random)
    new = Keyring({b"new1": key("new", 64)}, b"new1", random=random)
    sealed = COLUMN.seal(old, b"secret", VALUES)
    assert COLUMN.open(both, sealed, VALUES) == b"secret"
    assert COLUMN.seal(both, b"secret", VALUES)[:4] == b"new1"
    with pytest.raises(SealError, match="not here"):
        COLUMN.open(new, sealed, VALUES)


@pytest.mark.parametrize(
    ("keks", "current"),
    [({}, b"kek1"), ({b"kek1": key("k", 64)}, b"kek2"), ({b"k": key("k", 64)}, b"k"), ({b"kek1": key("k", 32)}, b"kek1")],
)
def test_a_keyring_needs_keks_of_the_right_size(keks: dict[bytes, object], current: bytes) -> None:
    with pytest.raises(ConfigError):
        Keyring(keks, current, random=CountedRandom())  # type: ignore[arg-type]
