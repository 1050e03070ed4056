# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.7; DESIGN §5 step 4 ("key first"), §6 (delivery)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from keyferry.errors import LocalProtocolError, ProtectionUnmet, StoreError, TransportError
from keyferry.ports import PendingPush, SipPeer, SubscribedImpu
from keyferry.protocol.identity import AsId, Impu
from keyferry.protocol.ims.ifc import ApplicationServer
from keyferry.protocol.ims.keypush import SealedPush, parse_service_info
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.sip.message import Request
from keyferry.roles.scscf.as_notifier import AsTarget, select_targets
from roles.home import NOTES, REALM, SIP_OF, XCAP, Home, criterion, open_home, subscriber
from roles.network import Fault, settle
from roles.notifierkit import pushes, registered


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """One AS, and an S-CSCF that waits for its answer as long as it takes."""
    async with open_home(criteria=[criterion(XCAP)]) as opened:
        yield opened


class TestTheMessage:
    """§5.4.1.7 a to k; DESIGN §6."""

    async def test_it_says_who_registers_where(self, home: Home) -> None:
        await registered(home)
        (request,) = pushes(home)
        assert (request.method, request.uri) == ("REGISTER", "sip:as1.home1.net")
        assert (request.get("From") or "").startswith("<sip:scscf1.home1.net>;tag=")
        assert (request.get("To"), request.get("Contact")) == ("<sip:alice@home1.net>", "<sip:scscf1.home1.net>")
        assert (request.get("CSeq"), request.get("Expires")) == ("1 REGISTER", "86400")
        assert request.get("P-Associated-URI") == "<sip:alice@home1.net>, <tel:+15550510>"

    @pytest.mark.parametrize("name", ["P-Access-Network-Info", "P-Visited-Network-ID", "P-Charging-Vector"])
    async def test_a_header_of_the_register_is_copied_up_to_1024_octets(self, home: Home, name: str) -> None:
        """A UE may have written it, in several rows: a longer one is left out whole, and makes no push too large."""
        for value, copied in ((("x" * 1_024,), True), (("x" * 1_025,), False), (("\u20ac" * 400,), False), (("x" * 600, "y" * 600), False)):
            register = Request("REGISTER", "sip:home1.net", tuple((name, each) for each in value))
            server = ApplicationServer(SIP_OF[XCAP])
            (target,) = select_targets([(server, ())], home.scscf.notifier.policy, register, None)
            assert [each for each in target.access if each] == (["x" * 1_024] if copied else [])

    async def test_the_key_is_sealed_on_the_wire(self, home: Home) -> None:
        alice = await registered(home)
        (request,) = pushes(home)
        block = parse_service_info(parse_third_party_register(request).service_info or "")
        assert isinstance(block, SealedPush)
        assert (block.scscf, block.as_id, block.kid) == ("scscf1.home1.net", XCAP, "t1")
        k_as = alice.k_as()
        assert k_as is not None
        assert k_as.reveal() not in request.body

    async def test_each_as_gets_its_own_key_and_the_hsss_own_service_info(self) -> None:
        """§5.4.1.7 g: in <service-info>."""
        criteria = [criterion(XCAP, service_info="colour=blue"), criterion(NOTES, priority=1)]
        async with open_home(criteria=criteria) as home:
            alice = await registered(home)
            one, two = home.servers[XCAP].keys.pushes + home.servers[NOTES].keys.pushes
            assert [key.k_as for key in one.keys] == [alice.k_as(XCAP)]
            assert [key.k_as for key in two.keys] == [alice.k_as(NOTES)]
            assert (one.service_info, two.service_info) == ("colour=blue", None)
            assert (one.impi, one.reg, one.impus) == (alice.impi, alice.reg, (Impu("sip:alice@home1.net"), Impu("tel:+15550510")))

    async def test_a_key_ends_with_the_registration_and_a_minute_or_at_its_age(self) -> None:
        async with open_home(criteria=[criterion(XCAP)]) as home:
            await registered(home, expires=3600)
            (push,) = home.servers[XCAP].keys.pushes
            assert push.keys[0].not_before == int(home.clock.now())
            assert push.keys[0].not_after == int(home.clock.now()) + 3660
        async with open_home(criteria=[criterion(XCAP)], push={"key_max_age": 1800.0}) as home:
            await registered(home, expires=3600)
            assert home.servers[XCAP].keys.pushes[0].keys[0].not_after == int(home.clock.now()) + 1800

    async def test_the_register_and_the_200_go_along_where_the_criterion_asks_without_their_proofs(self) -> None:
        """§5.4.1.7A."""
        asking = criterion(XCAP, include_register_request=True, include_register_response=True)
        async with open_home(criteria=[asking]) as home:
            await registered(home)
            (request,) = pushes(home)
            taken = parse_third_party_register(request)
            assert (request.get("Content-Type") or "").startswith("multipart/mixed")
            assert (taken.register or b"").startswith(b"REGISTER sip:")
            assert (taken.response or b"").startswith(b"SIP/2.0 200")
            assert b'response=""' in (taken.register or b"")
            assert b"cnonce" not in request.body
            assert b"rspauth" not in request.body

    async def test_an_as_that_takes_no_keys_gets_the_hsss_text(self) -> None:
        async with open_home(criteria=[criterion(XCAP, service_info="colour=blue")], push={"as_ids": {}}) as home:
            alice = await registered(home)
            await alice.deregister()
            taken = [parse_third_party_register(each) for each in pushes(home)]
            assert [(each.service_info, each.expires) for each in taken] == [("colour=blue", 86_400), (None, 0)]

    async def test_a_foreign_server_name_gets_no_key(self) -> None:
        """DESIGN §6: an AS_ID goes only to ServerNames that the S-CSCF's own configuration lists for it."""
        foreign = replace(criterion(XCAP), application_server=ApplicationServer("sip:as.other.net", service_info=f"naf={XCAP}"))
        async with open_home(criteria=[foreign], push={"push_wait": 0.001}) as home:
            asked: list[Request] = []

            async def take(request: Request, peer: SipPeer) -> Any:
                asked.append(request)
                raise TransportError("as.other.net", "unused")

            home.network.attach("FOREIGN", "as.other.net", take)
            home.network.next_to("FOREIGN", Fault.LOST)
            await registered(home)
            (message,) = home.network.sent("S", "FOREIGN")
            assert isinstance(message, Request)
            assert b"urn:keyferry" not in message.body


