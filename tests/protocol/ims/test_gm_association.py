# SPDX-License-Identifier: Apache-2.0
"""Sets of security associations on Gm (TS 33.203 §7; TS 24.229 §5.1.1, §5.2.2), as ladders: input, then what there is."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keyferry.errors import EspRejected, LocalProtocolError, RemoteProtocolError
from keyferry.protocol.ims.gm_association import (
    MAX_SETS_PER_UE,
    MAX_TEMPORARY_PER_UE,
    OVERLAP,
    REG_AWAIT_AUTH,
    SLACK,
    TRANSITIONS,
    AssociationSet,
    Endpoint,
    GmAssociations,
    Input,
    State,
)
from keyferry.protocol.ip_packet import InnerDatagram

UE, PCSCF = IPv4Address("192.0.2.1"), IPv4Address("198.51.100.7")
ALICE, BOB = "alice@home1.net 192.0.2.1", "bob@home1.net 192.0.2.2"


def ue(number: int) -> Endpoint:
    return Endpoint(UE, 1_000 + 2 * number, 1_001 + 2 * number, 40_000 + number % 1_000, 5_064)


def pcscf(number: int) -> Endpoint:
    return Endpoint(PCSCF, 500_000 + 2 * number, 500_001 + 2 * number, 50_000 + number % 1_000, 5_066)


def begin(held: GmAssociations, number: int, now: float, user: str = ALICE) -> AssociationSet:
    return held.begin(user, ue(number), pcscf(number), now)[0]


def state(association: AssociationSet) -> State:
    """Return the state; a type checker would remember the one it saw last."""
    return association.state


def registered(held: GmAssociations, number: int, now: float, user: str = ALICE, *, expires: float = 3_600) -> AssociationSet:
    """SM1, SM6, SM7, SM12, and one more message."""
    made = begin(held, number, now, user)
    held.received(made, now)
    held.confirmed(made, now, expires)
    held.received(made, now)
    return made


def test_a_first_registration() -> None:
    """TS 33.203 §7.2: temporary from SM6, definitive from SM12, in use with what follows."""
    held = GmAssociations("pcscf")
    made, gone = held.begin(ALICE, ue(1), pcscf(1), 10.0)
    assert (state(made), made.expires_at, gone) == (State.TEMPORARY, 10 + REG_AWAIT_AUTH, [])
    assert held.sending(ALICE, 10.0) is None  # only answers go over it
    held.received(made, 11.0)
    assert state(made) is State.TEMPORARY
    held.confirmed(made, 12.0, 3_600)
    assert (state(made), made.expires_at) == (State.ESTABLISHED, 12 + 3_600 + SLACK)
    assert held.sending(ALICE, 12.0) is made
    held.received(made, 13.0)
    assert state(made) is State.IN_USE
    assert held.sending(ALICE, 13.0) is made
    assert held.deadline == 10 + REG_AWAIT_AUTH  # out of date, and harmless
    assert held.expire(10 + REG_AWAIT_AUTH) == []
    assert held.expire(held.deadline or 0) == [made]
    assert (len(held), held.sets(ALICE)) == (0, [])
    assert held.deadline is None


def test_a_challenge_that_is_not_answered_expires() -> None:
    """TS 24.229 §5.2.2.2: the lifetime of a temporary set is reg-await-auth."""
    held = GmAssociations("pcscf")
    made = begin(held, 1, 0.0)
    assert held.expire(REG_AWAIT_AUTH - 0.1) == []
    assert held.expire(REG_AWAIT_AUTH) == [made]
    with pytest.raises(EspRejected) as refusal:
        held.of_spi(made.spi_ps)
    assert refusal.value.reason == "spi"


def test_re_authentication_overlaps() -> None:
    """TS 33.203 §7.4: both sets work until the new one is used, and then the old one for 64*T1."""
    held = GmAssociations("pcscf")
    old = registered(held, 1, 0.0)
    new = begin(held, 2, 100.0)
    assert held.sending(ALICE, 100.0) is old
    held.received(new, 101.0)
    held.confirmed(new, 102.0, 3_600)
    assert (old.state, new.state) == (State.IN_USE, State.ESTABLISHED)
    assert held.sending(ALICE, 102.0) is old  # the UE may not know yet
    held.received(old, 103.0)
    assert held.sending(ALICE, 103.0) is old
    held.received(new, 104.0)
    assert (old.state, new.state) == (State.OLD, State.IN_USE)
    assert old.expires_at == 104 + OVERLAP
    assert held.sending(ALICE, 104.0) is new
    held.received(old, 105.0)  # what was on its way
    assert (old.state, old.expires_at) == (State.OLD, 104 + OVERLAP)
    held.confirmed(old, 105.0, 3_600)  # so is the 200 to a REGISTER
    assert (old.state, old.expires_at) == (State.OLD, 104 + OVERLAP)
    assert held.of_spi(old.spi_pc) is old
    assert held.expire(104 + OVERLAP) == [old]
    assert held.sets(ALICE) == [new]


def test_a_message_over_a_set_says_nothing_about_newer_ones() -> None:
    held = GmAssociations("pcscf")
    sets = [registered(held, 1, 0.0)]
    for number in (2, 3):
        sets.append(begin(held, number, 1.0))
        held.confirmed(sets[-1], 1.0, 3_600)
    sets.append(begin(held, 4, 2.0))
    held.received(sets[1], 3.0)
    assert [each.state for each in sets] == [State.OLD, State.IN_USE, State.ESTABLISHED, State.TEMPORARY]
    held.received(sets[2], 4.0)
    assert [each.state for each in sets] == [State.OLD, State.OLD, State.IN_USE, State.TEMPORARY]


def test_an_old_set_near_its_end_is_not_prolonged() -> None:
    held = GmAssociations("pcscf")
    old = registered(held, 1, 0.0, expires=100)
    new = begin(held, 2, 120.0)
    held.confirmed(new, 121.0, 60)
    assert held.sending(ALICE, 121.0) is new  # the old one ends before a transaction would
    held.received(new, 122.0)
    assert old.expires_at == 100 + SLACK


def test_a_new_set_lives_at_least_as_long_as_the_one_before() -> None:
    """TS 24.229 §5.2.2.2: the longest of the previous lifetime and the registration and 30 s."""
    held = GmAssociations("pcscf")
    registered(held, 1, 0.0, expires=3_600)
    new = begin(held, 2, 10.0)
    held.confirmed(new, 11.0, 60)
    assert new.expires_at == 3_600 + SLACK
    held.received(new, 12.0)
    held.confirmed(new, 13.0, 60)  # a re-REGISTER that was not challenged shortens nothing
    assert new.expires_at == 3_600 + SLACK
    held.confirmed(new, 14.0, 7_200)
    assert new.expires_at == 14 + 7_200 + SLACK


def test_a_temporary_set_s_own_time_prolongs_nothing() -> None:
    held = GmAssociations("pcscf")
    made = begin(held, 1, 0.0)
    held.confirmed(made, 1.0, 60)
    assert made.expires_at == 1 + 60 + SLACK


def test_the_ue_uses_a_new_set_from_the_200_on() -> None:
    """TS 24.229 §5.1.1.5.1: the 200 came over it, so the P-CSCF has it."""
    held = GmAssociations("ue")
    old = begin(held, 1, 0.0)
    held.confirmed(old, 1.0, 3_600)
    new = begin(held, 2, 10.0)
    assert held.of_spi(new.spi_uc) is held.of_spi(new.spi_us) is new
    held.confirmed(new, 11.0, 3_600)
    assert (old.state, new.state, held.sending(ALICE, 11.0)) == (State.OLD, State.IN_USE, new)


def test_a_wrong_answer_ends_the_temporary_set_only() -> None:
    """TS 33.203 §7.3.1.1: an authentication that failed leaves what there was."""
    held = GmAssociations("pcscf")
    old = registered(held, 1, 0.0)
    new = begin(held, 2, 10.0)
    held.failed(new)
    assert (new.state, old.state, held.sets(ALICE)) == (State.DELETED, State.IN_USE, [old])
    with pytest.raises(LocalProtocolError, match="FAILED cannot happen to a set in IN_USE"):
        held.failed(old)
    with pytest.raises(LocalProtocolError, match="DELETED"):
        held.confirmed(new, 11.0, 60)
    with pytest.raises(LocalProtocolError, match="DELETED"):
        held.received(new, 11.0)


def test_a_new_challenge_ends_the_temporary_set_of_before() -> None:
    """Of the same attempt, and nobody else's."""
    held = GmAssociations("pcscf")
    old, first, bob = registered(held, 1, 0.0), begin(held, 2, 10.0), begin(held, 3, 10.0, BOB)
    second, gone = held.begin(ALICE, ue(4), pcscf(4), 11.0)
    assert gone == [first]
    assert held.sets(ALICE) == [old, second]
    assert held.sets(BOB) == [bob]


