# SPDX-License-Identifier: Apache-2.0
"""TS 33.102 §6.3 and annex C."""

from __future__ import annotations

import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import AutsRejected, LocalProtocolError, MacFailure, ParseError, SyncFailure
from keyferry.protocol.aka import (
    DELTA,
    SEQ_MAX,
    AkaAlgorithm,
    AuthVector,
    Usim,
    algorithm_of,
    generate_vector,
    highest_seq_ms,
    split_sqn,
    sqn_of,
    verify_auts,
)
from keyferry.protocol.crypto.milenage import Milenage
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.crypto.tuak import Tuak

RAND, AMF = bytes(range(16)), b"\x80\x00"
MILENAGE = algorithm_of("milenage", Secret(b"k" * 16), Secret(b"o" * 16))
TUAK = algorithm_of("tuak", Secret(b"k" * 32), Secret(b"o" * 32))
both = pytest.mark.parametrize("algorithm", [MILENAGE, TUAK], ids=["milenage", "tuak"])


def vector(algorithm: AkaAlgorithm, seq: int, ind: int = 0, rand: bytes = RAND) -> AuthVector:
    return generate_vector(algorithm, rand, sqn_of(seq, ind), AMF)


def flipped(octets: bytes, position: int) -> bytes:
    return octets[:position] + bytes([octets[position] ^ 1]) + octets[position + 1 :]


@both
def test_a_usim_takes_a_fresh_vector_and_agrees_on_every_key(algorithm: AkaAlgorithm) -> None:
    """§6.3.2, §6.3.3."""
    av = vector(algorithm, 1)
    answer = Usim(algorithm).authenticate(av.rand, av.autn)
    assert (answer.res, answer.ck, answer.ik) == (av.xres, av.ck, av.ik)
    assert (answer.amf, answer.sqn) == (AMF, sqn_of(1, 0))
    assert (len(av.autn), len(av.xres), len(av.ck), len(av.ik)) == (16, 8, 16, 16)


@both
@pytest.mark.parametrize("position", range(16))
def test_an_autn_changed_anywhere_has_a_wrong_mac(algorithm: AkaAlgorithm, position: int) -> None:
    """§6.3.3: the MAC covers SQN, AMF and RAND, and it is checked before the SQN."""
    av = vector(algorithm, 1)
    usim = Usim(algorithm)
    with pytest.raises(MacFailure):
        usim.authenticate(av.rand, flipped(av.autn, position))
    with pytest.raises(MacFailure):
        usim.authenticate(flipped(av.rand, position), av.autn)
    assert usim.seq_ms == (0,) * 32


@both
def test_another_subscribers_vector_has_a_wrong_mac(algorithm: AkaAlgorithm) -> None:
    other = algorithm_of("milenage", Secret(b"K" * 16), Secret(b"o" * 16))
    with pytest.raises(MacFailure):
        Usim(algorithm).authenticate(RAND, vector(other, 1).autn)


@both
def test_a_vector_used_twice_yields_an_auts_that_the_network_can_read(algorithm: AkaAlgorithm) -> None:
    """§6.3.3, §6.3.5: AUTS carries the highest SQN accepted."""
    usim = Usim(algorithm)
    usim.authenticate(RAND, vector(algorithm, 5, 3).autn)
    before = usim.seq_ms
    with pytest.raises(SyncFailure) as failure:
        usim.authenticate(RAND, vector(algorithm, 5, 3).autn)
    assert len(failure.value.auts) == 14
    assert verify_auts(algorithm, RAND, failure.value.auts) == sqn_of(5, 3)
    assert usim.seq_ms == before


def test_sqn_ms_in_auts_is_the_highest_one_and_not_that_of_the_refused_index() -> None:
    """Annex C.2.2."""
    usim = Usim(MILENAGE)
    usim.authenticate(RAND, vector(MILENAGE, 9, 7).autn)
    usim.authenticate(RAND, vector(MILENAGE, 4, 2).autn)
    with pytest.raises(SyncFailure) as failure:
        usim.authenticate(RAND, vector(MILENAGE, 4, 2).autn)
    assert verify_auts(MILENAGE, RAND, failure.value.auts) == sqn_of(9, 7)


