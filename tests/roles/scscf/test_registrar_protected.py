# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.2.2, §5.4.1.4; DESIGN §5 step 6: a REGISTER that came over security associations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from keyferry.protocol.digest import Credentials
from keyferry.protocol.sip.message import Response
from roles.home import REALM, XCAP, Home, open_home
from roles.manual import DEVICE, Manual


@asynccontextmanager
async def opened(*, trusted: bool = True, **settings: Any) -> AsyncIterator[tuple[Home, Manual]]:
    async with open_home(**settings) as home:
        home.network.attach("X", "x.invalid", None)
        if trusted:
            home.trusted.add(home.network.peer("X"))
        yield home, Manual(home)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Home, Manual]]:
    async with opened() as both:
        yield both


async def again(ue: Manual, protected: str = "yes", nonce: str = "", **more: Any) -> Response:
    """Send a re-REGISTER as the P-CSCF marks it; `nonce` is that of the last challenge where the UE repeats its credentials."""
    response = "0" * 32 if nonce else ""
    given = Credentials(ue.impi, REALM, nonce, f"sip:{REALM}", response, parameters=(("integrity-protected", protected),))
    return await ue.send(given, **more)


class TestReRegistration:
    """§5.4.1.2.2."""

    async def test_it_passes_unchallenged_with_the_same_key_a_later_end_and_a_higher_seq(self, pair: tuple[Home, Manual]) -> None:
        home, ue = pair
        await ue.procedure(expires="600")
        await home.clock.advance(300)
        assert (await again(ue)).status == 200
        first, second = home.servers[XCAP].keys.pushes
        assert second.seq > first.seq
        assert [key.key_id for key in first.keys] == [key.key_id for key in second.keys]
        assert second.keys[0].not_after == first.keys[0].not_after + 300
        assert await home.keys_at() == 1
        (registration,) = await home.registrations.of_impi(ue.impi)
        assert (registration.aka_time, registration.expires_at) == (home.clock.now() - 300, home.clock.now() + 600)
        assert home.counter["scscf_challenges", "masked"] == 1

    async def test_it_may_carry_the_last_credentials(self, pair: tuple[Home, Manual]) -> None:
        """§5.1.1.4: a UE repeats what it answered last."""
        _, ue = pair
        given = ue.answer(await ue.send())
        await ue.send(given)
        answer = await again(ue, nonce=given.nonce)
        assert (answer.status, answer.get("Authentication-Info")) == (200, None)

    async def test_an_answer_to_a_challenge_is_checked_whoever_protected_it(self, pair: tuple[Home, Manual]) -> None:
        _, ue = pair
        await ue.procedure()
        given = ue.answer(await ue.send())
        assert (await again(ue, nonce=given.nonce)).status == 403

    @pytest.mark.parametrize("protected", ["no", "tls-pending", "YES", "ip-assoc-yes"])
    async def test_other_values_are_challenged(self, pair: tuple[Home, Manual], protected: str) -> None:
        _, ue = pair
        await ue.procedure()
        assert (await again(ue, protected)).status == 401

    async def test_nobody_is_believed_that_is_not_trusted(self) -> None:
        async with opened(trusted=False) as (_, ue):
            await ue.procedure()
            assert (await again(ue)).status == 401
            assert (await again(ue, expires="0")).status == 401

    async def test_a_device_that_is_not_registered_is_challenged(self, pair: tuple[Home, Manual]) -> None:
        assert (await again(pair[1])).status == 401

    async def test_one_whose_time_is_over_is_challenged(self, pair: tuple[Home, Manual]) -> None:
        home, ue = pair
        await ue.procedure(expires="600")
        await home.clock.advance(600)
        assert (await again(ue)).status == 401

    @pytest.mark.parametrize(
        "more",
        [
            {"contact": DEVICE.replace("192.0.2.1", "192.0.2.2")},
            {"contact": DEVICE.replace('release="6"', 'release="7"')},
            {"contact": DEVICE.partition(";+g")[0]},
            {"Path": "<sip:pcscf2.visited1.net;lr>"},
        ],
    )
    async def test_what_came_another_way_than_the_aka_run_is_challenged(self, pair: tuple[Home, Manual], more: dict[str, str]) -> None:
        _, ue = pair
        await ue.procedure()
        assert (await again(ue, **more)).status == 401

    async def test_one_sent_before_the_binding_was_made_is_refused(self, pair: tuple[Home, Manual]) -> None:
        """RFC 3261 §10.3 step 7."""
        _, ue = pair
        await ue.procedure()
        ue.cseq -= 1
        assert (await again(ue)).status == 500

    async def test_an_aka_run_of_a_certain_age_is_followed_by_another(self) -> None:
        async with opened(registrar={"reauth_age": 1000.0}) as (home, ue):
            await ue.procedure(expires="3600")
            await home.clock.advance(999)
            assert (await again(ue, expires="3600")).status == 200
            await home.clock.advance(1)
            assert (await again(ue, expires="3600")).status == 401

    async def test_no_registration_outlives_its_keys(self) -> None:
        async with opened(registrar={"reauth_age": 1e9}, push={"key_max_age": 1000.0}) as (home, ue):
            await ue.procedure(expires="900")
            await home.clock.advance(800)
            assert (await again(ue, expires="900")).status == 200
            (registration,) = await home.registrations.of_impi(ue.impi)
            assert registration.expires_at == registration.aka_time + 1000
            await home.clock.advance(141)
            assert (await again(ue, expires="900")).status == 401  # under 60 s are left

    async def test_a_registration_with_raw_keys_is_bounded_by_the_age_alone(self) -> None:
        async with opened(auth={"mask": False}, push={"key_max_age": 100.0}) as (home, ue):
            await ue.procedure()
            assert (await again(ue)).status == 200
            assert await home.keys_at() == 0


class TestDeregistration:
    """§5.4.1.4."""

    async def test_a_protected_one_needs_no_challenge(self, pair: tuple[Home, Manual]) -> None:
        home, ue = pair
        await ue.procedure()
        assert (await again(ue, expires="0")).status == 200
        assert (await home.registrations.count(), await home.keys_at()) == (0, 0)

    async def test_it_ends_no_other_device(self, pair: tuple[Home, Manual]) -> None:
        home, ue = pair
        other = home.device()
        await other.register()
        await ue.procedure()
        await again(ue, expires="0")
        assert await home.key_of(other) is not None

    async def test_a_star_is_for_more_than_the_device_that_was_protected(self, pair: tuple[Home, Manual]) -> None:
        _, ue = pair
        await ue.procedure()
        assert (await again(ue, contact="*", expires="0")).status == 401
