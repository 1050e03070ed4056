# SPDX-License-Identifier: Apache-2.0
"""The client side, on real loopback sockets (RFC 3261 §17.1.2, §17.1.3, §18.1)."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.errors import PushRefused, TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.headers import parse_via
from keyferry.protocol.sip.message import Request, Response, build_message, make_response
from keyferry.transports.sip_client import without_top_via
from transports.sipkit import Lab, UdpPeer, patiently, request, turns


def answer(received: Request, status: int = 200, **rows: str) -> bytes:
    response = make_response(received, status, to_tag="t")
    for name, value in rows.items():
        response = response.replacing(name, value)
    return build_message(response)


async def test_a_request_gets_a_via_and_its_response_comes_without_it() -> None:
    """RFC 3261 §8.1.1.7, §18.1.1; RFC 3581 §3."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            received = await peer.request()
            via = parse_via(received.get("Via") or "")
            assert (via.transport, via.host, via.port, via.rport) == ("UDP", lab.udp.host, lab.udp.port, "")
            assert via.branch.startswith("z9hG4bK")
            peer.send(answer(received, 100), lab.udp)
            peer.send(answer(received), lab.udp)
            response = await patiently(sending)
            assert (response.status, response.get("Via")) == (200, None)
            assert [(event.outgoing, event.retransmission) for event in lab.seen] == [(True, False), (False, False), (False, False)]


async def test_the_vias_below_ours_stay() -> None:
    """A proxy passes the response on (RFC 3261 §16.7)."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(
                lab.node.send(request().prepending("Via", "SIP/2.0/UDP ue.example.com;branch=z9hG4bKue"), peer.hop)
            )
            received = await peer.request()
            first, second = received.all("Via")
            peer.send(answer(received, Via=f"{first}, {second}"), lab.udp)
            assert (await patiently(sending)).all("Via") == ["SIP/2.0/UDP ue.example.com;branch=z9hG4bKue"]


async def test_a_request_is_retransmitted_until_it_is_answered() -> None:
    """RFC 3261 §17.1.2.2: timer E 0.5, 1, 2, 4, 4 s."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            first = await peer.octets()
            for step in (0.5, 1.0, 2.0, 4.0, 4.0):
                assert lab.move(step - 0.1) == 0
                assert peer.nothing()
                assert lab.move(0.1 + 0.02) == 1
                assert await peer.octets() == first
            assert lab.tallies.counts["sip_retransmissions", "sent"] == 5
            assert lab.seen[-1].retransmission
            received = lab.seen[-1].message
            assert isinstance(received, Request)
            peer.send(answer(received), lab.udp)
            assert (await patiently(sending)).status == 200
            assert lab.move(10.0) == 0


async def test_without_an_answer_timer_f_ends_it() -> None:
    """RFC 3261 §17.1.2.2: 64*T1."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            received = await peer.request()
            lab.move(32.1)
            with pytest.raises(TransportError, match=rf"udp:127\.0\.0\.1:{peer.hop.port}: no answer in 32 s"):
                await patiently(sending)
            peer.send(answer(received), lab.udp)
            await lab.tallies.until("sip_dropped", "stray-response")


async def test_a_provisional_response_slows_retransmission_down() -> None:
    """RFC 3261 §17.1.2.2, Proceeding."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            received = await peer.request()
            peer.send(answer(received, 100), lab.udp)
            await turns()
            assert lab.move(0.52) == 1
            assert not peer.nothing()
            assert lab.move(3.9) == 0
            assert lab.move(0.2) == 1
            peer.send(answer(received), lab.udp)
            await patiently(sending)


async def test_responses_that_do_not_match_are_dropped() -> None:
    """RFC 3261 §17.1.3, §18.1.2."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            received = await peer.request()
            via = received.get("Via") or ""
            for wrong in (
                answer(received, CSeq="8 REGISTER"),
                answer(received, CSeq="7 MESSAGE"),
                answer(received, CSeq="nonsense"),
                answer(received, Via=via.replace("z9hG4bK", "z9hG4bKx")),
                answer(received, Via=via.replace("127.0.0.1", "127.0.0.2")),
                answer(received, Via=via.replace(f":{lab.udp.port}", ":1")),
                answer(received, Via="nonsense"),
                build_message(make_response(received, 200).without("Via")),
            ):
                peer.send(wrong, lab.udp)
            await patiently(lab.tallies.until("sip_dropped", "stray-response", 8))
            assert not sending.done()
            for _ in range(3):
                peer.send(answer(received), lab.udp)
            assert (await patiently(sending)).status == 200
            await turns()
            assert not [event for event in lab.tallies.events if event[0] == "sip-internal-error"]


async def test_the_policy_is_asked_before_every_transmission() -> None:
    """DESIGN §6: checked at every transmission and retransmission, with the destination."""
    asked: list[SipPeer] = []

    def check(peer: SipPeer) -> None:
        asked.append(peer)
        if len(asked) == 3:
            raise PushRefused("protection")

    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop, check=check))
            await peer.request()
            lab.move(0.6)
            await peer.request()
            lab.move(1.1)
            with pytest.raises(PushRefused):
                await patiently(sending)
            assert asked == [peer.hop] * 3
            assert peer.nothing()


async def test_a_policy_that_refuses_at_once_lets_nothing_out() -> None:
    """DESIGN §6."""

    def check(peer: SipPeer) -> None:
        raise PushRefused("protection")

    async with Lab() as lab:
        with UdpPeer() as peer:
            with pytest.raises(PushRefused):
                await lab.node.send(request(), peer.hop, check=check)
            with pytest.raises(PushRefused):
                await lab.node.send(request(2_000), peer.hop, check=check)
            assert peer.nothing()
            assert (lab.node.connections, lab.seen) == (0, [])


class Slowly:
    """A policy that says what it says when the test lets it."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def __call__(self, peer: SipPeer) -> None:
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(answer)
        await answer


