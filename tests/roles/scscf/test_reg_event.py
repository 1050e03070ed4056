# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.2.1: the notifier; RFC 6665 §4.2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from keyferry.errors import LocalProtocolError, ParseError, ProtectionUnmet, StoreError, TransportError
from keyferry.ports import PeerCheck, SipPeer
from keyferry.protocol.identity import Reg
from keyferry.protocol.ims.reginfo import REGINFO_BODY
from keyferry.protocol.ims.subscribe import build_subscribe, parse_notify
from keyferry.protocol.ims.subscription import State, Subscription
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.scscf.reg_document import ContactNews
from keyferry.roles.scscf.reg_event import MAX_RETRIES
from roles.network import Fault, settle
from roles.regkit import ALICE, AS, BARRED, PCSCF, SIP, TEL, Home, open_home, registration


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """Alice is registered from one device."""
    async with open_home("one") as opened:
        yield opened


class Watcher:
    """A subscriber by hand: what a test sends is what it says."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.sip = home.network.attach("UE", "ue.net", self.answer)
        self.statuses: list[int] = []
        self.cseq = 0
        self.call = 0

    async def answer(self, request: Request, peer: object) -> Response:
        return make_response(request, self.statuses.pop(0) if self.statuses else 200)

    def request(self, *, tag: str = "", resource: str = SIP, expires: int = 3600, identity: str = SIP, new: bool = True) -> Request:
        self.cseq += 1
        self.call += new
        subscription = Subscription(
            state=State.NOTIFY_WAIT, call_id=f"call{self.call}", local_uri=SIP, local_tag="mine", remote_uri=resource, remote_tag=tag,
            remote_target=resource, route_set=(), cseq=self.cseq, remote_cseq=-1, event_id=None, expires_at=0.0, version=-1,
        )  # fmt: skip
        return build_subscribe(subscription, contact="sip:ue.net", expires=expires, identity=("P-Asserted-Identity", f"<{identity}>"))

    async def send(self, request: Request, *, rest: bool = True) -> Response:
        response = await self.sip.send(request, self.home.network.peer("S"))
        if rest:
            await settle()
        return response

    async def subscribe(self, **how: Any) -> str:
        """Subscribe; return the notifier's tag."""
        response = await self.send(self.request(**how))
        assert response.status == 200
        return (response.get("To") or "").partition(";tag=")[2]

    async def refresh(self, tag: str, **how: Any) -> Response:
        return await self.send(self.request(tag=tag, new=False, **how))


@pytest.fixture
def watcher(home: Home) -> Watcher:
    """The node UE, which takes NOTIFYs and subscribes by hand."""
    return Watcher(home)


