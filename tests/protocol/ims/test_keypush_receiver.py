# SPDX-License-Identifier: Apache-2.0
"""The key push: its receiver (DESIGN §6)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from keyferry.errors import LocalProtocolError, PushRefused
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, KeyId, Reg
from keyferry.protocol.ims import keypush
from keyferry.protocol.ims.keypush import (
    GRACE,
    MAX_AHEAD,
    MAX_KEY_LIFE,
    MAX_KEYS,
    HeldKey,
    HeldSet,
    Push,
    PushedKey,
    after_use,
    check_domains,
    erased,
    valid,
)
from keyferry.protocol.ims.keys import key_id
from protocol.ims.pushes import NOW, PUSHER, REALM, ids, key, push, take

# ---- the receiver


def test_a_first_push_is_stored() -> None:
    """DESIGN §6."""
    outcome = take(None, push(5, key(1), service_info="x"))
    assert (outcome.stored, outcome.stale) == (1, False)
    held = outcome.held
    assert held[:6] == (PUSHER, "user1@home1.net", "xcap.home1.net", "AbCdEfGhIjKl", 5, ("sip:user1@home1.net", "tel:+491721"))
    assert held.keys == (HeldKey(*key(1)),)
    assert held.service_info == "x"


def test_an_older_push_and_a_repeated_one_change_nothing() -> None:
    """DESIGN §6: lower is answered 200 and ignored; equal is answered 200, whatever it holds."""
    held = take(None, push(5, key(1))).held
    assert take(held, push(4, key(2))) == (held, 0, True)
    assert take(held, push(5, key(1))) == (held, 0, False)
    assert take(held, push(5, key(2))) == (held, 0, False)
    assert take(held, push(5)) == (held, 0, False)
    assert take(held, push(0)).held is held


def test_a_newer_key_supersedes_an_older_one_for_a_while() -> None:
    """DESIGN §6: until the newer one is used, 600 s, or the older one's own end."""
    held = take(take(None, push(1, key(1), key(2, life=100))).held, push(2, key(3)), now=NOW + 10).held
    assert [(one.key_id, one.superseded_until) for one in held.keys] == [
        (key(3).key_id, None),
        (key(1).key_id, NOW + 10 + GRACE),
        (key(2).key_id, NOW + 100),
    ]
    assert ids(held, NOW + 20) == {key(1).key_id, key(2).key_id, key(3).key_id}
    assert ids(held, NOW + 100) == {key(1).key_id, key(3).key_id}
    assert ids(held, NOW + 609.9) == {key(1).key_id, key(3).key_id}
    assert ids(held, NOW + 610) == {key(3).key_id}
    again = take(held, push(3, key(4)), now=NOW + 300).held
    assert [one.superseded_until for one in again.keys] == [None, NOW + 900, NOW + 610]  # the grace is not granted anew
    back = take(again, push(4, key(1, life=7_200)), now=NOW + 301).held
    assert (back.keys[0].key_id, back.keys[0].not_after, back.keys[0].superseded_until) == (key(1).key_id, NOW + 7_200, None)


def test_superseded_keys_do_not_pile_up() -> None:
    """Bounded whatever a pusher sends."""
    held = None
    for seq in range(40):
        held = take(held, push(seq, key(seq))).held
        assert len(held.keys) <= 1 + MAX_KEYS
    assert held is not None
    assert held.keys[1].key_id == key(38).key_id


def test_the_use_of_the_newer_key_ends_the_older() -> None:
    """DESIGN §6."""
    held = take(take(None, push(1, key(1))).held, push(2, key(2))).held
    assert after_use(held, key(1).key_id, NOW) is held
    assert after_use(held, KeyId("unknown"), NOW) is held
    assert after_use(held, key(2).key_id, NOW + 4_000) is held  # over: nothing was proved by it
    assert ids(after_use(held, key(2).key_id, NOW)) == {key(2).key_id}


def test_an_empty_push_erases_at_once_and_is_remembered() -> None:
    """DESIGN §6: an older push must not bring a key back after the de-registration."""
    held = take(take(None, push(1, key(1))).held, push(3)).held
    assert (held.keys, held.impus, held.seq) == ((), (), 3)
    assert take(held, push(2, key(1))) == (held, 0, True)
    assert held.tombstone_until >= NOW + MAX_KEY_LIFE
    first = take(None, push(3)).held
    assert take(first, push(2, key(1))).stale


def test_a_body_less_de_registration_erases_and_keeps_the_count() -> None:
    """DESIGN §6."""
    held = erased(take(None, push(5, key(1))).held)
    assert (held.keys, held.seq) == ((), 5)
    assert take(held, push(5, key(1))).held.keys == ()


def test_a_push_replayed_after_its_tombstone_brings_no_living_key() -> None:
    """No key outlives the tombstone of a later push, so that an attacker gains nothing by waiting."""
    oldest = push(1, key(1, start=NOW + MAX_AHEAD, life=MAX_KEY_LIFE))
    assert take(None, oldest).stored == 1
    tombstone = take(None, push(2)).held
    outcome = take(None, oldest, now=tombstone.tombstone_until)
    assert (outcome.stored, outcome.held.keys) == (0, ())