async def test_nothing_leaves_before_a_policy_that_takes_its_time_has_spoken() -> None:
    """DESIGN §6, `ipsec`: each transmission and each retransmission waits for its own answer."""
    policy = Slowly()
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop, check=policy))
            first = await patiently(policy.asked.get())
            assert peer.nothing()
            first.set_result(None)
            await peer.request()
            lab.move(0.6)
            second = await patiently(policy.asked.get())
            assert peer.nothing()
            lab.move(1.1)  # the next one is due, and the policy has not spoken of this one: it is not asked twice
            await turns()
            assert policy.asked.empty()
            second.set_exception(PushRefused("protection"))
            with pytest.raises(PushRefused):
                await patiently(sending)
            assert peer.nothing()


async def test_a_slow_policy_stops_a_request_before_a_connection_is_made() -> None:
    policy = Slowly()
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(2_000), peer.hop, check=policy))
            (await patiently(policy.asked.get())).set_exception(PushRefused("protection"))
            with pytest.raises(PushRefused):
                await patiently(sending)
            assert (lab.node.connections, lab.seen) == (0, [])


async def test_what_was_answered_or_given_up_is_not_sent_when_a_slow_policy_says_yes() -> None:
    policy = Slowly()
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop, check=policy))
            (await patiently(policy.asked.get())).set_result(None)
            received = await peer.request()
            lab.move(0.6)
            late = await patiently(policy.asked.get())
            peer.send(answer(received), lab.udp)
            assert (await patiently(sending)).status == 200
            assert late.cancelled()
            given_up = asyncio.create_task(lab.node.send(request(), peer.hop, check=policy))
            waits = await patiently(policy.asked.get())
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
            await turns()
            assert waits.cancelled()
            assert peer.nothing()


async def test_aclose_fails_what_waits() -> None:
    """Nobody waits for ever."""
    lab = await Lab().start()
    with UdpPeer() as peer:
        sending = asyncio.create_task(lab.node.send(request(), peer.hop))
        await peer.request()
        await lab.node.aclose()
        with pytest.raises(TransportError, match="this node was closed"):
            await patiently(sending)
        with pytest.raises(TransportError, match="this node was closed"):
            await lab.node.send(request(), peer.hop)
        await lab.node.aclose()


async def test_a_cancelled_sender_leaves_nothing_behind() -> None:
    """The timers stop."""
    async with Lab() as lab:
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            await peer.request()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert lab.move(10.0) == 0
            assert peer.nothing()


def test_a_response_without_via_stays_as_it_is() -> None:
    """Nothing to remove."""
    for response in (Response(200, "OK", (("X-A", "1"),)), Response(200, "OK", (("Via", "nonsense"),))):
        assert without_top_via(response) == response


class NeverLooked:
    """A flow that stands for a stranger's connection."""

    local = peer = SipPeer("TCP", "127.0.0.1", 1)

    def send(self, data: bytes) -> None:
        raise AssertionError(data)


async def test_the_end_of_a_connection_that_carries_no_request_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers end many; there may be tens of thousands of requests that wait for somebody else."""
    async with Lab() as lab:
        client = lab.node._client
        with UdpPeer() as peer:
            sending = asyncio.create_task(lab.node.send(request(), peer.hop))
            received = await peer.request()
            with monkeypatch.context() as patch:
                patch.setattr(client, "_calls", None)  # whoever looks through it fails
                client.lost(NeverLooked(), "gone")
            assert len(client._on) == client.in_progress == 1
            peer.send(answer(received), lab.udp)
            assert (await patiently(sending)).status == 200
        assert (len(client._on), client.in_progress) == (0, 0)
