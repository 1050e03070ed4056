# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2; TS 24.229 §5.4.1.5: what an HSS asks of an S-CSCF."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from keyferry.errors import CxError, SealError, StoreError
from keyferry.ports import DeregistrationReason, PendingPush, Registration, ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.ifc import InitialFilterCriteria, OnMethod, OnSipHeader, ServicePointTrigger, TriggerPoint
from keyferry.protocol.ims.user_profile import MAX_USER_DATA, ServiceProfile, UserProfile, build_user_profile
from keyferry.roles.scscf.profile_update import ScscfServing, Served
from keyferry.stores.memory import MemoryRegistrationStore
from roles.home import NOTES, SCSCF, SIP_OF, XCAP, Home, criterion, open_home
from roles.manual import SIP_ALICE, TEL_ALICE, Manual, on, requests
from roles.network import settle
from roles.scscf.watching import watched

ALICE = Impi("alice@home1.net")
WORK = Impu("sip:work@home1.net")
BOTH = ((SIP_ALICE, False), (TEL_ALICE, False))


def user_data(*criteria: InitialFilterCriteria, impus: Sequence[tuple[Impu, bool]] = BOTH, shared: tuple[int, ...] = ()) -> bytes:
    return build_user_profile(UserProfile(ALICE, (ServiceProfile(tuple(impus), criteria, shared),)))


ONLY_XCAP = user_data(criterion(XCAP))
BOTH_AS = user_data(criterion(XCAP), criterion(NOTES, priority=1))


class BrokenStore(MemoryRegistrationStore):
    """A store whose next write fails, whole, or whose rows do not open."""

    broken: bool = False
    sealed: bool = False
    disk: asyncio.Event | None = None  # that a write waits for

    async def commit_all(self, registrations: Sequence[Registration], pushes: Sequence[PendingPush]) -> None:
        if self.broken:
            raise StoreError("the disk is full")
        await super().commit_all(registrations, pushes)
        if self.disk is not None:
            await self.disk.wait()

    async def of_impi(self, impi: Impi) -> Sequence[Registration]:
        if self.sealed:
            raise SealError("the seal does not open in this row")
        return await super().of_impi(impi)


@pytest.fixture(name="home")
async def home_fixture() -> AsyncIterator[Home]:
    """Alice's profile has one AS."""
    async with open_home(criteria=[criterion(XCAP)]) as opened:
        opened.network.attach("X", "x.invalid", None)
        opened.registrations = BrokenStore()
        opened.start_scscf()
        yield opened


@pytest.fixture(name="serving")
def serving_fixture(home: Home) -> ScscfServing:
    return serving_of(home)


def serving_of(home: Home) -> ScscfServing:
    return ScscfServing(home.scscf, lambda impi: home.reg_event.forget(impi))


async def push(serving: ScscfServing, data: bytes) -> Served:
    noted: list[Served] = []
    serving.watchers.append(noted.append)
    try:
        await serving.push_profile(ALICE, data)
    finally:
        serving.watchers.remove(noted.append)
    await settle()
    (served,) = noted
    return served


async def refused(serving: ScscfServing, data: bytes) -> int:
    with pytest.raises(CxError) as caught:
        await serving.push_profile(ALICE, data)
    return caught.value.code


def made(served: Served) -> dict[str, bool]:
    """Return the pushes: AS_ID, and whether it erases."""
    return {each.as_id: each.erase for each in served.pushes}


