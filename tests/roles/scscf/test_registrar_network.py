# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.5, §5.4.1.6, §5.4.2.1; DESIGN §5 step 4: what the network begins, and who is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from keyferry.errors import LocalProtocolError
from keyferry.protocol.digest import Credentials
from keyferry.protocol.ims.reginfo import parse_reginfo
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.scscf.registrar import EndEvent
from roles.home import REALM, SCSCF, XCAP, Home, open_home
from roles.manual import DEVICE, SIP_ALICE, Manual, requests
from roles.network import settle


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with open_home() as opened:
        opened.network.attach("X", "x.invalid", None)
        opened.trusted.add(opened.network.peer("X"))
        yield opened


@dataclass
class Watcher:
    """A subscriber to Alice's registration state."""

    home: Home
    events: list[tuple[str, str | None]] = field(default_factory=list)

    async def subscribe(self) -> Response:
        async def take(request: Request, peer: object) -> Response:
            info = parse_reginfo(request.body)
            self.events += [
                (contact.event, str(contact.retry_after) if contact.retry_after else None) for contact in info.registrations[0].contacts
            ]
            return make_response(request, 200)

        sip = self.home.network.attach("W", "w.home1.net", take)
        headers = (
            ("Max-Forwards", "70"), ("From", f"<{SIP_ALICE}>;tag=w"), ("To", f"<{SIP_ALICE}>"), ("Call-ID", "w"), ("CSeq", "1 SUBSCRIBE"),
            ("Contact", "<sip:w.home1.net>"), ("Event", "reg"), ("Expires", "3600"), ("P-Asserted-Identity", f"<{SIP_ALICE}>"),
        )  # fmt: skip
        answer = await sip.send(Request("SUBSCRIBE", SIP_ALICE, headers), self.home.network.peer("S"))
        await settle()
        return answer


async def watched(home: Home) -> Watcher:
    watcher = Watcher(home)
    assert (await watcher.subscribe()).status == 200
    return watcher


async def again(ue: Manual, **more: Any) -> Response:
    given = Credentials(ue.impi, REALM, "", f"sip:{REALM}", "", parameters=(("integrity-protected", "yes"),))
    return await ue.send(given, **more)


class TestWatching:
    """§5.4.2.1: who subscribed is told after the store has it."""

    async def test_registration_refresh_and_end_are_told(self, home: Home) -> None:
        ue = Manual(home)
        await ue.procedure()
        watcher = await watched(home)
        await home.clock.advance(10)
        await again(ue)
        await settle()
        await again(ue, expires="0")
        await settle()
        assert [event for event, _ in watcher.events] == ["registered", "refreshed", "unregistered"]

    async def test_nobody_watches_a_user_who_is_not_registered(self, home: Home) -> None:
        assert (await Watcher(home).subscribe()).status == 480

    async def test_a_notifier_that_fails_costs_no_registration(self, home: Home) -> None:
        async def failing(*args: object) -> None:
            raise LocalProtocolError("x")

        object.__setattr__(home.scscf, "changed", failing)
        assert (await Manual(home).procedure()).status == 200
        assert home.log.warnings == ["reg-event-not-told"]


class TestNetworkDeregistration:
    """§5.4.1.5."""

    @pytest.mark.parametrize(("event", "after"), [("deactivated", None), ("rejected", None), ("probation", "300")])
    async def test_registration_and_keys_end_and_the_watcher_learns_why(self, home: Home, event: EndEvent, after: str | None) -> None:
        ue = Manual(home)
        await ue.procedure()
        watcher = await watched(home)
        assert await home.scscf.network_deregister(ue.impi, None, event, 300) == 1
        await settle()
        assert watcher.events[-1] == (event, after)
        assert (await home.registrations.count(), await home.keys_at()) == (0, 0)
        assert requests(home, "S", "AS1")[-1].get("Expires") == "0"
        assert (await home.hss.user_authorization(ue.impi, SIP_ALICE, "")).server_name is None

    async def test_one_device_goes_alone(self, home: Home) -> None:
        one, two = home.device(number=1), home.device(number=2)
        await one.register()
        await two.register()
        assert await home.scscf.network_deregister(one.impi, one.reg) == 1
        await settle()
        assert await home.key_of(two) is not None
        assert (await home.hss.user_authorization(one.impi, SIP_ALICE, "")).server_name == SCSCF

    async def test_nobody_is_ended_twice(self, home: Home) -> None:
        assert await home.scscf.network_deregister(Manual(home).impi) == 0


class TestReauthentication:
    """§5.4.1.6."""

    async def test_the_next_register_is_challenged_and_makes_new_keys(self, home: Home) -> None:
        ue = Manual(home)
        await ue.procedure()
        watcher = await watched(home)
        assert await home.scscf.shorten(ue.impi, seconds=60) == 1
        await settle()
        assert watcher.events[-1][0] == "shortened"
        (registration,) = await home.registrations.of_impi(ue.impi)
        assert registration.expires_at == home.clock.now() + 60
        assert (await again(ue)).status == 401
        assert (await ue.procedure()).status == 200
        assert (await again(ue)).status == 200  # once
        assert len({push.keys[0].key_id for push in home.servers[XCAP].keys.pushes}) == 2

    async def test_a_device_may_still_leave_without_a_challenge(self, home: Home) -> None:
        ue = Manual(home)
        await ue.procedure()
        await home.scscf.shorten(ue.impi)
        assert (await again(ue, expires="0")).status == 200

    async def test_one_that_does_not_is_ended_in_time(self, home: Home) -> None:
        ue = Manual(home)
        await ue.procedure()
        await home.scscf.shorten(ue.impi, seconds=60)
        await home.clock.advance(61)
        assert await home.scscf.sweep() == 1

    async def test_only_the_device_meant(self, home: Home) -> None:
        one, two = home.device(number=1), home.device(number=2)
        await one.register()
        await two.register()
        assert await home.scscf.shorten(one.impi, one.reg) == 1
        other = await home.registration(two)
        assert other is not None
        assert other.expires_at > home.clock.now() + 60


class TestCapabilityLost:
    """DESIGN §5 step 4: a release stated only after a raw challenge."""

    async def test_it_costs_one_early_re_authentication_and_no_more(self, home: Home) -> None:
        ue, old = Manual(home), DEVICE.partition(";+g")[0]
        granted = []
        for _ in range(2):
            given = ue.answer(await ue.send(contact=old, expires="3600"))
            answer = await ue.send(given, expires="3600")
            granted.append((answer.get("Contact") or "").rpartition("expires=")[2])
        assert granted == ["60", "3600"]
        assert home.log.warnings == ["release-stated-after-raw-challenge"] * 2

    async def test_the_re_authentication_is_masked(self, home: Home) -> None:
        ue = Manual(home)
        given = ue.answer(await ue.send(contact=DEVICE.partition(";+g")[0]))
        await ue.send(given)
        assert (await again(ue)).status == 401
        await ue.procedure()
        assert await home.keys_at() == 1
