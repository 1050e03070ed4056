# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.1.1.3 to §5.1.1.7; RFC 3680 §5.1: a UE that stays registered, with a whole network in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from keyferry.client.stay import RETRY_FIRST, Stay, Uncounted
from keyferry.client.ue import UeClient
from keyferry.errors import RegistrationFailed, TransportError
from keyferry.protocol.sip.message import Request
from keyferry.stores.memory import MemoryUeStore
from roles.home import Home, open_home
from roles.network import settle


@dataclass(slots=True)
class Phone:
    """A UE in a home network, and what it told."""

    home: Home
    client: UeClient
    stay: Stay
    task: asyncio.Task[None]
    told: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        found = [name for name, _ in self.told]
        self.told.clear()
        return found

    async def wait(self, seconds: float) -> list[str]:
        """Let time pass, a second at a time as the UE looks."""
        for _ in range(int(seconds)):
            await self.home.clock.advance(1.0)
        await settle()
        return self.names

    async def has_keys(self) -> bool:
        state = await self.client.state()
        assert state is not None
        return state.k_m is not None


@asynccontextmanager
async def phone(home: Home, *, expires: int = 3600) -> AsyncIterator[Phone]:
    device = home.device(expires=expires)
    client = UeClient(device.ue, MemoryUeStore(), home.clock)
    home.network.attach(device.name, f"{device.name}.visited1.net", client.handle)
    told: list[tuple[str, Mapping[str, Any]]] = []
    stay = Stay(client, lambda name, at, details: told.append((name, details)), home.random, home.log, home.clock.sleep)
    task = asyncio.get_running_loop().create_task(stay.run())
    await settle()
    try:
        yield Phone(home, client, stay, task, told)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        leaving = asyncio.ensure_future(stay.leave())
        await settle()
        await home.clock.advance(2)
        await asyncio.gather(leaving, return_exceptions=True)


async def test_it_registers_watches_itself_and_renews_600_seconds_before_the_end() -> None:
    """§5.1.1.3, §5.1.1.4."""
    async with open_home() as home, phone(home) as alice:
        assert alice.told[0] == ("registered", {"seconds": 3600, "again_in": 3000, "keys": True, "no_keys_because": ""})
        assert alice.names == ["registered", "subscribed"]
        assert await alice.wait(2999) == []
        assert await alice.wait(2) == ["registered"]
        assert await alice.wait(2999) == ["registered"]


async def test_a_short_registration_is_renewed_at_half_time() -> None:
    """§5.1.1.4: 1,200 seconds or less."""
    async with open_home() as home, phone(home, expires=600) as alice:
        assert alice.told[0][1]["again_in"] == 300


async def test_it_authenticates_when_the_network_asks() -> None:
    """§5.1.1.5, §5.4.1.6: shortened."""
    async with open_home() as home, phone(home) as alice:
        first = await alice.client.state()
        await home.scscf.shorten(alice.client.ue.profile.impi, seconds=60)
        await settle()
        assert alice.told[-1] == ("asked-to-authenticate", {"seconds": 60, "again_in": 30})
        assert (await alice.wait(32))[-1] == "registered"
        again = await alice.client.state()
        assert first is not None
        assert again is not None
        assert again.k_m != first.k_m


async def test_deactivated_drops_the_keys_and_registers_anew() -> None:
    """§5.1.1.7."""
    async with open_home() as home, phone(home) as alice:
        alice.told.clear()
        home.network.down("I")
        await home.scscf.network_deregister(alice.client.ue.profile.impi, event="deactivated")
        await settle()
        assert alice.names == ["ended-by-network", "retry"]
        assert not await alice.has_keys()
        home.network.up("I")
        assert await alice.wait(RETRY_FIRST + 1) == ["registered", "subscribed"]
        assert await alice.has_keys()


async def test_probation_waits_as_long_as_the_network_says() -> None:
    """RFC 3680 §5.1."""
    async with open_home() as home, phone(home) as alice:
        alice.told.clear()
        await home.scscf.network_deregister(alice.client.ue.profile.impi, None, "probation", 90)
        await settle()
        assert alice.told == [("ended-by-network", {"reason": "probation", "retry_after": 90})]
        alice.told.clear()
        assert await alice.wait(89) == []
        assert await alice.wait(2) == ["registered", "subscribed"]


