# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2: requests of the HSS that meet a user's REGISTERs, and too many of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from keyferry.errors import CxError
from keyferry.ports import DeregistrationReason
from keyferry.roles.scscf.profile_update import ScscfServing
from roles.home import XCAP, Home, criterion, open_home
from roles.network import settle
from roles.scscf.test_profile_update import ALICE, BOTH_AS


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with open_home(criteria=[criterion(XCAP)]) as opened:
        yield opened


@pytest.fixture
def serving(home: Home) -> ScscfServing:
    return ScscfServing(home.scscf, home.reg_event.forget)


async def test_a_registration_newer_than_the_word_that_another_serves_the_user_stays(home: Home, serving: ScscfServing) -> None:
    """It waits for the user's turn, and whoever had it is back: the HSS has assigned us again since it asked."""
    alice, tablet = home.device(), home.device(number=2)
    for device in (alice, tablet):
        await device.register()
    async with home.scscf.turns.turn(ALICE):
        registering = asyncio.create_task(alice.register())
        await settle()
        clearing = asyncio.create_task(serving.registration_termination(ALICE, (), DeregistrationReason.NEW_SERVER_ASSIGNED, ""))
        await settle()
    await registering
    await clearing
    await settle()
    assert await home.registration(alice) is not None
    assert await home.registration(tablet) is None
    assert await home.key_of(alice) is not None


async def test_a_profile_that_comes_meanwhile_makes_no_registration_newer(home: Home, serving: ScscfServing) -> None:
    await home.device().register()
    async with home.scscf.turns.turn(ALICE):
        asked = [asyncio.create_task(serving.push_profile(ALICE, BOTH_AS))]
        await settle()
        asked.append(asyncio.create_task(serving.registration_termination(ALICE, (), DeregistrationReason.NEW_SERVER_ASSIGNED, "")))
        await settle()
    await asyncio.gather(*asked)
    assert await home.registrations.count() == 0


async def test_requests_under_way_are_bounded(home: Home) -> None:
    """RFC 6733 §7.1.3: what an HSS asks again and again, as a turn does not come, fills no memory."""
    await home.device().register()
    serving = ScscfServing(home.scscf, home.reg_event.forget, limit=2)
    async with home.scscf.turns.turn(ALICE):
        asked = [asyncio.create_task(serving.push_profile(ALICE, BOTH_AS)) for _ in range(2)]
        await settle()
        for refused_too in (
            serving.push_profile(ALICE, BOTH_AS),
            serving.registration_termination(ALICE, (), DeregistrationReason.SERVER_CHANGE, ""),
        ):
            with pytest.raises(CxError) as caught:
                await refused_too
            assert (caught.value.code, caught.value.experimental) == (3004, False)
    await asyncio.gather(*asked)
    await serving.registration_termination(ALICE, (), DeregistrationReason.SERVER_CHANGE, "")
