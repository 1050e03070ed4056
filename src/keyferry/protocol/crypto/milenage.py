# SPDX-License-Identifier: Apache-2.0
"""Milenage, the 3GPP example set of the AKA functions (TS 35.206 §4, Release 17)."""

from __future__ import annotations

from keyferry.errors import LocalProtocolError
from keyferry.protocol.crypto.aes import AesBlock
from keyferry.protocol.crypto.functions import F2345, check_inputs, check_rand
from keyferry.protocol.crypto.secret import Secret

# TS 35.206 §4.1: ci are added after a rotation by ri bits towards the most significant bit: r1…r5 = 64, 0, 32, 64, 96.
_C234 = (1 << 256) | (2 << 128) | 4  # c2, c3, c4 laid over three blocks at once; c1 is zero
_C5 = 8
_REPEAT_3 = (1 << 256) | (1 << 128) | 1
_REPEAT_4 = (1 << 384) | _REPEAT_3


class Milenage:
    """Compute f1…f5* for one subscriber."""

    __slots__ = ("_encrypt", "_opc", "_opc_3", "_opc_4")

    def __init__(self, k: Secret, opc: Secret) -> None:
        """Take K and OPc, 16 octets each.

        Raises LocalProtocolError.
        """
        if len(k) != 16 or len(opc) != 16:
            raise LocalProtocolError("Milenage takes K and OPc of 16 octets")
        self._encrypt = AesBlock(k).encrypt
        self._opc = int.from_bytes(opc.reveal(), "big")
        self._opc_3 = self._opc * _REPEAT_3
        self._opc_4 = self._opc * _REPEAT_4

    def f1(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-A, 8 octets."""
        return self._out1(rand, sqn, amf)[:8]

    def f1_star(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-S, 8 octets."""
        return self._out1(rand, sqn, amf)[8:]

    def f2345(self, rand: bytes) -> F2345:
        """Return RES (8 octets), CK, IK (16 each) and AK (6)."""
        check_rand(rand)
        t = self._temp_opc(rand)
        blocks = int.from_bytes(t + t[4:] + t[:4] + t[8:] + t[:8], "big") ^ _C234
        out = int.from_bytes(self._encrypt(blocks.to_bytes(48, "big")), "big") ^ self._opc_3
        return _f2345(out.to_bytes(48, "big"))

    def f5_star(self, rand: bytes) -> bytes:
        """Return AK*, 6 octets."""
        check_rand(rand)
        t = self._temp_opc(rand)
        block = int.from_bytes(t[12:] + t[:12], "big") ^ _C5
        out = int.from_bytes(self._encrypt(block.to_bytes(16, "big")), "big") ^ self._opc
        return out.to_bytes(16, "big")[:6]

    def vector(self, rand: bytes, sqn: bytes, amf: bytes) -> tuple[bytes, F2345]:
        """Return MAC-A and f2…f5 together: one block, then four at once."""
        check_inputs(rand, sqn, amf)
        t = self._temp_opc(rand)
        blocks = int.from_bytes(self._in1(t, sqn, amf) + t + t[4:] + t[:4] + t[8:] + t[:8], "big") ^ _C234
        out = (int.from_bytes(self._encrypt(blocks.to_bytes(64, "big")), "big") ^ self._opc_4).to_bytes(64, "big")
        return out[:8], _f2345(out[16:])

    def _temp_opc(self, rand: bytes) -> bytes:
        """Return TEMP xor OPc, which all of OUT2…OUT5 start from."""
        temp = self._encrypt((int.from_bytes(rand, "big") ^ self._opc).to_bytes(16, "big"))
        return (int.from_bytes(temp, "big") ^ self._opc).to_bytes(16, "big")

    def _in1(self, temp_opc: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return the input of OUT1's encryption: TEMP xor rot(IN1 xor OPc, 64) xor c1.

        IN1 is two equal halves, so its rotation by r1 = 64 is IN1 itself; only OPc turns. c1 is zero.
        """
        half = sqn + amf
        opc = self._opc
        turned = ((opc & 0xFFFFFFFFFFFFFFFF) << 64) | (opc >> 64)
        return (int.from_bytes(temp_opc, "big") ^ opc ^ turned ^ int.from_bytes(half + half, "big")).to_bytes(16, "big")

    def _out1(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        check_inputs(rand, sqn, amf)
        out = self._encrypt(self._in1(self._temp_opc(rand), sqn, amf))
        return (int.from_bytes(out, "big") ^ self._opc).to_bytes(16, "big")


def derive_opc(k: Secret, op: Secret) -> Secret:
    """Return OPc = OP xor E_K(OP) (TS 35.206 §4.1).

    Raises LocalProtocolError unless both have 16 octets.
    """
    if len(k) != 16 or len(op) != 16:
        raise LocalProtocolError("Milenage takes K and OP of 16 octets")
    octets = op.reveal()
    return Secret(bytes(a ^ b for a, b in zip(octets, AesBlock(k).encrypt(octets), strict=True)))


def _f2345(out: bytes) -> F2345:
    """Cut OUT2 || OUT3 || OUT4."""
    return F2345(Secret(out[8:16]), Secret(out[16:32]), Secret(out[32:48]), out[:6])
