# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.1.1.3; RFC 6665 §4.1.2: how a subscriber stays subscribed, and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roles.network import Fault, settle
from roles.regkit import SIP, TEL, Home, Notifier, Subscriber, by_hand, known, open_home, pass_time, registration, watched


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """Alice is registered from one device."""
    async with open_home("one") as opened:
        yield opened


class TestStayingSubscribed:
    """TS 24.229 §5.1.1.3; RFC 6665 §4.1.2.2, §4.1.2.4, §4.1.3."""

    async def test_it_is_refreshed_before_it_ends(self, home: Home) -> None:
        ue, notifier = await by_hand(home, expires=7200)
        await notifier.send(notifier.notify(0, expires=3600))
        await pass_time(home, ue, 2999)
        assert len(notifier.requests) == 1
        await pass_time(home, ue, 2)
        first, second = notifier.requests
        assert (second.get("Call-ID"), second.get("CSeq"), second.uri) == (first.get("Call-ID"), "2 SUBSCRIBE", "sip:scscf1.home1.net")
        assert (second.get("To"), second.get("Expires")) == (f"<{SIP}>;tag=theirs", "7200")

    async def test_a_ue_sends_everything_to_its_pcscf(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        ue.role.resolver = None
        response = notifier.notify(0).prepending("Record-Route", "<sip:unknown.net;lr>")
        await notifier.send(response)
        await home.watch(ue)
        assert len(notifier.requests) == 2

    async def test_an_scscf_that_forgot_gets_a_new_subscription(self, home: Home) -> None:
        ue = await watched(home, expires=3600)
        home.start()
        await home.put(registration("two", home.clock.now()))
        await pass_time(home, ue, 3001)
        assert home.notifier.count == 0
        ue.seen.clear()
        await pass_time(home, ue, 1, times=3)
        assert home.notifier.count == 1
        assert ue.events == [(SIP, "sip:alice@two.net", "registered"), (TEL, "sip:alice@two.net", "created")]

    async def test_a_refresh_that_fails_is_tried_again_while_the_subscription_lasts(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0, expires=1300))
        notifier.answers = [503, 403]
        await pass_time(home, ue, 701)
        home.network.next_to("S", Fault.LOST)
        await pass_time(home, ue, 1, times=12)
        assert [each.get("Call-ID") for each in notifier.requests] == 4 * [notifier.requests[0].get("Call-ID")]
        assert home.log.warnings == 3 * ["subscribe-failed"]

    async def test_one_that_could_not_be_refreshed_is_made_anew(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0, expires=1300))
        home.network.down("S")
        await pass_time(home, ue, 701)
        await home.clock.advance(600)
        home.network.up("S")
        await pass_time(home, ue, 1)
        assert notifier.requests[-1].get("Call-ID") != notifier.requests[0].get("Call-ID")
        assert notifier.requests[-1].get("To") == f"<{SIP}>"

    async def test_without_a_notify_it_is_made_anew(self, home: Home) -> None:
        """RFC 6665 §4.1.2.4: timer N."""
        ue, notifier = await by_hand(home)
        await pass_time(home, ue, 31)
        assert len(notifier.requests) == 1
        await pass_time(home, ue, 1)
        assert notifier.requests[1].get("Call-ID") != notifier.requests[0].get("Call-ID")
        assert home.log.warnings == ["no-notify"]

    async def test_new_tries_come_ever_later(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        notifier.answers = [481, *(500 for _ in range(20))]
        await home.watch(ue)
        await pass_time(home, ue, 1, times=40)
        assert len(notifier.requests) == 2 + 5

    async def test_but_after_a_long_life_at_once(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        notifier.answers = [481, 500, 500, 500]
        await home.watch(ue)
        await pass_time(home, ue, 1, times=20)
        await notifier.send(notifier.notify(0))
        await home.clock.advance(400)
        before = len(notifier.requests)
        notifier.answers = [481]
        await home.watch(ue)
        await pass_time(home, ue, 1)
        assert len(notifier.requests) == before + 2

    async def test_a_refusal_of_the_new_one_is_the_end(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        notifier.answers = [481, 480]
        await home.watch(ue)
        await pass_time(home, ue, 1)
        assert (ue.role.count, [news.ended for news in ue.seen]) == (0, ["refused 480"])
        assert "subscription-over" in home.log.warnings

    @pytest.mark.parametrize(("reason", "pause"), [("deactivated", 1), ("timeout", 1), ("probation", 30), (None, 60)])
    async def test_an_end_that_is_not_for_ever(self, home: Home, reason: str | None, pause: int) -> None:
        ue, notifier = await by_hand(home)
        retry_after = 30 if reason == "probation" else None
        await notifier.send(notifier.notify(0, "terminated", reason=reason, retry_after=retry_after))
        await pass_time(home, ue, pause - 0.5)
        assert len(notifier.requests) == 1
        await pass_time(home, ue, 0.5)
        assert (len(notifier.requests), ue.seen) == (2, [])

    @pytest.mark.parametrize("reason", ["rejected", "noresource"])
    async def test_an_end_that_is_one(self, home: Home, reason: str) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0, "terminated", reason=reason))
        assert (ue.role.count, [news.ended for news in ue.seen]) == (0, [reason])
        assert await notifier.send(notifier.notify(1)) == 481

    async def test_an_end_that_overtakes_the_answer(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        gate = home.network.gates["S"] = asyncio.Event()
        refresh = asyncio.ensure_future(home.watch(ue))
        await settle()
        await notifier.send(notifier.notify(1, "terminated", reason="deactivated"))
        gate.set()
        await refresh
        await pass_time(home, ue, 1)
        assert notifier.requests[-1].get("To") == f"<{SIP}>"

    async def test_an_end_for_ever_that_overtakes_a_failure(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0, expires=1300))
        home.network.next_to("S", Fault.ANSWER_LOST)
        gate = home.network.gates["S"] = asyncio.Event()
        await pass_time(home, ue, 701)
        await notifier.send(notifier.notify(1, "terminated", reason="noresource"))
        gate.set()
        await pass_time(home, ue, 700)
        assert (ue.role.count, len(notifier.requests)) == (0, 2)

    async def test_what_was_forgotten_meanwhile_is_not_taken_up(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0, "terminated", reason="deactivated"))
        await home.clock.advance(1)
        assert await ue.role.sweep() == 1
        await ue.role.unsubscribe(SIP)
        await settle()
        assert (ue.role.count, len(notifier.requests)) == (0, 1)

    async def test_closing_stops_what_is_under_way(self, home: Home) -> None:
        ue = await watched(home)
        home.network.gates["S"] = asyncio.Event()
        await pass_time(home, ue, 599_500)
        await ue.role.aclose()
        assert ue.role._tasks == set()


