# SPDX-License-Identifier: Apache-2.0
"""What explains a wrong MAC in AUTN or AUTS, and the distance of two SQNs (TS 33.102 §6.3, annex C)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.errors import MacFailure, SyncFailure
from keyferry.protocol.aka import AkaName, Usim, algorithm_of, generate_vector, sqn_of
from keyferry.protocol.crypto.milenage import derive_opc
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import derive_topc
from keyferry.protocol.ims.autn_trial import USUAL_AMF, explain_autn, explain_auts, explain_sqn
from keyferry.protocol.ims.verdicts import Analysis, Reason

OCTETS = st.binary(min_size=16, max_size=16)
SEQS = st.integers(1, 1 << 40)
K, OP, RAND, AMF = bytes(range(16)), bytes(range(50, 66)), bytes(range(80, 96)), b"\x80\x00"


def opc(k: bytes, op: bytes) -> Secret:
    return derive_opc(Secret(k), Secret(op))


def reasons(analysis: Analysis) -> list[list[Reason]]:
    return [[verdict.reason for verdict in cause] for cause in analysis.causes]


def seen_by_ue(card: Secret, network: Secret, *, op: Secret | None = None, amf: bytes = AMF) -> Analysis:
    """Let a network with one OPc challenge a card with another."""
    autn = generate_vector(algorithm_of("milenage", Secret(K), network), RAND, sqn_of(7, 3), AMF).autn
    autn = autn[:6] + amf + autn[8:]
    with pytest.raises(MacFailure):
        Usim(algorithm_of("milenage", Secret(K), card)).authenticate(RAND, autn)
    return explain_autn("milenage", Secret(K), card, RAND, autn, op=op)


# ---- AUTN, at the UE


@settings(max_examples=30, deadline=None)
@given(OCTETS, OCTETS, OCTETS, SEQS)
def test_a_card_with_op_in_place_of_opc_says_so(k: bytes, op: bytes, rand: bytes, seq: int) -> None:
    """TS 35.206 §4.1: its value yields the network's OPc."""
    autn = generate_vector(algorithm_of("milenage", Secret(k), opc(k, op)), rand, sqn_of(seq, 3), AMF).autn
    found = explain_autn("milenage", Secret(k), Secret(op), rand, autn)
    assert reasons(found) == [[Reason.OP_FOR_OPC]]
    assert "give the card's value as `op`" in found.text


def test_a_card_that_derives_from_opc_says_so() -> None:
    """Its `op` is OPc already; or the network took OP for OPc, which looks the same from here."""
    real = opc(K, OP)
    found = seen_by_ue(opc(K, real.reveal()), real, op=real)
    assert reasons(found) == [[Reason.OP_FOR_OPC]]
    assert "what this card has as OP is OPc, or the HSS took OP for OPc" in found.text


def test_a_network_that_derives_twice_is_seen_by_a_card_with_op_and_by_one_with_opc() -> None:
    real = opc(K, OP)
    twice = opc(K, real.reveal())
    assert "the HSS derives from what is OPc already" in seen_by_ue(real, twice, op=Secret(OP)).text
    assert reasons(seen_by_ue(real, twice)) == [[Reason.OP_FOR_OPC]]


def test_tuak_knows_top_and_topc_too() -> None:
    k, top = Secret(K), Secret(bytes(range(32)))
    autn = generate_vector(algorithm_of("tuak", k, derive_topc(k, top)), RAND, sqn_of(7, 3), AMF).autn
    assert reasons(explain_autn("tuak", k, top, RAND, autn)) == [[Reason.OP_FOR_OPC]]


@pytest.mark.parametrize("amf", [amf for amf in USUAL_AMF if amf != "8000"])
def test_an_amf_that_was_changed_on_its_way_is_named(amf: str) -> None:
    """It is under the MAC."""
    found = seen_by_ue(opc(K, OP), opc(K, OP), amf=bytes.fromhex(amf))
    assert [[tuple(verdict) for verdict in cause] for cause in found.causes] == [[(Reason.AMF, f"AUTN shows {amf}, its MAC is of 8000")]]


def test_an_sqn_that_is_not_concealed_is_named_and_with_another_amf_both() -> None:
    """TS 33.102 §6.3.2."""
    algorithm = algorithm_of("milenage", Secret(K), opc(K, OP))
    sqn = sqn_of(9, 1).to_bytes(6, "big")
    autn = sqn + AMF + algorithm.f1(RAND, sqn, AMF)
    assert reasons(explain_autn("milenage", Secret(K), opc(K, OP), RAND, autn)) == [[Reason.SQN_CLEAR]]
    autn = sqn + b"\0\0" + autn[8:]
    assert reasons(explain_autn("milenage", Secret(K), opc(K, OP), RAND, autn)) == [[Reason.SQN_CLEAR, Reason.AMF]]


