# SPDX-License-Identifier: Apache-2.0
"""TS 35.206 §4; the published sets are in tests/vectors."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.milenage import Milenage, derive_opc
from keyferry.protocol.crypto.secret import Secret

BLOCK = st.binary(min_size=16, max_size=16)
ROTATIONS, CONSTANTS = (64, 0, 32, 64, 96), (0, 1, 2, 4, 8)


def xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def rotated(block: bytes, bits: int) -> bytes:
    return block[bits // 8 :] + block[: bits // 8]


def by_the_book(k: bytes, opc: bytes, rand: bytes, sqn: bytes, amf: bytes) -> list[bytes]:
    """Return OUT1…OUT5, written as the clause is, one operation after the other."""

    def encrypt(block: bytes) -> bytes:
        return Cipher(algorithms.AES(k), modes.ECB()).encryptor().update(block)

    temp = encrypt(xor(rand, opc))
    outs = []
    for number, (rotation, constant) in enumerate(zip(ROTATIONS, CONSTANTS, strict=True)):
        c = constant.to_bytes(16, "big")
        if number == 0:
            block = xor(xor(temp, rotated(xor(sqn + amf + sqn + amf, opc), rotation)), c)
        else:
            block = xor(rotated(xor(temp, opc), rotation), c)
        outs.append(xor(encrypt(block), opc))
    return outs


@given(k=BLOCK, opc=BLOCK, rand=BLOCK, sqn=st.binary(min_size=6, max_size=6), amf=st.binary(min_size=2, max_size=2))
def test_the_outputs_are_those_of_the_clause_taken_literally(k: bytes, opc: bytes, rand: bytes, sqn: bytes, amf: bytes) -> None:
    """TS 35.206 §4.1."""
    out1, out2, out3, out4, out5 = by_the_book(k, opc, rand, sqn, amf)
    milenage = Milenage(Secret(k), Secret(opc))
    f2345 = milenage.f2345(rand)
    assert milenage.f1(rand, sqn, amf) == out1[:8]
    assert milenage.f1_star(rand, sqn, amf) == out1[8:]
    assert (f2345.res, f2345.ck, f2345.ik, f2345.ak) == (Secret(out2[8:]), Secret(out3), Secret(out4), out2[:6])
    assert milenage.f5_star(rand) == out5[:6]
    assert milenage.vector(rand, sqn, amf) == (out1[:8], f2345)


@given(k=BLOCK, op=BLOCK, rand=BLOCK)
def test_op_or_opc_configured_is_the_same(k: bytes, op: bytes, rand: bytes) -> None:
    """TS 35.206 §4.1: OPc = OP xor E_K(OP)."""
    by_hand = xor(op, Cipher(algorithms.AES(k), modes.ECB()).encryptor().update(op))
    derived = derive_opc(Secret(k), Secret(op))
    assert derived == Secret(by_hand)
    assert Milenage(Secret(k), derived).f5_star(rand) == Milenage(Secret(k), Secret(by_hand)).f5_star(rand)


@pytest.mark.parametrize(("k", "opc"), [(15, 16), (32, 16), (16, 0), (16, 32)])
def test_keys_of_another_length_are_refused(k: int, opc: int) -> None:
    with pytest.raises(LocalProtocolError):
        Milenage(Secret(bytes(k)), Secret(bytes(opc)))
    with pytest.raises(LocalProtocolError):
        derive_opc(Secret(bytes(k)), Secret(bytes(opc)))


def test_inputs_of_another_length_are_refused() -> None:
    milenage = Milenage(Secret(bytes(16)), Secret(bytes(16)))
    for call in (milenage.f1, milenage.f1_star, milenage.vector):
        with pytest.raises(LocalProtocolError):
            call(bytes(16), bytes(5), bytes(2))
    for short in (milenage.f2345, milenage.f5_star):
        with pytest.raises(LocalProtocolError):
            short(bytes(15))


def test_the_object_does_not_print_its_keys() -> None:
    k = b"\xab" * 16
    assert "abab" not in repr(Milenage(Secret(k), Secret(k)))
