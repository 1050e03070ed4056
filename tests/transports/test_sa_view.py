# SPDX-License-Identifier: Apache-2.0
"""What is asked of charon, and what it says beside: as little as there may be about others' SAs, and never less than all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ProtectionUnmet
from keyferry.protocol.security_association import Ends, Wanted, child_sas, touches
from keyferry.protocol.vici import Section
from keyferry.transports.ipsec import IpsecPolicy, IpsecSource
from keyferry.transports.sa_view import MAX_AGE, SaView, View
from keyferry.transports.vici import Vici
from transports.sakit import UDP, world
from transports.sipkit import FakeClock, patiently
from transports.vicikit import CHILD, crowd, sa


async def test_many_at_once_share_questions_but_none_an_answer_older_than_itself() -> None:
    async with world(sa()) as here:
        await asyncio.gather(*(here.policy(UDP) for _ in range(50)))
        assert here.charon.looks == 1
        late: list[asyncio.Task[None]] = []

        def one_more() -> None:  # charon has this question already: it may have looked at its SAs before this one came
            if not late:
                late.append(asyncio.get_running_loop().create_task(here.policy(UDP)))

        here.charon.before_answer = one_more
        await here.policy(UDP)
        await patiently(late[0])
        assert here.charon.looks == 3


@pytest.mark.parametrize("message", [{}, sa()], ids=["of-any", "of-ours"])
@pytest.mark.parametrize("everything", [True, False])
async def test_an_event_while_charon_answers_makes_the_answer_void(message: Section, everything: bool) -> None:
    """Whether all of its SAs were asked for, or one."""
    async with world(sa()) as here:
        if not everything:
            await here.policy(UDP)

        def deleted() -> None:
            here.charon.sas = []
            here.charon.say("child-updown", message)
            here.charon.before_passes = lambda: None

        here.charon.before_passes = deleted  # of SAs it has told already
        assert "no CHILD_SA" in await here.refused()


OTHERS = sa("other.home1.net", name="others", remote="192.0.2.0/24", number=7)


async def test_what_happens_to_other_tunnels_of_the_same_charon_stops_nothing_and_costs_no_question() -> None:
    async with world(sa(), OTHERS) as here:
        source = IpsecSource(here.view, CHILD, "10.99.0.1", 6060)
        for _ in range(2):
            await here.policy(UDP)
            await source.authenticated(UDP)

        def flap() -> None:
            for _ in range(50):
                here.charon.say("child-updown", OTHERS)

        here.charon.before_answer = here.charon.before_passes = flap
        here.forget()
        looks = here.charon.looks
        for _ in range(5):
            await here.policy(UDP)
            await source.authenticated(UDP)
        assert here.charon.looks == looks + 10
        assert here.view.events > 900
        assert here.changes.empty()


async def test_charon_is_asked_for_no_more_than_the_wanted_sa() -> None:
    """The answer is as long with a thousand SAs as with one."""
    async with world(
        *[sa(f"as{each}.home1.net", remote=f"192.0.2.{each}/32", name=f"other{each}", number=each) for each in range(2, 100)], sa()
    ) as here:
        await here.policy(UDP)
        here.charon.streamed = 0
        here.charon.questions.clear()
        await here.policy(UDP)
        assert here.charon.streamed == 1
        assert here.charon.questions == [("list-sas", {"ike": "isc-1", "child": CHILD}), ("list-policies", {"pass": "yes"})]
        here.charon.sas.append(sa(number=2))  # its twin, of another IKE_SA: the event tells
        await here.says("child-updown", sa(number=2))
        await here.policy(UDP)
        here.charon.questions.clear()
        await here.policy(UDP)
        assert [question.get("ike") for name, question in here.charon.questions if name == "list-sas"] == ["isc-1", "isc-2"]


@pytest.mark.parametrize("number", [900, 1_500])
async def test_an_ike_sa_with_hundreds_of_child_sas_stops_nothing_between_others(number: int) -> None:
    """Of 1,500 charon tells nothing at all: what they may be is what they are configured to be."""
    settings: Section = {"mode": "TUNNEL", "local-ts": ["dynamic"], "remote-ts": ["192.0.2.0/24"]}
    async with world(sa(), crowd(number)) as here:
        here.charon.conns = [{"other": {"children": {"other": settings}}}]
        await here.policy(UDP)
        await here.policy(UDP)
        await IpsecSource(here.view, CHILD, "10.99.0.1", 6060).authenticated(UDP)


@pytest.mark.parametrize("settings", [
    {"local-ts": ["dynamic"], "remote-ts": ["0.0.0.0/0"]}, {"local-ts": ["10.99.0.0/24"], "remote-ts": ["dynamic[tcp]"]}, None,
])  # fmt: skip
async def test_what_charon_cannot_list_may_cover_the_address(settings: Section | None) -> None:
    crowded = crowd(1_500)
    crowded["other"]["local-host"], crowded["other"]["remote-host"] = "10.99.0.1", "10.99.0.2"  # type: ignore[index,call-overload]
    async with world(sa(), crowded) as here:
        if settings is not None:
            here.charon.conns = [{"other": {"children": {"other": settings}}}]
        assert "'other' has so many CHILD_SAs that charon cannot list them" in await here.refused()
        with pytest.raises(ProtectionUnmet, match="so many CHILD_SAs"):
            await IpsecSource(here.view, CHILD, "10.99.0.1", 6060).authenticated(UDP)
        here.charon.sas.pop()
        here.charon.say("ike-updown", {"other": {"state": "DELETING"}})
        await here.policy(UDP)


@pytest.mark.parametrize(("numbers", "says"), [((501, 500), "over 1000 CHILD_SAs"), ((1_500,), "so many CHILD_SAs")])
async def test_more_of_the_wanted_sas_than_can_be_looked_at_stop_this_way_alone(numbers: tuple[int, ...], says: str) -> None:
    many = [crowd(number, CHILD, ike=f"isc{number}", remote="10.99.0.2/32") for number in numbers]
    async with world(*many, sa("y.home1.net", name="isc-y", remote="10.99.0.3/32", number=2)) as here:
        here.charon.conns = [{"isc1500": {"children": {CHILD: {"local-ts": ["10.99.0.1/32"], "remote-ts": ["10.99.0.2/32"]}}}}]
        assert says in await here.refused()
        await IpsecPolicy(here.view, Wanted("isc-y", "y.home1.net"), "10.99.0.1", 6060)(UDP._replace(host="10.99.0.3"))


async def test_ways_of_which_many_wait_are_asked_for_together() -> None:
    """With as few SAs as there are ways to ask for, one answer about all is shorter than one for each."""
    there = range(2, 42)
    sas = [sa(f"as{each}.home1.net", name=f"isc-{each}", remote=f"10.99.0.{each}/32", number=each) for each in there]
    async with world(*sas) as here:
        policies = {each: IpsecPolicy(here.view, Wanted(f"isc-{each}", f"as{each}.home1.net"), "10.99.0.1", 6060) for each in there}
        for _ in range(2):
            here.charon.asked.clear()
            await asyncio.gather(*(policies[each](UDP._replace(host=f"10.99.0.{each}")) for each in there))
            assert here.charon.looks < 12


async def test_an_answer_that_came_long_ago_is_none() -> None:
    """Our own loop may have stood still between the answer and now."""
    async with world(sa()) as here:
        view = await here.view.look(Ends(CHILD, "10.99.0.1", UDP.host))
        assert here.view.is_current(view)
        here.clock.time += MAX_AGE
        assert here.view.is_current(view)
        here.clock.time += 0.01
        assert not here.view.is_current(view)


async def test_what_happens_to_the_wanted_sa_makes_nobody_ask_for_all() -> None:
    """Its other end can make that happen some hundred times a second, and to list all may take tenths of one."""
    async with world(sa(), crowd(900)) as here:
        await here.policy(UDP)
        for event in ("child-rekey", "child-updown", "ike-updown"):
            await here.says(event, sa())
            here.charon.questions.clear()
            await here.policy(UDP)
            assert here.charon.questions == [("list-sas", {"ike": "isc-1", "child": CHILD}), ("list-policies", {"pass": "yes"})]
        here.charon.sas[0] = sa(number=2)  # of another IKE_SA now
        await here.says("child-updown", sa(number=2))
        here.charon.questions.clear()
        await here.policy(UDP)
        assert [question.get("ike") for name, question in here.charon.questions if name == "list-sas"] == ["isc-1", "isc-2"]
        here.charon.sas[0] = crowd(1_500, CHILD, ike="isc-2", remote="10.99.0.2/32")  # so many that nothing is said of them
        assert "so many CHILD_SAs" in await here.refused()


TEXTS = st.sampled_from(["", "isc-1", CHILD, "10.99.0.2/32", "0.0.0.0/0", "rubbish", "old", "new", "child-sas", "INSTALLED", "\udcff"])
SECTIONS = st.recursive(
    st.one_of(TEXTS, st.lists(TEXTS, max_size=3)),
    lambda inner: st.dictionaries(st.one_of(TEXTS, st.sampled_from(["local-ts", "remote-ts", "name", "uniqueid"])), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(TEXTS, SECTIONS, max_size=3))
async def test_whatever_charon_tells_is_taken(message: Section) -> None:
    """And if it may be about the way, or nobody can say what it is about, charon is asked again for what it said before."""
    view = SaView(Vici(Path("/nowhere")), FakeClock())
    ends = Ends(CHILD, "10.99.0.1", UDP.host)
    followed = view._follow(ends)
    followed.ask_of(["isc-1"], ends)
    before = View(ends, (), (), 0.0, view.events, followed.question)
    assert view.holds(before)
    view._heard("child-updown", message)
    ikes = {name for name, ike in message.items() if isinstance(ike, dict)}
    assert view.events == 1
    if not ikes or "isc-1" in ikes or any(touches(sa, ends) for sa in child_sas(message)):
        assert not view.holds(before)
    if any(touches(sa, ends) and sa.name != CHILD for sa in child_sas(message)):
        assert view._follow(ends).question is None
