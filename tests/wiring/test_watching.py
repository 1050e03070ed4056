# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.2.3, §5.2.5.2, §5.7.1.1: P-CSCF and AS watch registrations; a whole network in memory."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from keyferry.protocol.identity import Impu
from keyferry.protocol.ims.reginfo import ContactChange, ended
from keyferry.protocol.ims.third_party import ThirdPartyRegister, build_third_party_register
from keyferry.protocol.sip.message import Request
from keyferry.roles.pcscf.bindings import LAST_WORDS
from keyferry.roles.reg_event_subscriber import RegEventSubscriber, RegNews, SubscriberProfile
from keyferry.wiring import watching
from keyferry.wiring.watching import AsWatch, PcscfWatch, Tasks
from roles.home import NICKS, SIP_OF, XCAP, Device, Home, open_home
from roles.network import settle

PCSCF = "sip:pcscf1.visited1.net"
IMPU = "sip:alice@home1.net"


@dataclass(slots=True)
class Watched:
    """A home network in which the P-CSCF and one AS watch."""

    home: Home
    pcscf: PcscfWatch
    server: AsWatch

    def subscribes(self, sender: str, receiver: str) -> int:
        sent = self.home.network.sent(sender, receiver)
        return len([message for message in sent if isinstance(message, Request) and message.method == "SUBSCRIBE"])


def subscriber(home: Home, name: str, host: str, uri: str, watch: list[AsWatch | PcscfWatch]) -> RegEventSubscriber:
    sip = home.pcscf.sip if name == "P" else home.network.attach(name, host, lambda request, peer: watch[0].handle(request, peer))  # type: ignore[union-attr]
    return RegEventSubscriber(
        sip=sip, profile=SubscriberProfile(uri, uri, asserts=True), on_news=lambda news: watch[0].heard(news), clock=home.clock,
        random=home.random, log=home.log, counter=home.counter, resolver=home.network,
    )  # fmt: skip


@asynccontextmanager
async def opened() -> AsyncIterator[Watched]:
    async with open_home() as home:
        behind: list[AsWatch | PcscfWatch] = []
        own = subscriber(home, "P", "", PCSCF, behind)
        pcscf = PcscfWatch(home.pcscf, own, home.network, "sip:icscf.home1.net", Tasks(home.log))
        behind.append(pcscf)
        home.pcscf.registered, home.pcscf.dialogs.notified = pcscf.registered, own.handle_notify
        watches: list[AsWatch | PcscfWatch] = []
        theirs = subscriber(home, NICKS[XCAP], SIP_OF[XCAP].partition(":")[2], SIP_OF[XCAP], watches)
        agent = replace(home.servers[XCAP].agent, registered=lambda register: server.registered(register))
        server = AsWatch(agent, theirs, home.network, Tasks(home.log))
        watches.append(server)
        try:
            yield Watched(home, pcscf, server)
        finally:
            for each in (own, theirs, pcscf.tasks, server.tasks):
                await each.aclose()


async def test_the_p_cscf_subscribes_once_a_user_through_the_i_cscf() -> None:
    """§5.2.3."""
    async with opened() as watched:
        first, second = watched.home.device(), watched.home.device(number=2)
        await first.register()
        await second.register()
        await first.register()
        assert watched.subscribes("P", "I") == 1
        assert watched.home.counter["scscf_subscriptions", "pcscf"] == 1


async def test_what_the_network_ends_ends_at_the_p_cscf_and_nothing_else() -> None:
    """§5.2.5.2."""
    async with opened() as watched:
        first, second = watched.home.device(), watched.home.device(number=2)
        await first.register()
        await second.register()
        await watched.home.scscf.network_deregister(first.impi, first.reg, "deactivated")
        await settle()
        assert watched.home.counter["pcscf_ended", "deactivated"] == 1
        assert watched.home.pcscf.fingerprint(first.impi, first.ue._contact()) is None
        assert watched.home.pcscf.fingerprint(second.impi, second.ue._contact()) is not None


@pytest.mark.parametrize("age", [0.0, 2 * LAST_WORDS], ids=["just-registered", "long-registered"])
@pytest.mark.parametrize("why", ["noresource", "refused 404"])
async def test_where_the_subscription_is_over_and_nobody_is_registered_every_device_ends(age: float, why: str) -> None:
    """§5.2.5.2: also those that no NOTIFY named."""
    async with opened() as watched:
        home = watched.home
        devices = [home.device(number=number) for number in range(1, 6)]
        for device in devices:
            await device.register()
        home.clock.time += age
        info = watched.pcscf.subscriber.info(IMPU)
        assert info is not None
        watched.pcscf.subscriber.abandon(IMPU)  # so that none of the NOTIFYs that follow is heard
        await home.scscf.network_deregister(devices[0].impi, None, "deactivated")
        await settle()
        assert None not in [home.pcscf.fingerprint(each.impi, each.ue._contact()) for each in devices]
        watched.pcscf.heard(RegNews(IMPU, info, (), why))
        await settle()
        assert [home.pcscf.fingerprint(each.impi, each.ue._contact()) for each in devices] == 5 * [None]
        assert home.counter["pcscf_ended", "expired"] == 5


