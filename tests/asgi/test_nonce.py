# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.3, §3.4, §5.4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.asgi.nonce import WINDOW, Nonces
from keyferry.errors import DigestRejected
from keyferry.protocol.crypto.secret import Secret


def nonces(
    scope: str = "xcap.home1.net", key: bytes = b"k" * 32, lifetime: float = 1000.0, keys: int = 10, per_key: int = 3, **more: int
) -> Nonces:
    return Nonces(key=Secret(key), scope=scope, lifetime=lifetime, keys=keys, per_key=per_key, **more)


def chance(number: int) -> bytes:
    return number.to_bytes(7, "big")


def refused(door: Nonces, nonce: str, count: int = 1, *, key: str = "alice", now: float = 100.0) -> bool:
    try:
        door.claim(nonce, key, count, now)
    except DigestRejected as problem:
        assert problem.stale
        return True
    return False


def test_a_nonce_survives_phones_that_cut_headers_at_commas_blanks_and_equals_signs() -> None:
    """HANDSETS H3."""
    nonce = nonces().issue(100.0, b"\xff" * 7)
    assert len(nonce) == 40
    assert not set(nonce) & set(', ="')


def test_a_count_is_taken_once() -> None:
    """RFC 7616 §3.4: nc."""
    door = nonces()
    nonce = door.issue(100.0, chance(1))
    assert [refused(door, nonce, count) for count in (1, 1, 2, 2, 1, 3)] == [False, True, False, True, True, False]


def test_decimal_counts_of_android_are_taken() -> None:
    """HANDSETS H4: 9 is followed by 00000010, 99 by 00000100."""
    door = nonces()
    nonce = door.issue(100.0, chance(1))
    assert not any(refused(door, nonce, int(f"{count:08d}", 16)) for count in range(1, 1200))


def test_counts_may_overtake_each_other_within_the_window() -> None:
    """DESIGN §7."""
    door = nonces()
    nonce = door.issue(100.0, chance(1))
    assert not refused(door, nonce, 100)
    assert not any(refused(door, nonce, count) for count in range(99, 100 - WINDOW, -1))
    assert all(refused(door, nonce, count) for count in range(101 - WINDOW, 101))
    assert refused(door, nonce, 100 - WINDOW)
    assert not refused(door, nonce, 0xFFFF_FFFF)
    assert refused(door, nonce, 101)
    assert not refused(door, nonce, 0xFFFF_FFFE)


def test_the_same_count_of_another_nonce_or_key_is_another() -> None:
    """RFC 7616 §3.4."""
    door = nonces()
    first, second = door.issue(100.0, chance(1)), door.issue(100.0, chance(2))
    assert not refused(door, first)
    assert not refused(door, second)
    assert not refused(door, first, key="bob")
    assert refused(door, first, key="bob")


def test_what_is_not_of_this_door_is_refused() -> None:
    """RFC 7616 §5.4: forged, of another process, of another AS, another text of the same octets."""
    door = nonces()
    nonce = door.issue(100.0, b"\xfb\xff\xbf\xfb\xff\xbf\xfb")
    flipped = ("A" if nonce[0] != "A" else "B") + nonce[1:]
    alias = nonce.replace("-", "+").replace("_", "/")
    assert alias != nonce
    others = [nonces(key=b"o" * 32).issue(100.0, chance(1)), nonces(scope="other.home1.net").issue(100.0, chance(1))]
    for bad in [
        flipped,
        alias,
        *others,
        "",
        nonce[:-1],
        nonce + "A",
        nonce[:-1] + "=",
        "\u00e9" * 40,
        "\udc80" * 40,
        "!" * 40,
        "A" * 40,
        "A" * 39 + "!",
    ]:
        assert refused(door, bad), bad
    assert not refused(door, nonce)


def test_a_nonce_lives_as_long_as_was_said() -> None:
    """RFC 7616 §5.4."""
    door = nonces(lifetime=1000.0)
    nonce = door.issue(100.0, chance(1))
    assert door.claim(nonce, "alice", 1, 600.0) is False
    assert door.claim(nonce, "alice", 2, 600.1) is True
    assert door.claim(nonce, "alice", 3, 1100.0) is True
    assert refused(door, nonce, 4, now=1100.1)
    assert refused(door, door.issue(200.0, chance(2)), now=199.0)


def test_a_nonce_pushed_out_by_its_own_key_is_never_taken_again() -> None:
    """DESIGN §7: bounded, and only reuse is refused."""
    door = nonces(per_key=3)
    issued = [door.issue(100.0 + i, chance(i)) for i in range(6)]
    assert not any(refused(door, nonce, now=200.0) for nonce in issued[:5])
    assert all(refused(door, nonce, 2, now=200.0) for nonce in issued[:2])
    assert not any(refused(door, nonce, 2, now=200.0) for nonce in issued[2:5])
    assert not refused(door, issued[5], now=200.0)


def test_a_key_pushed_out_by_others_starts_with_nonces_issued_since() -> None:
    """A million subscribers: the table is bounded, a replay is refused all the same."""
    door = nonces(keys=2)
    old, unused = door.issue(100.0, chance(1)), door.issue(100.5, chance(2))
    assert not refused(door, old, key="alice", now=200.0)
    assert not refused(door, old, key="bob", now=200.0)
    assert not refused(door, unused, key="carol", now=200.0)
    assert refused(door, old, 1, key="alice", now=200.0)
    assert refused(door, old, 2, key="alice", now=200.0)
    assert not refused(door, unused, key="alice", now=200.0)  # issued after the last that alice can have used


