# SPDX-License-Identifier: Apache-2.0
"""The two algorithms of ESP on Gm: AES-CBC with 128-bit keys (RFC 3602 §2) and HMAC-SHA-1-96 (RFC 2404 §2)."""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.secret import Secret

BLOCK_OCTETS = 16
KEY_OCTETS = 16
MAC_KEY_OCTETS = 20
ICV_OCTETS = 12
"""96 bits: RFC 2404 §2 truncates the 20 octets of SHA-1."""


class AesCbc:
    """Encrypt and decrypt whole blocks; it authenticates nothing, so check an ICV before `decrypt`."""

    __slots__ = ("_algorithm",)

    def __init__(self, key: Secret) -> None:
        """Take a key of 16 octets.

        Raises LocalProtocolError.
        """
        if len(key) != KEY_OCTETS:
            raise LocalProtocolError(f"an AES-CBC key of ESP has {KEY_OCTETS} octets here")
        self._algorithm = algorithms.AES(key.reveal())

    def encrypt(self, iv: bytes, plaintext: bytes) -> bytes:
        """Return the ciphertext without the IV; the IV (16 octets) must be unpredictable (RFC 3602 §3).

        Raises LocalProtocolError unless the plaintext is a multiple of 16 octets.
        """
        _check(iv, plaintext)
        return Cipher(self._algorithm, modes.CBC(iv)).encryptor().update(plaintext)

    def decrypt(self, iv: bytes, ciphertext: bytes) -> bytes:
        """Return the plaintext, padding and all: the reverse of `encrypt`.

        Raises LocalProtocolError unless the ciphertext is a multiple of 16 octets.
        """
        _check(iv, ciphertext)
        return Cipher(self._algorithm, modes.CBC(iv)).decryptor().update(ciphertext)


class HmacSha196:
    """Compute and check an integrity check value of 12 octets."""

    __slots__ = ("_key",)

    def __init__(self, key: Secret) -> None:
        """Take a key of 20 octets (RFC 2404 §3: no other length).

        Raises LocalProtocolError.
        """
        if len(key) != MAC_KEY_OCTETS:
            raise LocalProtocolError(f"an HMAC-SHA-1-96 key has {MAC_KEY_OCTETS} octets")
        self._key = key

    def icv(self, data: bytes) -> bytes:
        """Return the ICV of `data`, 12 octets."""
        return hmac.digest(self._key.reveal(), data, "sha1")[:ICV_OCTETS]

    def agrees(self, data: bytes, icv: bytes) -> bool:
        """Say, in constant time, whether `icv` is that of `data`."""
        return hmac.compare_digest(self.icv(data), icv)


def _check(iv: bytes, blocks: bytes) -> None:
    if len(iv) != BLOCK_OCTETS or len(blocks) % BLOCK_OCTETS:
        raise LocalProtocolError(f"AES-CBC takes an IV of {BLOCK_OCTETS} octets and whole blocks")
