# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.2.1, §5.4.1.2.3; TS 29.228 §6.1.2.1: authentications that came to nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from keyferry.errors import CxError
from keyferry.ports import ServerAssignment
from keyferry.protocol.digest import Credentials
from keyferry.protocol.identity import Impi, Impu
from roles.home import SCSCF, Home, open_home
from roles.manual import SIP_ALICE, Manual


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with open_home() as opened:
        opened.network.attach("X", "x.invalid", None)
        yield opened


@dataclass
class Told:
    """What the HSS is told by SAR."""

    home: Home
    seen: list[ServerAssignment] = field(default_factory=list)
    broken: bool = False

    async def server_assignment(self, impi: Impi, impu: Impu, name: str, assignment: ServerAssignment) -> bytes:
        self.seen.append(assignment)
        if self.broken:
            raise CxError(3002, "DIAMETER_UNABLE_TO_DELIVER")
        return await self.home.hss.server_assignment(impi, impu, name, assignment)


def watch(home: Home) -> Told:
    told = Told(home)
    object.__setattr__(home.scscf, "cx", told)
    return told


async def wrong(ue: Manual) -> int:
    given = ue.answer(await ue.send())
    return (await ue.send(replace(given, response="0" * 32))).status


async def test_a_wrong_answer_frees_the_user_at_the_hss(home: Home) -> None:
    """AUTHENTICATION_FAILURE."""
    told, ue = watch(home), Manual(home)
    given = ue.answer(await ue.send())
    assert await home.hss.user_authorization(ue.impi, SIP_ALICE, "") == SCSCF  # MAR assigned it
    assert (await ue.send(replace(given, response="0" * 32))).status == 403
    assert told.seen == [ServerAssignment.AUTHENTICATION_FAILURE]
    assert await home.hss.user_authorization(ue.impi, SIP_ALICE, "") is None


async def test_no_answer_frees_the_user_when_reg_await_auth_ends(home: Home) -> None:
    """AUTHENTICATION_TIMEOUT; once a user, whatever the challenges."""
    told, ue = watch(home), Manual(home)
    await ue.send()
    await ue.send()
    await home.clock.advance(241)
    await home.scscf.sweep()
    assert told.seen == [ServerAssignment.AUTHENTICATION_TIMEOUT]


@pytest.mark.parametrize("answered", [True, False])
async def test_a_stranger_cannot_end_a_registration_by_failing(home: Home, answered: bool) -> None:
    await home.device().register()
    told, stranger = watch(home), Manual(home)
    if answered:
        await wrong(stranger)
    else:
        await stranger.send()
        await home.clock.advance(241)
        await home.scscf.sweep()
    assert told.seen == []
    assert await home.hss.user_authorization(stranger.impi, SIP_ALICE, "") == SCSCF


async def test_nor_a_registration_that_is_under_way(home: Home) -> None:
    told, stranger, alice = watch(home), Manual(home), Manual(home)
    given = alice.answer(await alice.send())
    stranger.usim = alice.usim
    assert await wrong(stranger) == 403
    assert told.seen == []
    assert (await alice.send(given)).status == 200


async def test_an_hss_that_cannot_be_told_changes_no_answer(home: Home) -> None:
    told = watch(home)
    told.broken = True
    assert await wrong(Manual(home)) == 403
    assert home.log.warnings == ["authentication-failed", "authentication-report-failed"]


async def test_an_answer_without_a_challenge_is_no_failure(home: Home) -> None:
    told, ue = watch(home), Manual(home)
    assert (await ue.send(Credentials(ue.impi, "home1.net", "x", "sip:home1.net", "0" * 32))).status == 401
    assert told.seen == []