@pytest.mark.parametrize(
    "wrong",
    [
        key(1)._replace(not_after=NOW),
        key(1)._replace(not_after=NOW - 1),
        key(1, life=MAX_KEY_LIFE + 1),
        key(1)._replace(not_after=253_402_300_799),
        key(1, start=NOW + MAX_AHEAD + 1),
        key(1, start=253_402_300_000, life=60),
    ],
)
def test_a_life_that_makes_no_sense_is_refused(wrong: PushedKey) -> None:
    """DESIGN §6."""
    with pytest.raises(PushRefused) as problem:
        take(None, push(1, wrong))
    assert problem.value.reason == "lifetime"


def test_a_key_whose_time_is_over_is_not_stored() -> None:
    """DESIGN §6; what it supersedes lives no longer than it would anyway."""
    outcome = take(None, push(1, key(1, start=NOW - 3_600)))
    assert (outcome.stored, outcome.held.keys) == (0, ())
    held = take(take(None, push(1, key(1))).held, push(2, key(2, start=NOW - 3_600), key(3))).held
    assert ids(held) == {key(1).key_id, key(3).key_id}


def refused(reason: str, held: HeldSet | None, new: Push, **changes: object) -> None:
    with pytest.raises(PushRefused) as problem:
        take(held, new, **changes)  # type: ignore[arg-type]
    assert (problem.value.reason, problem.value.status) == (reason, 403)


def test_a_key_of_another_home_network_is_refused() -> None:
    """DESIGN §6: the realm of the key id is the pusher's home."""
    refused("realm", None, push(1, key(1, realm="home2.net")))
    refused("realm", None, push(1, key(1)), realm="home2.net")
    refused("realm", None, push(1, key(1, realm="sub.home1.net")))
    refused("realm", None, push(1, key(1)._replace(key_id=KeyId("no-realm"))))
    refused("realm", None, push(1, key(1, realm="home1.net@home2.net")), realm="home2.net")


def test_a_key_id_that_is_not_its_keys_is_refused() -> None:
    """DESIGN §3: the key id certifies itself."""
    refused("key-id", None, push(1, key(1)._replace(k_as=Secret(b"x" * 32))))
    refused("key-id", None, push(1, key(2), key(1)._replace(key_id=key(3).key_id)))


@pytest.mark.parametrize(
    "owner",
    [
        ("user2@home1.net", "xcap.home1.net", "AbCdEfGhIjKl"),
        ("user1@home1.net", "notes.home1.net", "AbCdEfGhIjKl"),
        ("user1@home1.net", "xcap.home1.net", "AAAAAAAAAAAA"),
    ],
)
def test_a_key_that_is_anothers_is_refused(owner: keypush.Owner) -> None:
    """DESIGN §6: the key block re-bound to another user, AS or device, by whatever pusher."""
    held = take(None, push(1, key(2))).held
    refused("rebound", held, push(2, key(2), key(1)), owner_of=lambda one: owner if one == key(1).key_id else None)
    mine = (Impi("user1@home1.net"), AsId("xcap.home1.net"), Reg("AbCdEfGhIjKl"))
    assert take(held, push(2, key(1)), owner_of=lambda _: mine).stored == 1


def test_a_known_key_id_with_another_key_is_refused() -> None:
    """DESIGN §6."""
    held = take(None, push(1, key(1))).held
    forged = held._replace(keys=(held.keys[0]._replace(k_as=Secret(b"x" * 32)),))
    refused("rebound", forged, push(2, key(1)))
    assert take(held, push(2, key(1, life=7_200))).held.keys[0].not_after == NOW + 7_200


@pytest.mark.parametrize(
    "changes", [{"pusher": "scscf2.home1.net"}, {"impi": "user2@home1.net"}, {"as_id": "notes.home1.net"}, {"reg": "AAAAAAAAAAAA"}]
)
def test_another_set_is_not_touched(changes: dict[str, str]) -> None:
    """DESIGN §6: a set is (pusher, impi, as, reg); to hand in another is our bug."""
    held = take(None, push(1, key(1))).held
    with pytest.raises(LocalProtocolError):
        take(held._replace(**changes), push(2))  # type: ignore[arg-type]


def test_clocks_may_differ_by_a_minute() -> None:
    """DESIGN §6; not-after has its minute already."""
    one = HeldKey(*key(1))
    assert not valid(one, NOW - 60.1)
    assert valid(one, NOW - 60)
    assert valid(one, NOW + 3_599.9)
    assert not valid(one, NOW + 3_600)
    assert not valid(one, NOW - 1, skew=0.0)
    assert not valid(one._replace(superseded_until=NOW + 5.0), NOW + 5)