def test_a_challenge_of_another_attempt_ends_no_temporary_set() -> None:
    """Whoever names the user from his address gets one."""
    held = GmAssociations("pcscf")
    in_use = registered(held, 1, 0.0)
    mine, _ = held.begin(ALICE, ue(2), pcscf(2), 1.0, "mine")
    strange, gone = held.begin(ALICE, ue(3), pcscf(3), 1.0, "strange")
    assert gone == []
    assert held.confirmed(mine, 2.0, 600) == [strange]
    assert held.sets(ALICE) == [in_use, mine]


def test_the_temporary_sets_of_one_user_are_bounded_and_push_out_nothing_else() -> None:
    """At 1,000 challenges a second of somebody else his own lives four seconds at least."""
    held = GmAssociations("pcscf")
    in_use, bob = registered(held, 1, 0.0), begin(held, 2, 0.0, BOB)
    made = [held.begin(ALICE, ue(number), pcscf(number), 1.0, str(number))[0] for number in range(3, 3 + MAX_TEMPORARY_PER_UE)]
    last, gone = held.begin(ALICE, ue(9_000), pcscf(9_000), 1.0, "last")
    assert gone == made[:1]
    assert held.sets(ALICE) == [in_use, *made[1:], last]
    assert held.sets(BOB) == [bob]


