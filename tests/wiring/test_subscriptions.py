# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2: what an operator is told of a PPR and an RTR."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from keyferry.errors import RemoteProtocolError
from keyferry.ports import DeregistrationReason
from keyferry.protocol.identity import Impi
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.roles.scscf.repush import Repusher
from keyferry.wiring.criteria import ProfileCriteria
from keyferry.wiring.hss import Servings
from keyferry.wiring.scscf import ScscfParts
from keyferry.wiring.subscriptions import HssOperations
from roles.home import NOTES, SCSCF, SIP_OF, XCAP, Home, criterion, open_home, subscriber
from roles.network import settle

ALICE = Impi("alice@home1.net")
CRITERIA = {
    "default": ProfileCriteria((criterion(XCAP),), (), (XCAP,)),
    "both": ProfileCriteria((criterion(XCAP), criterion(NOTES, priority=1)), (), (XCAP, NOTES)),
}


@pytest.fixture(name="home")
async def home_fixture() -> AsyncIterator[Home]:
    async with open_home(push={"push_wait": 0.05}) as opened:
        opened.profiles.clear()
        opened.profiles.update({name: each.own for name, each in CRITERIA.items()})
        yield opened


def operations(home: Home) -> HssOperations:
    serving = ScscfServing(home.scscf, home.reg_event.forget)
    home.hss.servings = Servings({SCSCF: serving})
    parts = ScscfParts(SCSCF, home.scscf, home.registrations, cast("Repusher", None), serving)
    return HssOperations(home.hss, CRITERIA, [parts])


async def push(home: Home, own: HssOperations, profile: str) -> dict[str, Any]:
    await home.subscribers.replace(subscriber("alice", profile=profile))
    shown = dict(await own.push_profile(ALICE))
    await settle()
    return shown


async def test_profiles_and_their_application_servers_are_shown(home: Home) -> None:
    assert operations(home).profiles() == {"default": (XCAP,), "both": (XCAP, NOTES)}


async def test_what_was_pushed_and_what_was_taken_is_shown(home: Home) -> None:
    own, alice = operations(home), home.device()
    await alice.register()
    shown = await push(home, own, "both")
    assert shown == {
        "profile": "both", "told": True, "server": SCSCF, "devices": 1, "problem": "",
        "pushes": [{"as_id": NOTES, "server": SIP_OF[NOTES], "reg": alice.reg, "erase": False, "delivered": True}],
    }  # fmt: skip
    home.network.down("AS2")
    (erased,) = (await push(home, own, "default"))["pushes"]
    assert (erased["erase"], erased["delivered"]) == (True, False)


async def test_nobody_else_s_change_is_shown(home: Home) -> None:
    own, devices = operations(home), [home.device(), home.device("bobby")]
    for device in devices:
        await device.register()
    serving = own.scscfs[0].serving
    with own._noting(ALICE) as noted:
        await serving.registration_termination(devices[1].impi, (), DeregistrationReason.SERVER_CHANGE, "")
        await settle()
    assert (noted, serving.watchers) == ([], [])


async def test_who_is_not_registered_is_told_nothing(home: Home) -> None:
    own = operations(home)
    assert await push(home, own, "both") == {"profile": "both", "told": False, "server": None, "devices": 0, "problem": "", "pushes": []}
    assert await own.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION, "") == {
        "told": False, "server": None, "devices": 0, "problem": "",
    }  # fmt: skip


async def test_an_end_names_the_s_cscf_and_the_number_of_devices(home: Home) -> None:
    own = operations(home)
    for number in (1, 2):
        await home.device(number=number).register()
    assert await own.terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION, "x") == {
        "told": True, "server": SCSCF, "devices": 2, "problem": "",
    }  # fmt: skip
    await settle()
    assert await home.keys_at() == 0


async def test_of_how_many_devices_an_s_cscf_of_another_process_does_not_say(home: Home) -> None:
    own = replace(operations(home), scscfs=[])
    await home.device().register()
    for shown in (await push(home, own, "both"), dict(await own.terminate(ALICE, DeregistrationReason.SERVER_CHANGE, ""))):
        assert (shown["told"], shown["server"], shown["devices"]) == (True, SCSCF, None)


async def test_an_s_cscf_of_another_process_is_named_with_what_to_do(home: Home) -> None:
    own = operations(home)
    await home.device().register()
    home.hss.servings = None
    for shown in (await push(home, own, "both"), dict(await own.terminate(ALICE, DeregistrationReason.SERVER_CHANGE, ""))):
        assert (shown["told"], shown["problem"]) == (False, f"{SCSCF} cannot be reached from here")
        assert "--admin" in str(shown["remedy"])


async def test_an_s_cscf_that_refuses_and_a_profile_that_is_gone_are_said_so(home: Home) -> None:
    own, alice = operations(home), home.device()
    await alice.register()
    await home.subscribers.replace(subscriber("alice", impus=subscriber("alice").impus[1:]))
    assert "5009" in str((await own.push_profile(ALICE))["problem"])
    shown = await push(home, own, "gone")
    assert (shown["told"], shown["problem"]) == (False, "gone is no profile of this process: there are default, both")
    assert await home.key_of(alice) is not None


async def test_nobody_is_404(home: Home) -> None:
    own = operations(home)
    for asked in (own.push_profile(Impi("eve@home1.net")), own.terminate(Impi("eve@home1.net"), DeregistrationReason.SERVER_CHANGE, "")):
        with pytest.raises(RemoteProtocolError) as caught:
            await asked
        assert caught.value.status == 404