async def test_a_first_subscribe_that_finds_nobody_registered_ends_every_device() -> None:
    """§5.2.5.2: the network ended them between the 200 and the SUBSCRIBE."""
    async with opened() as watched:
        home = watched.home
        devices = [home.device(number=number) for number in range(1, 6)]
        for device in devices:
            await device.register()
        watched.pcscf.subscriber.abandon(IMPU)
        await home.scscf.network_deregister(devices[0].impi, None, "deactivated")
        binding = home.pcscf.bindings.of_resource(IMPU)[0]
        watched.pcscf.registered(binding)
        await settle()
        assert [home.pcscf.fingerprint(each.impi, each.ue._contact()) for each in devices] == 5 * [None]


async def test_where_the_subscription_is_over_and_users_are_registered_they_stay() -> None:
    """The S-CSCF is asked: an end of the subscription does not say that anybody's registration ended."""
    async with opened() as watched:
        home = watched.home
        devices = [home.device(number=number) for number in range(1, 6)]
        for device in devices:
            await device.register()
        home.clock.time += 2 * LAST_WORDS
        info = watched.pcscf.subscriber.info(IMPU)
        assert info is not None
        watched.pcscf.subscriber.abandon(IMPU)
        watched.pcscf.heard(RegNews(IMPU, info, (), "noresource"))
        await settle()
        assert None not in [home.pcscf.fingerprint(each.impi, each.ue._contact()) for each in devices]
        assert watched.pcscf.subscriber.watches(IMPU)


async def test_the_as_subscribes_at_the_users_s_cscf_and_erases_keys_at_the_end() -> None:
    """§5.7.1.1: even where the push that says so is lost."""
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        assert watched.subscribes(NICKS[XCAP], "S") == 1
        assert await watched.home.keys_at() == 1
        watched.home.network.requests["S", NICKS[XCAP]] = lambda request: (
            request if request.method == "NOTIFY" else request.replacing("CSeq", "1 MESSAGE")
        )
        await watched.home.scscf.network_deregister(alice.impi, None, "deactivated")
        await settle()
        assert await watched.home.keys_at() == 0
        assert watched.home.counter["as_keys_erased", "reg-event"] == 1
        assert watched.server.subscriber.count == 0


async def test_a_stranger_who_claims_to_be_another_s_cscf_ends_no_subscription() -> None:
    """Nor is anything sent where it says."""
    async with opened() as watched:
        home, device = watched.home, watched.home.device()
        stranger = home.network.attach("X", "x.invalid", None)
        await device.register()
        claim = build_third_party_register(
            server_name=SIP_OF[XCAP], scscf_uri="sip:x.invalid", impu=device.ue.profile.impu, expires=600, call_id="c", cseq=1, from_tag="f"
        )
        assert (await stranger.send(claim, home.network.peer("AS1"))).status == 200
        await settle()
        assert watched.server.subscriber.watches(device.ue.profile.impu)
        assert watched.subscribes("AS1", "X") == 0


async def test_a_user_who_is_back_before_the_end_is_told_keeps_the_new_keys() -> None:
    """A NOTIFY may be late; the AS asks before it erases."""
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        info = watched.server.subscriber.info(IMPU)
        assert info is not None
        watched.server.subscriber.abandon(IMPU)
        watched.server.heard(RegNews(IMPU, info, (), "noresource"))
        await settle()
        assert await watched.home.keys_at() == 1
        assert watched.server.subscriber.watches(IMPU)


async def test_keys_pushed_while_the_as_asks_stay() -> None:
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        info = watched.server.subscriber.info(IMPU)
        assert info is not None
        await watched.home.scscf.network_deregister(alice.impi, None, "deactivated")
        watched.server._scscf[IMPU], watched.server._seen[IMPU] = "sip:scscf1.home1.net", watched.server._count + 1
        watched.server.heard(RegNews(IMPU, info, (), "noresource"))
        await settle()
        assert IMPU in watched.server._seen


async def test_an_s_cscf_that_refuses_erases_nothing() -> None:
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        info = watched.server.subscriber.info(IMPU)
        assert info is not None
        watched.server.subscriber.abandon(IMPU)
        watched.home.network.requests[NICKS[XCAP], "S"] = lambda request: request.without("P-Asserted-Identity")
        watched.server.heard(RegNews(IMPU, info, (), "noresource"))
        watched.server.heard(RegNews("sip:unknown@home1.net", info, (), "noresource"))
        watched.server.heard(RegNews(IMPU, info, ()))
        await settle()
        assert await watched.home.keys_at() == 1
        assert "not-subscribed" in watched.home.log.warnings


async def test_only_as_many_users_are_remembered_as_may_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_SUBSCRIPTIONS", 1)
    async with opened() as watched:
        await watched.home.device().register()
        await watched.home.device("bobby").register()
        assert list(watched.server._scscf) == ["sip:bobby@home1.net"]


