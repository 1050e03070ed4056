# SPDX-License-Identifier: Apache-2.0
"""SIP over TCP: connections that we make (RFC 3261 §18.1, §18.4)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.headers import parse_via
from keyferry.protocol.sip.message import Request, Response, build_message, make_response
from keyferry.transports import sip_tcp
from keyferry.transports.sip_context import Limits
from transports.sipkit import PATIENCE, Lab, Listener, TcpPeer, ok, patiently, register, request, turns


async def test_a_connection_is_made_once_and_reused() -> None:
    """RFC 3261 §18: connections are kept open."""
    async with Lab() as lab, Listener() as listener:
        sending = [asyncio.create_task(lab.node.send(request(), listener.hop)) for _ in range(3)]
        peer = await listener.connection()
        for _ in range(3):
            received = await peer.request()
            via = parse_via(received.get("Via") or "")
            assert (via.transport, via.port, via.rport) == ("TCP", lab.tcp.port, None)
            peer.send(build_message(make_response(received, 200)))
        assert [response.status for response in await patiently(asyncio.gather(*sending))] == [200] * 3
        again = asyncio.create_task(lab.node.send(request(), listener.hop))
        peer.send(build_message(make_response(await peer.request(), 202)))
        assert (await patiently(again)).status == 202
        assert lab.node.connections == 1
        assert listener.accepted.empty()
        await peer.close()


async def test_a_connection_that_ends_fails_its_requests_and_the_next_opens_another() -> None:
    """RFC 3261 §18.4."""
    async with Lab() as lab, Listener() as listener:
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        peer = await listener.connection()
        await peer.request()
        await peer.close()
        with pytest.raises(TransportError, match="the connection was closed"):
            await patiently(sending)
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        peer = await listener.connection()
        peer.send(build_message(make_response(await peer.request(), 200)))
        assert (await patiently(sending)).status == 200
        await peer.close()


async def test_an_abandoned_host_s_requests_fail_and_the_next_opens_another_connection() -> None:
    """The way was through a security association that is gone: what TCP would send again over it comes late, or never."""
    async with Lab() as lab, Listener() as listener:
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        peer = await listener.connection()
        await peer.request()
        lab.node.abandon("192.0.2.1", "another host's")
        await turns()
        assert not sending.done()
        lab.node.abandon(listener.hop.host, "the way is gone")
        with pytest.raises(TransportError, match="the way is gone"):
            await patiently(sending)
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        again = await listener.connection()
        again.send(build_message(make_response(await again.request(), 200)))
        assert (await patiently(sending)).status == 200
        for each in (peer, again):
            await each.close()


async def test_over_tcp_nothing_is_retransmitted_and_timer_f_ends_it() -> None:
    """RFC 3261 §17.1.2.2."""
    async with Lab() as lab, Listener() as listener:
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        peer = await listener.connection()
        await peer.request()
        lab.move(31.9)
        assert not sending.done()
        lab.move(0.2)
        with pytest.raises(TransportError, match="no answer in 32 s"):
            await patiently(sending)
        assert [event.retransmission for event in lab.seen] == [False]
        await peer.close()


async def test_a_refused_connection_is_an_error_for_every_sender() -> None:
    """RFC 3261 §18.4."""
    async with Listener() as listener:
        nobody = listener.hop
    async with Lab() as lab:
        results = await asyncio.gather(*(lab.node.send(request(), nobody) for _ in range(2)), return_exceptions=True)
        assert all("no connection" in str(result) for result in results)
        assert lab.node.connections == 0


async def test_a_connection_that_is_not_made_in_time_is_an_error() -> None:
    """Limits.connect; a listener whose queue is full does not answer."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(full.getsockname())
    async with Lab() as lab:
        sending = asyncio.create_task(lab.node.send(request(), SipPeer("TCP", *full.getsockname())))
        await turns(20)
        lab.move(5.1)
        with pytest.raises(TransportError, match="no connection in 5 s"):
            await patiently(sending)
    for sock in (full, *fillers):
        sock.close()


