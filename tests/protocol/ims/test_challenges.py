# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5 step 1; TS 24.229 §5.4.1.2.1 (reg-await-auth)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi, Impu, Reg, reg_of
from keyferry.protocol.ims.challenges import MAX_PER_CALL, PendingChallenges
from keyferry.protocol.ims.registration import PendingChallenge

ALICE, BOB = Impi("alice@home1.net"), Impi("bob@home1.net")


PHONE, TABLET = reg_of("<urn:uuid:1>"), reg_of("<urn:uuid:2>")


def challenge(
    nonce: str, impi: Impi = ALICE, source: str = "192.0.2.1:5060", expires_at: float = 240.0, reg: Reg = PHONE, call_id: str = "a"
) -> PendingChallenge:
    return PendingChallenge(
        nonce=nonce, impi=impi, impu=Impu("sip:a@home1.net"), reg=reg, source=source, realm="home1.net", masked=True, xres=Secret(b"x" * 8),
        k_m=Secret(b"m" * 32), expires_at=expires_at, after_resync=False, call_id=call_id,
    )  # fmt: skip


def left(held: PendingChallenges, *nonces: str, now: float = 0.0) -> list[str]:
    """Take each and return those that were there."""
    return [nonce for nonce in nonces if held.take(nonce, now) is not None]


def test_a_nonce_is_taken_once() -> None:
    """DESIGN §5 step 1: an AV goes into exactly one 401, and one answer ends it."""
    held = PendingChallenges()
    held.put(challenge("n1"))
    assert len(held) == 1
    assert held.take("n1", 1.0) == challenge("n1")
    assert held.take("n1", 1.0) is None
    assert len(held) == 0


def test_an_unknown_nonce_is_none() -> None:
    assert PendingChallenges().take("n1", 0.0) is None


def test_reg_await_auth_ends_a_challenge() -> None:
    """TS 24.229 §5.4.1.2.1."""
    held = PendingChallenges()
    held.put(challenge("in time", expires_at=240.0))
    held.put(challenge("late", expires_at=240.0))
    assert held.take("in time", 240.0) is not None
    assert held.take("late", 240.1) is None
    assert held.take("late", 1.0) is None


def test_a_place_that_has_its_number_gives_up_its_oldest_and_no_other() -> None:
    held = PendingChallenges(per_place=2)
    held.put(challenge("other", source="192.0.2.9:5060"))
    for nonce in ("n1", "n2", "n3"):
        held.put(challenge(nonce))
    assert left(held, "other", "n1", "n2", "n3") == ["other", "n2", "n3"]


def test_a_neighbour_who_begins_again_and_again_leaves_the_user_s_own() -> None:
    """He has the same address, as behind one NAT, and writes the same name."""
    held = PendingChallenges()
    held.put(challenge("victim", call_id="victim"))
    for number in range(500):
        held.put(challenge(f"n{number}", call_id="neighbour"))
    assert held.of_impi(ALICE) == 1 + MAX_PER_CALL
    assert held.take("victim", 0.0) is not None


def test_a_neighbour_with_ever_new_call_ids_needs_four_seconds_at_1000_a_second() -> None:
    held = PendingChallenges()
    held.put(challenge("victim", call_id="victim"))
    for number in range(4_000):
        held.put(challenge(f"n{number}", call_id=str(number)))
    assert held.take("victim", 0.0) is not None


def test_one_source_that_takes_all_the_room_gives_up_its_own() -> None:
    held = PendingChallenges(per_source=50, in_all=100)
    for number in range(10):
        held.put(challenge(f"user{number}", Impi(f"user{number}@home1.net"), f"198.51.100.{number}"))
    for number in range(500):
        held.put(challenge(f"flood{number}", Impi(f"flood{number}@home1.net"), "203.0.113.1"))
    assert len(held) == 60
    assert len(left(held, *(f"user{number}" for number in range(10)))) == 10


def test_the_ninth_of_one_impi_ends_the_oldest_and_leaves_other_users_alone() -> None:
    held = PendingChallenges(per_impi=8)
    held.put(challenge("bob", BOB))
    for number in range(9):
        held.put(challenge(f"n{number}", source=f"192.0.2.{number}:5060"))
    assert left(held, "bob", *(f"n{number}" for number in range(9))) == ["bob", *(f"n{number}" for number in range(1, 9))]


def test_a_stranger_with_many_addresses_needs_eight_seconds_at_1000_a_second() -> None:
    held = PendingChallenges()
    held.put(challenge("victim"))
    for number in range(8_000):
        held.put(challenge(f"flood{number}", source=f"198.18.{number // 256}.{number % 256}"))
    assert held.take("victim", 0.0) is not None
    assert len(held) == 8_000


