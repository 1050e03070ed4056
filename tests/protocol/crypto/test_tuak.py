# SPDX-License-Identifier: Apache-2.0
"""TS 35.231 §6; the published sets are in tests/vectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import Tuak, derive_topc

RAND, SQN, AMF = bytes(range(16)), b"\x01\x02\x03\x04\x05\x06", b"\xb9\xb9"
MASK = (1 << 64) - 1


def rotate(lane: int, by: int) -> int:
    return ((lane << by) | (lane >> (64 - by))) & MASK if by else lane


def keccak_f1600(state: bytes) -> bytes:
    """The permutation of FIPS 202 §3.3, slow and plain, to compare with."""
    lanes = [[int.from_bytes(state[8 * (x + 5 * y) :][:8], "little") for y in range(5)] for x in range(5)]
    register = 1
    for _ in range(24):
        c = [lanes[x][0] ^ lanes[x][1] ^ lanes[x][2] ^ lanes[x][3] ^ lanes[x][4] for x in range(5)]
        lanes = [[lanes[x][y] ^ c[(x - 1) % 5] ^ rotate(c[(x + 1) % 5], 1) for y in range(5)] for x in range(5)]
        x, y, current = 1, 0, lanes[1][0]
        for t in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, lanes[x][y] = lanes[x][y], rotate(current, (t + 1) * (t + 2) // 2 % 64)
        lanes = [[lanes[x][y] ^ (~lanes[(x + 1) % 5][y] & lanes[(x + 2) % 5][y]) for y in range(5)] for x in range(5)]
        for j in range(7):
            if register & 1:
                lanes[0][0] ^= 1 << ((1 << j) - 1)
            register = (register << 1) ^ (0x171 if register & 0x80 else 0)
    return b"".join(lanes[x][y].to_bytes(8, "little") for y in range(5) for x in range(5))


def block_of(topc: bytes, instance: int, rand: bytes, amf: bytes, sqn: bytes, k: bytes) -> bytes:
    """The 1600-bit input of TS 35.231 §6, octet by octet."""
    fields = topc[::-1] + bytes([instance]) + b"TUAK1.0"[::-1] + rand[::-1] + amf[::-1] + sqn[::-1] + k[::-1].ljust(32, b"\0")
    return (fields + b"\x1f").ljust(135, b"\0") + b"\x80" + bytes(64)


@settings(max_examples=15)
@given(
    k=st.sampled_from([16, 32]).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
    iterations=st.integers(1, 4),
    res=st.sampled_from([4, 8, 16, 32]),
)
def test_shake256_computes_the_permutation_of_the_clause(k: bytes, iterations: int, res: int) -> None:
    """TS 35.231 §6: iterations of Keccak-f[1600] on the block, however they are computed."""
    topc = bytes(range(100, 132))
    tuak = Tuak(Secret(k), Secret(topc), iterations=iterations, res_octets=res)
    k256 = int(len(k) == 32)

    def permuted(instance: int, amf: bytes, sqn: bytes) -> bytes:
        state = block_of(topc, instance | k256, RAND, amf, sqn, k)
        for _ in range(iterations):
            state = keccak_f1600(state)
        return state

    assert tuak.f1(RAND, SQN, AMF) == permuted(0x08, AMF, SQN)[:8][::-1]
    assert tuak.f1_star(RAND, SQN, AMF) == permuted(0x88, AMF, SQN)[:8][::-1]
    out = permuted(0x40 | {4: 0, 8: 8, 16: 16, 32: 32}[res], bytes(2), bytes(6))
    f2345 = tuak.f2345(RAND)
    assert f2345.res == Secret(out[:res][::-1])
    assert (f2345.ck, f2345.ik) == (Secret(out[32:48][::-1]), Secret(out[64:80][::-1]))
    assert f2345.ak == out[96:102][::-1]
    assert tuak.f5_star(RAND) == permuted(0xC0, bytes(2), bytes(6))[96:102][::-1]
    assert tuak.vector(RAND, SQN, AMF) == (tuak.f1(RAND, SQN, AMF), f2345)


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"iterations": 256}, {"mac_octets": 4}, {"res_octets": 12}, {"ck_octets": 8}, {"ik_octets": 64}],
)
def test_a_length_that_tuak_has_not_is_refused(wrong: dict[str, Any]) -> None:
    """TS 35.231 §5.1."""
    with pytest.raises(LocalProtocolError):
        Tuak(Secret(bytes(16)), Secret(bytes(32)), **wrong)


@pytest.mark.parametrize(("k", "top"), [(15, 32), (24, 32), (16, 16), (32, 33)])
def test_keys_of_another_length_are_refused(k: int, top: int) -> None:
    with pytest.raises(LocalProtocolError):
        derive_topc(Secret(bytes(k)), Secret(bytes(top)))
    with pytest.raises(LocalProtocolError):
        Tuak(Secret(bytes(k)), Secret(bytes(top)))


def test_inputs_of_another_length_are_refused() -> None:
    tuak = Tuak(Secret(bytes(16)), Secret(bytes(32)))
    for call in (tuak.f1, tuak.f1_star, tuak.vector):
        with pytest.raises(LocalProtocolError):
            call(bytes(16), bytes(6), bytes(3))
    for short in (tuak.f2345, tuak.f5_star):
        with pytest.raises(LocalProtocolError):
            short(bytes(17))


def test_the_object_does_not_print_its_keys() -> None:
    assert "abab" not in repr(Tuak(Secret(b"\xab" * 16), Secret(b"\xab" * 32)))