class TestAdmission:
    """§5.4.2.1.1."""

    async def test_a_full_notify_follows_the_200(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        assert home.network.ladder() == ["UE > S SUBSCRIBE", "S > UE 200", "S > UE NOTIFY", "UE > S 200"]

    async def test_it_tells_of_the_whole_registration_set(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        (document,) = home.documents()
        (request,) = home.notifies()
        assert (document.version, document.state) == (0, "full")
        assert [(aor.aor, aor.contacts[0].uri) for aor in document.registrations] == [
            (SIP, "sip:alice@one.net"),
            (TEL, "sip:alice@one.net"),
        ]
        assert request.get("Subscription-State") == "active;expires=3600"
        assert request.get("Contact") == "<sip:scscf1.home1.net>"

    @pytest.mark.parametrize("identity", [SIP, TEL, PCSCF, AS])
    async def test_the_user_its_pcscf_and_its_as_may_subscribe(self, home: Home, watcher: Watcher, identity: str) -> None:
        await watcher.subscribe(identity=identity, resource=TEL)
        assert home.notifier.count == 1

    @pytest.mark.parametrize("identity", ["sip:bob@home1.net", BARRED, "sip:as2.home1.net", "sip:pcscf2.visited1.net"])
    async def test_nobody_else_may(self, home: Home, watcher: Watcher, identity: str) -> None:
        assert (await watcher.send(watcher.request(identity=identity))).status == 403
        assert home.counter["scscf_subscriptions_refused", "not-authorised"] == 1
        assert home.notifier.count == 0

    async def test_an_identity_is_asserted_by_the_trust_domain_only(self, home: Home, watcher: Watcher) -> None:
        home.untrusted.add("UE")
        assert (await watcher.send(watcher.request())).status == 403
        home.untrusted.clear()
        assert (await watcher.send(watcher.request().without("P-Asserted-Identity"))).status == 403

    @pytest.mark.parametrize(
        ("resource", "status"),
        [("sip:bob@home1.net", 480), ("sip:nobody@home1.net", 480), ("sip:home1.net", 480), ("urn:x", 416), (BARRED, 403)],
    )
    async def test_a_resource_without_a_binding_or_barred(self, home: Home, watcher: Watcher, resource: str, status: int) -> None:
        assert (await watcher.send(watcher.request(resource=resource))).status == status

    async def test_what_is_no_subscribe_to_reg_is_refused(self, home: Home, watcher: Watcher) -> None:
        request = watcher.request()
        other = await watcher.send(request.replacing("Event", "presence"))
        assert (other.status, other.get("Allow-Events")) == (489, "reg")
        unreadable = await watcher.send(request.replacing("Accept", "text/plain"))
        assert (unreadable.status, unreadable.get("Accept")) == (406, REGINFO_BODY)
        options = await watcher.send(Request("OPTIONS", SIP, request.replacing("CSeq", "9 OPTIONS").headers))
        assert (options.status, options.get("Allow")) == (405, "SUBSCRIBE")
        assert (await watcher.send(request.without("Event"))).status == 400

    async def test_without_accept_or_with_any_it_goes(self, home: Home, watcher: Watcher) -> None:
        assert (await watcher.send(watcher.request().without("Accept"))).status == 200
        assert (await watcher.send(watcher.request().replacing("Accept", "*/*"))).status == 200

    async def test_the_time_is_bounded_on_both_sides(self) -> None:
        async with open_home("one", min_expires=60, max_expires=7200) as home:
            watcher = Watcher(home)
            brief = await watcher.send(watcher.request(expires=59))
            assert (brief.status, brief.get("Min-Expires")) == (423, "60")
            assert (await watcher.send(watcher.request(expires=600_000))).get("Expires") == "7200"

    async def test_all_are_bounded(self) -> None:
        async with open_home("one", max_subscriptions=2) as home:
            watcher = Watcher(home)
            for _ in range(2):
                await watcher.subscribe()
            full = await watcher.send(watcher.request())
            assert (full.status, full.get("Retry-After")) == (503, "60")

    async def test_one_subscriber_crowds_out_itself_alone(self) -> None:
        async with open_home("one", max_per_watcher=2) as home:
            watcher = Watcher(home)
            pcscf = await watcher.subscribe(identity=PCSCF)
            oldest, last = await watcher.subscribe(), ""
            for _ in range(2):
                last = await watcher.subscribe()
            assert (home.notifier.count, home.counter["scscf_subscriptions", "crowded-out"]) == (3, 1)
            assert (await watcher.refresh(oldest)).status == 481
            watcher.call = 1
            assert (await watcher.refresh(pcscf)).status == 200
            watcher.call = 4
            assert (await watcher.refresh(last)).status == 200

    async def test_one_whose_notify_is_under_way_is_crowded_out_too(self) -> None:
        async with open_home("one", max_per_watcher=1) as home:
            watcher = Watcher(home)
            gate = home.network.gates["UE"] = asyncio.Event()
            await watcher.subscribe()
            await watcher.subscribe()
            gate.set()
            await settle()
            assert home.notifier.count == 1

    async def test_a_user_who_is_served_elsewhere_is_forgotten_with_the_notify_under_way(self, home: Home, watcher: Watcher) -> None:
        """TS 29.228 §6.1.3."""
        gate = home.network.gates["UE"] = asyncio.Event()
        tag = await watcher.subscribe()
        home.notifier.forget(ALICE)
        home.notifier.forget(ALICE)
        gate.set()
        await settle()
        assert home.notifier.count == 0
        assert (await watcher.refresh(tag)).status == 481


class TestDialog:
    """RFC 6665 §4.2.1.2, §4.4."""

    async def test_a_refresh_gets_the_whole_state_again(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe()
        response = await watcher.refresh(tag, expires=7200)
        assert (response.status, response.get("Expires")) == (200, "7200")
        assert [(each.version, each.state) for each in home.documents()] == [(0, "full"), (1, "full")]
        assert [each.get("CSeq") for each in home.notifies()] == ["1 NOTIFY", "2 NOTIFY"]

    async def test_another_dialog_is_unknown(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe()
        request = watcher.request(tag=tag, new=False)
        for broken in (
            request.replacing("From", f"<{SIP}>;tag=other"), request.replacing("Call-ID", "other"), request.replacing("Event", "reg;id=1"),
            watcher.request(tag="unknown"),
        ):  # fmt: skip
            assert (await watcher.send(broken)).status == 481

    async def test_an_overtaken_refresh_is_refused(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe()
        early = watcher.request(tag=tag, new=False)
        await watcher.refresh(tag)
        assert (await watcher.send(early)).status == 500

    async def test_unsubscribing_brings_a_last_notify(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe()
        response = await watcher.refresh(tag, expires=0)
        assert (response.get("Expires"), home.notifier.count) == ("0", 0)
        assert home.notifies()[-1].get("Subscription-State") == "terminated;reason=timeout"
        assert (await watcher.refresh(tag)).status == 481

    async def test_expires_0_fetches_the_state_once(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe(expires=0)
        assert (home.states(), home.notifier.count) == (["terminated"], 0)
        assert home.documents()[0].registrations[0].state == "active"

    async def test_a_subscription_ends_when_its_time_is_over(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe(expires=600)
        await watcher.refresh(tag, expires=1200)
        await home.clock.advance(700)
        assert await home.notifier.sweep() == 0
        await home.clock.advance(600)
        assert await home.notifier.sweep() == 1
        await settle()
        assert home.notifies()[-1].get("Subscription-State") == "terminated;reason=timeout"
        assert (home.notifier.count, await home.notifier.sweep()) == (0, 0)

    async def test_one_that_is_ending_is_not_ended_again(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe(expires=600)
        gate = home.network.gates["UE"] = asyncio.Event()
        await watcher.refresh(tag, expires=0)
        await home.clock.advance(601)
        assert await home.notifier.sweep() == 0
        assert (await watcher.refresh(tag)).status == 481
        gate.set()
        await settle()
        assert (home.states(), home.notifier.count) == (["active", "terminated"], 0)


class TestChanges:
    """§5.4.2.1.2; RFC 3680 §4.7."""

    async def test_each_change_brings_a_notify_with_the_next_version(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        await home.put(registration("two", home.clock.now()))
        await home.put(registration("two", home.clock.now(), expires_at=home.clock.now() + 9000))
        await home.take("two")
        documents = home.documents()
        assert [(each.version, each.state) for each in documents] == [(number, "full") for number in range(4)]
        assert [[contact.event for contact in each.registrations[0].contacts] for each in documents] == [
            ["registered"], ["registered", "registered"], ["registered", "refreshed"], ["registered", "unregistered"],
        ]  # fmt: skip

    @pytest.mark.parametrize("event", ["deactivated", "rejected", "probation", "expired"])
    async def test_the_network_ends_a_device(self, home: Home, watcher: Watcher, event: Any) -> None:
        """§5.4.1.5."""
        await home.put(registration("two", home.clock.now()))
        await watcher.subscribe()
        await home.take("one", one=ContactNews(event, 30 if event == "probation" else None))
        (gone,) = [contact for contact in home.documents()[-1].registrations[1].contacts if contact.state == "terminated"]
        assert (gone.uri, gone.event, gone.retry_after) == ("sip:alice@one.net", event, 30 if event == "probation" else None)
        assert home.states() == ["active", "active"]

    async def test_the_network_shortens_a_registration(self, home: Home, watcher: Watcher) -> None:
        """§5.4.1.6: the UE learns by when it must be authenticated anew."""
        await watcher.subscribe()
        await home.put(registration("one", home.clock.now(), expires_at=home.clock.now() + 60), one=ContactNews("shortened"))
        contact = home.documents()[-1].registrations[0].contacts[0]
        assert (contact.event, contact.expires) == ("shortened", 60)

    async def test_an_event_alone_is_news(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        await home.put(one=ContactNews("shortened"))
        assert home.documents()[-1].registrations[0].contacts[0].event == "shortened"

    async def test_the_end_of_all_registrations_ends_the_subscription(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        await home.take("one", one=ContactNews("deactivated"))
        last, document = home.notifies()[-1], home.documents()[-1]
        assert last.get("Subscription-State") == "terminated;reason=noresource"
        assert [(aor.aor, aor.state, aor.contacts[0].event) for aor in document.registrations] == [
            (SIP, "terminated", "deactivated"), (TEL, "terminated", "deactivated"),
        ]  # fmt: skip
        assert (home.notifier.count, home.notifier._events) == (0, {})

    async def test_no_change_brings_no_notify(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        await home.put()
        assert len(home.notifies()) == 1

    async def test_without_subscribers_it_costs_nothing(self, home: Home) -> None:
        await home.put(registration("two", home.clock.now()))
        assert home.network.ladder() == []
        assert home.notifier._events == {}

    async def test_an_event_that_does_not_go_with_the_state_is_our_bug(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        with pytest.raises(LocalProtocolError):
            await home.take("one", one=ContactNews("refreshed"))

    async def test_what_changes_while_a_notify_is_under_way_goes_together(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        gate = home.network.gates["UE"] = asyncio.Event()
        now = home.clock.now()
        await home.put(registration("two", now))
        await home.put(registration("three", now))
        await home.take("one", one=ContactNews("rejected"))
        assert len(home.notifies()) == 2
        gate.set()
        await settle()
        assert [each.version for each in home.documents()] == [0, 1, 2]
        contacts = {contact.uri: contact.event for contact in home.documents()[-1].registrations[0].contacts}
        assert contacts == {"sip:alice@three.net": "registered", "sip:alice@two.net": "registered", "sip:alice@one.net": "rejected"}

    async def test_a_device_that_left_and_came_back_meanwhile_is_there(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        gate = home.network.gates["UE"] = asyncio.Event()
        now = home.clock.now()
        await home.put(registration("two", now))
        await home.take("one")
        await home.put(registration("one", now))
        gate.set()
        await settle()
        assert [contact.state for contact in home.documents()[-1].registrations[0].contacts] == ["active", "active"]
        assert home.states() == ["active", "active", "active"]

    async def test_partial_state_tells_what_changed_and_a_refresh_everything(self) -> None:
        """RFC 3680 §4.7."""
        async with open_home("one", partial=True) as home:
            watcher = Watcher(home)
            tag = await watcher.subscribe()
            await home.put(registration("two", home.clock.now()))
            await home.take("one")
            await watcher.refresh(tag)
            full, more, less, again = home.documents()
            assert [(each.version, each.state) for each in (full, more, less, again)] == [
                (0, "full"),
                (1, "partial"),
                (2, "partial"),
                (3, "full"),
            ]
            assert [[contact.uri for contact in aor.contacts] for aor in more.registrations] == 2 * [["sip:alice@two.net"]]
            assert [(contact.uri, contact.event) for contact in less.registrations[0].contacts] == [("sip:alice@one.net", "unregistered")]

    async def test_a_refresh_that_comes_while_a_notify_is_under_way_gets_the_whole_state(self) -> None:
        async with open_home("one", partial=True) as home:
            watcher = Watcher(home)
            tag = await watcher.subscribe()
            gate = home.network.gates["UE"] = asyncio.Event()
            await home.put(registration("two", home.clock.now()))
            await watcher.refresh(tag)
            gate.set()
            await settle()
            assert [each.state for each in home.documents()] == ["full", "partial", "full"]


class TestDelivery:
    """RFC 6665 §4.2.2."""

    @pytest.mark.parametrize("status", [481, 404, 408, 489])
    async def test_an_answer_that_ends_the_subscription(self, home: Home, watcher: Watcher, status: int) -> None:
        watcher.statuses = [status]
        tag = await watcher.subscribe()
        assert (home.notifier.count, home.log.warnings) == (0, ["notify-not-taken"])
        assert (await watcher.refresh(tag)).status == 481

    async def test_no_answer_ends_it_too(self, home: Home, watcher: Watcher) -> None:
        home.network.down("UE")
        await watcher.subscribe()
        assert home.notifier.count == 0
        assert home.counter["scscf_notifies", "timeout"] == 1

    async def test_a_contact_that_is_nowhere_ends_it(self, home: Home, watcher: Watcher) -> None:
        await watcher.send(watcher.request().replacing("Contact", "<sip:nowhere.net>"))
        assert (home.notifier.count, home.counter["scscf_notifies", "timeout"]) == (0, 1)

    async def test_an_answer_that_cannot_be_read_ends_it(self, home: Home, watcher: Watcher) -> None:
        async def send(*_: object, **__: object) -> Response:
            raise ParseError("answer", "is none")

        home.notifier.sip = type("Broken", (), {"send": staticmethod(send)})()
        await watcher.subscribe()
        assert home.counter["scscf_notifies", "refused"] == 1

    async def test_trouble_at_the_subscriber_is_waited_for(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        watcher.statuses = [503, 500]
        await home.put(registration("two", home.clock.now()))
        await home.take("two", two=ContactNews("rejected"))
        assert len(home.notifies()) == 2
        await home.clock.advance(2)
        await home.clock.advance(4)
        assert [each.version for each in home.documents()] == [0, 1, 2, 3]
        assert [contact.event for contact in home.documents()[-1].registrations[0].contacts] == ["registered", "rejected"]

    @pytest.mark.parametrize("lost", [False, True], ids=["before", "on-its-way"])
    async def test_a_policy_that_is_not_met_lets_no_notify_out_and_is_waited_for(self, home: Home, watcher: Watcher, lost: bool) -> None:
        """Nothing was sent, or it was lost with what had protected it: that says nothing about the subscriber."""
        met = True

        async def check(peer: SipPeer) -> None:
            if not met:
                raise ProtectionUnmet(str(peer), "there is no CHILD_SA")

        async def send(_request: Request, _hop: SipPeer, *, check: PeerCheck) -> Response:
            raise TransportError("tcp", "the security association that it went through is gone")

        await watcher.subscribe()
        home.notifier.check = check
        met, sip = False, home.notifier.sip
        if lost:
            home.notifier.sip = type("Lost", (), {"send": staticmethod(send)})()
        await home.put(registration("two", home.clock.now()))
        assert len(home.notifies()) == 1
        assert home.counter["scscf_notifies", "failed"] == 1
        met, home.notifier.sip = True, sip
        await home.clock.advance(2)
        assert len(home.notifies()) == 2
        assert home.notifier.count == 1

    async def test_but_not_for_ever(self, home: Home, watcher: Watcher) -> None:
        await watcher.subscribe()
        watcher.statuses = [503] * 9
        await home.take("one", one=ContactNews("deactivated"))
        await home.clock.advance(60)
        assert len(home.notifies()) == 2 + MAX_RETRIES
        assert home.notifier.count == 0

    async def test_news_that_was_not_taken_goes_with_the_next(self) -> None:
        async with open_home("one", "two", partial=True) as home:
            watcher = Watcher(home)
            await watcher.subscribe()
            watcher.statuses = [503] * (1 + MAX_RETRIES)
            await home.take("two", two=ContactNews("rejected"))
            await home.clock.advance(60)
            await home.put(registration("three", home.clock.now()))
            last = home.documents()[-1]
            assert (last.state, home.notifier.count) == ("full", 1)
            assert {contact.uri: contact.event for contact in last.registrations[0].contacts}["sip:alice@two.net"] == "rejected"

    async def test_a_store_that_fails_costs_a_notify_and_not_the_subscription(self, home: Home, watcher: Watcher) -> None:
        tag = await watcher.subscribe()
        store = home.notifier.registrations

        async def fail(_: object) -> Any:
            raise StoreError("disk full")

        home.notifier.registrations = type("Broken", (), {"of_impi": staticmethod(fail)})()
        await watcher.refresh(tag)
        assert home.log.warnings == ["notify-failed"]
        home.notifier.registrations = store
        await watcher.refresh(tag)
        assert [each.version for each in home.documents()] == [0, 1]

    async def test_a_document_that_no_message_can_hold_is_left_out(self, home: Home, watcher: Watcher) -> None:
        now = home.clock.now()
        many = [registration(f"d{number}", now)._replace(contact=f"<sip:{1900 * 'x'}@d{number}.net>") for number in range(20)]
        for each in many:
            await home.store.commit(each, ())
        await watcher.subscribe()
        (request,) = home.notifies()
        assert (request.body, parse_notify(request).state.state) == (b"", "active")
        assert home.log.warnings == ["reginfo-too-large"]

    async def test_a_duplicated_subscribe_does_no_harm(self, home: Home, watcher: Watcher) -> None:
        home.network.next_to("S", Fault.DUPLICATED)
        await watcher.subscribe()
        assert home.notifier.count == 2

    async def test_closing_stops_what_is_under_way(self, home: Home, watcher: Watcher) -> None:
        home.network.gates["UE"] = asyncio.Event()
        await watcher.subscribe()
        await home.notifier.aclose()
        assert home.notifier._held[next(iter(home.notifier._held))].task is None


async def test_a_restart_forgets_subscriptions_and_they_are_made_anew() -> None:
    """The lead paragraph of the module: 481, then a new SUBSCRIBE."""
    async with open_home("one") as home:
        watcher = Watcher(home)
        tag = await watcher.subscribe()
        home.start()
        assert (await watcher.refresh(tag)).status == 481
        await watcher.subscribe()
        await home.notifier.changed(ALICE, [], await home.registrations(), {Reg("x"): ContactNews("rejected")})
        assert home.notifier.count == 1