def test_de_registration_ends_all_sets_of_the_user() -> None:
    """TS 24.229 §5.2.5.1."""
    held = GmAssociations("pcscf")
    sets = [registered(held, 1, 0.0), begin(held, 2, 1.0)]
    bob = begin(held, 3, 1.0, BOB)
    assert held.remove(ALICE) == sets
    assert held.remove(ALICE) == []
    assert held.sets(BOB) == [bob]
    assert held.expire(10_000) == [bob]


def test_a_set_whose_registration_is_over_drains_and_only_a_new_confirmation_brings_it_back() -> None:
    """TS 24.229 §5.2.5.2: the last NOTIFY still goes over it; a challenge that waits may be the next registration's."""
    held = GmAssociations("pcscf")
    old, waiting = registered(held, 1, 0.0), begin(held, 2, 9.0)
    held.end(ALICE, 10.0)
    assert (old.ended, waiting.ended) == (True, False)
    assert held.sending(ALICE, 11.0) is old
    held.received(old, 11.0)
    assert (old.ended, old.expires_at) == (True, 10 + OVERLAP)
    held.confirmed(old, 12.0, 600)  # a 200 that was on its way
    assert (old.ended, old.expires_at) == (False, 12 + 600 + SLACK)


def test_sets_that_are_never_used_make_room() -> None:
    held = GmAssociations("pcscf")
    sets = [begin(held, 0, 0.0)]
    for number in range(1, MAX_SETS_PER_UE):
        held.confirmed(sets[-1], 1.0, 60)
        sets.append(begin(held, number, 1.0))
    held.confirmed(sets[-1], 1.0, 60)
    made, gone = held.begin(ALICE, ue(50), pcscf(50), 2.0)
    assert gone == sets[:1]
    assert held.sets(ALICE) == [*sets[1:], made]


def test_there_is_room_for_a_bounded_number() -> None:
    """The oldest challenge goes first; who is registered stays, and then it is 503."""
    held = GmAssociations("pcscf", max_sets=2)
    first = begin(held, 1, 0.0, "a")
    second = begin(held, 2, 1.0, "b")
    third, gone = held.begin("c", ue(3), pcscf(3), 2.0)
    assert gone == [first]
    held.confirmed(second, 3.0, 60)
    held.confirmed(third, 3.0, 60)
    with pytest.raises(RemoteProtocolError) as refusal:
        held.begin("d", ue(4), pcscf(4), 4.0)
    assert refusal.value.status == 503
    assert len(held) == 2


def test_spis_are_never_used_twice() -> None:
    """RFC 4301 §4.4.2.1, TS 33.203 §7.1."""
    held = GmAssociations("pcscf")
    made = begin(held, 1, 0.0)
    for mine, other in ((ue(2), pcscf(1)), (ue(2), pcscf(2)._replace(spi_s=made.spi_pc)), (ue(2), pcscf(2)._replace(spi_s=ue(2).spi_c))):
        with pytest.raises(LocalProtocolError):
            held.begin(BOB, mine, other, 0.0)
    held.begin(BOB, ue(1), pcscf(2), 0.0)  # what UEs choose may meet
    assert len(held) == 2


def test_spis_are_allocated_at_a_random_place_and_free() -> None:
    held = GmAssociations("pcscf")
    assert held.allocate(0x0000_1000_0000_2000) == (0x1000, 0x2000)
    assert held.allocate(0) == (256, 257)
    assert held.allocate(2**64 - 1) == (2**32 - 1, 256)
    assert held.allocate(2**70) == (256, 257)
    assert held.allocate(0x0000_1000_0000_1000, avoid=(0x1000, 0x1002)) == (0x1001, 0x1003)
    made = begin(held, 1, 0.0)
    assert held.allocate(made.spi_pc << 32 | made.spi_ps) == (made.spi_ps + 1, made.spi_ps + 2)


