# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.7: DefaultHandling, what is passed on, shared sets of criteria (TS 29.228 §6.1.2.1)."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.ports import SipPeer
from keyferry.protocol.ims.third_party import parse_third_party_register
from keyferry.protocol.ims.user_profile import ServiceProfile, UserProfile, build_user_profile
from keyferry.protocol.sip.message import Request, Response, make_response, parse_message
from keyferry.roles.appserver import KeyAgent, Pusher
from keyferry.roles.scscf.as_notifier import MAX_TERMINATIONS, TERMINATIONS_IN
from roles.home import NOTES, REALM, SIP_OF, XCAP, Device, Home, RecordingKeys, criterion, open_home, transport_key
from roles.manual import SIP_ALICE, Manual, requests
from roles.network import settle

NAMES = ("P-Access-Network-Info", "P-Visited-Network-ID", "P-Charging-Vector")


async def fails(home: Home, status: int) -> None:
    if status:
        home.servers[XCAP].answers[:] = [status]
    else:
        home.network.down("AS1")
    await home.device().register()
    home.network.up("AS1")
    await settle()


class TestDefaultHandling:
    """SESSION_TERMINATED: network-initiated de-registration."""

    @pytest.mark.parametrize("status", [0, 408, 480, 500, 503])
    async def test_an_as_that_does_not_serve_ends_the_registration(self, status: int) -> None:
        async with open_home(
            criteria=[criterion(XCAP, default_handling=1), criterion(NOTES, priority=1)], push={"push_wait": 0.01}
        ) as home:
            await fails(home, status)
            assert (await home.registrations.count(), await home.keys_at(NOTES)) == (0, 0)

    async def test_one_that_refuses_does_not(self) -> None:
        async with open_home(criteria=[criterion(XCAP, default_handling=1)], push={"push_wait": 0.01}) as home:
            await fails(home, 403)
            assert await home.registrations.count() == 1

    async def test_session_continued_goes_on(self) -> None:
        async with open_home(criteria=[criterion(XCAP)], push={"push_wait": 0.01}) as home:
            await fails(home, 503)
            assert await home.registrations.count() == 1

    async def test_an_as_that_is_down_does_not_put_the_network_out(self) -> None:
        async with open_home(criteria=[criterion(XCAP, default_handling=1)], push={"push_wait": 0.001}) as home:
            home.network.down("AS1")
            for number in range(MAX_TERMINATIONS + 3):
                await home.device(number=number).register()
                await settle()
            assert await home.registrations.count() == 3
            assert home.counter["scscf_terminations", "spared"] == 3
            await home.clock.advance(TERMINATIONS_IN)
            await home.device(number=100).register()
            await settle()
            assert await home.registrations.count() == 3

    @pytest.mark.parametrize("status", [503, 403])
    async def test_an_older_request_that_fails_says_nothing_of_a_newer_registration(self, status: int) -> None:
        """The AS has taken the newer one meanwhile."""
        async with open_home(criteria=[criterion(XCAP, default_handling=1)], push={"push_wait": 0.001}) as home:
            agent, late = home.servers[XCAP].agent, [asyncio.Event()]

            async def handle(request: Request, peer: SipPeer) -> Response:
                if not late:
                    return await agent.handle(request, peer)
                await late.pop().wait()
                return make_response(request, status)

            home.network.attach("AS1", SIP_OF[XCAP].partition(":")[2], handle)
            device, answer = home.device(), late[0]
            for _ in range(2):
                await device.register()
            answer.set()
            await settle()
            assert await home.registration(device) is not None
            assert await home.key_of(device) is not None
            assert home.scscf.notifier.owed_to(device.impi) == []


class TestPassedOn:
    """§5.4.1.7 g to k; RFC 7315."""

    async def test_an_as_of_the_trust_domain_learns_of_access_and_charging(self) -> None:
        values = ("3GPP-E-UTRAN-FDD", '"visited1.net"', "icid-value=1")
        async with open_home(criteria=[criterion(XCAP)]) as home:
            home.network.attach("X", "x.invalid", None)
            await Manual(home).procedure(**dict(zip(NAMES, values, strict=True)))
            (sent,) = requests(home, "S", "AS1")
            assert tuple(sent.get(name) for name in NAMES) == values

    async def test_another_does_not(self) -> None:
        async with open_home(criteria=[criterion(XCAP)], push={"as_ids": {}}) as home:
            home.network.attach("X", "x.invalid", None)
            await Manual(home).procedure(**dict.fromkeys(NAMES, "x"))
            (sent,) = requests(home, "S", "AS1")
            assert [sent.get(name) for name in NAMES] == [None] * 3