def test_a_vector_out_of_order_is_taken_if_its_index_is_behind() -> None:
    """Annex C.2.2: SEQ is compared with the array element of its own IND."""
    usim = Usim(MILENAGE)
    usim.authenticate(RAND, vector(MILENAGE, 10, 1).autn)
    assert usim.authenticate(RAND, vector(MILENAGE, 9, 0).autn).sqn == sqn_of(9, 0)
    with pytest.raises(SyncFailure):
        usim.authenticate(RAND, vector(MILENAGE, 10, 1).autn)
    assert usim.seq_ms[:3] == (9, 10, 0)


def test_the_jump_limit_is_exact() -> None:
    """Annex C.2.1: SEQ - SEQ_MS <= Delta."""
    start = (100, *(0,) * 31)
    with pytest.raises(SyncFailure):
        Usim(MILENAGE, start).authenticate(RAND, vector(MILENAGE, 100 + DELTA + 1, 5).autn)
    assert split_sqn(Usim(MILENAGE, start).authenticate(RAND, vector(MILENAGE, 100 + DELTA, 5).autn).sqn) == (100 + DELTA, 5)


def test_sequence_numbers_do_not_wrap_round() -> None:
    """Annex C.2.1: at the end of the range every SQN is refused."""
    usim = Usim(MILENAGE, (SEQ_MAX,) * 32)
    for seq in (0, 1, SEQ_MAX):
        with pytest.raises(SyncFailure) as failure:
            usim.authenticate(RAND, vector(MILENAGE, seq).autn)
        assert verify_auts(MILENAGE, RAND, failure.value.auts) == sqn_of(SEQ_MAX, 0)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 31)), max_size=30))
def test_no_sqn_is_ever_taken_twice_and_a_restart_forgets_nothing(offered: list[tuple[int, int]]) -> None:
    usim, taken = Usim(MILENAGE), set()
    for seq, ind in offered:
        try:
            sqn = usim.authenticate(RAND, vector(MILENAGE, seq, ind).autn).sqn
        except SyncFailure:
            assert seq <= usim.seq_ms[ind]
        else:
            assert sqn not in taken
            taken.add(sqn)
        usim = Usim(MILENAGE, usim.seq_ms)


@both
@pytest.mark.parametrize("position", range(14))
def test_a_changed_auts_is_refused(algorithm: AkaAlgorithm, position: int) -> None:
    """§6.3.5: an SQN_MS without a right MAC-S must not move the AuC's counter."""
    with pytest.raises(SyncFailure) as failure:
        Usim(algorithm, (7, *(0,) * 31)).authenticate(RAND, vector(algorithm, 3).autn)
    auts = failure.value.auts
    assert verify_auts(algorithm, RAND, auts) == sqn_of(7, 0)
    with pytest.raises(AutsRejected):
        verify_auts(algorithm, RAND, flipped(auts, position))
    with pytest.raises(AutsRejected):
        verify_auts(algorithm, flipped(RAND, position), auts)


@pytest.mark.parametrize("length", [0, 13, 15])
def test_an_auts_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(AutsRejected):
        verify_auts(MILENAGE, RAND, bytes(length))


def test_an_auts_is_not_an_autn_turned_round() -> None:
    """Annex F of TS 33.102 keeps f1 and f1* apart: MAC-A of a vector is no MAC-S."""
    av = vector(MILENAGE, 3)
    with pytest.raises(AutsRejected):
        verify_auts(MILENAGE, RAND, av.autn[:6] + av.autn[8:])


def test_macs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    genuine = hmac.compare_digest

    def recording(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recording)
    usim = Usim(MILENAGE)
    usim.authenticate(RAND, vector(MILENAGE, 1).autn)
    with pytest.raises(SyncFailure) as failure:
        usim.authenticate(RAND, vector(MILENAGE, 1).autn)
    verify_auts(MILENAGE, RAND, failure.value.auts)
    assert [len(mac) for mac in compared] == [8, 8, 8]


@pytest.mark.parametrize(("rand", "autn"), [(15, 16), (16, 15), (17, 16), (16, 17), (0, 0)])
def test_a_challenge_of_another_length_is_refused(rand: int, autn: int) -> None:
    with pytest.raises(ParseError):
        Usim(MILENAGE).authenticate(bytes(rand), bytes(autn))


