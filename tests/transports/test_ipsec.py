# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6, policy `ipsec`: charon is asked before every transmission and retransmission."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from keyferry.errors import ProtectionUnmet
from keyferry.ports import SipPeer
from keyferry.protocol.security_association import Wanted
from keyferry.protocol.sip.message import build_message, make_response
from keyferry.protocol.vici import Section
from keyferry.transports.ipsec import MAX_AGE, IpsecPolicy, IpsecSource, SaView
from keyferry.transports.vici import Vici
from transports.sipkit import FakeClock, Lab, UdpPeer, patiently, request, turns
from transports.vicikit import CHILD, IDENTITY, Charon, charon, sa, shunt

UDP = SipPeer("UDP", "10.99.0.2", 5090)


class World:
    """A policy, charon, and what was told."""

    def __init__(self, served: Charon, clock: FakeClock, *, local: str = "10.99.0.1") -> None:
        self.charon = served
        self.clock = clock
        self.view = SaView(Vici(served.path, limit=5.0, sleep=lambda _seconds: asyncio.sleep(0.001)), clock)
        self.policy = IpsecPolicy(self.view, Wanted(CHILD, IDENTITY), local, 6060)
        self.changes = asyncio.Queue[None]()
        self.view.watch(lambda: self.changes.put_nowait(None))

    async def refused(self, peer: SipPeer = UDP) -> str:
        with pytest.raises(ProtectionUnmet) as raised:
            await self.policy(peer)
        return str(raised.value)


@asynccontextmanager
async def world(*sas: Section, local: str = "10.99.0.1", clock: FakeClock | None = None) -> AsyncIterator[World]:
    async with charon(*sas) as served:
        made = World(served, clock or FakeClock(), local=local)
        await made.view.start()
        try:
            yield made
        finally:
            await made.view.aclose()


async def test_the_configured_sa_lets_through_and_no_other() -> None:
    async with world(sa()) as here:
        await here.policy(UDP)
        await here.policy(UDP._replace(transport="TCP"))
        assert "does not cover" in await here.refused(UDP._replace(host="10.99.0.3"))
        here.charon.sas = [sa("evil.home1.net")]
        assert "another identity" in await here.refused()
        here.charon.sas = [sa(encryption="NULL")]
        assert "does not encrypt" in await here.refused()
        here.charon.sas = []
        assert "no CHILD_SA" in await here.refused()
        assert "UDP and TCP" in await here.refused(UDP._replace(transport="TLS"))


async def test_a_policy_that_lets_packets_past_lets_none_through() -> None:
    """strongSwan's bypass-lan, or `mode = pass`: the SA is there, and the kernel takes it for other packets."""
    async with world(sa()) as here:
        source = IpsecSource(here.view, CHILD, "10.99.0.1", 6060)
        await source.authenticated(UDP)
        here.charon.passes = [shunt("10.99.0.2/32[ipv6-icmp/135]"), shunt("192.0.2.0/24")]
        await here.policy(UDP)
        for remote in ("10.99.0.0/24", "0.0.0.0/0", "10.99.0.2/32[udp/5090]", "rubbish"):
            here.charon.passes = [shunt(), shunt(remote)] if remote == "rubbish" else [shunt(remote)]
            assert "lets it past every CHILD_SA" in await here.refused()
            with pytest.raises(ProtectionUnmet, match="lets it past"):
                await source.authenticated(UDP)


async def test_charon_is_asked_for_every_transmission() -> None:
    async with world(sa()) as here:
        for asked in range(1, 4):
            await here.policy(UDP)
            assert here.charon.asked.count("list-sas") == asked


async def test_many_at_once_share_questions_but_none_an_answer_older_than_itself() -> None:
    async with world(sa()) as here:
        await asyncio.gather(*(here.policy(UDP) for _ in range(50)))
        assert here.charon.asked.count("list-sas") == 1
        late: list[asyncio.Task[None]] = []

        def one_more() -> None:  # charon has this question already: it may have looked at its SAs before this one came
            if not late:
                late.append(asyncio.get_running_loop().create_task(here.policy(UDP)))

        here.charon.before_answer = one_more
        await here.policy(UDP)
        await patiently(late[0])
        assert here.charon.asked.count("list-sas") == 3


