# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.2.1, §5.4.1.2.3; TS 29.228 §6.1.2.1: authentications that came to nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from keyferry.errors import CxError
from keyferry.ports import ServerAssignment
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.digest import Credentials, parse_aka_nonce, parse_challenge
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.marker import parse_marker
from roles.home import SCSCF, Home, open_home
from roles.manual import DEVICE, SIP_ALICE, Manual
from roles.network import settle


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
    """§5.4.1.2.3: AUTHENTICATION_FAILURE."""
    told, ue = watch(home), Manual(home)
    given = ue.answer(await ue.send())
    assert (await home.hss.user_authorization(ue.impi, SIP_ALICE, "")).server_name == SCSCF  # MAR assigned it
    assert (await ue.send(replace(given, response="0" * 32))).status == 403
    await settle()
    assert told.seen == [ServerAssignment.AUTHENTICATION_FAILURE]
    assert (await home.hss.user_authorization(ue.impi, SIP_ALICE, "")).server_name is None


async def test_no_answer_frees_the_user_when_reg_await_auth_ends(home: Home) -> None:
    """§5.4.1.2.1: AUTHENTICATION_TIMEOUT; once a user, whatever the challenges."""
    told, ue = watch(home), Manual(home)
    await ue.send()
    await ue.send()
    await home.clock.advance(241)
    await home.scscf.sweep()
    await settle()
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
    await settle()
    assert told.seen == []
    assert (await home.hss.user_authorization(stranger.impi, SIP_ALICE, "")).server_name == SCSCF


async def test_nor_a_registration_that_is_under_way(home: Home) -> None:
    told, stranger, alice = watch(home), Manual(home), Manual(home)
    given = alice.answer(await alice.send())
    stranger.usim = alice.usim
    assert await wrong(stranger) == 403
    await settle()
    assert told.seen == []
    assert (await alice.send(given)).status == 200


async def test_an_hss_that_cannot_be_told_changes_no_answer(home: Home) -> None:
    told = watch(home)
    told.broken = True
    assert await wrong(Manual(home)) == 403
    await settle()
    assert home.log.warnings == ["authentication-failed", "hss-report-waits"]
    told.broken = False
    await home.clock.advance(1)
    await settle()
    assert told.seen == [ServerAssignment.AUTHENTICATION_FAILURE] * 2


async def test_an_answer_without_a_challenge_is_no_failure(home: Home) -> None:
    told, ue = watch(home), Manual(home)
    assert (await ue.send(Credentials(ue.impi, "home1.net", "x", "sip:home1.net", "0" * 32))).status == 401
    await settle()
    assert told.seen == []


OLD = DEVICE.partition(";+g")[0]  # states no release


async def bare(ue: Manual, contact: str = OLD) -> bool:
    """Tell whether the next challenge has no marker; it is answered rightly."""
    challenged = await ue.send(contact=contact)
    nonce = parse_aka_nonce(parse_challenge(challenged.get("WWW-Authenticate") or "").nonce)
    assert (await ue.send(ue.answer(challenged), contact=contact)).status == 200
    return parse_marker(nonce.server_data) is None


async def fail(ue: Manual, contact: str = OLD) -> None:
    given = ue.answer(await ue.send(contact=contact))
    assert (await ue.send(replace(given, response=""), contact=contact)).status == 403


class TestBareNonce:
    """DESIGN §4."""

    async def test_after_a_failed_answer_the_next_challenge_is_bare_and_so_for_a_day(self, home: Home) -> None:
        ue = Manual(home)
        assert not await bare(ue)
        await fail(ue)
        assert await bare(ue)
        await home.clock.advance(86_399)
        assert await bare(ue)  # which is remembered anew
        await home.clock.advance(86_401)
        assert not await bare(ue)

    async def test_an_answer_with_part_of_the_nonce_is_a_failed_one(self, home: Home) -> None:
        ue = Manual(home)
        given = ue.answer(await ue.send(contact=OLD))
        challenged = await ue.send(replace(given, nonce=given.nonce[:44]), contact=OLD)
        nonce = parse_aka_nonce(parse_challenge(challenged.get("WWW-Authenticate") or "").nonce)
        assert nonce.server_data == b""

    async def test_it_is_never_for_a_register_that_states_a_release(self, home: Home) -> None:
        ue = Manual(home)
        await fail(ue, DEVICE)
        await fail(ue)
        assert not await bare(ue, DEVICE)

    async def test_a_stranger_who_fails_makes_one_challenge_bare_and_nothing_lasts(self, home: Home) -> None:
        ue, stranger = Manual(home), Manual(home)
        stranger.usim = ue.usim
        await fail(stranger)
        challenged = await stranger.send(contact=OLD)
        assert challenged.status == 401
        assert not await bare(ue)
        assert home.counter["scscf_bare_challenges"] == 1

    async def test_a_network_that_marks_only_the_capable_needs_none(self) -> None:
        async with open_home(auth={"release_info": "capable"}) as home:
            home.network.attach("X", "x.invalid", None)
            ue = Manual(home)
            await fail(ue)
            assert await bare(ue)
            assert home.counter["scscf_bare_challenges"] == 0


async def test_the_hss_is_told_which_vectors_will_be_masked(home: Home) -> None:
    """DESIGN §4: AMF bit 15."""
    home.hss.amf_bit = True
    for contact, amf in ((DEVICE, b"\x80\x01"), (OLD, b"\x80\x00")):
        challenged = await Manual(home).send(contact=contact)
        assert parse_aka_nonce(parse_challenge(challenged.get("WWW-Authenticate") or "").nonce).autn[6:8] == amf


async def test_a_failure_that_waits_is_not_told_past_a_challenge_that_is_being_made(home: Home) -> None:
    """The HSS has assigned the user again by then: the SAR would take that back, and who moves could not register."""
    told, ue, gate = watch(home), Manual(home), asyncio.Event()
    told.broken = True
    assert await wrong(ue) == 403
    await settle()
    asked = home.hss.multimedia_auth

    async def slowly(*arguments: Any, **options: Any) -> AuthVector:
        vector = await asked(*arguments, **options)
        await gate.wait()
        return vector

    told.multimedia_auth = slowly  # type: ignore[attr-defined]
    object.__setattr__(home.scscf.authenticator, "cx", told)
    sending = asyncio.ensure_future(ue.send())
    await settle()
    told.broken = False
    await home.clock.advance(1)
    gate.set()
    assert (await sending).status == 401
    assert told.seen == [ServerAssignment.AUTHENTICATION_FAILURE]  # the first attempt


async def test_the_hss_hears_again_of_who_is_registered_where_it_carried_out_an_earlier_end_late(home: Home) -> None:
    told, ue = watch(home), home.device()
    home.scscf.tell_again(ue.impi, SIP_ALICE)
    await settle()
    assert told.seen == [ServerAssignment.TIMEOUT_DEREGISTRATION]
    await ue.register()
    await home.hss.server_assignment(ue.impi, SIP_ALICE, SCSCF, ServerAssignment.USER_DEREGISTRATION)
    home.scscf.tell_again(ue.impi, SIP_ALICE)
    await settle()
    assert await home.hss.location_info(SIP_ALICE) == SCSCF
    assert told.seen[-1] is ServerAssignment.RE_REGISTRATION
