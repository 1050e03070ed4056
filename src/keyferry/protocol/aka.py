# SPDX-License-Identifier: Apache-2.0
"""Authentication and key agreement: vectors, AUTN, SQN, AUTS (TS 33.102 §6.3 and annex C, Release 17)."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

from keyferry.errors import AutsRejected, LocalProtocolError, MacFailure, ParseError, SyncFailure
from keyferry.protocol.crypto.functions import AMF_OCTETS, F2345, RAND_OCTETS
from keyferry.protocol.crypto.milenage import Milenage, derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import Tuak, derive_topc

AkaName: TypeAlias = Literal["milenage", "tuak"]

AUTN_OCTETS = 16
AUTS_OCTETS = 14
MAC_OCTETS = 8
IND_BITS = 5
"""SQN = SEQ || IND with the length that annex C.3 recommends."""
IND_COUNT = 1 << IND_BITS
SEQ_MAX = (1 << (48 - IND_BITS)) - 1
DELTA = 1 << 28
"""The largest jump of SEQ that a USIM accepts (annex C.3): a wrong AuC clock cannot use up the sequence numbers."""

_AMF_RESYNC = bytes(AMF_OCTETS)  # TS 33.102 §6.3.3: AMF* is all zero, so that it need not be sent in AUTS


class AkaAlgorithm(Protocol):
    """The functions f1…f5* under one subscriber's keys; RAND has 16 octets, SQN 6, AMF 2."""

    def f1(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-A."""

    def f1_star(self, rand: bytes, sqn: bytes, amf: bytes) -> bytes:
        """Return MAC-S."""

    def f2345(self, rand: bytes) -> F2345:
        """Return RES, CK, IK and AK."""

    def f5_star(self, rand: bytes) -> bytes:
        """Return AK*, 6 octets."""

    def vector(self, rand: bytes, sqn: bytes, amf: bytes) -> tuple[bytes, F2345]:
        """Return MAC-A and f2…f5, faster than one by one."""


@dataclass(frozen=True, slots=True)
class AuthVector:
    """One authentication vector (§6.3.2)."""

    rand: bytes  # 16 octets
    autn: bytes  # 16 octets
    xres: Secret  # 4 to 16 octets
    ck: Secret  # 16 octets
    ik: Secret  # 16 octets


class UsimAnswer(NamedTuple):
    """What a USIM gives once it accepted a challenge."""

    res: Secret
    ck: Secret
    ik: Secret
    amf: bytes  # 2 octets, authentic: they are under AUTN's MAC
    sqn: int


def opc_of(name: AkaName, k: Secret, op: Secret) -> Secret:
    """Return OPc from OP (TS 35.206 §4.1), or TOPc from TOP (TS 35.231 §6).

    Raises ParseError.
    """
    return derive_opc(k, op) if name == "milenage" else derive_topc(k, op)


def algorithm_of(name: AkaName, k: Secret, opc: Secret) -> AkaAlgorithm:
    """Return the functions under K and OPc, or TOPc for TUAK.

    Raises ParseError that names the field whose length is wrong.
    """
    if name == "milenage":
        _check_length("K", k, 16)
        _check_length("OPc", opc, 16)
        return Milenage(k, opc)
    if name == "tuak":
        _check_length("K", k, 16, 32)
        _check_length("TOPc", opc, 32)
        return Tuak(k, opc)
    raise ParseError("AKA algorithm", "neither milenage nor tuak")


def generate_vector(algorithm: AkaAlgorithm, rand: bytes, sqn: int, amf: bytes) -> AuthVector:
    """Make the vector of a fresh RAND and SQN: AUTN = (SQN xor AK) || AMF || MAC-A (§6.3.2).

    Raises LocalProtocolError.
    """
    mac, f2345 = algorithm.vector(rand, _sqn_octets(sqn), amf)
    autn = (sqn ^ int.from_bytes(f2345.ak, "big")).to_bytes(6, "big") + amf + mac
    return AuthVector(rand, autn, f2345.res, f2345.ck, f2345.ik)


def sqn_of(seq: int, ind: int) -> int:
    """Return SEQ || IND (annex C.1.1).

    Raises LocalProtocolError.
    """
    if not 0 <= seq <= SEQ_MAX or not 0 <= ind < IND_COUNT:
        raise LocalProtocolError("SEQ has 43 bits, IND 5")
    return seq << IND_BITS | ind


def split_sqn(sqn: int) -> tuple[int, int]:
    """Return (SEQ, IND), reverse of `sqn_of`."""
    return sqn >> IND_BITS, sqn & (IND_COUNT - 1)


def verify_auts(algorithm: AkaAlgorithm, rand: bytes, auts: bytes) -> int:
    """Return SQN_MS of an AUTS that answers `rand` (§6.3.5).

    Raises AutsRejected: SQN_MS must not be believed unless MAC-S is right.
    """
    if len(auts) != AUTS_OCTETS:
        raise AutsRejected(f"AUTS has not {AUTS_OCTETS} octets")
    sqn_ms = int.from_bytes(auts[:6], "big") ^ int.from_bytes(algorithm.f5_star(rand), "big")
    mac_s = algorithm.f1_star(rand, _sqn_octets(sqn_ms), _AMF_RESYNC)
    if not hmac.compare_digest(mac_s, auts[6:]):
        raise AutsRejected("MAC-S in AUTS is wrong")
    return sqn_ms


def highest_seq_ms(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Return the higher SEQ for each IND: what a card has accepted it never accepts again, whoever remembers it (annex C.2.2).

    Raises LocalProtocolError.
    """
    if len(one) != len(other):
        raise LocalProtocolError("SEQ_MS of two cards that differ in the length of IND")
    return tuple(map(max, one, other))


class Usim:
    """Answer challenges as a USIM or ISIM does, remembering SEQ_MS by IND (§6.3.3, annex C.2)."""

    __slots__ = ("_algorithm", "_seq_ms")

    def __init__(self, algorithm: AkaAlgorithm, seq_ms: Sequence[int] = (0,) * IND_COUNT) -> None:
        """Take up where `seq_ms` was left.

        Raises ParseError unless it has 32 values of 43 bits.
        """
        if len(seq_ms) != IND_COUNT or not all(0 <= seq <= SEQ_MAX for seq in seq_ms):
            raise ParseError("SEQ_MS", f"not {IND_COUNT} sequence numbers")
        self._algorithm = algorithm
        self._seq_ms = list(seq_ms)

    @property
    def seq_ms(self) -> tuple[int, ...]:
        """Return the highest SEQ accepted for each IND, to be kept."""
        return tuple(self._seq_ms)

    def take_over(self, seq_ms: Sequence[int]) -> None:
        """Take the SEQs over that the same card has accepted elsewhere, where they are higher. Raises LocalProtocolError."""
        self._seq_ms = list(highest_seq_ms(self._seq_ms, seq_ms))

    def authenticate(self, rand: bytes, autn: bytes) -> UsimAnswer:
        """Check AUTN, its MAC first and then its SQN, and only then give RES, CK and IK.

        Raises MacFailure, SyncFailure with the AUTS to send, ParseError on a wrong length.
        """
        if len(rand) != RAND_OCTETS or len(autn) != AUTN_OCTETS:
            raise ParseError("AKA challenge", "RAND and AUTN have 16 octets each")
        f2345 = self._algorithm.f2345(rand)
        sqn = int.from_bytes(autn[:6], "big") ^ int.from_bytes(f2345.ak, "big")
        amf = autn[6:8]
        xmac = self._algorithm.f1(rand, _sqn_octets(sqn), amf)
        if not hmac.compare_digest(xmac, autn[8:]):
            raise MacFailure("the MAC in AUTN is wrong")
        seq, ind = split_sqn(sqn)
        if seq <= self._seq_ms[ind] or seq - max(self._seq_ms) > DELTA:
            raise self._not_fresh(rand, sqn)
        self._seq_ms[ind] = seq
        return UsimAnswer(f2345.res, f2345.ck, f2345.ik, amf, sqn)

    def _not_fresh(self, rand: bytes, sqn: int) -> SyncFailure:
        """Make the failure with AUTS = (SQN_MS xor AK*) || MAC-S; SQN_MS is the highest SQN accepted."""
        seq = max(self._seq_ms)
        sqn_ms = sqn_of(seq, self._seq_ms.index(seq))
        concealed = sqn_ms ^ int.from_bytes(self._algorithm.f5_star(rand), "big")
        auts = concealed.to_bytes(6, "big") + self._algorithm.f1_star(rand, _sqn_octets(sqn_ms), _AMF_RESYNC)
        return SyncFailure(auts, sqn_he=sqn, sqn_ms=sqn_ms, seq_ms_of_ind=self._seq_ms[split_sqn(sqn)[1]])


def _sqn_octets(sqn: int) -> bytes:
    if not 0 <= sqn < 1 << 48:
        raise LocalProtocolError("SQN has 48 bits")
    return sqn.to_bytes(6, "big")


def _check_length(field: str, secret: Secret, *lengths: int) -> None:
    if len(secret) not in lengths:
        raise ParseError(field, f"not {' or '.join(map(str, lengths))} octets long")
