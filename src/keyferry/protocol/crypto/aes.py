# SPDX-License-Identifier: Apache-2.0
"""AES as keyferry needs it: AES-256-SIV (RFC 5297) and the bare AES-128 block (FIPS 197)."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from keyferry.errors import LocalProtocolError, SealError
from keyferry.protocol.crypto.secret import Secret

SIV_KEY_OCTETS = 64
"""Two AES-256 keys, one for S2V and one for CTR (RFC 5297 §2.2)."""
MAX_ASSOCIATED = 126
"""Components; S2V takes at most 127 and the plaintext is one of them (RFC 5297)."""


class Siv:
    """Seal and open octets with AES-256-SIV: deterministic, so no nonce can be used twice."""

    __slots__ = ("_siv",)

    def __init__(self, key: Secret) -> None:
        """Take a key of 64 octets.

        Raises LocalProtocolError.
        """
        if len(key) != SIV_KEY_OCTETS:
            raise LocalProtocolError(f"an AES-256-SIV key has {SIV_KEY_OCTETS} octets")
        self._siv = AESSIV(key.reveal())

    def seal(self, plaintext: bytes, associated: Sequence[bytes]) -> bytes:
        """Return V || C, 16 octets longer than the plaintext; the order of `associated` counts.

        Raises LocalProtocolError.
        """
        if len(associated) > MAX_ASSOCIATED:
            raise LocalProtocolError(f"more than {MAX_ASSOCIATED} components of associated data")
        return self._siv.encrypt(plaintext, list(associated))

    def open(self, sealed: bytes, associated: Sequence[bytes]) -> bytes:
        """Return the plaintext of V || C.

        Raises SealError: another key, other associated data, or changed octets; which one is never said.
        """
        if len(associated) > MAX_ASSOCIATED:
            raise SealError("the seal does not open")
        try:
            return self._siv.decrypt(sealed, list(associated))
        except InvalidTag as problem:
            raise SealError("the seal does not open") from problem


class AesBlock:
    """Encrypt whole blocks with AES-128, each for itself: the kernel E_K of Milenage (TS 35.206 §4), never a cipher mode."""

    __slots__ = ("encrypt",)

    def __init__(self, key: Secret) -> None:
        """Take a key of 16 octets.

        Raises LocalProtocolError.
        """
        if len(key) != 16:
            raise LocalProtocolError("an AES-128 key has 16 octets")
        cipher = Cipher(algorithms.AES(key.reveal()), modes.ECB())  # noqa: S305  # Milenage defines its own mode on the bare block
        self.encrypt = cipher.encryptor().update
        """Return as many octets as given, a multiple of 16; one call for several blocks saves the call's cost."""