async def test_an_event_while_charon_answers_makes_the_answer_void() -> None:
    async with world(sa()) as here:

        def deleted() -> None:
            here.charon.sas = []
            here.view.events += 1
            here.charon.before_answer = lambda: None

        here.charon.before_answer = deleted
        assert "no CHILD_SA" in await here.refused()


async def test_sas_that_change_all_the_time_let_nothing_through() -> None:
    async with world(sa()) as here:
        here.charon.before_answer = lambda: here.charon.say("child-rekey")
        assert "change faster" in await here.refused()


async def test_who_rekeys_all_the_time_keeps_no_push_to_others_up() -> None:
    """An application server is at the other end of its own SAs alone, and can make things happen to them as often as it likes."""
    async with world(sa()) as here:
        left = 6

        def rekeyed() -> None:
            nonlocal left
            left -= 1
            here.view.events += left > 0

        here.charon.before_answer = rekeyed
        await here.policy(UDP)
        assert left == 0


async def test_an_answer_that_came_long_ago_is_none() -> None:
    """Our own loop may have stood still between the answer and now."""
    async with world(sa()) as here:
        view = await here.view.look()
        assert here.view.is_current(view)
        here.clock.time += MAX_AGE
        assert here.view.is_current(view)
        here.clock.time += 0.01
        assert not here.view.is_current(view)


async def test_without_charon_nothing_goes_and_its_return_is_told() -> None:
    async with world(sa()) as here:
        while not here.changes.empty():
            here.changes.get_nowait()
        await here.charon.kill()
        await patiently(here.changes.get())
        assert "charon cannot be asked" in await here.refused()
        await here.charon.again()
        await patiently(here.changes.get())
        await here.policy(UDP)


async def test_a_charon_that_hangs_lets_nothing_through() -> None:
    async with charon(sa()) as served:
        here = World(served, FakeClock())
        here.view.vici = Vici(served.path, limit=0.05)
        await here.view.start()
        served.silent = True
        assert "did not answer" in await here.refused()
        await here.view.aclose()


async def test_who_gives_up_does_not_take_the_question_from_the_others() -> None:
    async with world(sa()) as here:
        waiting = [asyncio.create_task(here.policy(UDP)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await patiently(waiting[1])


async def test_what_came_in_is_of_whom_its_sa_says() -> None:
    """DESIGN §6, who may push: at the application server."""
    theirs = sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")
    sender, neighbour = SipPeer("TCP", "10.99.0.1", 40_000), SipPeer("UDP", "10.99.0.3", 6060)
    async with world(theirs) as here:
        source = IpsecSource(here.view, CHILD, "10.99.0.2", 5090)
        assert await source.authenticated(sender) == sender._replace(name="scscf1.home1.net")
        with pytest.raises(ProtectionUnmet, match="no CHILD_SA covers"):
            await source.authenticated(neighbour)
        assert (source.knows(sender), source.knows(neighbour)) == (True, False)
        here.charon.sas = []
        with pytest.raises(ProtectionUnmet, match="no CHILD_SA covers"):
            await source.authenticated(sender)
        assert not source.knows(sender)
        await here.charon.kill()
        with pytest.raises(ProtectionUnmet, match="charon cannot be asked"):
            await source.authenticated(sender)


async def test_an_sa_that_goes_between_two_transmissions_stops_the_second() -> None:
    """The request goes out once; the retransmission asks again, and nothing more leaves."""
    async with Lab() as lab, world(sa(local="127.0.0.1/32", remote="127.0.0.1/32"), local="127.0.0.1", clock=lab.clock) as here:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop, check=here.policy))
            await peer.request()
            lab.move(0.6)
            await peer.request()
            here.charon.sas = []
            lab.move(1.1)
            with pytest.raises(ProtectionUnmet):
                await patiently(sending)
            await turns()
            assert peer.nothing()


async def test_an_sa_that_is_there_lets_requests_be_answered() -> None:
    async with Lab() as lab, world(sa(local="127.0.0.0/8", remote="127.0.0.1/32"), local="127.0.0.1", clock=lab.clock) as here:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop, check=here.policy))
            peer.send(build_message(make_response(await peer.request(), 200, to_tag="t")), lab.udp)
            assert (await patiently(sending)).status == 200