async def test_rejected_is_the_end() -> None:
    async with open_home() as home, phone(home) as alice:
        await home.scscf.network_deregister(alice.client.ue.profile.impi, event="rejected")
        await settle()
        assert alice.names[-1] == "ended-by-network"
        assert alice.task.done()
        assert alice.task.exception() is None
        assert not await alice.has_keys()


async def test_a_network_that_is_silent_is_tried_again_ever_later() -> None:
    """RFC 5626 §4.5."""
    async with open_home() as home, phone(home, expires=600) as alice:
        alice.told.clear()
        home.network.down("I")
        await alice.wait(301)
        assert not await alice.has_keys()
        await alice.client.drop_keys("test")
        home.network.up("I")
        assert await alice.wait(RETRY_FIRST + 1) == ["registered"]


async def test_pauses_double() -> None:
    async with open_home() as home, phone(home, expires=600) as alice:
        alice.told.clear()
        home.network.down("I")
        for _ in range(300 + 30 + 60 + 2):
            await home.clock.advance(1.0)
        assert [details["in"] for name, details in alice.told if name == "retry"] == [30.0, 60.0, 120.0]


async def test_a_refusal_of_a_re_registration_is_the_end() -> None:
    async with open_home() as home, phone(home, expires=600) as alice:
        await home.subscribers.remove(alice.client.ue.profile.impi)
        await alice.wait(301)
        assert isinstance(alice.task.exception(), RegistrationFailed)


async def test_a_first_registration_that_fails_is_an_error() -> None:
    async with open_home() as home:
        home.network.down("P")
        async with phone(home) as alice:
            assert isinstance(alice.task.exception(), TransportError)
            await alice.stay.leave()  # nothing to end


async def test_a_network_without_the_package_is_no_obstacle() -> None:
    async with open_home() as home:

        def without(request: Request) -> Request:
            return request.replacing("Event", "presence") if request.method == "SUBSCRIBE" else request

        home.network.requests["P", "S"] = without
        async with phone(home) as alice:
            assert alice.told[-1] == ("not-subscribed", {"status": 489})


async def test_a_subscription_that_gets_no_answer_is_said() -> None:
    async with open_home() as home:

        def lost(request: Request) -> Request:
            home.network.down("S")
            return request

        home.network.requests["P", "S"] = lost
        async with phone(home) as alice:
            assert alice.names == ["registered", "not-subscribed"]
            home.network.up("S")


async def test_leaving_de_registers_and_waits_for_the_last_notify() -> None:
    """§5.1.1.6."""
    async with open_home() as home:
        async with phone(home) as alice:
            pass
        assert alice.told[-1] == ("deregistered", {})
        assert await home.registrations.count() == 0
        assert not await alice.has_keys()


async def test_before_it_watches_a_ue_takes_no_requests() -> None:
    async with open_home() as home:
        device = home.device()
        client = UeClient(device.ue, MemoryUeStore(), home.clock)
        headers = (("From", "<sip:a@b>;tag=1"), ("To", "<sip:a@b>"), ("Call-ID", "c"), ("CSeq", "1 NOTIFY"))
        request = Request("NOTIFY", "sip:a@b", (("Via", "SIP/2.0/UDP a;branch=z9hG4bK1"), *headers))
        assert (await client.handle(request, home.network.peer("P"))).status == 405
        await client.drop_keys("nothing to drop")
        Uncounted().count("anything")


async def test_it_watches_itself_where_it_is_served_now() -> None:
    """Another S-CSCF has no subscription of ours."""
    async with open_home() as home, phone(home, expires=600) as alice:
        alice.told.clear()
        home.network.responses["P", "I"] = lambda response: (
            response.replacing("Service-Route", "<sip:orig@scscf1.home1.net;lr;moved>") if response.get("Service-Route") else response
        )
        assert await alice.wait(301) == ["registered", "subscribed"]