class TestPushProfile:
    """§6.2.2."""

    async def test_a_new_as_gets_its_key_at_once_from_the_k_m_that_is_there(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        await alice.register()
        assert await home.key_of(alice, NOTES) is None
        served = await push(serving, BOTH_AS)
        assert (served.devices, made(served)) == (1, {NOTES: False})
        record = await home.key_of(alice, NOTES)
        assert record is not None
        assert record.k_as == alice.k_as(NOTES)
        assert record.impus == (SIP_ALICE, TEL_ALICE)
        assert len(requests(home, "S", "AS1")) == 1  # the other AS has what it shall have
        assert home.counter["scscf_challenges", "masked"] == 1
        assert await home.owed() == []

    async def test_an_as_that_is_named_no_longer_loses_its_keys(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        await alice.register()
        await push(serving, BOTH_AS)
        assert made(await push(serving, ONLY_XCAP)) == {NOTES: True}
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES)) == (1, 0)
        assert requests(home, "S", "AS2")[-1].get("Expires") == "0"
        await alice.deregister()
        assert len(requests(home, "S", "AS2")) == 2  # it is not told again

    async def test_the_key_comes_back_with_the_as_and_is_the_same(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        await alice.register()
        for data in (BOTH_AS, ONLY_XCAP, BOTH_AS):
            await push(serving, data)
        assert await home.key_of(alice, NOTES) is not None

    async def test_every_device_has_the_new_profile_in_one_write(self, home: Home, serving: ScscfServing) -> None:
        devices = [home.device(number=number) for number in (1, 2)]
        for device in devices:
            await device.register()
        served = await push(serving, BOTH_AS)
        assert (served.devices, len(served.pushes)) == (2, 2)
        assert {each.user_data for each in await home.registrations.of_impi(ALICE)} == {BOTH_AS}
        assert all([await home.key_of(device, NOTES) for device in devices])

    async def test_the_same_profile_again_does_nothing(self, home: Home, serving: ScscfServing) -> None:
        await home.device().register()
        await push(serving, BOTH_AS)
        assert (await push(serving, BOTH_AS)).pushes == ()

    async def test_another_service_info_is_pushed_with_the_complete_set(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        await alice.register()
        served = await push(serving, user_data(criterion(XCAP, service_info="tariff=2")))
        assert made(served) == {XCAP: False}
        last = home.servers[XCAP].keys.pushes[-1]
        assert (last.service_info, [key.key_id for key in last.keys]) == ("tariff=2", [alice.key_id()])

    async def test_other_identities_are_pushed_and_watchers_told(self, home: Home, serving: ScscfServing) -> None:
        """TS 24.229 §5.4.2.1.2: an identity that came, and one that went."""
        ue = Manual(home)
        await ue.procedure()
        watcher = await watched(home)
        await push(serving, user_data(criterion(XCAP), impus=((SIP_ALICE, False), (WORK, False))))
        assert home.servers[XCAP].keys.pushes[-1].impus == (SIP_ALICE, WORK)
        assert watcher.states[-1] == {SIP_ALICE: "active", WORK: "active", TEL_ALICE: "terminated"}
        assert watcher.contacts[-1] == {SIP_ALICE: "registered", WORK: "created", TEL_ALICE: "deactivated"}
        assert await home.registrations.of_impu(WORK) == ALICE

    async def test_watchers_hear_nothing_of_other_criteria(self, home: Home, serving: ScscfServing) -> None:
        await Manual(home).procedure()
        watcher = await watched(home)
        await push(serving, BOTH_AS)
        assert len(watcher.states) == 1

    async def test_an_as_that_is_named_no_longer_watches_no_longer(self, home: Home, serving: ScscfServing) -> None:
        """TS 24.229 §5.4.2.1.1; RFC 6665 §4.2.2: it is told that, and not what the user does."""
        await Manual(home).procedure()
        await push(serving, BOTH_AS)
        watcher = await watched(home, SIP_OF[NOTES])
        await push(serving, ONLY_XCAP)
        assert watcher.ended == ["rejected"]
        assert home.reg_event.count == 0
        assert len(watcher.states) == 1

    async def test_raw_keys_make_no_push(self, home: Home, serving: ScscfServing) -> None:
        """S1: the new AS is told of the registration, and gets no key."""
        await home.device(release=None).register()
        assert made(await push(serving, BOTH_AS)) == {"": False}
        assert await home.keys_at(NOTES) == 0
        assert b"kf:sealed" not in requests(home, "S", "AS2")[0].body

    @pytest.mark.parametrize(
        ("trigger", "told"),
        [
            (TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnMethod("INVITE")),)), False),
            (TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnSipHeader("Contact", "keyferry")),)), True),
            (TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnSipHeader("User-Agent")),)), False),
            (on(0), True),
            (on(1), True),
            (on(2), False),
            (None, True),
        ],
    )
    async def test_only_an_as_whose_criterion_matches_the_registration_is_told(
        self, home: Home, serving: ScscfServing, trigger: TriggerPoint | None, told: bool
    ) -> None:
        """TS 29.228 §6.2.2; annex F: what only the REGISTER had cannot match until the next one."""
        await home.device().register()
        served = await push(serving, user_data(criterion(XCAP), criterion(NOTES, priority=1, trigger=trigger)))
        assert made(served) == ({NOTES: False} if told else {})
        assert await home.keys_at(NOTES) == int(told)

    async def test_a_criterion_that_no_longer_wants_registrations_ends_the_keys(self, home: Home, serving: ScscfServing) -> None:
        await home.device().register()
        invite = TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnMethod("INVITE")),))
        assert made(await push(serving, user_data(criterion(XCAP, trigger=invite)))) == {XCAP: True}

    async def test_a_trigger_on_the_register_keeps_its_keys_and_follows_the_identities(self) -> None:
        """The AS was told, as the REGISTER itself matched, of which the S-CSCF has not all any more."""
        trigger = TriggerPoint(cnf=True, triggers=(ServicePointTrigger(OnSipHeader("User-Agent", "phone")),))
        async with open_home(criteria=[criterion(XCAP, trigger=trigger)]) as home:
            home.network.attach("X", "x.invalid", None)
            ue = Manual(home)
            await ue.procedure(**{"User-Agent": "phone 1"})
            assert await home.keys_at() == 1
            own = serving_of(home)
            changed = user_data(criterion(XCAP, trigger=trigger), impus=((SIP_ALICE, False),))
            assert made(await push(own, changed)) == {XCAP: False}
            assert home.servers[XCAP].keys.pushes[-1].impus == (SIP_ALICE,)

    async def test_sets_of_criteria_that_the_s_cscf_holds_count(self) -> None:
        async with open_home(criteria=[criterion(XCAP)], registrar={"shared_ifc": {3: [criterion(NOTES, priority=1)]}}) as home:
            alice = home.device()
            await alice.register()
            own = serving_of(home)
            assert made(await push(own, user_data(criterion(XCAP), shared=(3,)))) == {NOTES: False}
            await push(own, user_data(criterion(XCAP), shared=(3, 4)))
            assert home.log.fields("shared-ifc-unknown")["sets"] == [4]

    async def test_what_could_not_be_delivered_stays_owed_over_a_restart(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        await alice.register()
        home.network.down("AS2")
        task = asyncio.create_task(serving.push_profile(ALICE, BOTH_AS))
        await settle()
        await home.restart_scscf()
        home.network.up("AS2")
        await home.scscf.sweep()
        await settle()
        assert await home.key_of(alice, NOTES) is not None
        await task

    async def test_an_erased_set_that_could_not_be_delivered_stays_owed_too(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        await alice.register()
        await push(serving, BOTH_AS)
        home.network.down("AS2")
        task = asyncio.create_task(serving.push_profile(ALICE, ONLY_XCAP))
        await settle()
        await home.restart_scscf()
        home.network.up("AS2")
        await home.scscf.sweep()
        await settle()
        assert await home.keys_at(NOTES) == 0
        await task

    async def test_nobody_registered_is_5001(self, home: Home, serving: ScscfServing) -> None:
        """TS 29.229 §6.2.2.1: never, or not any more."""
        assert await refused(serving, BOTH_AS) == 5001
        await home.device().register()
        await home.clock.advance(86_401)
        assert await refused(serving, BOTH_AS) == 5001

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b" " * (MAX_USER_DATA + 1), 5008),
            (user_data(*[criterion(XCAP, priority=place) for place in range(101)]), 5008),
            (user_data(criterion(XCAP), impus=[(Impu(f"sip:{place}@home1.net"), False) for place in range(101)]), 5008),
            (b"", 5009),
            (b"<IMSSubscription/>", 5009),
            (b"<a", 5009),
            (user_data(criterion(XCAP), impus=((WORK, False),)), 5009),
        ],
        ids=["octets", "criteria", "identities", "nothing", "empty", "no-xml", "another-identity"],
    )
    async def test_user_data_that_cannot_be_used_change_nothing(self, home: Home, serving: ScscfServing, data: bytes, code: int) -> None:
        """TS 29.229 §6.2.2.8, §6.2.2.9; the identity that registered must stay: an RTR takes it away."""
        alice = home.device()
        await alice.register()
        before = await home.registration(alice)
        assert await refused(serving, data) == code
        assert await home.registration(alice) == before
        assert await home.key_of(alice) is not None
        assert home.counter["scscf_hss_requests", "refused"] == 1

    async def test_a_store_that_fails_leaves_everything_as_it_was(self, home: Home, serving: ScscfServing) -> None:
        """Both devices, and what is owed."""
        assert isinstance(home.registrations, BrokenStore)
        devices = [home.device(number=number) for number in (1, 2)]
        for device in devices:
            await device.register()
        home.registrations.broken = True
        assert await refused(serving, BOTH_AS) == 5012
        home.registrations.broken = False
        assert await home.owed() == []
        assert BOTH_AS not in {each.user_data for each in await home.registrations.of_impi(ALICE)}
        assert requests(home, "S", "AS2") == []
        await push(serving, BOTH_AS)
        assert await home.keys_at(NOTES) == 2

    async def test_who_waits_no_longer_leaves_nothing_undone(self, home: Home, serving: ScscfServing) -> None:
        """The connection to the HSS breaks while the disk writes."""
        assert isinstance(home.registrations, BrokenStore)
        alice = home.device()
        await alice.register()
        home.registrations.disk = asyncio.Event()
        task = asyncio.create_task(serving.push_profile(ALICE, BOTH_AS))
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        home.registrations.disk.set()
        await settle()
        assert await home.key_of(alice, NOTES) is not None
        assert await home.owed() == []

    async def test_a_row_that_does_not_open_is_5012(self, home: Home, serving: ScscfServing) -> None:
        assert isinstance(home.registrations, BrokenStore)
        home.registrations.sealed = True
        assert await refused(serving, BOTH_AS) == 5012
        assert home.log.fields("hss-request-failed")["impi"] == ALICE

    async def test_it_waits_for_a_register_that_is_under_way_and_has_the_last_word(self, home: Home, serving: ScscfServing) -> None:
        """That one was given the profile from before."""
        alice = home.device()
        await alice.register()
        gate = asyncio.Event()
        whole = home.hss

        class Slow:
            async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment) -> bytes:
                data = await whole.server_assignment(impi, impu, server_name, assignment)
                await gate.wait()
                return data

        object.__setattr__(home.scscf, "cx", Slow())
        renewing = asyncio.create_task(alice.register())
        await settle()
        pushing = asyncio.create_task(serving.push_profile(ALICE, BOTH_AS))
        await settle()
        assert not pushing.done()
        gate.set()
        await renewing
        await pushing
        await settle()
        assert (await home.registrations.of_impi(ALICE))[0].user_data == BOTH_AS
        assert await home.key_of(alice, NOTES) is not None

    async def test_the_next_registration_brings_the_profile_of_the_hss(self, home: Home, serving: ScscfServing) -> None:
        """TS 29.228 §6.1.2: a PPR that never came costs time, and nothing else."""
        alice = home.device()
        await alice.register()
        home.profiles["default"] = [criterion(NOTES)]
        await alice.register()
        assert await home.key_of(alice, NOTES) is not None
        assert await home.keys_at(XCAP) == 0