class TestLeaving:
    """RFC 6665 §4.1.2.3."""

    async def test_the_last_notify_is_awaited_and_not_told(self, home: Home) -> None:
        ue = await watched(home)
        ue.seen.clear()
        await ue.role.unsubscribe(SIP)
        assert ue.role.count == 1
        await settle()
        assert home.network.ladder()[-4:] == ["UE > S SUBSCRIBE", "S > UE 200", "S > UE NOTIFY", "UE > S 200"]
        assert (ue.role.count, home.notifier.count, ue.seen) == (0, 0, [])

    async def test_one_that_never_comes_is_not_awaited_for_ever(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        await ue.role.unsubscribe(SIP)
        await pass_time(home, ue, 31)
        assert (ue.role.count, notifier.asked()) == (1, [600_000, 0])
        await pass_time(home, ue, 1)
        assert (ue.role.count, len(notifier.requests)) == (0, 2)

    @pytest.mark.parametrize("answer", [481, 503, None])
    async def test_a_refusal_or_silence_ends_it_too(self, home: Home, answer: int | None) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        if answer is None:
            home.network.down("S")
        else:
            notifier.answers = [answer]
        await ue.role.unsubscribe(SIP)
        await ue.role.unsubscribe(SIP)
        assert ue.role.count == 0

    async def test_before_there_is_a_dialog_there_is_nothing_to_end(self, home: Home) -> None:
        notifier, ue = Notifier(home), home.ue()
        gate = home.network.gates["S"] = asyncio.Event()
        waiting = asyncio.ensure_future(home.watch(ue))
        await settle()
        await ue.role.unsubscribe(SIP)
        gate.set()
        await waiting
        assert (ue.role.count, len(notifier.requests)) == (0, 1)
        assert await notifier.send(notifier.notify(0)) == 481

    async def test_while_a_refresh_is_under_way_it_waits_for_it(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        gate = home.network.gates["S"] = asyncio.Event()
        refresh = asyncio.ensure_future(home.watch(ue))
        await settle()
        await ue.role.unsubscribe(SIP)
        gate.set()
        await refresh
        assert notifier.asked() == [600_000, 600_000, 0]
        await notifier.send(notifier.notify(1, "terminated", reason="timeout"))
        assert ue.role.count == 0

    async def test_what_is_left_does_not_touch_what_came_after(self, home: Home) -> None:
        ue, notifier = await by_hand(home, expires=3600)
        await notifier.send(notifier.notify(0))
        gate = home.network.gates["S"] = asyncio.Event()
        home.network.next_to("S", Fault.ANSWER_LOST)
        leaving = asyncio.ensure_future(ue.role.unsubscribe(SIP))
        await settle()
        home.network.gates.clear()
        await home.watch(ue)
        gate.set()
        await leaving
        await notifier.send(notifier.notify(0))
        await pass_time(home, ue, 3001)
        assert (ue.role.count, notifier.asked()) == (1, [3600, 3600, 0, 3600])

    async def test_who_comes_back_meanwhile_begins_anew(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        await ue.role.unsubscribe(SIP)
        await home.watch(ue)
        assert notifier.asked() == [600_000, 0, 600_000]
        assert notifier.requests[-1].get("To") == f"<{SIP}>"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "take"]), st.sampled_from(["one", "two", "three"])),
        st.tuples(st.just("fault"), st.sampled_from([fault.name for fault in Fault])),
        st.tuples(st.sampled_from(["refresh", "release", "restart", "time"]), st.just("")),
    ),
    max_size=14,
)


