# SPDX-License-Identifier: Apache-2.0
"""RFC 5297, FIPS 197."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError, SealError
from keyferry.protocol.crypto.aes import AesBlock, Siv
from keyferry.protocol.crypto.secret import Secret

KEY = Secret(bytes(range(64)))
SIV = Siv(KEY)
COMPONENTS = st.lists(st.binary(max_size=40), max_size=6)


@given(st.binary(max_size=300), COMPONENTS)
def test_what_was_sealed_opens(plaintext: bytes, associated: list[bytes]) -> None:
    """RFC 5297 §2.6, §2.7."""
    sealed = SIV.seal(plaintext, associated)
    assert len(sealed) == len(plaintext) + 16
    assert Siv(KEY).open(sealed, associated) == plaintext


@given(st.binary(max_size=40), COMPONENTS, st.data())
def test_a_changed_octet_does_not_open(plaintext: bytes, associated: list[bytes], data: st.DataObject) -> None:
    sealed = bytearray(SIV.seal(plaintext, associated))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SealError):
        SIV.open(bytes(sealed), associated)


@given(COMPONENTS, COMPONENTS)
def test_other_associated_data_does_not_open(sealed_with: list[bytes], opened_with: list[bytes]) -> None:
    sealed = SIV.seal(b"key", sealed_with)
    if sealed_with == opened_with:
        assert SIV.open(sealed, opened_with) == b"key"
    else:
        with pytest.raises(SealError):
            SIV.open(sealed, opened_with)


def test_components_are_not_run_together() -> None:
    """RFC 5297 §2.4: S2V takes a vector of strings, and an empty string is one of them."""
    sealed = SIV.seal(b"key", [b"ab", b"c"])
    for other in ([b"a", b"bc"], [b"abc"], [b"c", b"ab"], [b"ab", b"c", b""], []):
        with pytest.raises(SealError):
            SIV.open(sealed, other)


def test_another_key_does_not_open() -> None:
    with pytest.raises(SealError, match="does not open"):
        Siv(Secret(bytes(64))).open(SIV.seal(b"key", []), [])


@pytest.mark.parametrize("length", [0, 1, 15])
def test_a_sealed_value_shorter_than_its_tag_does_not_open(length: int) -> None:
    with pytest.raises(SealError):
        SIV.open(bytes(length), [])


def test_an_empty_plaintext_is_sealed_like_any_other() -> None:
    sealed = SIV.seal(b"", [b"a"])
    assert len(sealed) == 16
    assert SIV.open(sealed, [b"a"]) == b""
    with pytest.raises(SealError):
        SIV.open(bytes(16), [b"a"])


def test_too_many_components_are_refused() -> None:
    """RFC 5297 §2.6."""
    assert SIV.open(SIV.seal(b"key", [b""] * 126), [b""] * 126) == b"key"
    with pytest.raises(LocalProtocolError):
        SIV.seal(b"key", [b""] * 127)
    with pytest.raises(SealError):
        SIV.open(bytes(20), [b""] * 127)


@pytest.mark.parametrize("length", [0, 16, 32, 48, 63, 65])
def test_a_seal_takes_a_key_of_64_octets_only(length: int) -> None:
    with pytest.raises(LocalProtocolError):
        Siv(Secret(bytes(length)))


def test_a_block_is_encrypted_as_published() -> None:
    """FIPS 197 appendix B and C.1."""
    assert AesBlock(Secret(bytes(range(16)))).encrypt(bytes.fromhex("00112233445566778899aabbccddeeff")).hex() == (
        "69c4e0d86a7b0430d8cdb78070b4c55a"
    )
    block = AesBlock(Secret(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")))
    plain, cipher = bytes.fromhex("3243f6a8885a308d313198a2e0370734"), "3925841d02dc09fbdc118597196a0b32"
    assert block.encrypt(plain).hex() == cipher
    assert block.encrypt(plain + plain).hex() == cipher + cipher


@pytest.mark.parametrize("length", [0, 15, 24, 32])
def test_a_block_takes_a_key_of_16_octets_only(length: int) -> None:
    with pytest.raises(LocalProtocolError):
        AesBlock(Secret(bytes(length)))
