# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6: whatever is lost, late or repeated between two S-CSCFs and two HSS processes, who crashes, and who is away meanwhile.

Afterwards the HSS names the S-CSCF that has the user and no other has him, the keys at the application server are those of the UE, and
the user can register at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from contract.faults import Fate
from fuzz.profiles import PROFILE
from fuzz.town import NAMES, USERS, Town, open_town
from keyferry.errors import KeyferryError
from keyferry.ports import DeregistrationReason
from keyferry.protocol.ims.keys import as_key, key_id
from roles.home import REALM, XCAP, Device, subscriber
from roles.network import settle

T = TypeVar("T")
FATES = st.lists(st.sampled_from(list(Fate)), max_size=8)
LIFE = 3600
QUIET = 31.0  # seconds between looks at what is owed
PLACES = st.integers(0, 2)


class CxWeather(RuleBasedStateMachine):
    """The rules."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.town: Town | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def plug_in(self) -> None:
        self.town = self.run(open_town())
        self.devices = [
            self.town.device("alice", 1, expires=LIFE),
            self.town.device("alice", 2, expires=LIFE),
            self.town.device("bobby", 1, expires=LIFE),
        ]

    @property
    def here(self) -> Town:
        assert self.town is not None
        return self.town

    def attempt(self, procedure: Coroutine[Any, Any, Any]) -> None:
        async def tried() -> None:
            with suppress(KeyferryError):
                await procedure
            await settle()

        self.run(tried())

    # ---- what users and operators do

    @rule(place=PLACES, fates=FATES)
    def register(self, place: int, fates: list[Fate]) -> None:
        self.weather(fates)
        self.attempt(self.devices[place].register())

    @rule(place=PLACES, fates=FATES)
    def deregister(self, place: int, fates: list[Fate]) -> None:
        if self.devices[place].state is not None:
            self.weather(fates)
            self.attempt(self.devices[place].deregister())

    @rule(
        user=st.sampled_from(USERS),
        reason=st.sampled_from([DeregistrationReason.PERMANENT_TERMINATION, DeregistrationReason.SERVER_CHANGE]),
    )
    def terminate(self, user: str, reason: DeregistrationReason) -> None:
        self.attempt(self.here.hsss[0].terminate(subscriber(user).impi, reason))

    @rule(seconds=st.sampled_from([1.0, 61.0, 241.0, LIFE + 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.here.clock.advance(seconds))
        self.run(self.here.sweep())

    # ---- what goes wrong

    def weather(self, fates: list[Fate]) -> None:
        """Say what becomes of what the S-CSCFs ask next."""
        for node in self.here.nodes.values():
            node.wire.fates = list(fates)

    @rule(fates=FATES)
    def weather_of_uars(self, fates: list[Fate]) -> None:
        assert self.here.asks is not None
        self.here.asks.fates = fates

    @rule(nick=st.sampled_from(NAMES), fates=FATES)
    def weather_of_rtrs(self, nick: str, fates: list[Fate]) -> None:
        self.here.nodes[nick].rtrs = fates

    @rule(nick=st.sampled_from(NAMES), number=st.integers(0, 9), lost=st.booleans())
    def arrives(self, nick: str, number: int, lost: bool) -> None:
        wire = self.here.nodes[nick].wire
        if wire.held and lost:
            del wire.held[number % len(wire.held)]
        elif wire.held:
            self.run(wire.arrive(number % len(wire.held)))
            self.run(settle())

    @rule(nick=st.sampled_from(NAMES), up=st.booleans())
    def goes_or_comes(self, nick: str, up: bool) -> None:
        if up:
            self.here.down.discard(nick)
            self.here.network.up(nick)
        else:
            self.here.down.add(nick)
            self.here.network.down(nick)

    @rule(nick=st.sampled_from(NAMES))
    def s_cscf_crashes(self, nick: str) -> None:
        self.run(self.here.restart(self.here.nodes[nick]))

    @rule(number=st.integers(0, 1))
    def hss_crashes(self, number: int) -> None:
        self.run(self.here.restart_hss(number))

    # ---- afterwards

    def teardown(self) -> None:
        try:
            if self.town is not None:
                self.run(self.comes_to_rest())
                self.run(self.judge("after quiet"))
                self.run(self.everybody_registers())
                self.run(self.judge("after all registered"))
        finally:
            if self.town is not None:
                self.run(self.town.aclose())
            self.loop.close()

    async def comes_to_rest(self) -> None:
        town = self.here
        town.down.clear()
        town.network.up(*NAMES)
        for wire in town.wires():
            wire.fates = []
        for node in town.nodes.values():
            node.rtrs = []
            while node.wire.held:
                await node.wire.arrive()
                await settle()
        for _ in range(10):
            await town.clock.advance(QUIET)
            await town.sweep()

    async def everybody_registers(self) -> None:
        for device in self.devices:
            await device.register()
            await settle()
            assert device.state is not None
            assert device.state.k_m is not None, device.state.no_keys_because
        await self.here.clock.advance(QUIET)
        await self.here.sweep()
        for wire in self.here.wires():
            wire.unheard = False

    async def judge(self, when: str) -> None:
        town = self.here
        for user in USERS:
            impi = subscriber(user).impi
            found = await town.subscribers.assignment(impi)
            holders = {node.uri for node in town.nodes.values() if await node.holds(impi)}
            serving = {found.serving} - {None}
            # Of a registration that was carried out after its end, or of an RTR, and nobody heard: the HSS learns with the next REGISTER.
            left = not holders and any(wire.unheard for wire in town.wires())
            assert holders == serving or left, (when, user, found, holders)
            assert not found.owed, (when, user, found)
            for node in town.nodes.values():
                assert not await node.registrations.owed_ends(), (when, node.nick)
        for device in self.devices:
            await self.judge_keys(when, device)

    async def judge_keys(self, when: str, device: Device) -> None:
        town = self.here
        held = [each for node in town.nodes.values() if (each := await node.registrations.get(device.impi, device.reg)) is not None]
        wanted = {key_id(as_key(each.k_m, XCAP), REALM) for each in held if each.k_m is not None}
        keys = town.servers[XCAP].keys
        for name in wanted:
            assert await keys.lookup(name, XCAP, town.clock.now()) is not None, (when, device.name, "has no key at the AS")
        own = device.key_id(XCAP)
        if own is not None and own not in wanted and not held:
            assert await keys.lookup(own, XCAP, town.clock.now()) is None, (when, device.name, "is not registered, and its key is there")


TestCxWeather = CxWeather.TestCase
TestCxWeather.settings = settings(
    max_examples=3_000 if PROFILE == "deep" else 100, stateful_step_count=20, suppress_health_check=list(HealthCheck)
)
