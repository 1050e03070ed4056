# SPDX-License-Identifier: Apache-2.0
"""Which usual mistake explains a wrong MAC in AUTN or AUTS, and how far the SQNs are apart (TS 33.102 §6.3, annex C, Release 17; *ours*).

Used after a failure only, by who has K: the UE for AUTN, the HSS for AUTS. A MAC that a mistake yields is that mistake's proof, since
it has 64 bits; one that none yields stays unexplained.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from keyferry.protocol.aka import DELTA, AkaAlgorithm, AkaName, algorithm_of, split_sqn
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.ims.response_trial import MAX_EARLIER, derived
from keyferry.protocol.ims.verdicts import Analysis, Reason, Verdict, because

USUAL_AMF: Final = ("8000", "8001", "0000", "0001", "b9b9", "ffff", "9000", "0080")
"""AMFs of test equipment, of the published test sets, and of AuCs that mix up the octets; hexadecimal."""

_ZERO_AMF = bytes(2)


class _Try(NamedTuple):
    """One way in which the other side may have computed, and the verdicts that it amounts to."""

    algorithm: AkaAlgorithm
    blamed: tuple[Verdict, ...]


# ---- the UE


def explain_autn(name: AkaName, k: Secret, opc: Secret, rand: bytes, autn: bytes, *, op: Secret | None = None) -> Analysis:
    """Explain a wrong MAC in AUTN (16 octets) to the UE that found it; `op` is what OPc was made of, if it was.

    Raises ParseError for keys of the wrong length.
    """
    ways = [_Try(algorithm_of(name, k, opc), ()), *_other_opc(name, k, opc, op)]
    tried = list(_autn_causes(ways, rand, autn))
    fewest = min((len(cause) for cause in tried), default=0)
    found = tuple(dict.fromkeys(cause for cause in tried if cause and len(cause) == fewest))
    return Analysis(found) if found else because(Reason.K_OR_OPC)


def _other_opc(name: AkaName, k: Secret, opc: Secret, op: Secret | None) -> Iterator[_Try]:
    made = "the network uses what this card's OPc gives if it is taken for OP" if op is None else "the network has derived OPc twice"
    hint = "give the card's value as `op`" if op is None else "the HSS derives from what is OPc already"
    yield _Try(algorithm_of(name, k, derived(name, k, opc)), (Verdict(Reason.OP_FOR_OPC, f"{made}: {hint}"),))
    if op is not None:
        hint = "what this card has as OP is OPc, or the HSS took OP for OPc"
        yield _Try(algorithm_of(name, k, op), (Verdict(Reason.OP_FOR_OPC, f"the network uses this card's OP as OPc: {hint}"),))


def _autn_causes(ways: Sequence[_Try], rand: bytes, autn: bytes) -> Iterator[tuple[Verdict, ...]]:
    concealed, stated, mac = autn[:6], autn[6:8], autn[8:]
    for way in ways:
        ak = way.algorithm.f2345(rand).ak
        opened = bytes(a ^ b for a, b in zip(concealed, ak, strict=True))
        for sqn, clear in ((opened, ()), (concealed, (Verdict(Reason.SQN_CLEAR),))):
            for amf in dict.fromkeys((stated, *map(bytes.fromhex, USUAL_AMF))):
                if hmac.compare_digest(way.algorithm.f1(rand, sqn, amf), mac):
                    changed = () if amf == stated else (Verdict(Reason.AMF, f"AUTN shows {stated.hex()}, its MAC is of {amf.hex()}"),)
                    yield (*way.blamed, *clear, *changed)


# ---- SQN


def explain_sqn(sqn_ms: int, sqn_he: int, *, seq_ms_of_ind: int | None = None) -> Analysis:
    """Say how far the SQN of the card is from that of the challenge; `seq_ms_of_ind` is SEQ_MS for the challenge's IND, if known."""
    (seq_ms, ind_ms), (seq_he, ind_he) = split_sqn(sqn_ms), split_sqn(sqn_he)
    distance = f"SQN_MS - SQN_HE is {seq_ms - seq_he:+} in SEQ (IND {ind_ms} of the card, {ind_he} of the challenge)"
    if seq_he - seq_ms > DELTA:
        why = f"the challenge is ahead by more than 2^28, which a card refuses (annex C.3); {distance}"
    elif seq_he <= seq_ms:
        why = f"the challenge is behind the card; {distance}"
    else:
        why = f"the challenge is ahead of the card, which refused it all the same: by its IND, or by a limit of its own; {distance}"
    if seq_ms_of_ind is not None:
        why += f"; for IND {ind_he} the card was at {seq_ms_of_ind - seq_he:+}"
    return because(Reason.SQN, why)


# ---- the HSS


def explain_auts(name: AkaName, k: Secret, opc: Secret, rand: bytes, autn: bytes, auts: bytes, earlier: Sequence[bytes] = ()) -> Analysis:
    """Explain an AUTS (14 octets) to the HSS: the distance if it is right, else the mistakes that yield its MAC-S.

    `earlier` are the RANDs of challenges before. Raises ParseError for keys of the wrong length.
    """
    right = algorithm_of(name, k, opc)
    held = Verdict(Reason.OP_FOR_OPC, "what the HSS holds as OPc is OP for the card")
    ways = [_Try(right, ()), _Try(algorithm_of(name, k, derived(name, k, opc)), (held,))]
    rands: dict[bytes, tuple[Verdict, ...]] = {rand: ()}
    for place, old in enumerate(earlier[:MAX_EARLIER], 1):
        rands.setdefault(old, (Verdict(Reason.RAND, f"AUTS is of the challenge {place} before"),))
    tried = [found for way in ways for old, stale in rands.items() for found in _auts_causes(way, old, stale, autn[6:8], auts)]
    if not tried:
        return because(Reason.AUTS, "no usual mistake explains it")
    fewest = min(len(cause) for cause, _ in tried)
    if fewest:
        return Analysis(tuple(dict.fromkeys(cause for cause, _ in tried if len(cause) == fewest)))
    sqn_he = int.from_bytes(autn[:6], "big") ^ int.from_bytes(right.f2345(rand).ak, "big")
    return explain_sqn(next(sqn_ms for cause, sqn_ms in tried if not cause), sqn_he)


def _auts_causes(way: _Try, rand: bytes, stale: tuple[Verdict, ...], amf: bytes, auts: bytes) -> Iterator[tuple[tuple[Verdict, ...], int]]:
    """Yield what is to blame, and SQN_MS, for each way of concealing and each AMF that yields MAC-S."""
    keys: dict[bytes, tuple[Verdict, ...]] = {
        way.algorithm.f5_star(rand): (),
        way.algorithm.f2345(rand).ak: (Verdict(Reason.AUTS_AK, "with AK of f5"),),
        bytes(6): (Verdict(Reason.AUTS_AK, "SQN_MS stands in clear"),),
    }
    for key, wrong in keys.items():
        sqn = bytes(a ^ b for a, b in zip(auts[:6], key, strict=True))
        for used in dict.fromkeys((_ZERO_AMF, amf)):
            if hmac.compare_digest(way.algorithm.f1_star(rand, sqn, used), auts[6:]):
                other = () if used == _ZERO_AMF else (Verdict(Reason.AUTS_AMF, f"{used.hex()} was used"),)
                yield (*way.blamed, *stale, *wrong, *other), int.from_bytes(sqn, "big")