class TestRegistrationTermination:
    """§6.1.3; TS 24.229 §5.4.1.5."""

    @pytest.mark.parametrize(
        ("reason", "event"),
        [
            (DeregistrationReason.PERMANENT_TERMINATION, "rejected"),
            (DeregistrationReason.SERVER_CHANGE, "deactivated"),
            (DeregistrationReason.REMOVE_S_CSCF, "deactivated"),
        ],
    )
    async def test_registrations_and_keys_end_and_watchers_learn_why(
        self, home: Home, serving: ScscfServing, reason: DeregistrationReason, event: str
    ) -> None:
        """TS 24.229 §5.4.1.5: and the HSS, which knows, is not told."""
        ue = Manual(home)
        await ue.procedure()
        watcher = await watched(home)
        await serving.registration_termination(ALICE, (), reason, "moved\n away")
        await settle()
        assert watcher.contacts[-1] == {SIP_ALICE: event, TEL_ALICE: event}
        assert (await home.registrations.count(), await home.keys_at()) == (0, 0)
        assert requests(home, "S", "AS1")[-1].get("Expires") == "0"
        assert await home.subscribers.server_name(ALICE) == SCSCF
        assert home.log.fields("registration-terminated")["info"] == "moved? away"

    async def test_every_device_ends_and_other_users_stay(self, home: Home, serving: ScscfServing) -> None:
        devices = [home.device(number=1), home.device(number=2), home.device("bobby")]
        for device in devices:
            await device.register()
        noted: list[Served] = []
        serving.watchers.append(noted.append)
        await serving.registration_termination(ALICE, (), DeregistrationReason.PERMANENT_TERMINATION, "")
        await settle()
        assert noted == [Served(ALICE, 2)]
        assert [await home.key_of(device) is not None for device in devices] == [False, False, True]

    @pytest.mark.parametrize(("impu", "ended"), [(SIP_ALICE, True), (TEL_ALICE, True), (WORK, False)])
    async def test_an_identity_takes_its_implicit_registration_set_with_it(
        self, home: Home, serving: ScscfServing, impu: Impu, ended: bool
    ) -> None:
        """§6.1.3: and who has other identities stays."""
        alice = home.device()
        await alice.register()
        for reason in (DeregistrationReason.PERMANENT_TERMINATION, DeregistrationReason.NEW_SERVER_ASSIGNED):
            await serving.registration_termination(ALICE, (impu,), reason, "")
        assert (await home.registration(alice) is None) is ended

    async def test_a_user_who_is_served_elsewhere_is_cleared_without_a_word(self, home: Home, serving: ScscfServing) -> None:
        """NEW_SERVER_ASSIGNED: keys end, no watcher and no AS without keys is told that the user has gone."""
        home.profiles["default"] = [criterion(XCAP), criterion(NOTES, priority=1)]
        as_ids = {SIP_OF[XCAP]: (XCAP,)}
        home.push_policy = replace(home.push_policy, as_ids=as_ids)
        home.start_scscf()
        own = serving_of(home)
        await Manual(home).procedure()
        watcher = await watched(home)
        told = len(requests(home, "S", "AS2"))
        await own.registration_termination(ALICE, (), DeregistrationReason.NEW_SERVER_ASSIGNED, "")
        await settle()
        assert (await home.registrations.count(), await home.keys_at()) == (0, 0)
        assert len(watcher.states) == 1
        assert home.reg_event.count == 0
        assert len(requests(home, "S", "AS2")) == told == 1
        assert await home.subscribers.server_name(ALICE) == SCSCF
        assert home.counter["scscf_registrations", "moved"] == 1

    async def test_nobody_registered_is_no_error(self, home: Home, serving: ScscfServing) -> None:
        for reason in DeregistrationReason:
            await serving.registration_termination(ALICE, (), reason, "")
        assert home.counter["scscf_hss_requests", "done"] == 4

    async def test_a_challenge_that_is_out_brings_nobody_back(self, home: Home, serving: ScscfServing) -> None:
        ue = Manual(home)
        challenged = await ue.send()
        await serving.registration_termination(ALICE, (), DeregistrationReason.PERMANENT_TERMINATION, "")
        assert (await ue.send(ue.answer(challenged))).status == 401
        assert await home.registrations.count() == 0

    async def test_it_waits_for_a_register_that_is_under_way_and_ends_that_one(self, home: Home, serving: ScscfServing) -> None:
        alice = home.device()
        async with home.scscf.turns.turn(ALICE):
            registering = asyncio.create_task(alice.register())
            await settle()
            ending = asyncio.create_task(serving.registration_termination(ALICE, (), DeregistrationReason.SERVER_CHANGE, ""))
            await settle()
        await registering
        await ending
        await settle()
        assert (await home.registration(alice), await home.keys_at()) == (None, 0)

    async def test_a_row_that_does_not_open_is_5012(self, home: Home, serving: ScscfServing) -> None:
        assert isinstance(home.registrations, BrokenStore)
        home.registrations.sealed = True
        with pytest.raises(CxError) as caught:
            await serving.registration_termination(ALICE, (), DeregistrationReason.SERVER_CHANGE, "")
        assert caught.value.code == 5012