@pytest.mark.parametrize(
    ("name", "source", "source_port", "target", "target_port"),
    [
        ("spi_ps", UE, 40_001, PCSCF, 5_066),
        ("spi_pc", UE, 5_064, PCSCF, 50_001),
        ("spi_us", PCSCF, 50_001, UE, 5_064),
        ("spi_uc", PCSCF, 5_066, UE, 40_001),
    ],
)
def test_each_sa_carries_one_flow(name: str, source: IPv4Address, source_port: int, target: IPv4Address, target_port: int) -> None:
    """TS 33.203 §7.1: client port with server port, in both directions."""
    made = begin(GmAssociations("pcscf"), 1, 0.0)
    spi = getattr(made, name)
    assert made.flow(spi) == (source, source_port, target, target_port)
    good = InnerDatagram(source, source_port, target, target_port, b"x")
    made.check_inbound(spi, good)
    other = IPv4Address("203.0.113.9")
    for bad in (good._replace(source=other), good._replace(target=other), good._replace(source_port=1), good._replace(target_port=1)):
        with pytest.raises(EspRejected) as refusal:
            made.check_inbound(spi, bad)
        assert refusal.value.reason == "selector"
    with pytest.raises(LocalProtocolError):
        made.flow(999)


def test_refreshing_for_ever_does_not_grow() -> None:
    held = GmAssociations("pcscf")
    made = registered(held, 1, 0.0)
    for now in range(1, 2_000):
        held.confirmed(made, float(now), 3_600)
    assert len(held._deadlines) < 100
    assert held.expire(2_000.0) == []
    assert held.expire(1_999 + 3_600 + SLACK) == [made]


def test_the_table_has_a_way_out_of_every_state_and_none_of_the_last() -> None:
    live = set(State) - {State.DELETED}
    assert {state for state, _ in TRANSITIONS} == live
    for state in live:
        assert TRANSITIONS[state, Input.EXPIRED] is TRANSITIONS[state, Input.REMOVED] is State.DELETED
        assert (state, Input.MESSAGE) in TRANSITIONS
    assert [state for state in State if (state, Input.FAILED) in TRANSITIONS] == [State.TEMPORARY]


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order, the indexes agree and nobody loses what works."""

    def __init__(self) -> None:
        super().__init__()
        self.held = GmAssociations("pcscf", max_sets=5)
        self.now = 0.0
        self.number = 0
        self.known: list[AssociationSet] = []

    def live(self) -> list[AssociationSet]:
        return [each for each in self.known if each.state is not State.DELETED]

    @rule(user=st.sampled_from([ALICE, BOB, "carol"]), attempt=st.sampled_from(["", "a", "b"]))
    def challenge(self, user: str, attempt: str) -> None:
        self.number += 1
        try:
            made, gone = self.held.begin(user, ue(self.number), pcscf(self.number), self.now, attempt)
        except RemoteProtocolError:
            return
        assert all(each.state is State.DELETED for each in gone)
        self.known.append(made)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), expires=st.integers(1, 1_000))
    def confirm(self, data: st.DataObject, expires: int) -> None:
        self.held.confirmed(data.draw(st.sampled_from(self.live())), self.now, expires)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def message(self, data: st.DataObject) -> None:
        self.held.received(data.draw(st.sampled_from(self.live())), self.now)

    @rule(seconds=st.floats(0.1, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        assert all(each.expires_at <= self.now for each in self.held.expire(self.now))

    @rule(user=st.sampled_from([ALICE, BOB]))
    def deregister(self, user: str) -> None:
        self.held.remove(user)
        assert self.held.sets(user) == []

    @invariant()
    def indexes_agree(self) -> None:
        live = self.live()
        assert len(self.held) == len(live) <= 5
        for each in live:
            assert each.expires_at > self.now
            assert self.held.of_spi(each.spi_pc) is self.held.of_spi(each.spi_ps) is each
            assert each in self.held.sets(each.user)
        assert len(self.held._temporary) == sum(each.state is State.TEMPORARY for each in live)

    @invariant()
    def one_of_each(self) -> None:
        for user in {each.user for each in self.live()}:
            states = [each.state for each in self.held.sets(user)]
            assert len(states) - states.count(State.TEMPORARY) <= MAX_SETS_PER_UE
            assert states.count(State.TEMPORARY) <= 3
            assert states.count(State.IN_USE) <= 1
            assert (self.held.sending(user, self.now) is not None) == bool({State.ESTABLISHED, State.IN_USE} & set(states))


AnyOrder.TestCase.settings = settings(stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase
