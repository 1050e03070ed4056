# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.1.1.3, §5.2.3, §5.7.1.1: the subscriber; RFC 3680 §4; RFC 6665 §4.1."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from keyferry.errors import LocalProtocolError, ProtectionUnmet, RemoteProtocolError, TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.ims.reginfo import RegInfo
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.scscf.reg_document import ContactNews
from roles.network import Fault, settle
from roles.regkit import AS, PCSCF, SIP, TEL, Home, Notifier, by_hand, known, open_home, pass_time, registration, watched


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """Alice is registered from one device."""
    async with open_home("one") as opened:
        yield opened


class TestSubscribing:
    """TS 24.229 §5.1.1.3, §5.2.3; RFC 6665 §4.1.2.1."""

    async def test_a_ue_learns_of_its_identities(self, home: Home) -> None:
        ue = await watched(home)
        assert home.network.ladder() == ["UE > S SUBSCRIBE", "S > UE 200", "S > UE NOTIFY", "UE > S 200"]
        assert known(ue) == {SIP: {"sip:alice@one.net"}, TEL: {"sip:alice@one.net"}}
        assert ue.events == [(SIP, "sip:alice@one.net", "registered"), (TEL, "sip:alice@one.net", "created")]
        info = ue.role.info(SIP)
        assert info is not None
        assert info.registrations[0].contacts[0].expires == int(home.clock.now()) + 3600

    async def test_a_policy_that_is_not_met_lets_no_subscribe_out_and_it_is_sent_when_it_is(self, home: Home) -> None:
        """A SUBSCRIBE tells who is registered."""
        met, asked = False, list[SipPeer]()

        async def check(peer: SipPeer) -> None:
            asked.append(peer)
            if not met:
                raise ProtectionUnmet(str(peer), "there is no CHILD_SA")

        ue = home.ue()
        ue.role.check = check
        for each in (1, 2):  # the first, and a refresh
            await ue.role.subscribe(SIP, home.network.peer("S"))
            assert home.network.ladder() == []
            met = True
            await pass_time(home, ue, 2.0)
            assert home.network.ladder()[0] == "UE > S SUBSCRIBE"
            assert asked == [home.network.peer("S")] * 2 * each
            assert known(ue)[SIP] == {"sip:alice@one.net"}
            met = False
        assert ue.role.count == 1

    async def test_what_a_ue_and_the_network_put_in(self, home: Home) -> None:
        notifier = Notifier(home)
        await home.watch(home.ue())
        pcscf = home.subscriber("P", "pcscf1.visited1.net", PCSCF)
        await pcscf.role.subscribe(SIP, home.network.peer("S"), ("<sip:orig@scscf1.home1.net;lr>",), 4200)
        first, second = notifier.requests
        assert (first.get("P-Preferred-Identity"), first.get("P-Asserted-Identity"), first.get("Expires")) == (f"<{SIP}>", None, "600000")
        assert (second.get("P-Preferred-Identity"), second.get("P-Asserted-Identity")) == (None, f"<{PCSCF}>")
        assert (second.get("Route"), second.get("Expires"), second.uri) == ("<sip:orig@scscf1.home1.net;lr>", "4200", SIP)
        assert (second.get("From") or "").startswith(f"<{PCSCF}>;tag=")

    async def test_pcscf_and_as_are_told_too(self, home: Home) -> None:
        others = [home.subscriber("P", "pcscf1.visited1.net", PCSCF), home.subscriber("AS1", "as1.home1.net", AS)]
        for each in others:
            await home.watch(each)
            each.seen.clear()
        await home.take("one", one=ContactNews("deactivated"))
        for each in others:
            assert each.seen[0].ended == "noresource"
            assert each.events == [(SIP, "sip:alice@one.net", "deactivated"), (TEL, "sip:alice@one.net", "deactivated")]
            assert each.role.count == 0

    @pytest.mark.parametrize("status", [403, 480, 489, 500, 481])
    async def test_a_refusal_is_raised(self, home: Home, status: int) -> None:
        notifier = Notifier(home)
        notifier.answers = [status]
        ue = home.ue()
        with pytest.raises(RemoteProtocolError) as refused:
            await home.watch(ue)
        assert (refused.value.status, ue.role.count, ue.role.info(SIP)) == (status, 0, None)

    async def test_no_answer_is_raised_too(self, home: Home) -> None:
        home.network.down("S")
        ue = home.ue()
        with pytest.raises(TransportError):
            await home.watch(ue)
        assert ue.role.count == 0

    async def test_but_a_notify_is_an_answer(self, home: Home) -> None:
        """RFC 6665 §4.1.2.4."""
        notifier = Notifier(home)

        async def notify_first(request: Request, peer: SipPeer) -> Response:
            notifier.requests.append(request)
            assert await notifier.send(notifier.notify(0, expires=3600)) == 200
            raise RemoteProtocolError("lost", 500)

        home.network.attach("S", "scscf1.home1.net", notify_first)
        ue = await watched(home)
        assert (ue.role.count, ue.role.info(SIP)) == (1, RegInfo(0, "full"))

    async def test_too_short_a_time_is_asked_for_again(self, home: Home) -> None:
        notifier = Notifier(home)
        notifier.answers = [423]
        await watched(home, expires=60)
        assert notifier.asked() == [60, 900]

    async def test_the_number_is_bounded(self, home: Home) -> None:
        ue = await watched(home, max_subscriptions=1)
        with pytest.raises(LocalProtocolError):
            await home.watch(ue, TEL)

    async def test_a_resource_that_is_watched_is_refreshed(self, home: Home) -> None:
        ue = await watched(home)
        await home.watch(ue, expires=7200)
        assert (ue.role.count, home.notifier.count) == (1, 1)
        assert [each.version for each in home.documents()] == [0, 1]

    async def test_while_the_first_is_under_way_a_second_waits(self, home: Home) -> None:
        ue = home.ue()
        gate = home.network.gates["S"] = asyncio.Event()
        first = asyncio.ensure_future(home.watch(ue))
        await settle()
        await home.watch(ue)
        gate.set()
        await first
        await settle()
        assert (ue.role.count, home.notifier.count) == (1, 1)
        assert [line for line in home.network.ladder() if "SUBSCRIBE" in line] == 2 * ["UE > S SUBSCRIBE"]


class TestNotify:
    """RFC 3680 §4.7; RFC 6665 §4.1.3."""

    async def test_each_change_is_told_once(self, home: Home) -> None:
        ue = await watched(home)
        ue.seen.clear()
        await home.put(registration("two", home.clock.now()))
        assert ue.events == [(SIP, "sip:alice@two.net", "registered"), (TEL, "sip:alice@two.net", "created")]
        await home.take("one", one=ContactNews("rejected"))
        assert ue.events == [(SIP, "sip:alice@one.net", "rejected"), (TEL, "sip:alice@one.net", "rejected")]
        assert known(ue) == {SIP: {"sip:alice@two.net"}, TEL: {"sip:alice@two.net"}}

    async def test_nothing_new_is_not_told(self, home: Home) -> None:
        ue = await watched(home)
        ue.seen.clear()
        await home.clock.advance(1000)
        await home.watch(ue)
        assert (len(home.notifies()), ue.seen) == (2, [])

    async def test_partial_documents_are_put_together(self) -> None:
        async with open_home("one", partial=True) as home:
            ue = await watched(home)
            await home.put(registration("two", home.clock.now()))
            await home.take("one")
            assert [each.state for each in home.documents()] == ["full", "partial", "partial"]
            assert known(ue) == {SIP: {"sip:alice@two.net"}, TEL: {"sip:alice@two.net"}}

    async def test_a_gap_between_partial_documents_is_filled_by_a_refresh(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        assert await notifier.send(notifier.notify(0)) == 200
        assert await notifier.send(notifier.notify(2, document="partial")) == 200
        assert (len(notifier.requests), home.counter["reg_event_gaps"]) == (2, 1)
        assert ue.role.info(SIP) == RegInfo(0, "full")
        await notifier.send(notifier.notify(3))
        assert ue.role.info(SIP) == RegInfo(3, "full")

    async def test_a_partial_document_before_any_full_one_is_a_gap(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0, document="partial"))
        assert (len(notifier.requests), ue.role.info(SIP)) == (2, None)

    async def test_a_gap_while_a_refresh_is_under_way_waits_for_it(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        gate = home.network.gates["S"] = asyncio.Event()
        refresh = asyncio.ensure_future(home.watch(ue))
        await settle()
        await notifier.send(notifier.notify(2, document="partial"))
        gate.set()
        await refresh
        assert len(notifier.requests) == 3

    async def test_an_older_version_changes_nothing(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(5))
        await notifier.send(notifier.notify(4))
        assert ue.role.info(SIP) == RegInfo(5, "full")

    async def test_one_that_comes_twice_is_taken_once(self, home: Home) -> None:
        ue = await watched(home)
        ue.seen.clear()
        home.network.next_to("UE", Fault.DUPLICATED)
        await home.put(registration("two", home.clock.now()))
        assert len(ue.seen) == 1

    async def test_one_that_was_overtaken_is_refused(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        early, later = notifier.notify(0), notifier.notify(1)
        assert await notifier.send(later) == 200
        assert await notifier.send(early) == 500
        assert ue.role.info(SIP) == RegInfo(1, "full")

    async def test_before_the_200_it_makes_the_dialog(self, home: Home) -> None:
        """RFC 6665 §4.4.1."""
        notifier = Notifier(home)

        def lost(request: Request) -> Response:
            return make_response(request, 200, headers=(("Expires", "600"),), to_tag="theirs")

        notifier.answers = [lost]
        gate = home.network.gates["S"] = asyncio.Event()
        ue = home.ue()
        waiting = asyncio.ensure_future(home.watch(ue))
        await settle()
        notifier.requests = [each for each in home.network.sent("UE", "S") if isinstance(each, Request)]
        assert await notifier.send(notifier.notify(0).prepending("Record-Route", "<sip:scscf1.home1.net;lr>")) == 200
        gate.set()
        await waiting
        await pass_time(home, ue, 301)
        assert notifier.requests[-1].get("Route") == "<sip:scscf1.home1.net;lr>"
        assert notifier.requests[-1].uri == "sip:scscf1.home1.net"

    @pytest.mark.parametrize(
        ("name", "value", "status"),
        [
            ("Call-ID", "other", 481), ("To", f"<{SIP}>;tag=other", 481), ("From", f"<{SIP}>;tag=other", 481), ("Event", "presence", 489),
            ("Event", "reg;id=4", 489), ("Content-Type", "text/plain", 415), ("Subscription-State", "", 400), ("CSeq", "0 NOTIFY", 500),
        ],
    )  # fmt: skip
    async def test_one_that_does_not_belong_here_is_refused(self, home: Home, name: str, value: str, status: int) -> None:
        ue, notifier = await by_hand(home)
        await notifier.send(notifier.notify(0))
        assert await notifier.send(notifier.notify(1).replacing(name, value)) == status
        assert ue.role.info(SIP) == RegInfo(0, "full")

    async def test_a_document_that_cannot_be_read_is_refused_and_changes_nothing(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        request = notifier.notify(0)
        assert await notifier.send(Request(request.method, request.uri, request.headers, b"<reginfo/>")) == 400
        assert ue.role.info(SIP) is None
        other = Request("OPTIONS", request.uri, request.replacing("CSeq", "7 OPTIONS").headers)
        assert await notifier.send(other) == 405

    async def test_one_without_a_document_is_taken(self, home: Home) -> None:
        ue, notifier = await by_hand(home)
        assert await notifier.send(notifier.notify(None, "pending", expires=60)) == 200
        assert await notifier.send(notifier.notify(None, "hesitant")) == 200
        await pass_time(home, ue, 30)
        assert len(notifier.requests) == 2