@settings(max_examples=60)
@given(steps=STEPS, partial=st.booleans())
def test_whatever_is_lost_or_late_the_refresh_brings_the_right_state(steps: list[tuple[str, str]], partial: bool) -> None:
    """RFC 3680 §4.7; RFC 6665 §4.1.2.2."""
    asyncio.run(_whatever_happens(steps, partial))


async def _whatever_happens(steps: list[tuple[str, str]], partial: bool) -> None:
    async with open_home("one", partial=partial) as home:
        ue = await watched(home)
        for step, what in steps:
            await _do(home, ue, step, what)
        for faultless in ("UE", "S"):
            home.network.next_to(faultless)
        now = home.clock.now()
        await home.put(registration("last", now)._replace(expires_at=now + 1e7))
        await pass_time(home, ue, 599_500, times=2)
        await pass_time(home, ue, 40, times=9)
        if ue.role.count == 0:  # every registration had ended, and the network said so
            await home.watch(ue)
        uris = {f"sip:alice@{each.reg}.net" for each in await home.registrations()}
        assert known(ue) == {SIP: uris, TEL: uris}


async def _do(home: Home, ue: Subscriber, step: str, what: str) -> None:
    now = home.clock.now()
    match step:
        case "put":
            await home.put(registration(what, now))
        case "take":
            await home.take(what)
        case "fault":
            home.network.next_to("UE", Fault[what])
        case "refresh" if ue.role.count:
            await home.watch(ue)
        case "release" if home.network.held:
            await home.network.release()
        case "restart":
            await home.notifier.aclose()
            home.start()
        case "time":
            await pass_time(home, ue, 40)
