# SPDX-License-Identifier: Apache-2.0
"""DESIGN §6, policy `ipsec`: charon is asked before every transmission and retransmission."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.errors import ProtectionUnmet
from keyferry.ports import SipPeer
from keyferry.protocol.sip.message import build_message, make_response
from keyferry.protocol.vici import Section
from keyferry.transports.ipsec import ATTEMPTS, IpsecSource
from keyferry.transports.vici import Vici
from transports.sakit import UDP, World, world
from transports.sipkit import FakeClock, Lab, UdpPeer, patiently, request, turns
from transports.vicikit import CHILD, charon, sa, shunt


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
            assert here.charon.looks == asked


async def test_sas_that_change_all_the_time_let_nothing_through() -> None:
    async with world(sa()) as here:
        here.charon.before_answer = lambda: here.charon.say("child-rekey")
        assert "change faster" in await here.refused()


async def test_an_sa_that_comes_while_charon_answers_lets_through() -> None:
    async with world() as here:

        def comes() -> None:
            here.charon.sas = [sa()]
            here.charon.say("child-updown", sa())
            here.charon.before_passes = lambda: None

        here.charon.before_passes = comes  # when it has said that there is none
        await here.policy(UDP)


@pytest.mark.parametrize("child", [
    {"spi-out": ""}, {"spi-in": "00000000"}, {"state": "INSTALLING"}, {"state": ["INSTALLED"]}, {"remote-ts": "10.99.0.2/32"},
    {"local-ts": []}, {"encr-alg": {}}, {"protocol": "AH"},
])  # fmt: skip
async def test_one_direction_of_an_sa_or_what_nobody_can_read_of_one_lets_nothing_through(child: Section) -> None:
    broken = sa()
    broken["isc-1"]["child-sas"][f"{CHILD}-1"].update(child)  # type: ignore[index,call-overload,union-attr]
    async with world(broken) as here:
        for _ in range(2):
            await here.refused()
        here.charon.sas = [sa()]
        await here.policy(UDP)
        here.charon.sas = [broken]
        for _ in range(2):
            await here.refused()


async def test_who_rekeys_ever_so_often_keeps_no_push_up() -> None:
    """An application server is at the other end of its own SA, and can make things happen to it some hundred times a second."""
    async with world(sa()) as here:
        left = ATTEMPTS - 1

        def rekeyed() -> None:
            nonlocal left
            if left:
                left -= 1
                here.charon.say("child-rekey", sa())

        here.charon.before_passes = rekeyed
        await here.policy(UDP)
        assert left == 0


async def test_an_sa_with_the_same_addresses_and_another_identity_that_comes_and_goes() -> None:
    """Its name is another one, so nobody who asks for ours hears of it; the event tells, and everything is asked for."""
    evil = sa("evil.home1.net", name="evil", number=9)
    for covers in ("10.99.0.2/32", "0.0.0.0/0", "10.99.0.2/32[udp/5090]", "rubbish"):
        evil = sa("evil.home1.net", name="evil", number=9, remote=covers)
        async with world(sa()) as here:
            await here.policy(UDP)
            here.charon.sas.append(evil)
            here.charon.say("child-updown", {"up": "yes", **evil})
            assert "another identity" in await here.refused()  # charon says it before it answers
            assert "another identity" in await here.refused()
            here.charon.sas.pop()
            here.charon.say("child-updown", evil)
            await here.policy(UDP)
            await here.policy(UDP)

            def comes(here: World = here, evil: Section = evil) -> None:
                here.charon.sas = [sa(), evil]
                here.charon.say("child-rekey", rekeyed(evil))
                here.charon.before_passes = lambda: None

            here.charon.before_passes = comes  # when charon has told of ours already
            assert "another identity" in await here.refused()


def rekeyed(one: Section) -> Section:
    """Return what child-rekey says: two CHILD_SAs under one name."""
    ((name, ike),) = one.items()
    assert isinstance(ike, dict)
    children = ike["child-sas"]
    assert isinstance(children, dict)
    ((_, child),) = children.items()
    return {name: {**ike, "child-sas": {"x": {"old": child, "new": child}}}}


async def test_strangers_cost_charon_nothing() -> None:
    """Hosts with which no SA is, thousands a second: once charon has said which there are, none of them makes it say so again."""
    theirs = sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")
    async with world(theirs, local="10.99.0.2") as here:
        source = IpsecSource(here.view, CHILD, "10.99.0.2", 5090)

        async def stranger(each: int) -> str:
            with pytest.raises(ProtectionUnmet) as raised:
                await source.authenticated(SipPeer("UDP", f"198.51.{each >> 8}.{each & 255}", 5060))
            return raised.value.problem

        assert {await stranger(each) for each in range(2)} == {
            "no CHILD_SA covers what comes from there",
            f"no CHILD_SA {CHILD!r} is with that address",
        }
        looks = here.charon.looks
        assert set(await asyncio.gather(*(stranger(each) for each in range(5_000)))) == {f"no CHILD_SA {CHILD!r} is with that address"}
        assert here.charon.looks == looks
        friend = SipPeer("UDP", "10.99.0.1", 6060)
        await asyncio.gather(*(source.authenticated(friend) for _ in range(50)))
        assert here.charon.looks == looks + 1  # together they share one
        here.charon.sas.append(sa("scscf2.home1.net", local="10.99.0.2/32", remote="198.51.0.9/32", number=2))
        await here.says("child-updown", here.charon.sas[-1])
        assert (await source.authenticated(SipPeer("UDP", "198.51.0.9", 6060))).name == "scscf2.home1.net"
        assert await stranger(8) == f"no CHILD_SA {CHILD!r} is with that address"


async def test_word_of_an_sa_that_is_slower_than_what_comes_through_it_keeps_nobody_out() -> None:
    theirs = sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")
    async with world(local="10.99.0.2") as here:
        source = IpsecSource(here.view, CHILD, "10.99.0.2", 5090)
        await source.named()
        here.charon.sas = [theirs]
        assert (await source.authenticated(SipPeer("UDP", "10.99.0.1", 6060))).name == "scscf1.home1.net"


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


async def test_a_request_of_an_application_server_goes_only_to_whom_its_sa_proves_to_be_an_s_cscf_of_its() -> None:
    theirs = sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")
    async with world(theirs, local="10.99.0.2") as here:
        source, hop = IpsecSource(here.view, CHILD, "10.99.0.2", 5090), SipPeer("TCP", "10.99.0.1", 6060)
        looks = 0
        for _ in range(3):
            await source.may_ask(hop, {"scscf1.home1.net", "scscf2.home1.net"})
            assert here.charon.looks > looks  # before each transmission
            looks = here.charon.looks
        for names, peer, says in (
            ({"scscf2.home1.net"}, hop, "with somebody else"), ({"scscf1.home1.net"}, hop._replace(host="10.99.0.3"), "no CHILD_SA"),
            ({"scscf1.home1.net"}, hop._replace(transport="TLS"), "UDP and TCP"),
        ):  # fmt: skip
            with pytest.raises(ProtectionUnmet, match=says):
                await source.may_ask(peer, names)
        here.charon.sas = []
        with pytest.raises(ProtectionUnmet, match="no CHILD_SA"):
            await source.may_ask(hop, {"scscf1.home1.net"})
        assert not source.knows(hop)  # who was sent to has sent nothing


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
