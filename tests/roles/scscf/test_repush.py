# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6: an AS that restarted empty gets everything again, at a bounded rate, and the S-CSCF learns of it by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from keyferry.errors import SealError, StoreError, TransportError
from keyferry.ports import AsStore, Registration, SipPeer
from keyferry.protocol.identity import Impi, Reg
from keyferry.protocol.ims.key_store_id import HEADER
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.scscf import repush
from keyferry.roles.scscf.as_gate import RETRY_FIRST, RETRY_MOST
from keyferry.roles.scscf.repush import AGAIN_MOST, Repusher, RepushPolicy
from roles.home import SIP_OF, XCAP, Device, Home, criterion, open_home, subscriber
from roles.network import settle

USERS = ("alice", "bobby", "carol", "dave", "erin")


@dataclass(slots=True)
class Watched:
    """A home network whose S-CSCF looks after its AS."""

    home: Home
    policy: RepushPolicy
    repusher: Repusher

    async def begin(self) -> None:
        """Start a re-pusher, or the next S-CSCF's."""
        notifier = self.home.scscf.notifier
        self.repusher = Repusher(
            sip=notifier.sip, resolver=self.home.network, registrations=self.home.registrations, notifier=notifier,
            owe_again=self.home.scscf.owe_again, clock=self.home.clock, random=self.home.random, log=self.home.log,
            counter=self.home.counter, policy=self.policy, sleep=self.home.clock.sleep,
        )  # fmt: skip
        notifier.heard = self.repusher.heard
        await self.repusher.start()
        await settle()

    async def restart(self) -> None:
        await self.repusher.aclose()
        await self.home.restart_scscf()
        await self.begin()

    async def registered(self, *users: str) -> list[Device]:
        devices = [self.home.device(user) for user in users or USERS]
        for device in devices:
            await device.register()
        return devices

    def lose(self) -> None:
        """Let the AS start again with nothing in its memory."""
        self.home.start_as(XCAP)

    async def have(self, devices: list[Device]) -> list[bool]:
        return [await self.home.key_of(device) is not None for device in devices]

    def pushed(self) -> int:
        return self.home.counter["scscf_repush", "pushed"]

    async def kept(self) -> list[AsStore]:
        return list(await self.home.registrations.as_stores())


@pytest.fixture(name="make")
async def make_fixture() -> AsyncIterator[Callable[..., Any]]:
    """Return what opens a network, ended after the test."""
    ends = []

    async def make(*, probe: float = 2.0, rate: int = 500, **push: Any) -> Watched:
        push.setdefault("as_ids", {SIP_OF[XCAP]: (XCAP,)})
        context = open_home(criteria=[criterion(XCAP)], subscribers=[subscriber(user) for user in USERS], push=push)
        home = await context.__aenter__()
        watched = Watched(home, RepushPolicy(probe, rate), None)  # type: ignore[arg-type]
        ends.append((watched, context))
        await watched.begin()
        return watched

    yield make
    for watched, context in ends:
        await watched.repusher.aclose()
        await context.__aexit__(None, None, None)


def answering(watched: Watched, name: Callable[[], str]) -> None:
    """Let the AS name another store in each 200."""
    node = watched.home.network._nodes["AS1"]
    handler = node.handler
    assert handler is not None

    async def handle(request: Request, peer: SipPeer) -> Response:
        response = await handler(request, peer)
        return response.replacing(HEADER, name()) if response.get(HEADER) else response

    node.handler = handle