@settings(max_examples=30, deadline=None)
@given(OCTETS, OCTETS, OCTETS)
def test_another_k_is_blamed_on_nothing_else(k: bytes, rand: bytes, mac: bytes) -> None:
    if k != K:
        autn = generate_vector(algorithm_of("milenage", Secret(k), opc(k, OP)), rand, sqn_of(7, 3), AMF).autn
        assert reasons(explain_autn("milenage", Secret(K), opc(K, OP), rand, autn)) == [[Reason.K_OR_OPC]]
    assert reasons(explain_autn("milenage", Secret(K), opc(K, OP), rand, mac, op=Secret(OP))) == [[Reason.K_OR_OPC]]


# ---- SQN


def test_the_distance_is_in_seq_and_says_who_is_behind() -> None:
    behind = explain_sqn(sqn_of(1000, 8), sqn_of(700, 9), seq_ms_of_ind=700)
    assert reasons(behind) == [[Reason.SQN]]
    assert "the challenge is behind the card" in behind.text
    assert "SQN_MS - SQN_HE is +300 in SEQ (IND 8 of the card, 9 of the challenge); for IND 9 the card was at +0" in behind.text
    ahead = explain_sqn(sqn_of(5, 5), sqn_of(5 + (1 << 28) + 1, 0))
    assert "ahead by more than 2^28" in ahead.text
    assert "-268435457 in SEQ" in ahead.text
    assert "refused it all the same" in explain_sqn(sqn_of(5, 5), sqn_of(6, 6)).text


# ---- AUTS, at the HSS


def made(seq: int = 7, rand: bytes = RAND, name: AkaName = "milenage") -> bytes:
    return generate_vector(algorithm_of(name, Secret(K), opc(K, OP)), rand, sqn_of(seq, seq % 32), AMF).autn


@settings(max_examples=30, deadline=None)
@given(SEQS, st.integers(0, 1000))
def test_a_right_auts_gives_the_distance(seq: int, more: int) -> None:
    """TS 33.102 §6.3.5."""
    algorithm = algorithm_of("milenage", Secret(K), opc(K, OP))
    seq_ms = [0] * 32
    seq_ms[seq % 32] = seq + more
    with pytest.raises(SyncFailure) as problem:
        Usim(algorithm, seq_ms).authenticate(RAND, made(seq))
    found = explain_auts("milenage", Secret(K), opc(K, OP), RAND, made(seq), problem.value.auts)
    assert reasons(found) == [[Reason.SQN]]
    assert f"SQN_MS - SQN_HE is +{more} in SEQ (IND {seq % 32} of the card, {seq % 32} of the challenge)" in found.text


def auts(*, amf: bytes = b"\0\0", rand: bytes = RAND, conceal: str = "f5*", of: Secret | None = None) -> bytes:
    algorithm = algorithm_of("milenage", Secret(K), of or opc(K, OP))
    key = {"f5*": algorithm.f5_star(rand), "f5": algorithm.f2345(rand).ak, "nothing": bytes(6)}[conceal]
    sqn = sqn_of(9, 1).to_bytes(6, "big")
    return bytes(a ^ b for a, b in zip(sqn, key, strict=True)) + algorithm.f1_star(rand, sqn, amf)


@pytest.mark.parametrize(
    ("given_auts", "expected"),
    [
        (auts(amf=AMF), [[Reason.AUTS_AMF]]),
        (auts(conceal="f5"), [[Reason.AUTS_AK]]),
        (auts(conceal="nothing"), [[Reason.AUTS_AK]]),
        (auts(conceal="nothing", amf=AMF), [[Reason.AUTS_AK, Reason.AUTS_AMF]]),
        (auts(rand=b"r" * 16), [[Reason.RAND]]),
        (auts(of=opc(K, opc(K, OP).reveal())), [[Reason.OP_FOR_OPC]]),
        (bytes(14), [[Reason.AUTS]]),
        (auts(rand=b"x" * 16), [[Reason.AUTS]]),
    ],
)
def test_a_wrong_auts_is_explained_or_blamed_on_nothing(given_auts: bytes, expected: list[list[Reason]]) -> None:
    found = explain_auts("milenage", Secret(K), opc(K, OP), RAND, made(), given_auts, [RAND, b"q" * 16, b"r" * 16])
    assert reasons(found) == expected