class TestTargets:
    """DESIGN §6: who may receive."""

    def select(self, home: Home, info: str | None, listed: tuple[AsId, ...] = (XCAP, NOTES)) -> list[str]:
        server = ApplicationServer("sip:as.home1.net", service_info=info)
        policy = replace(home.push_policy, as_ids={"sip:as.home1.net": listed})
        return [target.as_id for target in select_targets([(server, (Impu("sip:a@home1.net"),))], policy, None, None)]

    async def test_every_as_id_listed_for_the_server_is_one_target(self, home: Home) -> None:
        assert self.select(home, None) == [XCAP, NOTES]
        assert self.select(home, "colour=blue") == [XCAP, NOTES]

    async def test_naf_selects_among_them(self, home: Home) -> None:
        assert self.select(home, f"naf={NOTES}") == [NOTES]
        assert self.select(home, f"naf={NOTES} naf={XCAP}") == [XCAP, NOTES]

    async def test_naf_adds_none_that_is_not_listed(self, home: Home) -> None:
        assert self.select(home, "naf=evil.net") == [""]
        assert self.select(home, f"naf={NOTES}", listed=(XCAP,)) == [""]
        assert self.select(home, None, listed=()) == [""]


class TestKeyFirst:
    """DESIGN §5 step 4: the key is at the AS when the UE learns it is registered."""

    async def test_the_200_comes_after_the_ass(self, home: Home) -> None:
        """§5.4.1.7 sends it when the 200 is decided."""
        await registered(home)
        ladder = home.network.ladder()
        assert ladder.index("AS1 > S 200") < ladder.index("S > I 200")

    async def test_the_registration_is_durable_before_the_push(self, home: Home) -> None:
        gate = home.network.gates["AS1"] = asyncio.Event()
        alice = home.device()
        registering = asyncio.ensure_future(alice.register())
        await settle()
        assert await home.registration(alice) is not None
        assert [push.as_id for push in await home.owed()] == [XCAP]
        assert not registering.done()
        gate.set()
        await registering
        assert await home.owed() == []

    async def test_a_slow_as_delays_it_by_push_wait_and_no_more(self, hasty: Home) -> None:
        gate = hasty.network.gates["AS1"] = asyncio.Event()
        alice = await registered(hasty)
        assert await hasty.key_of(alice) is None
        gate.set()
        await settle()
        assert await hasty.key_of(alice) is not None

    async def test_an_as_known_down_is_not_waited_for(self, home: Home) -> None:
        home.push_policy = replace(home.push_policy, push_wait=0.001)
        await home.restart_scscf()
        home.network.down("AS1")
        await registered(home)
        home.scscf.notifier.policy = replace(home.push_policy, push_wait=1e9)
        await asyncio.wait_for(registered(home, user="bobby"), timeout=5)
        assert len(await home.owed()) == 2

    async def test_one_200_waits_in_vain_for_an_as_that_swallows_pushes_and_the_next_do_not(self, hasty: Home) -> None:
        """No answer is no refusal: it takes 32 s to know that it is down, and the others do not wait until then."""
        gate = hasty.network.gates["AS1"] = asyncio.Event()
        await registered(hasty)
        hasty.scscf.notifier.policy = replace(hasty.push_policy, push_wait=1e9)
        await asyncio.wait_for(registered(hasty, user="bobby"), timeout=5)
        assert hasty.scscf.notifier.gate(SIP_OF[XCAP]).silent
        gate.set()
        await settle()
        assert not hasty.scscf.notifier.gate(SIP_OF[XCAP]).silent
        hasty.network.ladder()
        await registered(hasty)
        ladder = hasty.network.ladder()
        assert ladder.index("AS1 > S 200") < ladder.index("S > I 200")

    async def test_an_as_that_answers_others_meanwhile_is_not_silent(self, hasty: Home) -> None:
        """One datagram was lost: everybody else is still waited for."""
        notifier = hasty.scscf.notifier
        gate = notifier.gate(SIP_OF[XCAP])
        before = hasty.clock.monotonic()
        hasty.clock.time += 1
        gate.answered()
        gate.waited_in_vain(before)
        assert not gate.silent

    async def test_an_as_that_answers_again_is_waited_for_again(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        await registered(hasty)
        hasty.network.up("AS1")
        await hasty.clock.advance(1)
        assert await hasty.owed() == []
        hasty.scscf.notifier.policy = replace(hasty.push_policy, push_wait=1e9)
        hasty.network.ladder()
        await registered(hasty, user="bobby")
        ladder = hasty.network.ladder()
        assert ladder.index("AS1 > S 200") < ladder.index("S > I 200")


class TestPolicy:
    """DESIGN §6: protection policy and seq."""

    async def test_no_key_leaves_where_the_policy_forbids_it_and_the_registration_goes_on(self) -> None:
        def never(peer: SipPeer) -> None:
            raise TransportError(str(peer), "the policy lets no key leave")

        async with open_home(criteria=[criterion(XCAP)], push={"check_peer": never, "push_wait": 0.001}) as home:
            await registered(home)
            assert pushes(home) == []
            assert home.log.warnings == ["third-party-register-not-delivered"]

    async def test_the_policy_does_not_matter_where_no_key_goes(self) -> None:
        def never(peer: SipPeer) -> None:
            raise TransportError(str(peer), "the policy lets no key leave")

        async with open_home(criteria=[criterion(XCAP)], push={"check_peer": never, "as_ids": {}}) as home:
            await registered(home)
            assert len(pushes(home)) == 1

    async def test_a_policy_of_the_server_holds_for_what_carries_no_key_too(self) -> None:
        """A server that has `ipsec` or `tls` gets nothing in clear, whichever of its AS_IDs a criterion names."""

        async def never(peer: SipPeer) -> None:
            raise ProtectionUnmet(str(peer), "there is no CHILD_SA")

        nobody = replace(criterion(XCAP), application_server=replace(criterion(XCAP).application_server, service_info="naf=evil.net"))
        for chosen in (criterion(XCAP), nobody):
            async with open_home(criteria=[chosen], push={"protection": {XCAP: never}, "push_wait": 0.001}) as home:
                await registered(home)
                await settle()
                assert pushes(home) == []
                assert home.counter["scscf_push_failed", "unprotected"] == 1

    async def test_seq_is_the_time_and_rises_whatever_the_clock_does(self, home: Home) -> None:
        alice = await registered(home)
        first = home.servers[XCAP].keys.pushes[-1].seq
        assert first == int(home.clock.now() * 1000)
        home.clock.time -= 3600
        await home.restart_scscf()
        await alice.register()
        assert home.servers[XCAP].keys.pushes[-1].seq == first + 1

    async def test_two_seqs_given_before_either_is_stored_differ(self, home: Home) -> None:
        """Two registrations of one device in one millisecond: the AS must not take the second for a copy of the first."""
        alice = home.device()
        notifier = home.scscf.notifier
        one, two = [await notifier.next_seq(alice.impi, XCAP, alice.reg) for _ in range(2)]
        assert two == one + 1
        late = PendingPush(alice.impi, XCAP, alice.reg, one, True, SIP_OF[XCAP], Impu("sip:alice@home1.net"), home.clock.now() + 60)
        await notifier.notify([(late, AsTarget(SIP_OF[XCAP], XCAP, (), None))], None)
        assert await notifier.next_seq(alice.impi, XCAP, alice.reg) == two + 1

    async def test_where_every_identity_is_barred_no_key_goes(self) -> None:
        """There is nobody to name as its owner."""
        barred = subscriber("alice", impus=(SubscribedImpu(Impu("sip:alice@home1.net"), barred=True),))
        async with open_home(criteria=[criterion(XCAP)], subscribers=[barred]) as home:
            await registered(home)
            (push,) = home.servers[XCAP].keys.pushes
            assert (push.keys, push.impus) == ((), ())

    @pytest.mark.parametrize("problem", [StoreError("disk full"), LocalProtocolError("a set that no receiver takes")])
    async def test_a_delivery_that_fails_here_is_an_alarm_and_no_storm(self, home: Home, problem: Exception) -> None:
        async def failing(push: PendingPush) -> None:
            raise problem

        home.registrations.delivered = failing  # type: ignore[method-assign]
        await registered(home)
        await home.scscf.sweep()
        await settle()
        assert len(pushes(home)) == 1
        assert home.log.fields("third-party-register-not-delivered")["problem"] == str(problem)

    async def test_a_realm_is_part_of_the_key_id(self, home: Home) -> None:
        await registered(home)
        assert home.servers[XCAP].keys.pushes[0].keys[0].key_id.endswith(f"@{REALM}")
