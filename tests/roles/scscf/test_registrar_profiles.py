# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 annexes B and E; TS 24.229 §5.4.1.7; DESIGN §6: what the user's profile decides."""

from __future__ import annotations

import pytest

from keyferry.errors import ParseError
from keyferry.ports import SubscribedImpu
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.ifc import OnMethod, OnSipHeader, ServicePointTrigger, TriggerPoint
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from keyferry.roles.scscf.owing import profile_of
from roles.home import NICKS, NOTES, SIP_OF, XCAP, Device, Home, criterion, open_home, subscriber
from roles.manual import SIP_ALICE, TEL_ALICE, Manual, answers, requests
from roles.network import settle


class TestProfiles:
    """TS 29.228 annexes B and E; §5.4.1.7; DESIGN §6."""

    async def open(self, home: Home, *profiles: ServiceProfile) -> Device:
        """Let the HSS say this about Alice from now on."""
        data = build_user_profile(UserProfile(Impi("alice@home1.net"), profiles))
        await self.say(home, data)
        return home.device()

    async def say(self, home: Home, data: bytes) -> None:
        class Saying:
            async def server_assignment(self, *args: object) -> bytes:
                return data

        object.__setattr__(home.scscf, "cx", Saying())

    async def test_a_barred_identity_is_not_told_and_the_to_is_another(self) -> None:
        barred = subscriber("alice", impus=(SubscribedImpu(SIP_ALICE, barred=True), SubscribedImpu(TEL_ALICE)))
        async with open_home(subscribers=[barred]) as home:
            alice = home.device()
            state = await alice.register()
            assert state.associated == (TEL_ALICE,)
            record = await home.key_of(alice)
            assert record is not None
            assert record.impus == (TEL_ALICE,)
            assert requests(home, "S", "AS1")[0].get("To") == f"<{TEL_ALICE}>"
            await alice.deregister()
            assert await home.keys_at() == 0

    async def test_where_all_are_barred_the_registration_stands_without_keys(self) -> None:
        barred = subscriber("alice", impus=(SubscribedImpu(SIP_ALICE, barred=True),))
        async with open_home(subscribers=[barred]) as home:
            state = await home.device().register()
            assert state.expires_at > 0
            assert answers(home, "S", "I")[-1].get("P-Associated-URI") is None
            assert await home.keys_at() == 0

    async def test_each_as_is_told_the_identities_whose_profile_asks_for_it(self, home: Home) -> None:
        other = Impu("sip:work@home1.net")
        both = [criterion(XCAP), criterion(NOTES, priority=1)]
        alice = await self.open(
            home, ServiceProfile(((SIP_ALICE, False), (TEL_ALICE, True)), (both[0],)), ServiceProfile(((other, False),), tuple(both))
        )
        await alice.register()
        (xcap,), (notes,) = home.servers[XCAP].keys.pushes, home.servers[NOTES].keys.pushes
        assert (xcap.impus, notes.impus) == ((SIP_ALICE, other), (other,))
        assert [requests(home, "S", nick)[0].get("To") for nick in NICKS.values()] == [f"<{SIP_ALICE}>", f"<{other}>"]

    async def test_one_as_with_two_matching_criteria_is_told_once(self) -> None:
        async with open_home(criteria=[criterion(XCAP), criterion(XCAP, priority=1, trigger=None)]) as home:
            await home.device().register()
            assert len(requests(home, "S", "AS1")) == 1

    async def test_a_criterion_that_does_not_match_pushes_nothing(self) -> None:
        trigger = TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnMethod("INVITE")),))
        async with open_home(criteria=[criterion(XCAP, trigger=trigger)]) as home:
            alice = home.device()
            state = await alice.register()
            assert state.k_m is not None
            assert requests(home, "S", "AS1") == []

    async def test_a_trigger_on_a_header_of_the_register_survives_a_restart(self) -> None:
        """The REGISTER is gone when an owed push is taken up."""
        trigger = TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnSipHeader("Contact", "keyferry")),))
        async with open_home(criteria=[criterion(XCAP, trigger=trigger)], push={"push_wait": 0.001}) as home:
            home.network.down("AS1")
            alice = home.device(expires=600)
            await alice.register()
            await home.restart_scscf()
            home.network.up("AS1")
            await home.scscf.sweep()
            await settle()
            assert await home.key_of(alice) is not None
            await home.clock.advance(601)
            await home.scscf.sweep()
            await settle()
            assert await home.keys_at() == 0

    async def test_naf_in_the_service_info_selects_the_as_id(self) -> None:
        listed = {SIP_OF[XCAP]: (XCAP, NOTES)}
        criteria = [criterion(XCAP, service_info=f"naf={XCAP}")]
        async with open_home(criteria=criteria, push={"as_ids": listed}) as home:
            alice = home.device()
            await alice.register()
            assert [push.as_id for push in home.servers[XCAP].keys.pushes] == [XCAP]
            assert home.log.warnings == []

    async def test_a_profile_without_the_identity_that_registers_is_the_hsss_fault(self, home: Home) -> None:
        await self.open(home, ServiceProfile(((TEL_ALICE, False),), ()))
        assert (await Manual(home).procedure()).status == 500
        assert await home.registrations.count() == 0

    async def test_a_profile_that_cannot_be_read_is_the_hsss_fault(self, home: Home) -> None:
        await self.say(home, b"<not XML")
        assert (await Manual(home).procedure()).status == 500
        with pytest.raises(ParseError) as caught:
            profile_of(b"<not XML")
        assert caught.value.status == 500

    async def test_a_profile_understood_in_part_raises_an_alarm(self, home: Home) -> None:
        data = build_user_profile(UserProfile(Impi("alice@home1.net"), (ServiceProfile(((SIP_ALICE, False),), (criterion(XCAP),)),)))
        await self.say(home, data.replace(b"<Priority>0</Priority>", b"<Priority>first</Priority>"))
        await home.device().register()
        assert home.log.warnings == ["user-profile-partly-ignored"]
