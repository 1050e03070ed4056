# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6, policy `ipsec` in a whole S-CSCF: what is told when SAs go and come, and what is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from keyferry.protocol.security_association import Wanted
from keyferry.transports.ipsec import IpsecPolicy, SaView
from keyferry.transports.resolver import TableResolver
from keyferry.transports.vici import Vici
from keyferry.wiring.ipsec import IpsecWatch
from transports.sipkit import FakeClock, Tallies, patiently
from transports.vicikit import CHILD, IDENTITY, Charon, charon, sa

NAME = "sip:xcap-as.home1.net:5090"


@dataclass
class Here:
    charon: Charon
    watch: IpsecWatch
    tallies: Tallies
    released: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    abandoned: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        return [str(fields.get("problem", event)) for event, fields in self.tallies.events]


@asynccontextmanager
async def watching(served: Charon, hosts: str = "10.99.0.2") -> AsyncIterator[Here]:
    view = SaView(Vici(served.path, limit=5.0, sleep=lambda _seconds: asyncio.sleep(0.001)), FakeClock())
    policy = IpsecPolicy(view, Wanted(CHILD, IDENTITY), "10.99.0.1", 6060)
    tallies = Tallies()
    resolver = TableResolver({"xcap-as.home1.net": hosts} if hosts else {})
    here = Here(served, IpsecWatch(view, {NAME: policy}, resolver, tallies, tallies), tallies)
    here.watch.release = here.released.put_nowait
    here.watch.abandon = lambda host, _problem: here.abandoned.append(host)
    await here.watch.start()
    try:
        yield here
    finally:
        await here.watch.aclose()


async def test_an_sa_that_comes_back_releases_what_waited() -> None:
    async with charon() as served, watching(served) as here:
        assert here.released.empty()
        assert here.told() == [f"there is no CHILD_SA {CHILD!r}"]
        served.sas = [sa()]
        served.say("child-updown", {"up": "yes"})
        assert await patiently(here.released.get()) == NAME
        assert here.told()[1:] == ["ipsec-met"]
        served.sas = []
        served.say("child-updown")
        await here.tallies.until("ipsec_policy", "unmet", 2)
        served.sas = [sa()]
        served.say("ike-updown", {"up": "yes"})
        assert await patiently(here.released.get()) == NAME
        assert here.tallies.counts["ipsec_policy", "met"] == 2


async def test_a_charon_that_dies_and_comes_back_is_told_once_each() -> None:
    async with charon(sa()) as served, watching(served) as here:
        assert await patiently(here.released.get()) == NAME
        await served.kill()
        await here.tallies.until("ipsec_policy", "unmet")
        await served.again()
        assert await patiently(here.released.get()) == NAME
        assert here.tallies.counts == {("ipsec_policy", "met"): 2, ("ipsec_policy", "unmet"): 1}
        assert here.abandoned == ["10.99.0.2"]  # no connection waits for TCP, which tries ever more rarely


async def test_an_sa_of_another_identity_releases_nothing_and_says_so() -> None:
    async with charon(sa("evil.home1.net")) as served, watching(served) as here:
        assert here.told() == [f"a CHILD_SA of another identity than {IDENTITY!r} covers the address"]
        assert here.released.empty()


async def test_selectors_for_tcp_alone_are_enough_to_go_on() -> None:
    async with charon(sa(remote="10.99.0.2/32[tcp/5090]")) as served, watching(served) as here:
        assert await patiently(here.released.get()) == NAME


async def test_an_as_that_no_table_knows_is_a_problem_that_is_told() -> None:
    async with charon(sa()) as served, watching(served, hosts="") as here:
        assert "is not in the hosts table" in here.told()[0]