class TestLearning:
    """How the S-CSCF learns of a loss."""

    async def test_an_idle_as_is_asked_and_gets_everything_though_nobody_registers(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered()
        watched.lose()
        assert await watched.have(devices) == [False] * 5
        await watched.home.clock.advance(2.1)
        assert await watched.have(devices) == [True] * 5
        events = [event for _, event, _ in watched.home.log.events if event.startswith("repush")]
        assert events[-2:] == ["repush-begun", "repush-ended"]
        assert watched.home.log.fields("repush-ended")["pushed"] == 5
        assert await watched.home.owed() == []

    async def test_the_answer_to_a_push_tells_it_too(self, make: Callable[..., Any]) -> None:
        watched = await make(probe=0.0)
        devices = await watched.registered()
        await watched.home.clock.advance(5)
        watched.lose()
        await watched.registered("alice")
        await watched.home.clock.advance(5)
        assert await watched.have(devices[1:]) == [True] * 4
        assert not [each for each in watched.home.network.seen if isinstance(each.message, Request) and each.message.method == "OPTIONS"]

    async def test_one_that_answers_pushes_is_not_asked(self, make: Callable[..., Any]) -> None:
        watched = await make()
        for _ in range(4):
            await watched.home.clock.advance(0.5)
            await watched.registered("alice")
        watched.home.network.ladder()
        await watched.home.clock.advance(0.1)
        assert watched.home.network.ladder() == []
        await watched.home.clock.advance(4)
        assert "S > AS1 OPTIONS" in watched.home.network.ladder()

    async def test_one_that_kept_its_keys_gets_nothing(self, make: Callable[..., Any]) -> None:
        watched = await make()
        await watched.registered()
        before = watched.pushed()
        await watched.home.clock.advance(60)
        await watched.restart()
        await watched.home.clock.advance(60)
        assert watched.pushed() == before

    async def test_one_that_does_not_answer_is_asked_until_it_does(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered()
        watched.home.network.down("AS1")
        await watched.home.clock.advance(30)
        watched.lose()
        watched.home.network.up("AS1")
        await watched.home.clock.advance(2.0)
        assert await watched.have(devices) == [True] * 5

    async def test_an_answer_to_a_question_ends_the_pause_of_a_closed_gate(self, make: Callable[..., Any]) -> None:
        watched = await make()
        gate = watched.home.scscf.notifier.gate(SIP_OF[XCAP])
        gate.failed(after=25.0)
        devices = await watched.registered("alice")
        await watched.home.clock.advance(2.0)
        assert await watched.have(devices) == [True]

    async def test_the_policy_is_asked_before_a_question_leaves(self, make: Callable[..., Any]) -> None:
        def never(peer: SipPeer) -> None:
            raise TransportError(str(peer), "the policy lets nothing leave")

        watched = await make(check_peer=never, push_wait=0.001)
        await watched.home.clock.advance(10)
        assert watched.home.network.ladder() == []
        assert await watched.kept() == []

    async def test_what_an_as_says_of_another_as_id_or_cannot_be_read_counts_for_nothing(self, make: Callable[..., Any]) -> None:
        watched = await make()
        await watched.registered()
        before, kept = watched.pushed(), await watched.kept()
        for value in ("notes.home1.net;id=0123456789abcdef0", "rubbish", "xcap.home1.net;id=short"):
            request = Request("OPTIONS", "sip:a", (("CSeq", "1 OPTIONS"),), b"")
            watched.repusher.heard(SIP_OF[XCAP], (XCAP,), make_response(request, 200, headers=((HEADER, value),)))
        await watched.home.clock.advance(1)
        assert (watched.pushed(), await watched.kept()) == (before, kept)
        assert watched.home.counter["scscf_repush", "unreadable"] == 2

    async def test_an_as_that_says_nothing_of_its_store_is_left_alone(self, make: Callable[..., Any]) -> None:
        """Any other AS: our header field is not known there."""
        watched = await make()

        async def stock(request: Request, peer: SipPeer) -> Response:
            return make_response(request, 200)

        watched.home.network._nodes["AS1"].handler = stock
        before = watched.pushed()
        await watched.registered("alice")
        await watched.home.clock.advance(10)
        assert watched.pushed() == before


class TestFirst:
    """An AS that was not known before."""

    async def test_it_gets_what_it_was_never_sent_and_nothing_twice(self, make: Callable[..., Any]) -> None:
        """DESIGN §3: K_M lets the S-CSCF serve an AS that appears later."""
        watched = await make(probe=0.0, as_ids={})
        devices = await watched.registered("alice", "bobby")
        assert await watched.have(devices) == [False] * 2
        watched.home.push_policy = replace(watched.home.push_policy, as_ids={SIP_OF[XCAP]: (XCAP,)})
        await watched.restart()
        await watched.registered("carol")
        await watched.home.clock.advance(2)
        assert await watched.have(devices) == [True] * 2
        assert watched.pushed() == 2


class TestPushing:
    """What is pushed again, and how fast."""

    async def test_only_live_registrations_with_keys_for_this_as_are(self, make: Callable[..., Any]) -> None:
        watched = await make()
        await watched.registered("alice", "bobby")
        await watched.home.device("carol", release=5).register()
        dave = watched.home.device("dave", expires=60)
        await dave.register()
        await watched.home.clock.advance(61)  # no sweep has come by yet
        before = watched.pushed()
        watched.lose()
        await watched.home.clock.advance(2)
        assert watched.pushed() - before == 2
        assert await watched.home.keys_at() == 2

    async def test_the_rate_holds_and_the_walk_is_paged(self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repush, "PAGE", 2)
        watched = await make(rate=1)
        await watched.registered()
        watched.lose()
        before = watched.pushed()
        counts = []
        for _ in range(4):
            await watched.home.clock.advance(2.0)
            counts.append(watched.pushed() - before)
        assert counts == [2, 4, 5, 5]

    async def test_a_new_authentication_meanwhile_is_not_undone(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered("alice")
        watched.home.network.down("AS1")
        watched.lose()
        raw = replace((await watched.home.registrations.as_stores())[0], store_id="f" * 24)
        watched.home.network.up("AS1")
        gate = watched.home.network.gates["AS1"] = asyncio.Event()
        request = Request("OPTIONS", "sip:a", (("CSeq", "1 OPTIONS"),), b"")
        watched.repusher.heard(SIP_OF[XCAP], (XCAP,), make_response(request, 200, headers=((HEADER, f"{XCAP};id={raw.store_id}"),)))
        await settle()
        watched.home.scscf.notifier.policy = replace(watched.home.push_policy, push_wait=0.001)
        await devices[0].register()
        gate.set()
        await settle()
        assert await watched.have(devices) == [True]
        pushes = watched.home.servers[XCAP].keys.pushes
        assert max(pushes, key=lambda push: push.seq).keys[0].key_id == devices[0].key_id()

    async def test_a_de_registration_meanwhile_is_not_undone(self, make: Callable[..., Any]) -> None:
        watched = await make()
        (alice,) = await watched.registered("alice")
        await alice.deregister()
        watched.lose()
        await watched.home.clock.advance(4)
        assert await watched.home.keys_at() == 0

    async def test_a_row_that_does_not_open_keeps_the_others_from_nothing(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered()
        get = watched.home.registrations.get

        async def broken(impi: Impi, reg: Reg) -> Registration | None:
            if impi == devices[0].impi:
                raise SealError("registration.k_m")
            found: Registration | None = await get(impi, reg)
            return found

        watched.home.registrations.get = broken
        watched.lose()
        await watched.home.clock.advance(2)
        watched.home.registrations.get = get
        assert await watched.have(devices) == [False, True, True, True, True]
        assert watched.home.counter["scscf_repush", "skipped"] == 1

    async def test_an_as_that_goes_down_in_the_middle_stops_the_walk_and_gets_the_rest_later(
        self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(repush, "PAGE", 2)
        monkeypatch.setattr(repush, "PAGE_WAIT", 0.001)
        watched = await make(push_wait=0.001)
        devices = await watched.registered()
        await watched.home.clock.advance(5)
        before = watched.pushed()
        watched.home.network.down("AS1")
        watched.lose()
        store_id = watched.home.servers[XCAP].keys.store_id
        request = Request("OPTIONS", "sip:a", (("CSeq", "1 OPTIONS"),), b"")
        watched.repusher.heard(SIP_OF[XCAP], (XCAP,), make_response(request, 200, headers=((HEADER, f"{XCAP};id={store_id}"),)))
        await watched.home.clock.advance(RETRY_FIRST)
        assert watched.pushed() - before == 2
        watched.home.network.up("AS1")
        await watched.home.clock.advance(RETRY_MOST)
        for _ in range(20):
            await asyncio.sleep(0.002)  # the page's wait is the loop's
            await watched.home.clock.advance(0.1)
        assert await watched.have(devices) == [True] * 5

    async def test_a_store_that_fails_is_an_alarm_and_the_round_is_tried_again(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered()
        walk, calls = watched.home.registrations.walk, []

        async def failing(after: int, limit: int) -> Any:
            calls.append(after)
            if len(calls) == 1:
                raise StoreError("disk full")
            return await walk(after, limit)

        watched.home.registrations.walk = failing
        watched.lose()
        await watched.home.clock.advance(20)
        assert watched.home.log.fields("repush-failed")["problem"] == "disk full"
        assert await watched.have(devices) == [True] * 5


class TestRestart:
    """A round survives the S-CSCF."""

    async def test_the_next_scscf_goes_on_where_the_last_one_was(self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repush, "PAGE", 2)
        watched = await make(rate=1)
        devices = await watched.registered()
        watched.lose()
        before = watched.pushed()
        await watched.home.clock.advance(2.0)
        (kept,) = await watched.kept()
        assert (watched.pushed() - before, kept.place) == (2, 2)
        assert watched.repusher.under_way() == {XCAP: 2}
        await watched.restart()
        assert watched.home.log.fields("repush-begun")["place"] == 2
        await watched.home.clock.advance(4)
        assert watched.pushed() - before == 5
        assert await watched.have(devices) == [True] * 5
        (kept,) = await watched.kept()
        assert kept.place is None
        assert watched.repusher.under_way() == {}

    async def test_an_as_that_lost_its_keys_while_no_scscf_ran_is_found_out(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered()
        await watched.repusher.aclose()
        watched.lose()
        await watched.restart()
        await watched.home.clock.advance(1)
        assert await watched.have(devices) == [True] * 5


class TestHostile:
    """An AS that names a new store with each answer costs little, and only itself its service."""

    async def test_it_costs_a_page_of_pushes_in_ever_longer_time(self, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(repush, "PAGE", 2)
        watched = await make()
        await watched.registered()
        names = iter(range(10**9))
        answering(watched, lambda: f"{XCAP};id={next(names):024}")
        before = watched.pushed()
        for _ in range(60):
            await watched.home.clock.advance(60)
        pushed = watched.pushed() - before
        rounds = watched.home.counter["scscf_repush", "begun"]
        assert 10 <= rounds <= 20  # 1, 2, 4 … 512, 600 s apart
        assert pushed <= 2 * rounds
        assert watched.home.counter["scscf_repush", "abandoned"] >= rounds - 3

    async def test_one_that_is_well_again_is_served_at_once_again(self, make: Callable[..., Any]) -> None:
        watched = await make()
        devices = await watched.registered()
        for _ in range(3):
            watched.lose()
            await watched.home.clock.advance(10)
            assert await watched.have(devices) == [True] * 5
        await watched.home.clock.advance(AGAIN_MOST)
        watched.lose()
        await watched.home.clock.advance(2)
        assert await watched.have(devices) == [True] * 5