async def test_shared_sets_of_criteria_are_evaluated() -> None:
    """TS 29.228 §6.1.2.1; a set that the S-CSCF was not given is left out."""
    async with open_home(criteria=[], registrar={"shared_ifc": {7: [criterion(XCAP)]}}) as home:
        home.network.attach("X", "x.invalid", None)
        ue = Manual(home)
        data = build_user_profile(UserProfile(ue.impi, (ServiceProfile(((SIP_ALICE, False),), (), (7, 8)),)))

        class Sharing:
            async def server_assignment(self, *args: object) -> bytes:
                return data

        object.__setattr__(home.scscf, "cx", Sharing())
        assert (await ue.procedure()).status == 200
        assert await home.keys_at() == 1
        assert home.counter["scscf_shared_ifc_unknown"] == 1
        assert [fields["sets"] for _, event, fields in home.log.events if event == "shared-ifc-unknown"] == [[8]]


async def test_the_hss_names_the_sets_of_a_profile_and_their_servers_lose_the_keys_in_the_end() -> None:
    """TS 29.228 §6.1.2.1: what the set says holds for de-registration, too."""
    async with open_home(criteria=[criterion(NOTES)], registrar={"shared_ifc": {7: [criterion(XCAP, priority=1)]}}) as home:
        home.hss.shared_ifc_sets = {"default": (7,)}
        alice = home.device()
        await alice.register()
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES)) == (1, 1)
        assert home.counter["scscf_shared_ifc_unknown"] == 0
        await alice.deregister()
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES)) == (0, 0)


class TestSeveral:
    """DESIGN §6, §7: one AS may own several AS_IDs, each with its own key; a registration goes to every AS whose criterion matches."""

    async def test_an_as_of_two_as_ids_gets_one_push_for_each_and_both_again_when_it_lost_them(self) -> None:
        server = SIP_OF[XCAP]
        async with open_home(criteria=[criterion(XCAP)], push={"as_ids": {server: (XCAP, NOTES)}}) as home:
            alice = home.device()
            home.servers[XCAP].agent, keys = _agent_of_both(home)
            await alice.register()
            await _has_both(alice, keys)
            home.servers[XCAP].agent, keys = _agent_of_both(home)
            for as_id in (XCAP, NOTES):
                owed = await home.scscf.owe_again(alice.impi, alice.reg, server, as_id)
                assert owed is not None
                await home.scscf.notifier.start(*owed)
            await _has_both(alice, keys)
            assert await home.owed() == []

    async def test_the_pushes_of_one_registration_are_under_way_at_the_same_time(self) -> None:
        """The 200 waits for the slowest, not for the sum."""
        async with open_home(criteria=[criterion(XCAP), criterion(NOTES, priority=1)]) as home:
            gates = {name: asyncio.Event() for name in ("AS1", "AS2")}
            home.network.gates.update(gates)
            registering = asyncio.ensure_future(home.device().register())
            await settle()
            assert [len(requests(home, "S", name)) for name in gates] == [1, 1]
            gates["AS2"].set()
            await settle()
            assert not registering.done()
            gates["AS1"].set()
            await registering


def _agent_of_both(home: Home) -> tuple[KeyAgent, RecordingKeys]:
    keys = RecordingKeys()
    transport_keys = {(as_id, "t1"): transport_key(as_id) for as_id in (XCAP, NOTES)}
    pusher = Pusher("scscf1.home1.net", REALM, transport_keys, frozenset({REALM}))
    return KeyAgent(frozenset({XCAP, NOTES}), {pusher.name: pusher}, keys, home.clock, home.log, home.counter), keys


async def _has_both(device: Device, keys: RecordingKeys) -> None:
    assert sorted(push.as_id for push in keys.pushes) == [NOTES, XCAP]
    for as_id in (XCAP, NOTES):
        name = device.key_id(as_id)
        assert name is not None
        record = await keys.lookup(name, as_id, device.home.clock.now())
        assert record is not None
        assert record.k_as == device.k_as(as_id)


async def test_copies_and_keys_travel_in_one_multipart_body() -> None:
    """§5.4.1.7A: IncludeRegisterRequest, IncludeRegisterResponse, from the criterion to what the AS reads."""
    criteria = [criterion(XCAP, include_register_request=True, include_register_response=True)]
    async with open_home(criteria=criteria) as home:
        home.network.attach("X", "x.invalid", None)
        assert (await Manual(home).procedure()).status == 200
        (sent,) = requests(home, "S", "AS1")
        read = parse_third_party_register(sent)
        assert read.register is not None
        assert read.response is not None
        assert b"kf:sealed" in (read.service_info or "").encode()
        assert 'response=""' in (parse_message(read.register).get("Authorization") or "")
        assert parse_message(read.response).get("Authentication-Info") is None
        assert await home.keys_at() == 1