async def test_aclose_ends_a_connection_being_made() -> None:
    """Nothing is left behind."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(full.getsockname())
    lab = await Lab().start()
    sending = asyncio.create_task(lab.node.send(request(), SipPeer("TCP", *full.getsockname())))
    await turns(20)
    await patiently(lab.node.aclose())
    with pytest.raises((TransportError, asyncio.CancelledError)):
        await patiently(sending)
    for sock in (full, *fillers):
        sock.close()


async def test_a_response_whose_connection_is_gone_goes_to_sent_by() -> None:
    """RFC 3261 §18.2.2."""
    go = asyncio.Event()

    async def wait(received: Request, peer: SipPeer) -> Response:
        await go.wait()
        return make_response(received, 200)

    async with Lab(wait) as lab, Listener() as listener:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(register(listener.hop.port, transport="TCP", rport=False))
        async with asyncio.timeout(PATIENCE):
            while not lab.node.in_progress:
                await asyncio.sleep(0)
        await peer.close()
        await turns(20)
        go.set()
        async with asyncio.timeout(PATIENCE):
            while lab.node.in_progress:
                await asyncio.sleep(0)
        lab.move(sip_tcp.LINGER + 0.1)
        back = await listener.connection()
        assert (await back.response()).status == 200
        await back.close()


async def test_a_response_that_cannot_go_anywhere_is_counted() -> None:
    """RFC 3261 §18.4."""
    go = asyncio.Event()

    async def wait(received: Request, peer: SipPeer) -> Response:
        await go.wait()
        return make_response(received, 200)

    async with Listener() as listener:
        nobody = listener.hop
    async with Lab(wait) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(register(nobody.port, transport="TCP", rport=False))
        async with asyncio.timeout(PATIENCE):
            while not lab.node.in_progress:
                await asyncio.sleep(0)
        await peer.close()
        await turns(20)
        go.set()
        async with asyncio.timeout(PATIENCE):
            while lab.node.in_progress:
                await asyncio.sleep(0)
        lab.move(sip_tcp.LINGER + 0.1)
        await lab.tallies.until("sip_dropped", "unreachable")


async def without_connections(lab: Lab) -> None:
    async with asyncio.timeout(PATIENCE):
        while lab.node.connections:
            await asyncio.sleep(0)


async def test_connections_made_for_answers_count_as_the_strangers_own() -> None:
    """Limits.per_source: one address that asks for its answers at ever new ports does not take every connection."""
    go = asyncio.Event()

    async def wait(received: Request, peer: SipPeer) -> Response:
        await go.wait()
        return make_response(received, 200)

    async with contextlib.AsyncExitStack() as stack:
        lab = await stack.enter_async_context(Lab(wait, Limits(connections=20, per_source=2)))
        listeners = [await stack.enter_async_context(Listener()) for _ in range(5)]
        peer = await TcpPeer.to(lab.tcp)
        for number, listener in enumerate(listeners):
            peer.send(register(listener.hop.port, transport="TCP", rport=False, branch=f"z9hG4bK{number}"))
        async with asyncio.timeout(PATIENCE):
            while lab.node.in_progress < len(listeners):
                await asyncio.sleep(0)
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.writer.transport.abort()
        await without_connections(lab)
        go.set()
        await lab.tallies.until("sip_dropped", "unreachable", 3)
        assert lab.tallies.counts["sip_dropped", "too-many-of-source"] == 3
        for listener in listeners[:2]:
            back = await listener.connection()
            assert (await back.response()).status == 200
            await back.close()
        await without_connections(lab)
        again = await TcpPeer.to(lab.tcp)
        again.send(register(1, transport="TCP"))
        assert (await again.response()).status == 200
        await again.close()


async def test_requests_may_go_back_over_a_connection_the_peer_opened() -> None:
    """A UE behind a NAT is reached over its own flow (RFC 5626 §5.3)."""
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(register(1, transport="TCP"))
        await peer.response()
        sending = asyncio.create_task(lab.node.send(request(), SipPeer("TCP", "127.0.0.1", peer.port)))
        peer.send(build_message(make_response(await peer.request(), 200)))
        assert (await patiently(sending)).status == 200
        assert lab.node.connections == 1
        await peer.close()
