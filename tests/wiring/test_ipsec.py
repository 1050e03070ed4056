# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6, policy `ipsec` in a whole S-CSCF: what is told when SAs go and come, and what is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from keyferry.config import ApplicationServer, Config, Ipsec
from keyferry.errors import ProtectionUnmet
from keyferry.ports import SipPeer
from keyferry.ports.correlation import correlate, correlation
from keyferry.protocol.security_association import Wanted
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.ipsec import IpsecPolicy
from keyferry.transports.resolver import TableResolver
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from keyferry.wiring.ipsec import IpsecWatch, ipsec_source, protected
from keyferry.wiring.observability import Metrics
from keyferry.wiring.services import Services
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
async def watching(served: Charon, hosts: str = "10.99.0.2", local: str = "10.99.0.1") -> AsyncIterator[Here]:
    view = SaView(Vici(served.path, limit=5.0, sleep=lambda _seconds: asyncio.sleep(0.001)), FakeClock())
    policy = IpsecPolicy(view, Wanted(CHILD, IDENTITY), local, 6060)
    tallies = Tallies()
    resolver = TableResolver({"xcap-as.home1.net": hosts} if hosts else {})
    here = Here(served, IpsecWatch(view, {NAME: policy}, resolver, tallies, tallies), tallies)
    here.watch.sleep = lambda _seconds: asyncio.sleep(0)
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


async def test_an_address_of_ipv6_may_be_written_in_any_way() -> None:
    """RFC 5952; and in brackets, as in a URI. charon writes it in one."""
    there = sa(local="2001:db8::1/128", remote="2001:db8::2/128")
    async with charon(there) as served, watching(served, "[2001:DB8:0:0::2]", "2001:DB8:0::1") as here:
        assert await patiently(here.released.get()) == NAME
        await served.kill()
        await here.tallies.until("ipsec_policy", "unmet")
        assert here.abandoned == ["2001:DB8:0:0::2"]  # as the connections have it


async def test_what_is_no_push_has_to_satisfy_the_policy_of_the_server_that_it_goes_to() -> None:
    async with charon(sa()) as served, watching(served) as here:
        hop = SipPeer("TCP", "10.99.0.2", 5090)
        for each in (hop, hop._replace(port=40_000)):
            pending = here.watch.toward(each)
            assert pending is not None
            await pending
        assert here.watch.toward(hop._replace(host="10.99.0.3")) is None  # a P-CSCF, a UE
        served.sas = []
        pending = here.watch.toward(hop)
        assert pending is not None
        with pytest.raises(ProtectionUnmet):
            await pending


async def test_charon_is_asked_once_for_all_policies_when_something_happens() -> None:
    """Whoever is at the other end of one SA can make things happen to it all the time; a question a policy would be a load squared."""
    there = [sa(f"as{each}.home1.net", remote=f"10.99.0.{each}/32", number=each) for each in range(2, 42)]
    async with charon(*there) as served, watching(served) as here:
        policy = here.watch.policies[NAME]
        here.watch.policies = {
            f"sip:10.99.0.{each}:5090": replace(policy, wanted=Wanted(CHILD, f"as{each}.home1.net")) for each in range(2, 42)
        }
        served.asked.clear()
        served.say("child-updown")
        released = {await patiently(here.released.get()) for _ in here.watch.policies}
        assert released == set(here.watch.policies)
        assert served.looks == 1


async def test_an_sa_that_comes_and_goes_all_the_time_fills_no_log() -> None:
    """Its last state is told all the same."""
    async with charon() as served, watching(served) as here:
        goes_on, slept = asyncio.Event(), asyncio.Event()

        async def sleep(_seconds: float) -> None:
            slept.set()
            await goes_on.wait()

        here.watch.sleep = sleep
        served.say("child-updown", sa())
        await patiently(slept.wait())
        events = here.watch.view.events
        for each in range(200):
            served.sas = [sa()] if each % 2 else []
            served.say("child-updown", sa())
        async with asyncio.timeout(5):
            while here.watch.view.events < events + 200:
                await asyncio.sleep(0)
        goes_on.set()
        assert await patiently(here.released.get()) == NAME
        assert here.told() == [f"there is no CHILD_SA {CHILD!r}", "ipsec-met"]


