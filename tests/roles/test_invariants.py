# SPDX-License-Identifier: Apache-2.0
"""DESIGN §5, invariant S1, and §6: whatever is lost, doubled, overtaken or restarted.

Two users with two devices each, of Release 5 or 6, do what they like on a network that does what it likes. After every
step: no AS was ever pushed a key of a vector whose 401 carried raw CK, IK, nor holds one. At rest: a device that believes
it has AS keys finds them at every AS, and an AS holds keys of registered devices only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from keyferry.errors import RegistrationFailed, TransportError
from keyferry.ports import Registration
from keyferry.protocol.aka import algorithm_of
from keyferry.protocol.digest import parse_aka_nonce, parse_challenge
from keyferry.protocol.identity import AsId, KeyId
from keyferry.protocol.ims.keys import access_keys, application_master_key, as_key, key_id
from keyferry.protocol.sip.message import Response
from roles.home import NICKS, NOTES, REALM, XCAP, Device, Home, open_home, subscriber
from roles.network import Fault, settle

T = TypeVar("T")
USERS = ("alice", "bobby")
SERVERS = (XCAP, NOTES)
NO_FAULT: st.SearchStrategy[list[Fault]] = st.just([])
FAULTS = NO_FAULT | NO_FAULT | st.lists(st.sampled_from(list(Fault)), max_size=4)
LIFE = 3600  # seconds that the devices ask for


class HomeNetwork(RuleBasedStateMachine):
    """The rules."""

    held = Bundle("held")  # requests that somebody holds back

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.opened: AbstractAsyncContextManager[Home] = open_home(push={"push_wait": 0.0})
        self.home = self.run(self.opened.__aenter__())
        self.devices: list[Device] = []
        self.forbidden: dict[AsId, set[KeyId]] = {as_id: set() for as_id in SERVERS}
        self.read = 0  # messages of the ladder that were looked at

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        try:
            self.run(self.at_rest())
        finally:
            self.run(self.opened.__aexit__(None, None, None))
            self.loop.close()

    @initialize(releases=st.tuples(*[st.sampled_from([None, 6, 6])] * 4))
    def plug_in(self, releases: tuple[int | None, ...]) -> None:
        owners = [(user, number) for user in USERS for number in (1, 2)]
        self.devices = [
            self.home.device(user, number, release=release, expires=LIFE) for (user, number), release in zip(owners, releases, strict=True)
        ]

    # ---- what users do

    @rule(place=st.integers(0, 3), to_p=FAULTS, to_s=FAULTS, to_as=FAULTS)
    def register(self, place: int, to_p: list[Fault], to_s: list[Fault], to_as: list[Fault]) -> None:
        self.faults(to_p, to_s, to_as)
        self.attempt(self.devices[place].register())

    @rule(
        place=st.integers(0, 3), to_as=st.lists(st.sampled_from([Fault.LOST, Fault.ANSWER_LOST, Fault.DUPLICATED, Fault.HELD]), max_size=2)
    )
    def register_with_trouble_at_the_servers(self, place: int, to_as: list[Fault]) -> None:
        self.register(place, [], [], to_as)

    @rule(place=st.integers(0, 3), to_s=FAULTS, to_as=FAULTS)
    def deregister(self, place: int, to_s: list[Fault], to_as: list[Fault]) -> None:
        self.faults([], to_s, to_as)
        if self.devices[place].state is not None:
            self.attempt(self.devices[place].deregister())

    @rule(places=st.lists(st.integers(0, 3), min_size=2, max_size=4, unique=True), to_s=FAULTS)
    def register_together(self, places: list[int], to_s: list[Fault]) -> None:
        self.faults([], to_s, [])

        async def together() -> None:
            await asyncio.gather(*(self.devices[place].register() for place in places), return_exceptions=True)

        self.run(together())

    @rule(place=st.integers(0, 3))
    def change_phones(self, place: int) -> None:
        """The card goes into a phone of the other release, with the same instance id."""
        old = self.devices[place]
        release = None if old.ue.profile.release else 6
        new = self.home.device(old.impi.partition("@")[0], int(old.name[-1]), release=release, expires=LIFE)
        new.ue.usim = old.ue.usim
        self.devices[place] = new

    # ---- what the network does

    @rule(target=held)
    def look_at_held(self) -> Any:
        return multiple(*range(len(self.home.network.held)))

    @rule(place=consumes(held))
    def release(self, place: int) -> None:
        if place < len(self.home.network.held):
            self.run(self.home.network.release(place))

    @rule()
    def restart_the_s_cscf(self) -> None:
        self.run(self.home.restart_scscf())

    @rule()
    def sweep(self) -> None:
        self.run(self.home.scscf.sweep())

    @rule(seconds=st.sampled_from([0.001, 1.0, 60.0, 700.0, LIFE + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.home.clock.advance(seconds))

    @rule(nick=st.sampled_from(sorted(NICKS.values())), up=st.booleans())
    def an_as_goes_or_comes(self, nick: str, up: bool) -> None:
        (self.home.network.up if up else self.home.network.down)(nick)

    def faults(self, to_p: list[Fault], to_s: list[Fault], to_as: list[Fault]) -> None:
        self.home.network.next_to("P", *to_p)
        self.home.network.next_to("S", *to_s)
        for nick in NICKS.values():
            self.home.network.next_to(nick, *to_as)

    def attempt(self, procedure: Coroutine[Any, Any, Any]) -> None:
        async def tried() -> None:
            try:
                await procedure
            except (RegistrationFailed, TransportError):
                await settle()

        self.run(tried())

    # ---- what always holds

    @invariant()
    def no_as_has_a_key_of_a_raw_vector(self) -> None:
        """S1."""
        seen = self.home.network.seen
        for each in seen[self.read :]:
            if each.sender == "S" and isinstance(each.message, Response) and each.message.status == 401:
                self.note(each.message)
        self.read = len(seen)
        for as_id, server in self.home.servers.items():
            for push in server.keys.pushes:
                assert not self.forbidden[as_id] & {key.key_id for key in push.keys}
            server.keys.pushes.clear()

    def note(self, challenged: Response) -> None:
        """Forbid the keys that a vector would yield, unless its 401 carried CK', IK'."""
        challenge = parse_challenge(challenged.get("WWW-Authenticate") or "")
        rand = parse_aka_nonce(challenge.nonce).rand
        user = next(name for name in USERS if name in (challenged.get("To") or ""))
        own = subscriber(user)
        f2345 = algorithm_of("milenage", own.k, own.opc).f2345(rand)
        pair = access_keys(f2345.ck, f2345.ik, rand, own.impi)
        sent = (challenge.parameter("ck"), challenge.parameter("ik"))
        if sent == (pair.ck.reveal().hex(), pair.ik.reveal().hex()):
            return
        assert sent == (f2345.ck.reveal().hex(), f2345.ik.reveal().hex())
        k_m = application_master_key(f2345.ck, f2345.ik, rand, own.impi)
        for as_id in SERVERS:
            self.forbidden[as_id].add(key_id(as_key(k_m, as_id), REALM))

    # ---- what holds at rest

    @rule()
    def rest(self) -> None:
        self.run(self.at_rest())

    async def at_rest(self) -> None:
        home = self.home
        self.faults([], [], [])
        home.network.up(*NICKS.values())
        while home.network.held:
            await home.network.release()
        await home.clock.advance(31)  # the longest pause between two attempts
        await home.scscf.sweep()
        await home.clock.advance(31)
        assert await home.owed() == []
        for device in self.devices:
            await self.check(device, await home.registration(device))

    async def check(self, device: Device, registration: Registration | None) -> None:
        now = self.home.clock.now()
        state = device.state
        believes = state is not None and state.k_m is not None and state.expires_at > now
        for as_id, server in self.home.servers.items():
            current = {
                key.key_id: key.k_as
                for held in server.keys._sets.values()
                if (held.impi, held.reg) == (device.impi, device.reg)
                for key in held.keys
                if key.superseded_until is None and key.not_after > now
            }
            if registration is None or registration.k_m is None:
                assert current == {}
                assert not believes
                continue
            k_as = as_key(registration.k_m, as_id)
            assert current == {key_id(k_as, REALM): k_as}
            if believes:
                assert current == {device.key_id(as_id): device.k_as(as_id)}


HomeNetwork.TestCase.settings = settings(stateful_step_count=30, deadline=None)
TestHomeNetwork = HomeNetwork.TestCase