def test_a_thousand_users_who_begin_with_a_hundred_requests_at_once_are_all_let_in() -> None:
    """Each request has a nonce of its own, and they come back in any order; then no nonce is taken again."""
    door = Nonces(key=Secret(b"k" * 32), scope="a", lifetime=1000.0)
    issued = [door.issue(100.0 + number / 1000, chance(number)) for number in range(100)]
    shuffled = [issued[37 * place % 100] for place in range(100)]
    assert not any(refused(door, nonce, key=f"key{key}", now=200.0) for nonce in shuffled for key in range(1_000))
    assert all(refused(door, nonce, key=f"key{key}", now=200.0) for nonce in issued for key in (0, 500, 999))
    assert not any(refused(door, nonce, 2, key="key0", now=200.0) for nonce in issued)  # each connection goes on with its own


def test_all_keys_together_remember_no_more_than_their_bound() -> None:
    """Those that were not used for longest go, whole; what they used is refused."""
    door = nonces(keys=100, per_key=50, all_nonces=120)
    first: list[str] = []
    for key in range(20):
        issued = [door.issue(100.0 + key + number / 100, chance(number)) for number in range(40)]
        assert not any(refused(door, nonce, key=f"key{key}", now=200.0) for nonce in issued)
        first = first if key else issued
    kept = door.save().counts
    assert [counts.key_id for counts in kept] == ["key17", "key18", "key19"]
    assert sum(len(counts.once) for counts in kept) == 120
    assert all(refused(door, nonce, count, key="key0", now=200.0) for nonce in first for count in (1, 2))


def test_a_nonce_that_makes_room_for_another_makes_no_unused_one_stale() -> None:
    """A user has more connections, each with a nonce of its own, than windows."""
    door = nonces(per_key=20, windows=2)
    unused = door.issue(100.0, chance(99))
    issued = [door.issue(101.0 + number, chance(number)) for number in range(4)]
    assert not any(refused(door, nonce, count, now=200.0) for nonce in issued for count in (1, 2))
    assert all(refused(door, nonce, count, now=200.0) for nonce in issued[:2] for count in (1, 2, 3))
    assert not any(refused(door, nonce, 3, now=200.0) for nonce in issued[2:])
    assert not refused(door, unused, now=200.0)


def test_a_refused_claim_pushes_nobody_out() -> None:
    """Somebody with a key cannot make room by reuse."""
    door = nonces(keys=1)
    nonce = door.issue(100.0, chance(1))
    assert not refused(door, nonce, key="alice")
    assert refused(door, "A" * 40, key="bob")
    assert refused(door, nonce, key="alice")
    assert not refused(door, nonce, 2, key="alice")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.one_of(st.integers(1, 3), st.integers(1, 100))), max_size=60),
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(0, 60),
)
def test_nothing_is_ever_taken_twice(uses: list[tuple[int, str, int]], windows: int, all_nonces: int, restart: int) -> None:
    """RFC 7616 §5.4, however small the tables, and whenever what they hold is saved and restored."""
    door = nonces(keys=2, per_key=4, windows=windows, all_nonces=all_nonces)
    issued = [door.issue(100.0 + i // 2, chance(i)) for i in range(6)]
    taken: set[tuple[int, str, int]] = set()
    for place, (which, key, count) in enumerate(uses):
        if place == restart:
            saved, door = door.save(limit=3), nonces(keys=2, per_key=4, windows=windows, all_nonces=all_nonces)
            door.restore(saved)
        if not refused(door, issued[which], count, key=key, now=200.0):
            assert (which, key, count) not in taken
            taken.add((which, key, count))


@given(st.text(max_size=60))
def test_any_text_is_refused_or_taken(nonce: str) -> None:
    """A nonce comes from a peer."""
    with pytest.raises(DigestRejected):
        nonces().claim(nonce, "alice", 1, 100.0)


def test_what_was_saved_is_refused_and_taken_as_before() -> None:
    """A server that ends and begins again sends nobody away, and takes nothing twice."""
    before, after = nonces(), nonces()
    issued = [before.issue(float(place), chance(place)) for place in range(3)]
    for place, nonce in enumerate(issued):
        before.claim(nonce, f"key{place}", 5, 10.0)
    before.claim(issued[0], "key0", 3, 10.0)
    after.restore(before.save())
    assert refused(after, issued[0], 5, key="key0")
    assert refused(after, issued[0], 3, key="key0")
    assert refused(after, issued[1], 5, key="key1")
    for door in (before, after):
        assert not refused(door, issued[0], 4, key="key0")
        assert not refused(door, issued[2], 6, key="key2")
    assert after.save() == before.save()


def test_what_does_not_fit_is_refused_as_stale_not_taken_again() -> None:
    """The keys that were not used for longest are left out, and with them every nonce that they may have used."""
    before, after = nonces(), nonces()
    issued = [before.issue(float(place), chance(place)) for place in range(4)]
    for place in (3, 0, 1):
        before.claim(issued[place], f"key{place}", 1, 10.0)
    after.restore(before.save(limit=2))
    assert refused(after, issued[3], 2, key="key3")
    assert refused(after, issued[2], 1, key="new")
    assert not refused(after, issued[1], 2, key="key1")
    assert not refused(after, after.issue(11.0, chance(9)), 1, key="key3")