async def test_a_failure_of_ours_ends_no_watch() -> None:
    async with charon() as served, watching(served) as here:

        def fails(_name: str) -> None:
            here.watch.release = here.released.put_nowait
            raise RuntimeError("a bug")

        here.watch.release = fails
        served.sas = [sa()]
        served.say("child-updown")
        while here.watch.release is fails or not here.watch.view.events:
            await asyncio.sleep(0)
        served.say("child-updown", sa("other.home1.net", name="other", remote="192.0.2.1/32"))  # not about it
        served.say("child-updown")
        assert await patiently(here.released.get()) == NAME
        assert "ipsec-watch-failed" in [event for event, _ in here.tallies.events]


async def test_an_sa_of_another_identity_releases_nothing_and_says_so() -> None:
    async with charon(sa("evil.home1.net")) as served, watching(served) as here:
        assert here.told() == [f"a CHILD_SA of another identity than {IDENTITY!r} covers the address"]
        assert here.released.empty()


async def test_selectors_for_tcp_alone_are_enough_to_go_on() -> None:
    async with charon(sa(remote="10.99.0.2/32[tcp/5090]")) as served, watching(served) as here:
        assert await patiently(here.released.get()) == NAME


SERVER = ApplicationServer(as_id="xcap.home1.net", sip_uri=NAME, protection="ipsec", listen_sip="10.99.0.2:5090")
ICID = "0123456789abcdef" * 2
REGISTER = Request(
    "REGISTER", "sip:xcap-as.home1.net", (("Via", "SIP/2.0/UDP 10.99.0.1;branch=z9hG4bKx"), ("From", "<sip:scscf1.home1.net>;tag=1"),
    ("To", "<sip:alice@home1.net>"), ("Call-ID", "1"), ("CSeq", "1 REGISTER"), ("P-Charging-Vector", f"icid-value={ICID}-1")), b"",
)  # fmt: skip


async def test_nothing_that_came_in_clear_is_heard_by_an_application_server(tmp_path: Path) -> None:
    """DESIGN §6, who may push. A neighbour's request gets 480: from an S-CSCF it will come again, through the association."""
    heard: list[tuple[SipPeer, str]] = []

    async def handler(request: Request, peer: SipPeer) -> Response:
        heard.append((peer, correlation()))
        return make_response(request, 200)

    log, clock = Tallies(), SystemClock()
    async with charon(sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")) as served:
        with open_state(tmp_path / "state", random=SystemRandom()) as state:
            services = Services(Config(ipsec=Ipsec(vici=str(served.path))), state, clock, SystemRandom(), log, Metrics())
            async with services.exit:
                take = protected(services, await ipsec_source(services, SERVER), handler)
                sender = SipPeer("UDP", "10.99.0.1", 6060)
                assert (await take(REGISTER, sender)).status == 200
                for stranger in (SipPeer("UDP", "10.99.0.3", 6060), SipPeer("TCP", "127.0.0.1", 6060)):
                    assert (await take(REGISTER, stranger)).status == 480
                served.sas = []
                assert (await take(REGISTER, sender)).status == 480
                assert (await take(replace(REGISTER, method="NOTIFY"), sender)).status == 503  # 480 would end the subscription
                assert heard == [(sender._replace(name="scscf1.home1.net"), ICID)]
                assert services.metrics.value("as_pushes_refused", "unprotected") == 4
                assert protected(services, None, handler) is handler
                for _ in range(1000):
                    await take(REGISTER, SipPeer("UDP", "10.99.0.3", 6060))
    correlate("")
    assert [event for event, _ in log.events].count("request-unprotected") < 20  # a flood in clear fills no disk
    told = [fields for event, fields in log.events if event == "request-unprotected-again"]  # nor is it forgotten at the end
    assert [(fields["peer"], fields["count"]) for fields in told] == [("10.99.0.3", 996)]


async def test_an_application_server_without_charon_says_so_when_it_starts(tmp_path: Path) -> None:
    log, clock = Tallies(), SystemClock()
    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        services = Services(Config(ipsec=Ipsec(vici=str(tmp_path / "no"))), state, clock, SystemRandom(), log, Metrics())
        async with services.exit:
            await ipsec_source(services, SERVER)
    ((event, fields),) = log.events
    assert (event, fields["listen"], "charon is not there" in str(fields["problem"])) == ("ipsec-unmet", "10.99.0.2:5090", True)


async def test_an_as_that_no_table_knows_is_a_problem_that_is_told() -> None:
    async with charon(sa()) as served, watching(served, hosts="") as here:
        assert "is not in the hosts table" in here.told()[0]