def test_a_source_that_fills_its_own_places_takes_no_others() -> None:
    held = PendingChallenges(per_impi=8, per_place=2)
    for number in range(7):
        held.put(challenge(f"n{number}", source=f"192.0.2.{number}:5060"))
    for number in range(20):
        held.put(challenge(f"flood{number}", source="203.0.113.1:5060"))
    assert left(held, *(f"n{number}" for number in range(7))) == [f"n{number}" for number in range(1, 7)]


def test_the_bound_on_all_ends_the_oldest() -> None:
    held = PendingChallenges(in_all=2)
    for number in range(3):
        held.put(challenge(f"n{number}", Impi(f"user{number}@home1.net")))
    assert len(held) == 2
    assert left(held, "n0", "n1", "n2") == ["n1", "n2"]


def test_an_answer_ends_what_the_same_device_was_sent_before() -> None:
    """DESIGN §5 step 6: a re-authentication makes all keys new; an answer held back must not bring old ones back."""
    held = PendingChallenges()
    held.put(challenge("old", source="s1", expires_at=1.0))
    held.put(challenge("tablet", source="s2", expires_at=1.0, reg=TABLET))
    held.put(challenge("bob", BOB, source="s3", expires_at=1.0))
    held.put(challenge("answered", source="s4", expires_at=2.0))
    held.put(challenge("new", source="s5", expires_at=3.0))
    answered = held.take("answered", 0.0)
    assert answered is not None
    held.supersede(answered, PHONE)
    assert left(held, "old", "tablet", "bob", "new") == ["tablet", "bob", "new"]


def test_an_answer_for_every_contact_ends_those_of_every_device() -> None:
    held = PendingChallenges()
    held.put(challenge("old", expires_at=1.0))
    held.put(challenge("tablet", source="s2", expires_at=1.0, reg=TABLET))
    held.put(challenge("bob", BOB, expires_at=1.0))
    held.supersede(challenge("answered", expires_at=2.0), None)
    held.supersede(challenge("answered", Impi("carol@home1.net"), expires_at=2.0), None)
    assert left(held, "old", "tablet", "bob") == ["bob"]


def test_a_sweep_returns_what_is_over_and_keeps_the_rest() -> None:
    held = PendingChallenges()
    held.put(challenge("old", expires_at=10.0))
    held.put(challenge("also old", BOB, expires_at=20.0))
    held.put(challenge("young", BOB, expires_at=30.0))
    assert [each.nonce for each in held.sweep(21.0)] == ["old", "also old"]
    assert len(held) == 1
    assert [each.nonce for each in held.sweep(99.0)] == ["young"]
    assert held.sweep(99.0) == []


BOUNDS = {"per_call": 2, "per_place": 3, "per_impi": 5, "per_source": 6, "in_all": 9}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1)), max_size=60))
def test_a_challenge_stays_until_a_whole_group_came_after_it(asked: list[tuple[int, int, int]]) -> None:
    """Whatever strangers ask for: he who answers before so many others have asked is in time."""
    held = PendingChallenges(**BOUNDS)
    for number, (user, place, call) in enumerate(asked):
        held.put(challenge(f"n{number}", Impi(f"user{user}@home1.net"), f"source{place}", call_id=str(call)))
    for number, (user, place, call) in enumerate(asked):
        later = asked[number + 1 :]
        came = (
            later.count((user, place, call)), sum(each[:2] == (user, place) for each in later), sum(each[0] == user for each in later),
            sum(each[1] == place for each in later), len(later),
        )  # fmt: skip
        if all(after < most for after, most in zip(came, BOUNDS.values(), strict=True)):
            assert f"n{number}" in held


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=60))
def test_the_bounds_hold_whatever_comes(steps: list[tuple[int, int, bool]]) -> None:
    held = PendingChallenges(per_impi=3, per_place=2, in_all=7)
    alive: list[PendingChallenge] = []
    for number, (user, place, take) in enumerate(steps):
        if take and alive:
            held.take(alive[place % len(alive)].nonce, 0.0)
        else:
            held.put(challenge(f"n{number}", Impi(f"user{user}@home1.net"), f"source{place}"))
            alive.append(challenge(f"n{number}", Impi(f"user{user}@home1.net"), f"source{place}"))
    there = [each for each in alive if held.take(each.nonce, 0.0) is not None]
    assert len(there) <= 7
    for impi in {each.impi for each in there}:
        own = [each.source for each in there if each.impi == impi]
        assert len(own) <= 3
        assert all(own.count(source) <= 2 for source in own)
    assert len(held) == 0


def test_a_user_is_forgotten_with_every_challenge_and_nobody_else() -> None:
    """TS 29.228 §6.1.3."""
    held = PendingChallenges()
    held.put(challenge("n1"))
    held.put(challenge("n2", source="192.0.2.9:5060", reg=TABLET))
    held.put(challenge("other", impi=BOB))
    held.forget(ALICE)
    held.forget(ALICE)
    assert (held.of_impi(ALICE), len(held)) == (0, 1)
    assert left(held, "n1", "n2", "other") == ["other"]
