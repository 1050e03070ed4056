# SPDX-License-Identifier: Apache-2.0
"""AES-CBC (RFC 3602) and HMAC-SHA-1-96 (RFC 2404)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.cbc import AesCbc, HmacSha196
from keyferry.protocol.crypto.secret import Secret

PUBLISHED = [
    ("06a9214036b8a15b512e03d534120006", "3dafba429d9eb430b422da802c9fac41", b"Single block msg".hex(), "e353779c1079aeb82708942dbe77181a"),
    (
        "c286696d887c9aa0611bbb3e2025a45a",
        "562e17996d093d28ddb3ba695a2e6f58",
        bytes(range(32)).hex(),
        "d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1",
    ),
]


@pytest.mark.parametrize(("key", "iv", "plaintext", "ciphertext"), PUBLISHED)
def test_the_published_cases_of_aes_cbc(key: str, iv: str, plaintext: str, ciphertext: str) -> None:
    """RFC 3602 §4, cases 1 and 2."""
    cipher = AesCbc(Secret(bytes.fromhex(key)))
    assert cipher.encrypt(bytes.fromhex(iv), bytes.fromhex(plaintext)).hex() == ciphertext
    assert cipher.decrypt(bytes.fromhex(iv), bytes.fromhex(ciphertext)).hex() == plaintext


@pytest.mark.parametrize(
    ("key", "data", "digest"),
    [
        (b"\x0b" * 20, b"Hi There", "b617318655057264e28bc0b6fb378c8ef146be00"),
        (b"\xaa" * 20, b"\xdd" * 50, "125d7342b9ac11cd91a39af48aa17b4f63f175d3"),
    ],
)
def test_the_published_cases_of_hmac_sha_1(key: bytes, data: bytes, digest: str) -> None:
    """RFC 2202 §3, cases 1 and 3, cut to 96 bits (RFC 2404 §2)."""
    mac = HmacSha196(Secret(key))
    assert mac.icv(data).hex() == digest[:24]
    assert mac.agrees(data, bytes.fromhex(digest[:24]))
    assert not mac.agrees(data, bytes.fromhex(digest))  # no other length passes
    assert not mac.agrees(data + b"x", bytes.fromhex(digest[:24]))


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(0, 5))
def test_what_was_encrypted_is_decrypted(key: bytes, iv: bytes, blocks: int) -> None:
    cipher = AesCbc(Secret(key))
    plaintext = bytes(range(16)) * blocks
    assert cipher.decrypt(iv, cipher.encrypt(iv, plaintext)) == plaintext


def test_other_lengths_are_our_bug() -> None:
    for octets in (0, 15, 24, 32):
        with pytest.raises(LocalProtocolError):
            AesCbc(Secret(bytes(octets)))
    for octets in (16, 19, 21):
        with pytest.raises(LocalProtocolError):
            HmacSha196(Secret(bytes(octets)))
    cipher = AesCbc(Secret(bytes(16)))
    for iv, blocks in ((15, 16), (16, 15), (16, 17)):
        with pytest.raises(LocalProtocolError):
            cipher.encrypt(bytes(iv), bytes(blocks))
        with pytest.raises(LocalProtocolError):
            cipher.decrypt(bytes(iv), bytes(blocks))


def test_a_key_does_not_print() -> None:
    assert "61" * 16 not in repr(AesCbc(Secret(b"a" * 16))) + repr(HmacSha196(Secret(b"a" * 20)))
