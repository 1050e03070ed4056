# SPDX-License-Identifier: Apache-2.0
"""SIP over TCP, on real loopback sockets (RFC 3261 §18)."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.headers import parse_via
from keyferry.protocol.sip.message import Request, Response, build_message, make_response, parse_message
from keyferry.transports import sip_tcp
from keyferry.transports.sip_context import Limits
from transports.sipkit import PATIENCE, Lab, ok, patiently, register, request, turns


class TcpPeer:
    """A plain TCP client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.port = writer.get_extra_info("sockname")[1]

    @classmethod
    async def to(cls, peer: SipPeer) -> TcpPeer:
        return cls(*await asyncio.open_connection(peer.host, peer.port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def octets(self) -> bytes:
        head = await patiently(self.reader.readuntil(b"\r\n\r\n"))
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return head + await patiently(self.reader.readexactly(length))

    async def response(self) -> Response:
        message = parse_message(await self.octets())
        assert isinstance(message, Response)
        return message

    async def request(self) -> Request:
        message = parse_message(await self.octets())
        assert isinstance(message, Request)
        return message

    async def ended(self) -> bool:
        try:
            return await patiently(self.reader.read()) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Listener:
    """A plain TCP server that collects its connections."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[TcpPeer] = asyncio.Queue()
        self.hop = SipPeer("TCP", "", 0)

    async def __aenter__(self) -> Listener:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.accepted.put(TcpPeer(reader, writer))

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.hop = SipPeer("TCP", *self.server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        while not self.accepted.empty():
            await self.accepted.get_nowait().close()

    async def connection(self) -> TcpPeer:
        return await patiently(self.accepted.get())


async def test_a_request_octet_by_octet_is_answered_on_its_connection() -> None:
    """RFC 3261 §18.2.2, §18.3."""
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        for octet in b"\r\n" + register(1, transport="TCP", host="pcscf.example.com", rport=False):
            peer.send(bytes((octet,)))
            await asyncio.sleep(0)
        response = await peer.response()
        via = parse_via(response.get("Via") or "")
        assert (response.status, via.received) == (200, "127.0.0.1")
        assert response.get("X-Source") == f"tcp:127.0.0.1:{peer.port}"
        assert lab.node.remembered == 0  # timer J is 0
        assert lab.seen[0].peer == SipPeer("TCP", "127.0.0.1", peer.port)
        await peer.close()
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections:
                await asyncio.sleep(0)


async def test_several_requests_in_one_segment_are_all_answered() -> None:
    """A stream has no message bounds of its own."""
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(b"".join(register(1, transport="TCP", branch=f"z9hG4bK{number}") for number in range(5)))
        answered = [parse_via((await peer.response()).get("Via") or "").branch for _ in range(5)]
        assert answered == [f"z9hG4bK{number}" for number in range(5)]
        await peer.close()


async def test_a_ping_gets_a_pong() -> None:
    """RFC 5626 §4.4.1."""
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(b"\r\n\r\n")
        assert await patiently(peer.reader.readexactly(2)) == b"\r\n"
        await peer.close()


async def test_a_malformed_message_is_answered_and_the_connection_lives() -> None:
    """RFC 4475 §3.1.2 on a stream: its Content-Length still says where it ends."""
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(register(1, transport="TCP").replace(b"Max-Forwards:", b"Max-Forwards"))
        assert (await peer.response()).status == 400
        peer.send(b"nonsense\r\nContent-Length: 0\r\n\r\n" + register(1, transport="TCP"))
        assert (await peer.response()).status == 200
        await peer.close()


async def test_a_stream_that_cannot_be_cut_is_closed_and_others_live() -> None:
    """RFC 3261 §20.14."""
    async with Lab(ok) as lab:
        peer, other = await TcpPeer.to(lab.tcp), await TcpPeer.to(lab.tcp)
        peer.send(b"REGISTER sip:a SIP/2.0\r\n\r\n")
        assert await peer.ended()
        assert lab.tallies.counts["sip_dropped", "malformed-stream"] == 1
        other.send(register(1, transport="TCP"))
        assert (await other.response()).status == 200
        await peer.close()
        await other.close()


async def test_idle_connections_and_endless_messages_end() -> None:
    """Limits.idle, Limits.partial."""
    async with Lab(ok) as lab:
        idle, slow = await TcpPeer.to(lab.tcp), await TcpPeer.to(lab.tcp)
        slow.send(b"REGISTER sip:a SIP/2.0\r\n")
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections < 2:
                await asyncio.sleep(0)
        await turns()
        for _ in range(4):
            lab.move(8.1)
        assert await slow.ended()
        assert lab.node.connections == 1
        for _ in range(20):
            lab.move(8.1)
        assert await idle.ended()
        assert lab.tallies.counts["sip_dropped", "idle-connection"] == 2
        await idle.close()
        await slow.close()


async def test_connections_above_the_limit_are_refused() -> None:
    """Limits.connections, both directions."""
    async with Lab(ok, Limits(connections=1)) as lab, Listener() as listener:
        first = await TcpPeer.to(lab.tcp)
        first.send(register(1, transport="TCP"))
        await first.response()
        second = await TcpPeer.to(lab.tcp)
        assert await second.ended()
        assert lab.tallies.counts["sip_dropped", "too-many-connections"] == 1
        with pytest.raises(TransportError, match="too many connections"):
            await lab.node.send(request(), listener.hop)
        await first.close()
        await second.close()


async def test_a_connection_with_too_much_in_progress_is_read_no_further() -> None:
    """Limits.pipelined: back-pressure, not memory."""
    go = asyncio.Event()
    calls = 0

    async def wait(received: Request, peer: SipPeer) -> Response:
        nonlocal calls
        calls += 1
        await go.wait()
        return make_response(received, 200)

    async with Lab(wait, Limits(pipelined=2)) as lab:
        peer = await TcpPeer.to(lab.tcp)
        for number in range(2):
            peer.send(register(1, transport="TCP", branch=f"z9hG4bK{number}"))
        async with asyncio.timeout(PATIENCE):
            while calls < 2:
                await asyncio.sleep(0)
        peer.send(register(1, transport="TCP", branch="z9hG4bK3"))
        await turns(20)
        assert calls == 2
        go.set()
        for _ in range(3):
            assert (await peer.response()).status == 200
        await peer.close()


async def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX_BACKLOG."""
    monkeypatch.setattr(sip_tcp, "MAX_BACKLOG", 100_000)
    monkeypatch.setattr(sip_tcp, "HIGH_WATER", 10_000)

    async def long(received: Request, peer: SipPeer) -> Response:
        return make_response(received, 200, body=bytes(60_000))

    async with Lab(long) as lab:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (lab.tcp.host, lab.tcp.port))
        asking = b"".join(register(1, transport="TCP", branch=f"z9hG4bK{number}") for number in range(200))
        await asyncio.get_running_loop().sock_sendall(sock, asking)
        await lab.tallies.until("sip_dropped", "unreachable")
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections:
                await asyncio.sleep(0)
        sock.close()


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
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections:
                await asyncio.sleep(0)
        go.set()
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
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections:
                await asyncio.sleep(0)
        go.set()
        await lab.tallies.until("sip_dropped", "unreachable")


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