def test_one_operator_does_not_name_anothers_users() -> None:
    """DESIGN §6: who may push; the realm of a key id says nothing about the identities."""
    check_domains(push(1, key(1)), {"home1.net"})
    check_domains(push(1, key(1), impus=("sip:a@ims.home1.net:5060",)), {"home1.net", "ims.home1.net"})
    for impu in ("sip:user1@home2.net", "sips:x@home1.net.evil.net", "sip:a%40home1.net@evil.net"):
        with pytest.raises(PushRefused):
            check_domains(push(1, key(1), impus=("tel:+1", Impu(impu))), {"home1.net"})


class Receiver(RuleBasedStateMachine):
    """An AS with two devices and two pushers, and S-CSCFs whose pushes are lost, repeated and re-ordered."""

    SETS = tuple((pusher, reg) for pusher in (PUSHER, "scscf2.home1.net") for reg in ("AbCdEfGhIjKl", "AAAAAAAAAAAA"))

    @initialize()
    def start(self) -> None:
        self.now = float(NOW)
        self.held: dict[tuple[str, str], HeldSet] = {}
        self.sent: dict[tuple[str, str], list[Push]] = {which: [] for which in self.SETS}
        self.accepted: dict[tuple[str, str], Push] = {}
        self.next_key = 0

    def owner_of(self, wanted: KeyId) -> keypush.Owner | None:
        for held in self.held.values():
            if any(one.key_id == wanted for one in held.keys):
                return held.impi, held.as_id, held.reg
        return None

    @rule(which=st.sampled_from(SETS), fresh=st.integers(0, 2), keep=st.booleans(), life=st.sampled_from([30, 3_600, MAX_KEY_LIFE]))
    def send(self, which: tuple[str, str], fresh: int, keep: bool, life: int) -> None:
        """Make the next push of a set: new keys, perhaps the old ones too, or nothing."""
        keys = list(self.sent[which][-1].keys[:2]) if keep and self.sent[which] else []
        for _ in range(fresh):
            self.next_key += 1
            octets = Secret(self.next_key.to_bytes(32, "big"))
            keys.append(PushedKey(key_id(octets, REALM), octets, int(self.now), int(self.now) + life))
        self.sent[which].append(push(len(self.sent[which]), *keys, reg=Reg(which[1])))

    @rule(which=st.sampled_from(SETS), data=st.data())
    def arrive(self, which: tuple[str, str], data: st.DataObject) -> None:
        """Let any push ever made arrive, again or for the first time."""
        if not self.sent[which]:
            return
        new = data.draw(st.sampled_from(self.sent[which]))
        before = dict(self.held)
        outcome = take(self.held.get(which), new, pusher=which[0], now=self.now, owner_of=self.owner_of)
        self.held[which] = outcome.held
        assert {one: held for one, held in before.items() if one != which} == {one: held for one, held in self.held.items() if one != which}
        last = self.accepted.get(which)
        assert outcome.stale is (last is not None and new.seq < last.seq)
        if last is None or new.seq > last.seq:
            self.accepted[which] = new
            if not new.keys:
                assert outcome.held.keys == ()
        else:
            assert outcome.held is before[which]

    @rule(which=st.sampled_from(SETS), data=st.data())
    def steal(self, which: tuple[str, str], data: st.DataObject) -> None:
        """Push a key that the AS holds for another device."""
        others = [one for key_of, held in self.held.items() if key_of[1] != which[1] for one in held.keys]
        if not others:
            return
        stolen = PushedKey(*data.draw(st.sampled_from(others))[:4])
        with pytest.raises(PushRefused):
            take(self.held.get(which), push(10**6, stolen, reg=Reg(which[1])), pusher=which[0], now=self.now, owner_of=self.owner_of)

    @rule(seconds=st.sampled_from([1, 31, 599, 601, 4_000, MAX_KEY_LIFE + MAX_AHEAD]))
    def wait(self, seconds: int) -> None:
        """Let time pass, and the store sweep tombstones whose time is over."""
        self.now += seconds
        for which in [one for one, held in self.held.items() if held.tombstone_until <= self.now]:
            assert not ids(self.held[which], self.now)
            del self.held[which]
            self.accepted.pop(which)

    @rule(which=st.sampled_from(SETS), data=st.data())
    def use(self, which: tuple[str, str], data: st.DataObject) -> None:
        """Prove a key that is valid."""
        held = self.held.get(which)
        usable = [one for one in held.keys if valid(one, self.now)] if held else []
        if held and usable:
            used = data.draw(st.sampled_from(usable))
            self.held[which] = after_use(held, used.key_id, self.now)
            assert used in self.held[which].keys

    @invariant()
    def no_key_lives_that_the_last_push_ended(self) -> None:
        """A key is valid if the newest accepted push names it, or, if that has keys, for the grace at most."""
        for which, held in self.held.items():
            last = self.accepted[which]
            assert held.seq == last.seq
            named = {one.key_id for one in last.keys}
            for one in held.keys:
                assert last.keys
                assert (one.superseded_until is None) is (one.key_id in named)
                assert one.superseded_until is None or one.superseded_until <= self.now + GRACE
            assert len(held.keys) <= 2 * MAX_KEYS


Receiver.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestReceiver = Receiver.TestCase
