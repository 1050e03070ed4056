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
from fuzz.town import NAMES, Node, Town, open_town
from keyferry.errors import KeyferryError
from keyferry.ports import DeregistrationReason
from keyferry.protocol.ims.keys import as_key, key_id
from roles.home import REALM, XCAP, Device, subscriber
from roles.network import settle

T = TypeVar("T")
FATES = st.lists(st.sampled_from((Fate.ANSWERED, *Fate)), max_size=6)
LIFE = 3600.0  # seconds
QUIET = 31.0  # seconds between looks at what is owed
PLACES = st.sampled_from((0, 0, 1))
ALICE = subscriber("alice").impi
TROUBLE = (
    "rest",
    "rest",
    "s-cscf goes",
    "s-cscf comes",
    "s-cscf crashes",
    "hss crashes",
    "uars and mars",
    "rtrs",
    "operator",
    1.0,
    61.0,
    LIFE + 1.0,
)


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
            self.town.device("alice", 1, expires=int(LIFE)),
            self.town.device("alice", 2, expires=int(LIFE)),
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

    # ---- what users do

    @rule(place=PLACES, leaves=st.booleans(), fates=FATES)
    def comes_or_goes(self, place: int, leaves: bool, fates: list[Fate]) -> None:
        for node in self.here.nodes.values():
            node.wire.fates_of_sars = list(fates)
        device = self.devices[place]
        self.attempt(device.deregister() if leaves and device.state is not None else device.register())

    # ---- what goes wrong

    @rule(nick=st.sampled_from(NAMES), number=st.integers(0, 3), lost=st.booleans())
    def arrives(self, nick: str, number: int, lost: bool) -> None:
        wire = self.here.nodes[nick].wire
        if wire.held and lost:
            del wire.held[number % len(wire.held)]
        elif wire.held:
            self.run(wire.arrive(number % len(wire.held)))
            self.run(settle())

    @rule(what=st.sampled_from(TROUBLE), nick=st.sampled_from(NAMES), fates=FATES)
    def meanwhile(self, what: str | float, nick: str, fates: list[Fate]) -> None:
        town, node = self.here, self.here.nodes[nick]
        match what:
            case "rest":
                self.run(self.comes_to_rest())
                self.run(self.judge("at rest"))
            case "s-cscf crashes":
                self.run(town.restart(node))
            case "hss crashes":
                self.run(town.restart_hss(NAMES.index(nick)))
            case "operator":
                self.attempt(town.hsss[NAMES.index(nick)].terminate(ALICE, DeregistrationReason.PERMANENT_TERMINATION))
            case float():
                self.run(town.clock.advance(what))
                self.run(town.sweep())
            case _:
                self.weather(what, node, fates)

    def weather(self, what: str, node: Node, fates: list[Fate]) -> None:
        if what == "s-cscf goes":
            self.here.goes(node)
        elif what == "s-cscf comes":
            self.here.comes(node)
        elif what == "rtrs":
            node.rtrs = fates
        else:
            self.here.asks.fates = node.wire.fates = fates

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
        for node in town.nodes.values():
            town.comes(node)
        for wire in town.wires():
            wire.fates, wire.fates_of_sars = [], []
        for node in town.nodes.values():
            node.rtrs = []
            while node.wire.held:
                await node.wire.arrive()
                await settle()
        for _ in range(4):
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
        found = await town.subscribers.assignment(ALICE)
        holders = {node.uri for node in town.nodes.values() if await node.holds(ALICE)}
        # Of a registration that was carried out after its end, or of an RTR, and nobody heard: the HSS learns with the next REGISTER.
        left = not holders and any(wire.unheard for wire in town.wires())
        assert holders == {found.serving} - {None} or left, (when, found, holders)
        assert not found.owed, (when, found)
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
    max_examples=5_000 if PROFILE == "deep" else 250,
    stateful_step_count=20 if PROFILE == "deep" else 8,  # the shorter, the more often all is looked at
    suppress_health_check=list(HealthCheck),
)
