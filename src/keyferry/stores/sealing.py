# SPDX-License-Identifier: Apache-2.0
"""The seal of a stored secret: it opens only in its own row, with that row's other columns as they were (DESIGN §3; RFC 5297)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from keyferry.errors import ConfigError, SealError
from keyferry.ports import RandomSource
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret

LABEL = b"keyferry-store-1"
KID_OCTETS = 4
SALT_OCTETS = 16
KEK_OCTETS = 64
_HEAD = KID_OCTETS + SALT_OCTETS
_SIV_OCTETS = 16

Bound: TypeAlias = str | bytes | int | float | None
"""A column that a seal binds; an int, and the same number as a float, are two different values."""

_REAL = struct.Struct(">d")


class Keyring:
    """Seal under the current key-encryption key, open under any that is still there."""

    def __init__(self, keks: Mapping[bytes, Secret], current: bytes, *, random: RandomSource) -> None:
        """Take KEKs of 64 octets by their kid of 4 octets; `current` is the one to seal with.

        Raises ConfigError.
        """
        if current not in keks or any(len(kid) != KID_OCTETS or len(kek) != KEK_OCTETS for kid, kek in keks.items()):
            raise ConfigError("kek", f"a kid has {KID_OCTETS} octets, a KEK has {KEK_OCTETS}, and one of them is current")
        self.current = current
        self._sivs = {kid: Siv(kek) for kid, kek in keks.items()}
        self._random = random

    def seal(self, plaintext: bytes, column: str, bound: Sequence[Bound]) -> bytes:
        """Return kid || salt || AES-256-SIV, 36 octets longer than the plaintext.

        `column` is "table.column", `bound` the primary key and every field that says what the secret may be used for.
        """
        salt = self._random.octets(SALT_OCTETS)
        return self.current + salt + self._sivs[self.current].seal(plaintext, _associated(column, bound, salt))

    def open(self, sealed: object, column: str, bound: Sequence[Bound]) -> bytes:
        """Return the plaintext.

        Raises SealError: another KEK, another row, a changed column or changed octets.
        """
        if not isinstance(sealed, bytes) or len(sealed) < _HEAD + _SIV_OCTETS:
            raise SealError(f"{column}: not a sealed value")
        siv = self._sivs.get(sealed[:KID_OCTETS])
        if siv is None:
            raise SealError(f"{column}: sealed under a KEK that is not here")
        try:
            return siv.open(sealed[_HEAD:], _associated(column, bound, sealed[KID_OCTETS:_HEAD]))
        except SealError as problem:
            raise SealError(f"{column}: the seal does not open in this row") from problem


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column that holds sealed values, and the columns of its row that the seal binds, the primary key first.

    The table has an INTEGER PRIMARY KEY `id`, which is not bound: it is a place, not a meaning.
    """

    table: str
    column: str
    bound: tuple[str, ...]

    def seal(self, keyring: Keyring, plaintext: bytes, values: Sequence[Bound]) -> bytes:
        """Seal for a row that has `values` in the bound columns."""
        return keyring.seal(plaintext, f"{self.table}.{self.column}", values)

    def open(self, keyring: Keyring, sealed: object, values: Sequence[Bound]) -> bytes:
        """Open in a row that has `values` in the bound columns.

        Raises SealError.
        """
        return keyring.open(sealed, f"{self.table}.{self.column}", values)


def _associated(column: str, bound: Sequence[Bound], salt: bytes) -> list[bytes]:
    return [LABEL, column.encode("ascii"), *[_octets(value) for value in bound], salt]


def _octets(value: Bound) -> bytes:
    """Encode a column so that no two values, whatever their types, have the same octets."""
    if isinstance(value, str):
        return b"t" + value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return b"b" + value
    if isinstance(value, int):
        return b"i" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, float):
        return b"r" + _REAL.pack(value)
    return b"n"
