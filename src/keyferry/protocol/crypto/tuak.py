# SPDX-License-Identifier: Apache-2.0
"""TUAK, the Keccak-based set of the AKA functions (TS 35.231 §6 and §7, Release 17).

TUAK fills octets 0…95 of a Keccak-f[1600] block with its inputs and octets 96…135 with 1F 00…00 80. That is
how SHAKE256 pads a message of 96 octets, and a second iteration of the permutation is SHAKE256's second squeeze:
so hashlib computes TUAK, in constant time, and there is no permutation of our own to trust.
"""

from __future__ import annotations

import hashlib

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.functions import F2345, check_inputs, check_rand
from keyferry.protocol.crypto.secret import Secret

MAX_ITERATIONS = 255
"""Of the permutation, an operator's choice (TS 35.231 §7.2); bounded so that a wrong setting cannot stall an HSS."""

_RATE = 136  # octets SHAKE256 squeezes per permutation
_ALGONAME = b"TUAK1.0"[::-1]
_MAC_CODE = {8: 0x08, 16: 0x10, 32: 0x20}
_RES_CODE = {4: 0x00, 8: 0x08, 16: 0x10, 32: 0x20}
_NO_SQN_AMF = bytes(8)


class Tuak:
    """Compute f1…f5* for one subscriber."""

    __slots__ = ("_ck_octets", "_ik_octets", "_iterations", "_k", "_k256", "_mac_octets", "_res_octets", "_topc")

    def __init__(
        self,
        k: Secret,
        topc: Secret,
        *,
        iterations: int = 1,
        mac_octets: int = 8,
        res_octets: int = 8,
        ck_octets: int = 16,
        ik_octets: int = 16,
    ) -> None:
        """Take K (16 or 32 octets) and TOPc (32 octets); the default lengths are those AKA needs for an AUTN of 16 octets.

        MAC has 8, 16 or 32 octets, RES 4, 8, 16 or 32, CK and IK 16 or 32 each. Raises LocalProtocolError.
        """
        _check_keys(k, topc, iterations)
        if mac_octets not in _MAC_CODE or res_octets not in _RES_CODE or not {ck_octets, ik_octets} <= {16, 32}:
            raise LocalProtocolError("TUAK has no such output length")
        self._k256 = int(len(k) == 32)
        self._k = _k_field(k)
        self._topc = topc.reveal()[::-1]
        self._iterations = iterations
        self._mac_octets = mac_octets
        self._res_octets = res_octets
        self._ck_octets = ck_octets
        self._ik_octets = ik_octets

    def f1(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-A."""
        return self._mac(0x00, rand, sqn, amf)

    def f1_star(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-S."""
        return self._mac(0x80, rand, sqn, amf)

    def f2345(self, rand: bytes) -> F2345:
        """Return RES, CK, IK and AK (6 octets)."""
        check_rand(rand)
        instance = 0x40 | _RES_CODE[self._res_octets] | (self._ck_octets == 32) << 2 | (self._ik_octets == 32) << 1
        out = self._permute(instance, rand, _NO_SQN_AMF)
        res = Secret(out[: self._res_octets][::-1])
        ck = Secret(out[32 : 32 + self._ck_octets][::-1])
        ik = Secret(out[64 : 64 + self._ik_octets][::-1])
        return F2345(res, ck, ik, out[96:102][::-1])

    def f5_star(self, rand: bytes) -> bytes:
        """Return AK*, 6 octets."""
        check_rand(rand)
        return self._permute(0xC0, rand, _NO_SQN_AMF)[96:102][::-1]

    def vector(self, rand: bytes, sqn: bytes, amf: bytes) -> tuple[bytes, F2345]:
        """Return MAC-A and f2…f5 together."""
        return self.f1(rand, sqn, amf), self.f2345(rand)

    def _mac(self, star: int, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        check_inputs(rand, sqn, amf)
        out = self._permute(star | _MAC_CODE[self._mac_octets], rand, amf[::-1] + sqn[::-1])
        return out[: self._mac_octets][::-1]

    def _permute(self, instance: int, rand: bytes, amf_sqn: bytes) -> bytes:
        return _permute(self._topc, instance | self._k256, rand[::-1], amf_sqn, self._k, self._iterations)


def derive_topc(k: Secret, top: Secret, iterations: int = 1) -> Secret:
    """Return TOPc of K (16 or 32 octets) and TOP (32 octets) (TS 35.231 §6.1).

    Raises LocalProtocolError.
    """
    _check_keys(k, top, iterations)
    out = _permute(top.reveal()[::-1], int(len(k) == 32), bytes(16), _NO_SQN_AMF, _k_field(k), iterations)
    return Secret(out[:32][::-1])


def _check_keys(k: Secret, topc: Secret, iterations: int) -> None:
    if len(k) not in {16, 32} or len(topc) != 32:
        raise LocalProtocolError("TUAK takes K of 16 or 32 octets, and TOP or TOPc of 32")
    if not 1 <= iterations <= MAX_ITERATIONS:
        raise LocalProtocolError(f"TUAK iterates 1 to {MAX_ITERATIONS} times")


def _k_field(k: Secret) -> bytes:
    """Return K reversed; a K of 16 octets is followed by 16 of zero."""
    return k.reveal()[::-1].ljust(32, b"\0")


def _permute(topc: bytes, instance: int, rand: bytes, amf_sqn: bytes, k: bytes, iterations: int) -> bytes:
    """Return octets 0…101 of the block after the permutations; every field is given in the block's octet order."""
    block = b"".join((topc, bytes((instance,)), _ALGONAME, rand, amf_sqn, k))
    start = (iterations - 1) * _RATE
    return hashlib.shake_256(block).digest(start + 102)[start:]