@pytest.mark.parametrize("seq_ms", [(), (0,) * 31, (0,) * 33, (-1, *(0,) * 31), (SEQ_MAX + 1, *(0,) * 31)])
def test_a_usim_takes_32_sequence_numbers_only(seq_ms: tuple[int, ...]) -> None:
    with pytest.raises(ParseError):
        Usim(MILENAGE, seq_ms)


@given(st.integers(0, SEQ_MAX), st.integers(0, 31))
def test_sqn_is_seq_then_ind(seq: int, ind: int) -> None:
    """Annex C.1.1."""
    assert sqn_of(seq, ind) == seq * 32 + ind < 1 << 48
    assert split_sqn(sqn_of(seq, ind)) == (seq, ind)


@pytest.mark.parametrize(("seq", "ind"), [(-1, 0), (SEQ_MAX + 1, 0), (0, -1), (0, 32)])
def test_a_seq_or_ind_out_of_range_is_refused(seq: int, ind: int) -> None:
    with pytest.raises(LocalProtocolError):
        sqn_of(seq, ind)


def test_a_vector_takes_48_bits_of_sqn_and_16_of_amf() -> None:
    for wrong in ((RAND, -1, AMF), (RAND, 1 << 48, AMF), (RAND[1:], 0, AMF), (RAND, 0, AMF + AMF)):
        with pytest.raises(LocalProtocolError):
            generate_vector(MILENAGE, *wrong)


@pytest.mark.parametrize(
    ("name", "k", "opc", "field"),
    [
        ("milenage", 15, 16, "K"),
        ("milenage", 32, 16, "K"),
        ("milenage", 16, 32, "OPc"),
        ("tuak", 24, 32, "K"),
        ("tuak", 16, 16, "TOPc"),
        ("comp128", 16, 16, "AKA algorithm"),
    ],
)
def test_the_field_that_is_wrong_is_named_and_not_shown(name: Any, k: int, opc: int, field: str) -> None:
    with pytest.raises(ParseError) as problem:
        algorithm_of(name, Secret(b"\xab" * k), Secret(b"\xab" * opc))
    assert problem.value.what == field
    assert "abab" not in str(problem.value)


def test_a_name_chooses_the_algorithm() -> None:
    assert isinstance(MILENAGE, Milenage)
    assert isinstance(TUAK, Tuak)
    assert isinstance(algorithm_of("tuak", Secret(bytes(16)), Secret(bytes(32))), Tuak)


def test_neither_a_vector_nor_an_answer_prints_a_key() -> None:
    av = vector(MILENAGE, 1)
    text = repr(av) + repr(Usim(MILENAGE).authenticate(RAND, av.autn))
    assert text.count("Secret(") == 6
    for secret in (av.xres, av.ck, av.ik):
        assert repr(secret.reveal())[2:-1] not in text
        assert secret.reveal().hex() not in text


SEQS = st.lists(st.integers(0, SEQ_MAX), min_size=32, max_size=32).map(tuple)


@given(st.lists(SEQS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_what_a_card_accepted_is_remembered_whoever_writes_last(states: list[tuple[int, ...]], random: Any) -> None:
    """Annex C.2.2: for each IND the highest, in whatever order, however often."""
    wanted = tuple(max(slot) for slot in zip(*states, strict=True))
    for _ in range(3):
        random.shuffle(states)
        kept: tuple[int, ...] = (0,) * 32
        card = Usim(MILENAGE)
        for state in (*states, states[0]):
            before = kept
            kept = highest_seq_ms(kept, state)
            assert all(now >= then for now, then in zip(kept, before, strict=True))
            card.take_over(state)
        assert kept == card.seq_ms == wanted


def test_a_card_does_not_accept_what_it_accepted_elsewhere() -> None:
    """Annex C.2.1: another process has the same card."""
    here, there = Usim(MILENAGE), Usim(MILENAGE)
    there.authenticate(RAND, vector(MILENAGE, 7, 3).autn)
    here.take_over(there.seq_ms)
    with pytest.raises(SyncFailure):
        here.authenticate(RAND, vector(MILENAGE, 7, 3).autn)
    with pytest.raises(LocalProtocolError):
        here.take_over((0,) * 31)