async def test_who_is_forgotten_before_the_as_subscribed_leaves_no_failed_task_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound, in one turn of the loop; the oldest go first, and who moves to another S-CSCF is none of them."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    monkeypatch.setattr(watching, "MAX_SUBSCRIPTIONS", 2)
    async with opened() as watched:
        for user, scscf in (("alice", 1), ("bobby", 1), ("alice", 2), ("carol", 1), ("david", 1)):
            watched.server.registered(ThirdPartyRegister(Impu(f"sip:{user}@home1.net"), f"sip:scscf{scscf}.home1.net", 600, "c", 1))
        await settle()
        assert list(watched.server._scscf) == ["sip:carol@home1.net", "sip:david@home1.net"]
    gc.collect()
    assert problems == []


async def test_where_another_s_cscf_serves_a_user_the_p_cscf_subscribes_there() -> None:
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        watched.home.network.responses["P", "I"] = lambda response: (
            response.replacing("Service-Route", "<sip:orig@scscf1.home1.net;lr;moved>") if response.get("Service-Route") else response
        )
        await alice.register()
        assert watched.subscribes("P", "I") == 2
        assert watched.pcscf.subscriber.count == 1


async def test_the_p_cscf_too_remembers_no_more_users_than_it_may_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MAX_SUBSCRIPTIONS", 1)
    async with opened() as watched:
        await watched.home.device().register()
        await watched.home.device("bobby").register()
        assert list(watched.pcscf._routes) == ["sip:bobby@home1.net"]


async def test_the_end_of_one_users_registration_does_not_end_anothers_that_has_the_same_contact() -> None:
    """§5.2.5.2: a UE may write another's address into its Contact, and de-register."""
    async with opened() as watched:
        alice, mallory = watched.home.device(), watched.home.device("bobby")
        mallory.ue.contact_uri = alice.ue.contact_uri
        await mallory.register()
        await alice.register()
        await watched.home.clock.advance(LAST_WORDS)
        await mallory.deregister()
        assert watched.home.pcscf.fingerprint(alice.impi, alice.ue._contact()) is not None
        await mallory.register()
        await watched.home.clock.advance(LAST_WORDS)
        await watched.home.scscf.network_deregister(mallory.impi, None, "rejected")
        await settle()
        assert watched.home.pcscf.fingerprint(alice.impi, alice.ue._contact()) is not None
        assert watched.home.pcscf.fingerprint(mallory.impi, mallory.ue._contact()) is None


async def late_end(watched: Watched, device: Device) -> RegNews:
    """Return what a NOTIFY of the device's end says that arrives when it has registered anew."""
    info = watched.pcscf.subscriber.info(IMPU)
    assert info is not None
    ending = [ContactChange(aor.aor, ended(contact, "deactivated")) for aor in info.registrations for contact in aor.contacts]
    return RegNews(IMPU, replace(info, registrations=()), tuple(ending), "noresource")


async def test_an_old_word_of_the_end_does_not_end_what_was_registered_since() -> None:
    """RFC 3261 §17.1.2.2: a NOTIFY is retransmitted for 64*T1; the S-CSCF is asked what holds."""
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        watched.pcscf.heard(await late_end(watched, alice))
        await settle()
        assert watched.home.pcscf.fingerprint(alice.impi, alice.ue._contact()) is not None
        assert watched.pcscf.subscriber.watches(IMPU)
        assert watched.pcscf._doubted == {}


@pytest.mark.parametrize("answer", ["MESSAGE", "SUBSCRIBE"])
async def test_a_word_of_the_end_that_holds_or_that_nobody_denies_ends_a_young_registration(answer: str) -> None:
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        news = await late_end(watched, alice)
        if answer == "SUBSCRIBE":
            await watched.home.registrations.remove(alice.impi, alice.reg, [])
        watched.home.network.requests["P", "I"] = lambda request: request.replacing("CSeq", f"1 {answer}")
        watched.pcscf.heard(news)
        await settle()
        assert watched.home.pcscf.fingerprint(alice.impi, alice.ue._contact()) is None


async def test_the_end_of_a_subscription_alone_ends_no_registration_and_there_is_a_new_one() -> None:
    async with opened() as watched:
        alice = watched.home.device()
        await alice.register()
        info = watched.pcscf.subscriber.info(IMPU)
        assert info is not None
        watched.pcscf.heard(RegNews(IMPU, info, (), "refused 403"))
        await settle()
        assert watched.pcscf.subscriber.watches(IMPU)
        watched.home.network.requests["P", "I"] = lambda request: request.replacing("CSeq", "1 MESSAGE")
        watched.pcscf.heard(RegNews(IMPU, info, (), "refused 403"))
        await settle()
        assert watched.home.pcscf.fingerprint(alice.impi, alice.ue._contact()) is not None


async def test_a_device_that_is_gone_from_the_document_is_ended_and_another_at_its_address_is_not() -> None:
    async with opened() as watched:
        first, second = watched.home.device(), watched.home.device(number=2)
        second.ue.contact_uri = first.ue.contact_uri
        await first.register()
        await second.register()
        await watched.home.clock.advance(LAST_WORDS)
        await watched.home.scscf.network_deregister(first.impi, first.reg, "deactivated")
        await settle()
        assert watched.home.pcscf.fingerprint(second.impi, second.ue._contact()) is not None
