# SPDX-License-Identifier: Apache-2.0
"""A node under load (RFC 3261 §21.5.4; DESIGN §11)."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.ports import SipPeer
from keyferry.protocol.sip.headers import parse_name_addr, parse_via_list
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.sip.overload import Load, OverloadPolicy
from keyferry.transports.sip_context import Limits
from keyferry.transports.sip_node import SipNode
from keyferry.transports.sip_overload import PROBE
from transports.sipkit import PATIENCE, Lab, Numbers, TcpPeer, UdpPeer, patiently, register, turns

POLICY = OverloadPolicy(in_progress_high=2, in_progress_low=0, patience=0.0, retry_after=5)


class LoadedLab(Lab):
    """A node that sheds, with a handler that answers when it is told to."""

    def __init__(self, policy: OverloadPolicy = POLICY, limits: Limits | None = None, *, core: bool = False) -> None:
        super().__init__()
        self.registered: set[int] = set()  # ports
        self.go = asyncio.Event()
        self.calls: list[str] = []
        self.node = SipNode(
            name="node", clock=self.clock, random=Numbers(), log=self.tallies, handler=self.handle, observer=self.seen.append,
            counter=self.tallies, overload=policy, limits=limits or Limits(), core=core,
            registered=lambda peer: peer.port in self.registered,
        )  # fmt: skip

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        if (request.get("Call-ID") or "").startswith("challenge"):
            return make_response(request, 401, headers=(("WWW-Authenticate", 'Digest realm="a", nonce="abc"'),))
        self.calls.append(request.get("Call-ID") or "")
        await self.go.wait()
        return make_response(request, 200)

    async def until(self, load: Load) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.node.load is not load:
                await asyncio.sleep(PROBE / 4)


def answer(port: int, branch: str) -> bytes:
    """Return a REGISTER that answers a challenge."""
    credentials = b'Authorization: Digest username="a", nonce="abc", response="0123"\r\nCSeq: 1 REGISTER'
    return register(port, branch=branch).replace(b"CSeq: 1 REGISTER", credentials)


def first(port: int) -> bytes:
    """Return a REGISTER that is challenged."""
    return register(port, branch="z9hG4bKfirst").replace(b"Call-ID: ", b"Call-ID: challenge")


async def challenged(lab: LoadedLab, peer: UdpPeer) -> None:
    """Get the nonce that `answer` answers."""
    peer.send(first(peer.hop.port), lab.udp)
    assert (await peer.response()).status == 401


async def loaded(lab: LoadedLab, peer: UdpPeer) -> None:
    """Put more in progress than the policy likes."""
    for number in range(3):
        peer.send(register(peer.hop.port, branch=f"z9hG4bKbusy{number}"), lab.udp)
    await lab.until(Load.SHEDDING)


async def test_first_registers_are_refused_and_second_ones_served() -> None:
    """DESIGN §11."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await challenged(lab, peer)
            await loaded(lab, peer)
            peer.send(register(peer.hop.port, branch="z9hG4bKnew"), lab.udp)
            response = await peer.response()
            (via,) = parse_via_list(response.get("Via") or "")
            assert (response.status, via.branch, via.rport) == (503, "z9hG4bKnew", str(peer.hop.port))
            assert 5 <= int(response.get("Retry-After") or "") <= 10
            assert lab.tallies.counts["sip_shed", "initial"] == 1
            assert lab.node.remembered == 1  # the 401
            peer.send(answer(peer.hop.port, "z9hG4bKanswer"), lab.udp)
            await turns(10)
            assert len(lab.calls) == 4
            lab.go.set()
            assert [(await peer.response()).status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("fields", [b"Contact: *\r\nExpires: 0", b"Contact: <sip:a@b>\r\nExpires: 0", b"Contact: <sip:a@b>;expires=0"])
async def test_a_de_registration_is_not_refused(fields: bytes) -> None:
    """It frees what a registration takes."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            peer.send(register(peer.hop.port, branch="z9hG4bKend").replace(b"CSeq: ", fields + b"\r\nCSeq: "), lab.udp)
            await turns(10)
            assert (len(lab.calls), lab.tallies.counts["sip_shed", "initial"]) == (4, 0)
            lab.go.set()


@pytest.mark.parametrize("nonce", [b'nonce=""', b""])
async def test_a_protected_register_without_a_nonce_is_no_initial_one(nonce: bytes) -> None:
    """TS 24.229 §7.2A.2: the word of a P-CSCF, within the core."""
    words = b'Authorization: Digest username="a", ' + nonce + b', integrity-protected="yes"\r\nCSeq: '
    async with LoadedLab(core=True) as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            peer.send(register(peer.hop.port, branch="z9hG4bKsafe").replace(b"CSeq: ", words), lab.udp)
            await turns(10)
            assert (len(lab.calls), lab.tallies.counts["sip_shed", "initial"]) == (4, 0)
            lab.go.set()


async def test_who_is_registered_is_not_refused_and_another_port_of_his_address_is() -> None:
    async with LoadedLab() as lab:
        with UdpPeer() as peer, UdpPeer() as neighbour:
            await loaded(lab, peer)
            lab.registered.add(peer.hop.port)
            peer.send(register(peer.hop.port, branch="z9hG4bKagain"), lab.udp)
            await turns(10)
            assert len(lab.calls) == 4
            neighbour.send(register(neighbour.hop.port, branch="z9hG4bKother"), lab.udp)
            assert (await neighbour.response()).status == 503
            lab.go.set()


async def test_first_registers_leave_room_for_second_ones_though_shedding_has_not_begun() -> None:
    """More of them may come within `patience` than may be in progress."""
    async with LoadedLab(OverloadPolicy(), Limits(in_progress=10)) as lab:
        with UdpPeer() as peer:
            await challenged(lab, peer)
            for number in range(12):
                peer.send(register(peer.hop.port, branch=f"z9hG4bKbusy{number}"), lab.udp)
            refused = [await peer.response() for _ in range(3)]
            assert [(each.status, int(each.get("Retry-After") or "") >= 5) for each in refused] == [(503, True)] * 3
            peer.send(answer(peer.hop.port, "z9hG4bKanswer"), lab.udp)
            await turns(10)
            assert (len(lab.calls), lab.node.load is Load.SHEDDING) == (10, False)
            lab.go.set()
            assert [(await peer.response()).status for _ in range(10)] == [200] * 10


async def test_a_retransmission_of_what_is_being_served_is_absorbed_and_of_what_was_answered_is_answered_again() -> None:
    """RFC 3261 §17.2.2: whose first copy was let in is not told to go away."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await challenged(lab, peer)
            await loaded(lab, peer)
            peer.send(register(peer.hop.port, branch="z9hG4bKbusy0"), lab.udp)  # its first copy waits for the handler
            peer.send(first(peer.hop.port), lab.udp)  # this one was answered
            assert (await peer.response()).status == 401
            assert (lab.tallies.counts["sip_shed", "initial"], len(lab.calls)) == (0, 3)
            assert lab.tallies.counts["sip_retransmissions", "received"] == 2
            lab.go.set()
            assert [(await peer.response()).status for _ in range(3)] == [200] * 3


async def test_an_answer_to_a_challenge_that_was_not_sent_or_was_answered_is_refused() -> None:
    """A stranger writes some nonce into his first REGISTERs, or one and the same into all."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await challenged(lab, peer)
            await loaded(lab, peer)
            peer.send(answer(peer.hop.port, "z9hG4bKanswer").replace(b"abc", b"abd"), lab.udp)
            assert (await peer.response()).status == 503
            for _ in range(2):  # the second is a retransmission
                peer.send(answer(peer.hop.port, "z9hG4bKanswer"), lab.udp)
            await turns(10)
            assert len(lab.calls) == 4
            peer.send(answer(peer.hop.port, "z9hG4bKagain"), lab.udp)
            assert (await peer.response()).status == 503


async def test_a_p_cscf_is_believed_that_a_register_was_protected_and_a_ue_is_not() -> None:
    """TS 24.229 §7.2A.2: who is registered may state an older nonce, and is not refused."""
    marked = b'response="0123", integrity-protected="yes"'
    for core in (False, True):
        lab = LoadedLab()
        lab.node = SipNode(
            name="node", clock=lab.clock, random=Numbers(), log=lab.tallies, handler=lab.handle, counter=lab.tallies, overload=POLICY,
            core=core,
        )  # fmt: skip
        async with lab:
            with UdpPeer() as peer:
                await loaded(lab, peer)
                peer.send(answer(peer.hop.port, "z9hG4bKanswer").replace(b'response="0123"', marked), lab.udp)
                await turns(10)
                assert len(lab.calls) == (4 if core else 3)


class Tunnel:
    """A flow of ESP, or of UDP."""

    def __init__(self, transport: str) -> None:
        self.local, self.peer = (SipPeer(transport, host, 5060) for host in ("192.0.2.9", "192.0.2.1"))

    def send(self, data: bytes) -> None:
        """Take the refusal."""


async def test_who_comes_through_security_associations_may_state_an_older_nonce() -> None:
    """TS 24.229 §5.1.1.4: the registration's credentials come again, over its associations."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            assert not lab.node.shed(answer(1, "z9hG4bKagain"), Tunnel("ESP"))
            assert lab.node.shed(answer(1, "z9hG4bKagain"), Tunnel("UDP"))


async def test_it_begins_and_ends_with_a_line_in_the_log_each() -> None:
    """ports.Log: an alarm, and its end after OverloadPolicy.memory."""
    async with LoadedLab(POLICY._replace(memory=0.0)) as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            lab.go.set()
            await lab.until(Load.CALM)
            peer.send(register(peer.hop.port, branch="z9hG4bKnow"), lab.udp)
            assert [(await peer.response()).status for _ in range(4)] == [200] * 4
            assert [event for event, _ in lab.tallies.events] == ["sip-overload-begun", "sip-overload-ended"]
            assert lab.tallies.counts["sip_overload", "begun"] == 1


async def test_a_datagram_that_waited_is_load() -> None:
    """The time in the inbox, and the lag of the loop."""
    async with LoadedLab(OverloadPolicy(patience=0.0)) as lab:
        loads = []
        for seconds in (0.2, 0.2, 0.0):
            lab.node.waited(seconds)
            loads.append(lab.node.load)
        assert loads == [Load.STRAINED, Load.SHEDDING, Load.WARY]
        lab.clock.time += 1.0  # the loop did not get to its timers for so long
        await lab.until(Load.SHEDDING)
        await lab.until(Load.WARY)


async def test_what_is_refused_over_tcp_goes_back_on_its_connection() -> None:
    """RFC 3261 §18.2.2; and what is not of the usual form is parsed."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            stream = await TcpPeer.to(lab.tcp)
            stream.send(register(1, transport="TCP"))
            stream.send(register(1, transport="TCP").replace(b"From:", b"From:\r\n  "))
            for _ in range(2):
                response = await stream.response()
                assert response.status == 503
                assert response.get("Retry-After")
                assert parse_name_addr(response.get("To") or "").parameter("tag")
            stream.send(register(1, transport="TCP").replace(b"From:", b"From:\r\n  ").replace(b"Max-Forwards:", b"Max-Forwards"))
            assert (await stream.response()).status == 400
            assert lab.tallies.counts["sip_shed", "initial"] == 3
            await stream.close()


async def test_what_cannot_be_refused_is_counted() -> None:
    """A stranger's sent-by port 0."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            peer.send(register(0, rport=False), lab.udp)
            await lab.tallies.until("sip_dropped", "unreachable")


async def test_another_classifier_may_choose_what_is_refused() -> None:
    """SipNode(sheddable=…)."""
    lab = LoadedLab()
    lab.node = SipNode(
        name="node", clock=lab.clock, random=Numbers(), log=lab.tallies, handler=lab.handle, counter=lab.tallies, overload=POLICY,
        sheddable=lambda data: data.startswith(b"SUBSCRIBE "),
    )  # fmt: skip
    async with lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            peer.send(register(peer.hop.port, branch="z9hG4bKa"), lab.udp)
            peer.send(register(peer.hop.port, branch="z9hG4bKb", method="SUBSCRIBE"), lab.udp)
            assert (await patiently(peer.response())).status == 503
            await turns(10)
            assert len(lab.calls) == 4


async def test_a_node_without_a_policy_is_calm() -> None:
    """Nothing is measured, nothing is refused."""
    async with Lab() as lab:
        lab.node.waited(10.0)
        assert lab.node.load is Load.CALM


@pytest.mark.parametrize("octets", [b"", b"\r\n\r\n", b"REGISTER"])
async def test_any_octets_are_survived_under_load(octets: bytes) -> None:
    """The listener goes on."""
    async with LoadedLab() as lab:
        with UdpPeer() as peer:
            await loaded(lab, peer)
            peer.send(octets, lab.udp)
            peer.send(register(peer.hop.port, branch="z9hG4bKnew"), lab.udp)
            assert (await peer.response()).status == 503
