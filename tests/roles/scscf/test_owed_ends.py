# SPDX-License-Identifier: Apache-2.0
"""Ends of registrations that the HSS was not told of: they outlive the S-CSCF, and what came after them wins (TS 29.228 §6.1.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import pytest

from keyferry.errors import CxError, RegistrationFailed, StoreError
from keyferry.ports import Assignment, OwedEnd, PendingPush, Registration, ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.scscf.registrar import OWED_FOR
from roles.home import SCSCF, Home
from roles.manual import SIP_ALICE
from roles.network import settle

END, TIMEOUT = ServerAssignment.USER_DEREGISTRATION, ServerAssignment.TIMEOUT_DEREGISTRATION


@dataclass
class Moody:
    """An HSS that is away for ends, or refuses them."""

    home: Home
    problem: CxError | None = field(default_factory=lambda: CxError(3002, "DIAMETER_UNABLE_TO_DELIVER"))
    seen: list[ServerAssignment] = field(default_factory=list)

    async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
        self.seen.append(assignment)
        if self.problem is not None and assignment not in (ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION):
            raise self.problem
        return await self.home.hss.server_assignment(impi, impu, name, assignment)


def moody(home: Home) -> Moody:
    found = Moody(home)
    object.__setattr__(home.scscf, "cx", found)
    return found


async def assigned(home: Home) -> str | None:
    return (await home.subscribers.assignment(Impi("alice@home1.net"))).server_name


async def ends(home: Home, how: ServerAssignment) -> None:
    """Let a registration end of which the HSS is not told."""
    alice = home.device(expires=600)
    await alice.register()
    moody(home)
    if how is END:
        await alice.deregister()
    else:
        await home.clock.advance(601)
        await home.scscf.sweep()
    await settle()
    assert (await home.registrations.count(), await assigned(home)) == (0, SCSCF)


@pytest.mark.parametrize("how", [END, TIMEOUT])
async def test_after_a_restart_the_hss_is_told(home: Home, how: ServerAssignment) -> None:
    await ends(home, how)
    assert await home.registrations.owed_ends() == [OwedEnd(Impi("alice@home1.net"), SIP_ALICE, how, home.clock.now())]
    await home.restart_scscf()
    await home.scscf.take_up()
    await settle()
    assert await assigned(home) is None
    assert await home.registrations.owed_ends() == []


async def test_an_s_cscf_that_ends_in_the_middle_has_owed_it_since_the_registration_was_gone(home: Home) -> None:
    alice = home.device(expires=600)
    await alice.register()
    asked = home.hss.server_assignment
    seen = []

    class Dying:
        async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
            seen.append((await home.registrations.count(), await home.registrations.owed_ends()))
            return await asked(impi, impu, name, assignment)

    object.__setattr__(home.scscf, "cx", Dying())
    await alice.deregister()
    assert seen == [(0, [OwedEnd(alice.impi, SIP_ALICE, END, home.clock.now())])]
    assert await home.registrations.owed_ends() == []  # told


async def test_a_registration_that_was_made_since_wins(home: Home) -> None:
    await ends(home, END)
    await home.restart_scscf()
    await home.device().register()
    await home.scscf.take_up()
    await settle()
    assert (await assigned(home), await home.hss.location_info(SIP_ALICE)) == (SCSCF, SCSCF)
    assert await home.registrations.owed_ends() == []


async def test_one_at_another_s_cscf_wins_too(home: Home) -> None:
    await ends(home, END)
    other = "sip:scscf2.home1.net"
    await home.hss.multimedia_auth(Impi("alice@home1.net"), SIP_ALICE, other)
    await home.hss.server_assignment(Impi("alice@home1.net"), SIP_ALICE, other, ServerAssignment.REGISTRATION)
    await home.restart_scscf()
    await home.scscf.take_up()
    await settle()
    assert (await home.hss.location_info(SIP_ALICE), await home.registrations.owed_ends()) == (other, [])


async def test_while_another_device_is_registered_nothing_is_owed(home: Home) -> None:
    one, other = home.device(), home.device(number=2)
    await one.register()
    await other.register()
    moody(home)
    await one.deregister()
    assert await home.registrations.owed_ends() == []
    await other.deregister()
    assert len(await home.registrations.owed_ends()) == 1


async def test_what_the_hss_refuses_is_owed_no_more(home: Home) -> None:
    alice = home.device()
    await alice.register()
    moody(home).problem = CxError(5001, "DIAMETER_ERROR_USER_UNKNOWN")
    await alice.deregister()
    assert await home.registrations.owed_ends() == []


async def test_an_end_that_the_network_made_is_the_hss_s_own(home: Home) -> None:
    alice = home.device()
    await alice.register()
    await home.scscf.network_deregister(alice.impi, assignment=ServerAssignment.NO_ASSIGNMENT)
    assert await home.registrations.owed_ends() == []


async def test_who_comes_back_before_the_hss_was_told_is_told_of_after_it(home: Home) -> None:
    """Copies of what went unanswered may be carried out late: only a new assignment, in its order, is safe from them."""
    alice = home.device()
    await alice.register()
    told = moody(home)
    await alice.deregister()
    told.problem = None
    told.seen.clear()
    await alice.register()
    assert told.seen == [END, ServerAssignment.REGISTRATION]
    home.counter.counts.clear()
    await home.clock.advance(60)
    assert home.counter["scscf_hss_reports", "told"] == 0
    assert told.seen == [END, ServerAssignment.REGISTRATION]
    assert (await home.hss.location_info(SIP_ALICE), await home.registrations.owed_ends()) == (SCSCF, [])


async def test_a_registration_whose_answer_is_lost_leaves_nobody_assigned(home: Home) -> None:
    """The UE is told 504; the HSS would name us to whoever asks for the user."""

    class Losing(Moody):
        async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
            self.seen.append(assignment)
            found = await home.hss.server_assignment(impi, impu, name, assignment)
            if self.problem is not None:
                problem, self.problem = self.problem, None
                raise problem
            return found

    told = Losing(home)
    object.__setattr__(home.scscf, "cx", told)
    with pytest.raises(RegistrationFailed):
        await home.device().register()
    await settle()
    assert (await assigned(home), await home.registrations.count()) == (None, 0)
    assert told.seen == [ServerAssignment.REGISTRATION, TIMEOUT]


async def test_after_a_restart_too_when_no_answer_at_all_had_come(home: Home) -> None:
    """The HSS has carried the SAR out, and cannot be reached until the S-CSCF has started again."""

    class Silent(Moody):
        async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
            if assignment is ServerAssignment.REGISTRATION:
                await home.hss.server_assignment(impi, impu, name, assignment)
            raise CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")

    object.__setattr__(home.scscf, "cx", Silent(home))
    with pytest.raises(RegistrationFailed):
        await home.device().register()
    await settle()
    assert await assigned(home) == SCSCF
    await home.restart_scscf()
    await home.scscf.take_up()
    await settle()
    assert (await assigned(home), await home.registrations.owed_ends()) == (None, [])


async def test_a_store_that_cannot_keep_the_end_leaves_it_to_this_process(home: Home) -> None:
    async def full(*_: object) -> None:
        raise StoreError("scscf.db: is full")

    home.registrations.commit = full  # type: ignore[method-assign,assignment]
    home.registrations.owe_end = full  # type: ignore[method-assign,assignment]
    with pytest.raises(RegistrationFailed):
        await home.device().register()
    await settle()
    assert (await assigned(home), home.log.fields("end-not-kept")["impi"]) == (None, "alice@home1.net")
    home.network.failures.clear()


async def test_an_end_that_is_owed_for_longer_than_a_registration_can_last_is_given_up(home: Home) -> None:
    await ends(home, END)
    await home.restart_scscf()
    await home.clock.advance(OWED_FOR + 1)
    told = moody(home)
    await home.scscf.take_up()
    await settle()
    assert (told.seen, await home.registrations.owed_ends()) == ([], [])
    assert home.log.fields("owed-ends-too-old") == {"users": 1}


async def test_nor_does_a_store_that_is_full(home: Home) -> None:
    async def full(registration: Registration, pushes: Sequence[PendingPush]) -> None:
        raise StoreError("scscf.db: is full")

    commit = home.registrations.commit
    home.registrations.commit = full  # type: ignore[method-assign]
    with pytest.raises(RegistrationFailed):
        await home.device().register()
    await settle()
    assert await assigned(home) is None
    assert len(home.network.failures) == 1
    home.network.failures.clear()
    home.registrations.commit = commit  # type: ignore[method-assign]
    alice = home.device()
    await alice.register()
    home.registrations.commit = full  # type: ignore[method-assign]
    with pytest.raises(RegistrationFailed):
        await alice.register()
    await settle()
    assert await assigned(home) == SCSCF  # as before
    home.network.failures.clear()


@pytest.mark.parametrize("how", [END, TIMEOUT])
async def test_an_hss_of_this_process_whose_store_is_full_is_told_later(home: Home, how: ServerAssignment) -> None:
    alice = home.device(expires=600)
    await alice.register()
    reassign = home.subscribers.reassign

    async def full(impi: Impi, change: Callable[[Assignment], Assignment]) -> NoReturn:
        raise StoreError("hss.db: is full")

    home.subscribers.reassign = full  # type: ignore[method-assign]
    if how is END:
        await alice.deregister()  # it is over here, and the UE is told so
    else:
        await home.clock.advance(601)
        await home.scscf.sweep()
    await settle()
    assert (await home.registrations.count(), await assigned(home)) == (0, SCSCF)
    home.subscribers.reassign = reassign  # type: ignore[method-assign]
    await home.clock.advance(60)
    assert (await assigned(home), await home.registrations.owed_ends()) == (None, [])


async def test_an_end_that_another_hss_carries_out_then_is_made_good(home: Home) -> None:
    """The end that is still to be told says nothing of who is back; what unseated him is answered late, as after any outage."""
    alice = home.device()
    await alice.register()
    told = moody(home)
    await alice.deregister()
    await settle()
    told.problem = None
    await alice.register()
    home.scscf.reports.owe(alice.impi, SIP_ALICE, ServerAssignment.RE_REGISTRATION)
    await home.clock.advance(60)
    assert told.seen[-1] is ServerAssignment.RE_REGISTRATION


async def test_a_store_that_cannot_forget_keeps_nobody_from_leaving(home: Home) -> None:
    alice = home.device()
    await alice.register()

    async def failing(impi: Impi) -> None:
        raise StoreError("scscf.db: is full")

    home.registrations.end_told = failing  # type: ignore[method-assign]
    await alice.deregister()
    assert (await assigned(home), await home.registrations.count()) == (None, 0)
    assert home.log.warnings == ["owed-end-stays"]
