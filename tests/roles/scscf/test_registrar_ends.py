# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.2, §5.4.1.4, §5.4.1.5; DESIGN §5 step 6: again, and at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from keyferry.errors import CxError
from keyferry.ports import OwedEnd, PendingPush, ServerAssignment, SubscribedImpu
from keyferry.protocol.identity import Impi, Impu, Reg
from roles.home import NOTES, SCSCF, XCAP, Home, criterion, open_home, subscriber
from roles.manual import SIP_ALICE, Manual, on, requests
from roles.network import settle


class TestReauthentication:
    """§5.4.1.2; DESIGN §5 step 6."""

    async def test_all_keys_are_new_and_the_old_one_ends_with_the_first_use(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        old = await home.key_of(alice)
        await alice.register()
        new = await home.key_of(alice)
        assert old is not None
        assert new is not None
        assert old.key_id != new.key_id
        assert await home.keys_at() == 2
        await home.servers[XCAP].keys.used(new, home.clock.now())
        assert await home.keys_at() == 1

    async def test_it_is_a_re_registration_for_the_hss_and_for_the_criteria(self) -> None:
        criteria = [criterion(XCAP, trigger=on(0)), criterion(NOTES, priority=1, trigger=on(1))]
        async with open_home(criteria=criteria) as home:
            alice = home.device()
            await alice.register()
            assert [len(home.servers[each].keys.pushes) for each in (XCAP, NOTES)] == [1, 0]
            await alice.register()
            assert [len(home.servers[each].keys.pushes) for each in (XCAP, NOTES)] == [1, 1]
            assert (home.counter["scscf_registrations", "initial"], home.counter["scscf_registrations", "re"]) == (1, 1)

    async def test_an_as_that_the_profile_names_no_more_loses_the_key(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        home.hss.profiles = {"default": [criterion(XCAP)]}
        await alice.register()
        assert await home.keys_at(NOTES) == 0
        assert await home.key_of(alice, XCAP) is not None

    async def test_an_as_that_is_new_in_the_profile_gets_one_and_nobody_loses_any(self, home: Home) -> None:
        home.hss.profiles = {"default": [criterion(XCAP)]}
        alice = home.device()
        await alice.register()
        home.hss.profiles = {"default": [criterion(XCAP), criterion(NOTES, priority=1)]}
        await alice.register()
        assert await home.key_of(alice, XCAP) is not None
        assert await home.key_of(alice, NOTES) is not None

    async def test_an_as_that_restarted_empty_has_the_key_again(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        home.start_as(XCAP)
        await alice.register()
        assert await home.key_of(alice) is not None


class TestDeregistration:
    """§5.4.1.4, §5.4.1.5."""

    async def test_the_user_ends_it_and_every_key_with_it(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        state = await alice.deregister()
        assert state.k_m is None
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES), await home.registrations.count()) == (0, 0, 0)
        assert [request.get("Expires") for request in requests(home, "S", "AS1")] == ["86400", "0"]
        assert (await home.hss.user_authorization(alice.impi, SIP_ALICE, "")).server_name is None

    async def test_one_device_of_two_goes_alone(self, home: Home) -> None:
        phone, tablet = home.device(number=1), home.device(number=2)
        await phone.register()
        await tablet.register()
        assert await home.keys_at() == 2
        await phone.deregister()
        assert await home.key_of(tablet) is not None
        assert await home.keys_at() == 1
        assert await home.registration(phone) is None
        assert await home.registration(tablet) is not None
        assert (await home.hss.user_authorization(phone.impi, SIP_ALICE, "")).server_name == SCSCF  # the other is still here
        await tablet.deregister()
        assert (await home.hss.user_authorization(phone.impi, SIP_ALICE, "")).server_name is None

    async def test_a_ue_that_wants_all_gone_ends_what_the_p_cscf_has_of_them_too(self, home: Home) -> None:
        """§5.1.1.6; RFC 3261 §10.2.2."""
        phone, tablet, bob = home.device(number=1), home.device(number=2), home.device("bobby")
        for device in (phone, tablet, bob):
            await device.register()
        assert phone.state is not None
        gone = await phone.ue.deregister(phone.state, every=True)
        await settle()
        assert gone.k_m is None
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES), await home.registrations.count()) == (1, 1, 1)
        bound = [binding.ended for device in (phone, bob) for binding in home.pcscf.bindings.of_impi(device.impi)]
        assert bound == [True, True, False]
        assert {device.impi for device in home.pcscf.gm_keys} == {bob.impi}

    async def test_a_star_ends_every_device_of_that_user_and_of_no_other(self, home: Home) -> None:
        """RFC 3261 §10.2.2."""
        for device in (home.device(number=1), home.device(number=2), bob := home.device("bobby")):
            await device.register()
        assert (await Manual(home).procedure(contact="*", expires="0")).status == 200
        assert await home.registrations.count() == 1
        assert await home.key_of(bob) is not None
        assert await home.keys_at() == 1

    async def test_a_device_that_is_not_registered_can_still_say_so(self, home: Home) -> None:
        """§5.4.1.4.1 has 481 for it."""
        other = home.device()
        await other.register()
        answer = await Manual(home).procedure(expires="0")
        assert answer.status == 200
        assert [value.partition(">")[0] for value in answer.all("Contact")] == ["<sip:alice@alice1.visited1.net"]
        assert answer.get("Authentication-Info") is not None
        assert await home.key_of(other) is not None

    async def test_a_de_registration_needs_proof_too(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        assert (await Manual(home).send(contact=alice.state.contact if alice.state else "", expires="0")).status == 401
        assert await home.key_of(alice) is not None

    async def test_criteria_that_do_not_ask_for_it_do_not_save_the_key(self) -> None:
        async with open_home(criteria=[criterion(XCAP, trigger=on(0, 1))]) as home:
            alice = home.device()
            await alice.register()
            await alice.deregister()
            assert await home.keys_at() == 0

    async def test_an_hss_in_trouble_does_not_keep_it_alive(self, home: Home) -> None:
        alice = home.device()
        await alice.register()
        original = home.hss.server_assignment

        class Forgetful:
            async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
                if assignment is ServerAssignment.USER_DEREGISTRATION:
                    raise CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")
                return await original(impi, impu, name, assignment)

        object.__setattr__(home.scscf, "cx", Forgetful())
        await alice.deregister()
        assert (await home.registrations.count(), await home.keys_at()) == (0, 0)
        assert home.log.warnings == ["cx-error"]

    async def test_an_hss_that_does_not_answer_keeps_no_key_alive_meanwhile(self, home: Home) -> None:
        alice, asked, gate = home.device(), asyncio.Event(), asyncio.Event()
        await alice.register()

        class Hanging:
            async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
                asked.set()
                await gate.wait()
                raise CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")

        object.__setattr__(home.scscf, "cx", Hanging())
        leaving = asyncio.ensure_future(alice.deregister())
        await asyncio.wait_for(asked.wait(), 5)
        await settle()
        assert await home.keys_at() == 0
        object.__setattr__(home.scscf, "cx", home.hss)
        gate.set()
        await leaving
        await settle()  # and it is told as soon as it is back
        assert (await home.hss.user_authorization(alice.impi, SIP_ALICE, "")).server_name is None


class TestExpiry:
    """§5.4.1.5: the registration timer."""

    async def test_the_sweep_ends_what_is_over_and_only_that(self, home: Home) -> None:
        brief, long = home.device(expires=600), home.device("bobby", expires=3600)
        await brief.register()
        await long.register()
        await home.clock.advance(601)
        assert await home.scscf.sweep() == 1
        await settle()
        assert await home.registration(brief) is None
        assert (await home.keys_at(), await home.key_of(long) is not None) == (1, True)
        assert (await home.hss.user_authorization(brief.impi, SIP_ALICE, "")).server_name is None
        assert await home.scscf.sweep() == 0

    async def test_reg_await_auth_is_swept_too(self, home: Home) -> None:
        await Manual(home).send()
        assert len(home.scscf.authenticator.challenges) == 1
        await home.clock.advance(241)
        await home.scscf.sweep()
        assert len(home.scscf.authenticator.challenges) == 0

    async def test_the_sweep_takes_up_owed_pushes(self) -> None:
        async with open_home(push={"push_wait": 0.001}) as home:
            home.network.down("AS1")
            alice = home.device()
            await alice.register()
            await home.restart_scscf()
            home.network.up("AS1")
            await home.scscf.sweep()
            await settle()
            assert await home.key_of(alice) is not None

    async def test_the_sweep_does_not_wait_for_an_hss_that_does_not_answer(self) -> None:
        users = [f"user{number:03}" for number in range(50)]
        known = [subscriber(user, impus=(SubscribedImpu(Impu(f"sip:{user}@home1.net")),)) for user in users]
        async with open_home(subscribers=known) as home:
            for user in users:
                await home.device(user, expires=600).register()
            waiting, gate = 0, asyncio.Event()

            class Hanging:
                async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
                    nonlocal waiting
                    waiting += 1
                    await gate.wait()
                    waiting -= 1
                    return await home.hss.server_assignment(impi, impu, name, assignment)

            object.__setattr__(home.scscf, "cx", Hanging())
            await home.clock.advance(601)
            assert await asyncio.wait_for(home.scscf.sweep(), 5) == 50
            await settle()
            assert (await home.keys_at(), await home.registrations.count(), waiting) == (0, 0, 32)
            gate.set()
            await settle()
            assert (len(home.scscf.reports), waiting) == (0, 0)
            assert [await home.subscribers.server_name(one.impi) for one in known] == [None] * 50

    async def test_nor_for_a_user_whose_register_does(self, home: Home) -> None:
        first, second = home.device(expires=600), home.device("bobby", expires=600)
        await first.register()
        await second.register()
        await home.clock.advance(601)
        async with home.scscf.turns.turn(first.impi):
            assert await asyncio.wait_for(home.scscf.sweep(), 5) == 1
        assert await home.scscf.sweep() == 1
        await settle()
        assert await home.keys_at() == 0

    async def test_one_renewed_while_others_were_ended_stays(self, home: Home) -> None:
        first, second = home.device(expires=600), home.device("bobby", expires=600)
        await first.register()
        await second.register()
        await home.clock.advance(601)
        remove = home.registrations.remove

        async def renewing(impi: Impi, reg: Reg, pushes: Sequence[PendingPush], end: OwedEnd | None = None) -> None:
            await second.register()  # the writing of the first one's end takes that long
            home.registrations.remove = remove  # type: ignore[method-assign]
            await remove(impi, reg, pushes, end)

        home.registrations.remove = renewing  # type: ignore[method-assign]
        assert await home.scscf.sweep() == 1
        assert await home.registration(second) is not None
        assert await home.key_of(second) is not None

    async def test_one_ended_meanwhile_is_not_ended_again(self, home: Home) -> None:
        first, second = home.device(expires=600), home.device("bobby", expires=600)
        await first.register()
        await second.register()
        await home.clock.advance(601)
        remove = home.registrations.remove

        async def ending(impi: Impi, reg: Reg, pushes: Sequence[PendingPush], end: OwedEnd | None = None) -> None:
            home.registrations.remove = remove  # type: ignore[method-assign]
            await second.deregister()
            await remove(impi, reg, pushes, end)

        home.registrations.remove = ending  # type: ignore[method-assign]
        assert await home.scscf.sweep() == 1
        assert await home.registrations.count() == 0

    async def test_the_sweep_does_not_wait_for_slow_servers(self, home: Home) -> None:
        devices = [home.device(expires=600), home.device("bobby", expires=600)]
        for device in devices:
            await device.register()
        await home.clock.advance(601)
        gate = home.network.gates["AS1"] = asyncio.Event()
        assert await asyncio.wait_for(home.scscf.sweep(), timeout=5) == 2  # push_wait is ten
        gate.set()
        await settle()
