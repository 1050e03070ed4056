# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6: a push is delivered at least once, retried with back-off, and taken up again by the next S-CSCF."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from keyferry.errors import LocalFailure, RemoteProtocolError
from keyferry.ports import PendingPush, Registration, SipPeer
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.identity import Impi, Impu, Reg
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.roles.scscf.as_gate import RETRY_MOST
from keyferry.roles.scscf.as_notifier import TROUBLE_MOST, AsTarget, TransportKey
from roles.home import NOTES, SIP_OF, XCAP, Home, criterion, open_home, transport_key
from roles.network import Fault, settle
from roles.notifierkit import isc, pushes, registered


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """One AS, and an S-CSCF that waits for its answer as long as it takes."""
    async with open_home(criteria=[criterion(XCAP)]) as opened:
        yield opened


def once_unsendable(home: Home, problem: Exception) -> None:
    """Let the S-CSCF's node refuse the next request to the AS."""

    def refuse(request: Request) -> Request:
        del home.network.requests["S", "AS1"]
        raise problem

    home.network.requests["S", "AS1"] = refuse


class TestRetries:
    """DESIGN §6: at least once, with back-off."""

    async def test_a_down_as_is_tried_again_with_back_off_until_it_answers(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        alice = await registered(hasty)
        await hasty.clock.advance(200)
        assert hasty.clock.pauses[:6] == [0.5, 1.0, 2.0, RETRY_MOST, RETRY_MOST, RETRY_MOST]
        hasty.network.up("AS1")
        await hasty.clock.advance(RETRY_MOST)
        assert await hasty.key_of(alice) is not None
        assert await hasty.owed() == []
        assert [request.get("CSeq") for request in pushes(hasty)][:3] == ["1 REGISTER", "2 REGISTER", "3 REGISTER"]
        assert len({request.get("Call-ID") for request in pushes(hasty)}) == 1

    async def test_the_others_wait_for_the_one_that_tries_and_go_when_it_is_answered(self, hasty: Home) -> None:
        """A dead AS gets one request after each pause, whoever many are owed it."""
        hasty.network.down("AS1")
        for user in ("alice", "bobby"):
            await registered(hasty, user=user)
        assert hasty.counter["scscf_push_failed", "held"] == 1
        await hasty.clock.advance(3.5)  # after 0.5, 1 and 2 s
        assert len(pushes(hasty)) == 4
        hasty.network.up("AS1")
        await hasty.clock.advance(RETRY_MOST)
        assert (await hasty.keys_at(), await hasty.owed()) == (2, [])

    async def test_what_waits_ends_when_the_user_authenticates_again(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        alice = await registered(hasty)
        for _ in range(5):
            await alice.register()
        assert len(hasty.scscf.notifier._tasks) == 1

    async def test_an_as_that_answers_and_takes_one_push_for_its_trouble_is_asked_ever_less_about_that_one(self, hasty: Home) -> None:
        hasty.servers[XCAP].answers = [500] * 12
        alice = await registered(hasty)
        await hasty.clock.advance(63)
        assert hasty.clock.pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, TROUBLE_MOST]
        hasty.servers[XCAP].answers = []
        assert hasty.scscf.notifier.gate(SIP_OF[XCAP]).is_open
        await registered(hasty, user="bobby")
        assert await hasty.keys_at() == 1
        await hasty.clock.advance(TROUBLE_MOST)
        assert await hasty.key_of(alice) is not None

    async def test_an_as_that_asks_for_a_pause_gets_it(self, hasty: Home) -> None:
        """RFC 3261 §21.5.4: a 503 is about the server, not about one user."""

        async def busy(request: Request, peer: SipPeer) -> Response:
            return make_response(request, 503, headers=(("Retry-After", "9 (a while)"),))

        handler = hasty.network._nodes["AS1"].handler
        hasty.network._nodes["AS1"].handler = busy
        alice = await registered(hasty)
        hasty.network._nodes["AS1"].handler = handler
        await hasty.clock.advance(8.9)
        assert await hasty.key_of(alice) is None
        await hasty.clock.advance(0.1)
        assert await hasty.key_of(alice) is not None

    async def test_each_failure_is_an_alarm(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        await registered(hasty)
        assert hasty.log.warnings == ["third-party-register-not-delivered"]
        assert hasty.counter["scscf_push_failed", "unreachable"] == 1

    async def test_what_no_receiver_would_take_says_nothing_of_the_as(self, hasty: Home) -> None:
        """The push is refused, and tried again at the next authentication; no other user waits."""
        once_unsendable(hasty, RemoteProtocolError("over 65535 octets", status=513))
        await registered(hasty)
        assert hasty.scscf.notifier.gate(SIP_OF[XCAP]).is_open
        assert hasty.counter["scscf_push_failed", "unsendable"] == 1
        assert len(await hasty.owed()) == 1
        await registered(hasty, user="bobby")
        assert await hasty.keys_at() == 1

    async def test_what_we_cannot_send_for_want_of_connections_says_nothing_of_the_as(self, hasty: Home) -> None:
        once_unsendable(hasty, LocalFailure("tcp:127.0.0.1:5060", "too many connections are open"))
        alice = await registered(hasty)
        gate = hasty.scscf.notifier.gate(SIP_OF[XCAP])
        assert (gate.is_open, gate.silent) == (True, False)  # so the next 200 waits for its key
        await registered(hasty, user="bobby")
        assert await hasty.keys_at() == 1
        await hasty.clock.advance(0.5)
        assert await hasty.key_of(alice) is not None

    @pytest.mark.parametrize("status", [500, 503, 408, 480, 600])
    async def test_an_as_in_trouble_is_tried_again(self, hasty: Home, status: int) -> None:
        hasty.servers[XCAP].answers = [status]
        alice = await registered(hasty)
        assert await hasty.key_of(alice) is None
        await hasty.clock.advance(0.5)
        assert await hasty.key_of(alice) is not None
        assert isc(hasty) == ["S > AS1 REGISTER", f"AS1 > S {status}", "S > AS1 REGISTER", "AS1 > S 200"]

    @pytest.mark.parametrize("status", [403, 404, 302])
    async def test_an_as_that_says_no_is_not_asked_again_before_a_restart(self, home: Home, status: int) -> None:
        """§5.4.1.7; no key follows a 3xx; no storm of one REGISTER a sweep."""
        home.servers[XCAP].answers = [status]
        alice = await registered(home)
        for _ in range(5):
            await home.clock.advance(60)
            await home.scscf.sweep()
        assert isc(home) == ["S > AS1 REGISTER", f"AS1 > S {status}"]
        assert home.counter["scscf_push_failed", "refused"] == 1
        assert len(await home.owed()) == 1
        await home.restart_scscf()
        await home.scscf.sweep()
        await settle()
        assert await home.key_of(alice) is not None

    async def test_the_next_authentication_asks_it_again(self, home: Home) -> None:
        home.servers[XCAP].answers = [403]
        alice = await registered(home)
        await alice.register()
        assert await home.key_of(alice) is not None
        assert await home.owed() == []

    async def test_a_refused_de_registration_is_forgotten_when_its_keys_are_over(self, home: Home) -> None:
        alice = await registered(home, expires=600)
        home.servers[XCAP].answers = [403]
        await alice.deregister()
        await home.clock.advance(900)
        await home.scscf.sweep()
        await settle()
        assert await home.owed() == []

    async def test_a_push_that_was_lost_on_its_way_back_is_repeated_and_changes_nothing(self, hasty: Home) -> None:
        hasty.network.next_to("AS1", Fault.ANSWER_LOST)
        alice = await registered(hasty)
        await hasty.clock.advance(0.5)
        first, second = hasty.servers[XCAP].keys.pushes
        assert first == second
        assert await hasty.key_of(alice) is not None
        assert await hasty.keys_at() == 1

    async def test_a_newer_authentication_ends_the_older_delivery(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        alice = await registered(hasty)
        await alice.register()
        assert len(await hasty.owed()) == 1
        hasty.network.up("AS1")
        await hasty.clock.advance(2)
        assert [push.seq for push in hasty.servers[XCAP].keys.pushes] == [max(push.seq for push in hasty.servers[XCAP].keys.pushes)]
        assert await hasty.key_of(alice) is not None
        assert await hasty.keys_at() == 1

    async def test_an_older_one_that_is_started_later_is_not_sent(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        alice = await registered(hasty)
        (newer,) = await hasty.owed()
        sent = len(pushes(hasty))
        target = AsTarget(newer.server_name, newer.as_id, (), None)
        await hasty.scscf.notifier.notify([(newer._replace(seq=newer.seq - 1), target)], await hasty.registration(alice))
        await settle()
        assert len(pushes(hasty)) == sent
        hasty.network.up("AS1")
        await hasty.clock.advance(1)
        assert [push.seq for push in hasty.servers[XCAP].keys.pushes] == [newer.seq]

    async def test_pushes_that_overtake_each_other_leave_the_newer_key(self, hasty: Home) -> None:
        """The first REGISTER arrives last: it is stale."""
        hasty.network.next_to("AS1", Fault.HELD)
        alice = await registered(hasty)
        await alice.register()
        await hasty.clock.advance(0.5)
        assert await hasty.network.release() == 200
        assert hasty.counter["as_pushes", "stale"] == 1
        assert await hasty.key_of(alice) is not None
        assert await hasty.keys_at() == 1

    async def test_a_push_delayed_past_the_de_registration_revives_nothing(self, hasty: Home) -> None:
        hasty.network.next_to("AS1", Fault.HELD)
        alice = await registered(hasty)
        await alice.deregister()
        assert await hasty.network.release() == 200
        await hasty.clock.advance(60)
        assert await hasty.keys_at() == 0

    async def test_it_is_given_up_when_its_keys_are_past_their_time(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        await registered(hasty, expires=600)
        await hasty.clock.advance(700)  # the sweep that would end the registration does not run here
        assert await hasty.owed() == []
        assert "given up" in str(hasty.log.fields("third-party-register-not-delivered")["problem"])
        sent = len(pushes(hasty))
        await hasty.clock.advance(700)
        assert len(pushes(hasty)) == sent


class TestResume:
    """DESIGN §6: a pending push survives the S-CSCF; it holds no key."""

    async def test_a_restart_takes_up_what_is_owed_with_the_same_seq(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        alice = await registered(hasty)
        (owed,) = await hasty.owed()
        await hasty.restart_scscf()
        hasty.network.up("AS1")
        assert await hasty.scscf.notifier.resume() == 1
        await settle()
        (push,) = hasty.servers[XCAP].keys.pushes
        assert push.seq == owed.seq
        assert push.impus == (Impu("sip:alice@home1.net"), Impu("tel:+15550510"))
        assert await hasty.key_of(alice) is not None
        assert await hasty.owed() == []

    async def test_an_owed_erasure_is_taken_up_too(self, hasty: Home) -> None:
        alice = await registered(hasty)
        hasty.network.down("AS1")
        await alice.deregister()
        await hasty.restart_scscf()
        hasty.network.up("AS1")
        assert await hasty.scscf.notifier.resume() == 1
        await settle()
        assert (await hasty.keys_at(), await hasty.owed()) == (0, [])

    async def test_what_is_under_way_is_left_alone(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        await registered(hasty)
        assert await hasty.scscf.notifier.resume() == 0

    async def test_what_began_while_the_store_was_asked_is_left_alone(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        alice = await registered(hasty)
        await hasty.restart_scscf()
        notifier = hasty.scscf.notifier
        (owed,) = await hasty.owed()
        get = hasty.registrations.get

        async def slow(impi: Impi, reg: Reg) -> Registration | None:
            found = await get(impi, reg)
            notifier.start(owed._replace(seq=owed.seq + 1), AsTarget(owed.server_name, owed.as_id, (), None), found)
            return found

        hasty.registrations.get = slow  # type: ignore[method-assign]
        assert await notifier.resume() == 0
        assert notifier._latest == {(alice.impi, XCAP, SIP_OF[XCAP], alice.reg): owed.seq + 1}

    async def test_a_push_of_a_registration_that_is_gone_is_dropped(self, home: Home) -> None:
        alice = await registered(home)
        push = PendingPush(alice.impi, XCAP, alice.reg, 1, False, SIP_OF[XCAP], Impu("sip:alice@home1.net"), home.clock.now() + 60)
        await home.registrations.remove(alice.impi, alice.reg, [push])
        assert await home.scscf.notifier.resume() == 0
        assert await home.owed() == []

    async def test_an_as_that_our_configuration_lists_no_more_gets_nothing(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        await registered(hasty)
        hasty.push_policy = replace(hasty.push_policy, as_ids={})
        await hasty.restart_scscf()
        hasty.network.up("AS1")
        hasty.network.ladder()
        assert await hasty.scscf.notifier.resume() == 0
        await settle()
        assert (isc(hasty), await hasty.owed()) == ([], [])

    async def test_a_profile_that_names_the_as_no_more_leaves_it_an_empty_set(self, hasty: Home) -> None:
        alice = await registered(hasty)
        hasty.network.down("AS1")
        await alice.register()
        hasty.scscf.notifier.targets_of = lambda registration: []
        await hasty.scscf.notifier.aclose()
        hasty.network.up("AS1")
        assert await hasty.scscf.notifier.resume() == 1
        await settle()
        await hasty.clock.advance(0.5)
        assert await hasty.keys_at() == 0

    async def test_no_more_are_under_way_than_the_bound(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        for user in ("alice", "bobby"):
            await registered(hasty, user=user)
        await hasty.restart_scscf()
        hasty.scscf.notifier.max_under_way = 1
        assert await hasty.scscf.notifier.resume() == 1
        hasty.network.up("AS1")
        await hasty.clock.advance(1)
        assert await hasty.scscf.notifier.resume() == 1
        await settle()
        assert await hasty.owed() == []

    async def test_what_found_no_room_is_taken_up_though_an_older_one_of_its_set_is_under_way(self, hasty: Home) -> None:
        """The older one's keys are not those that the user has now."""
        hasty.network.down("AS1")
        hasty.scscf.notifier.max_under_way = 1
        device = hasty.device()
        await device.register()
        await hasty.clock.advance(1)
        await device.register()
        hasty.scscf.notifier.max_under_way = 2
        assert await hasty.scscf.notifier.resume() == 1
        hasty.network.up("AS1")
        await hasty.clock.advance(30)
        assert await hasty.key_of(device) is not None
        assert await hasty.owed() == []

    async def test_an_as_that_answers_nobody_takes_no_room_from_another(self) -> None:
        """Its pushes wait in the store; the other's are delivered, and nothing is left behind when it is back."""
        async with open_home(push={"push_wait": 0.001}) as home:
            home.network.down("AS1")
            home.scscf.notifier.max_under_way = 2
            devices = [await registered(home, number=number) for number in range(4)]
            assert [await home.key_of(device, NOTES) is not None for device in devices] == [True] * 4
            assert await home.scscf.notifier.resume() == 0
            home.network.up("AS1")
            for _ in range(3):
                await home.clock.advance(5)
                await home.scscf.notifier.resume()
            assert [await home.key_of(device) is not None for device in devices] == [True] * 4
            assert await home.scscf.notifier.resume() == 0

    async def test_a_bounded_number_of_refusals_is_remembered(self, hasty: Home) -> None:
        hasty.scscf.notifier.max_refused = 2
        for number in range(4):
            hasty.servers[XCAP].answers[:] = [403]
            await registered(hasty, number=number)
        device = hasty.device()
        assert len(hasty.scscf.notifier.owed_to(device.impi)) == 2

    async def test_what_was_refused_under_a_transport_key_that_the_as_had_dropped_is_sent_under_the_new_one(self) -> None:
        """A rotation whose file reached the S-CSCF late."""
        kept = TransportKey("t1", Siv(transport_key(XCAP)))
        used = {XCAP: TransportKey("t0", Siv(transport_key(NOTES))), NOTES: TransportKey("t1", Siv(transport_key(NOTES)))}
        async with open_home(push={"transport_keys": used}) as home:
            device = await registered(home)
            await home.scscf.sweep()
            assert [each[1] for each in home.scscf.notifier.owed_to(device.impi)] == [XCAP]
            used[XCAP] = kept
            await home.scscf.sweep()
            await settle()
            assert await home.key_of(device) is not None
            assert await home.owed() == []

    async def test_closing_leaves_what_is_owed(self, hasty: Home) -> None:
        hasty.network.down("AS1")
        await registered(hasty)
        await hasty.scscf.notifier.aclose()
        assert len(await hasty.owed()) == 1
