# SPDX-License-Identifier: Apache-2.0
"""SIP over TCP, on real loopback sockets (RFC 3261 §18)."""

from __future__ import annotations

import asyncio
import ipaddress
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


async def test_a_connection_that_is_reset_before_it_is_looked_at_disturbs_nobody() -> None:
    """uvloop knows no address of it, and what the limits say of one without is nothing."""
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with Lab(ok, trusts=lambda host: ipaddress.ip_address(host).is_multicast) as lab:
        for _ in range(3):
            sock = socket.create_connection((lab.tcp.host, lab.tcp.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        peer = await TcpPeer.to(lab.tcp)
        peer.send(register(1, transport="TCP"))
        assert (await peer.response()).status == 200
        await peer.close()
    assert problems == []


async def test_one_address_cannot_take_every_connection() -> None:
    """Limits.per_source: the address alone is bounded, and has room again when one of its connections ends."""
    async with Lab(ok, Limits(per_source=2)) as lab:
        first, second = await TcpPeer.to(lab.tcp), await TcpPeer.to(lab.tcp)
        third = await TcpPeer.to(lab.tcp)
        assert await third.ended()
        assert lab.tallies.counts["sip_dropped", "too-many-of-source"] == 1
        other = TcpPeer(*await asyncio.open_connection(lab.tcp.host, lab.tcp.port, local_addr=("127.0.0.2", 0)))
        other.send(register(1, transport="TCP"))
        assert (await other.response()).status == 200
        await first.close()
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections > 2:
                await asyncio.sleep(0)
        again = await TcpPeer.to(lab.tcp)
        again.send(register(1, transport="TCP"))
        assert (await again.response()).status == 200
        for peer in (second, third, other, again):
            await peer.close()


async def test_a_trusted_address_and_our_own_connections_are_not_bounded_by_the_source() -> None:
    """SipNode.trusts: a function in front of many users needs many connections."""
    async with Lab(ok, Limits(per_source=1), trusts=lambda host: host == "127.0.0.1") as lab, Listener() as listener:
        peers = [await TcpPeer.to(lab.tcp) for _ in range(3)]
        for peer in peers:
            peer.send(register(1, transport="TCP"))
            assert (await peer.response()).status == 200
        stranger = [await asyncio.open_connection(lab.tcp.host, lab.tcp.port, local_addr=("127.0.0.2", 0)) for _ in range(2)]
        assert await TcpPeer(*stranger[1]).ended()
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        called = await listener.connection()
        called.send(build_message(make_response(await called.request(), 200)))
        assert (await patiently(sending)).status == 200
        for peer in (*peers, called, *(TcpPeer(*one) for one in stranger)):
            await peer.close()


async def test_strangers_of_many_addresses_leave_room_for_trusted_ones_and_for_ours() -> None:
    """RESERVED: a flooded P-CSCF still reaches its I-CSCF, and a flooded S-CSCF hears it."""
    async with Lab(ok, Limits(connections=20), trusts=lambda host: host == "127.0.0.1") as lab, Listener() as listener:
        strangers = [
            TcpPeer(*await asyncio.open_connection(lab.tcp.host, lab.tcp.port, local_addr=(f"127.0.1.{number}", 0)))
            for number in range(1, 20)
        ]
        assert await strangers[-1].ended()
        assert lab.tallies.counts["sip_dropped", "too-many-connections"] == 1
        trusted = await TcpPeer.to(lab.tcp)
        trusted.send(register(1, transport="TCP"))
        assert (await trusted.response()).status == 200
        sending = asyncio.create_task(lab.node.send(request(), listener.hop))
        called = await listener.connection()
        called.send(build_message(make_response(await called.request(), 200)))
        assert (await patiently(sending)).status == 200
        for peer in (*strangers, trusted, called):
            await peer.close()


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%lo", "fe80::/64"),
    ],
)
def test_what_counts_as_one_source(host: str, source: str) -> None:
    """RFC 6177 §2: a site has a /64 at least, so each of its addresses is the same subscriber's."""
    assert sip_tcp.source_of(host) == source


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


class Held:
    """A handler that answers when it is told to."""

    def __init__(self, body: bytes = b"") -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self.body = body

    async def __call__(self, request: Request, peer: SipPeer) -> Response:
        self.calls += 1
        await self.go.wait()
        return make_response(request, 200, body=self.body)

    async def until(self, calls: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.calls < calls:
                await asyncio.sleep(0)


def asking(count: int) -> bytes:
    return b"".join(register(1, transport="TCP", branch=f"z9hG4bK{number}") for number in range(count))


async def raw(peer: SipPeer, receive_buffer: int = 4_096) -> socket.socket:
    """Connect a socket that reads only when it is told to."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (peer.host, peer.port))
    return sock


async def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX_BACKLOG: what is in progress may still answer, up to here."""
    monkeypatch.setattr(sip_tcp, "MAX_BACKLOG", 200_000)
    held = Held(bytes(60_000))
    async with Lab(held) as lab:
        sock = await raw(lab.tcp)
        await asyncio.get_running_loop().sock_sendall(sock, asking(200))
        await held.until(64)
        held.go.set()
        await lab.tallies.until("sip_dropped", "unreachable")
        async with asyncio.timeout(PATIENCE):
            while lab.node.connections:
                await asyncio.sleep(0)
        assert held.calls < 200  # the others were never begun
        sock.close()


async def test_a_slow_reader_gets_every_answer_and_costs_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """HIGH_WATER: no further request is begun while answers wait to be read."""
    monkeypatch.setattr(sip_tcp, "HIGH_WATER", 100_000)
    calls = 0

    async def long(received: Request, peer: SipPeer) -> Response:
        nonlocal calls
        calls += 1
        return make_response(received, 200, body=bytes(60_000))

    async with Lab(long, Limits(pipelined=8)) as lab:
        sock = await raw(lab.tcp, 100_000)
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(sock, asking(600)))
        await turns(300)
        assert calls < 400  # the kernel's buffers and ours are full
        answers, tail = 0, b""
        async with asyncio.timeout(10 * PATIENCE):
            while answers < 600:
                received = await loop.sock_recv(sock, 1_000_000)
                assert received
                got = tail + received
                answers += got.count(b"SIP/2.0 200")
                tail = got[-10:]
        await sending
        assert calls == 600
        assert lab.node.connections == 1
        sock.close()


async def test_a_slow_reader_that_never_reads_is_closed_as_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits.idle: back-pressure is not for ever."""
    monkeypatch.setattr(sip_tcp, "HIGH_WATER", 10_000)

    async def long(received: Request, peer: SipPeer) -> Response:
        return make_response(received, 200, body=bytes(60_000))

    async with Lab(long, Limits(pipelined=2)) as lab:
        sock = await raw(lab.tcp)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, asking(1_000)))
        await turns(100)
        for _ in range(24):
            lab.move(8.1)
        await lab.tallies.until("sip_dropped", "idle-connection")
        await asyncio.gather(sending, return_exceptions=True)
        sock.close()


async def test_pipelined_requests_wait_their_turn_and_none_is_lost() -> None:
    """Limits.pipelined bounds what is in progress, however many requests one read brings."""
    held = Held()
    async with Lab(held, Limits(pipelined=3)) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(asking(50))
        await held.until(3)
        await turns(20)
        assert (held.calls, lab.node.in_progress) == (3, 3)
        held.go.set()
        branches = {parse_via((await peer.response()).get("Via") or "").branch for _ in range(50)}
        assert branches == {f"z9hG4bK{number}" for number in range(50)}
        await peer.close()


async def test_a_long_pipeline_leaves_other_connections_their_turn() -> None:
    """MAX_TURN."""
    order: list[str] = []

    async def note(received: Request, peer: SipPeer) -> Response:
        order.append(received.get("Call-ID") or "")
        return make_response(received, 200)

    async with Lab(note) as lab:
        greedy, modest = await TcpPeer.to(lab.tcp), await TcpPeer.to(lab.tcp)
        greedy.send(asking(500))
        modest.send(asking(1).replace(b"c1", b"modest"))
        await modest.response()
        assert order.index("modest") < 450
        for _ in range(500):
            await greedy.response()
        await greedy.close()
        await modest.close()


async def test_a_response_does_not_wait_behind_requests() -> None:
    """The requests may be waiting for it."""
    held = Held()
    async with Lab(held, Limits(pipelined=2)) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(asking(3))
        await held.until(2)
        sending = asyncio.create_task(lab.node.send(request(), SipPeer("TCP", "127.0.0.1", peer.port)))
        peer.send(build_message(make_response(await peer.request(), 202)))
        assert (await patiently(sending)).status == 202
        held.go.set()
        for _ in range(3):
            await peer.response()
        await peer.close()


async def test_a_peer_that_ends_its_half_gets_its_answers() -> None:
    """A client that sends, shuts down its side and reads to the end; then the connection is closed."""
    held = Held()
    async with Lab(held, Limits(pipelined=2)) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(asking(5))
        peer.writer.write_eof()
        await held.until(2)
        await turns(20)
        held.go.set()
        branches = {parse_via((await peer.response()).get("Via") or "").branch for _ in range(5)}
        assert branches == {f"z9hG4bK{number}" for number in range(5)}
        assert lab.node.connections == 1
        lab.move(sip_tcp.LINGER + 0.1)
        assert await peer.ended()
        assert lab.tallies.counts["sip_dropped", "unreachable"] == 0
        await peer.close()


async def test_a_half_closed_connection_is_used_for_no_request() -> None:
    """Its peer can send no response; the request that waits on it fails at once."""
    held = Held()
    async with Lab(held) as lab:
        peer = await TcpPeer.to(lab.tcp)
        hop = SipPeer("TCP", "127.0.0.1", peer.port)
        peer.send(asking(1))
        await held.until(1)
        sending = asyncio.create_task(lab.node.send(request(), hop))
        await peer.request()
        peer.writer.write_eof()
        with pytest.raises(TransportError, match="the connection was closed"):
            await patiently(sending)
        with pytest.raises(TransportError, match="no connection"):
            await patiently(lab.node.send(request(), hop))
        held.go.set()
        assert (await peer.response()).status == 200
        await peer.close()


async def test_what_came_before_something_that_is_not_sip_is_answered() -> None:
    """RFC 3261 §20.14: the stream cannot be cut from there on, up to there it can."""
    held = Held()
    async with Lab(held) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(asking(2) + b"REGISTER sip:a SIP/2.0\r\n\r\n" + asking(1))
        await lab.tallies.until("sip_dropped", "malformed-stream")
        held.go.set()
        for _ in range(2):
            assert (await peer.response()).status == 200
        assert await peer.ended()
        assert held.calls == 2
        await peer.close()


@pytest.mark.parametrize(("pings", "pongs"), [(b"\r\n", b""), (b"\r\n\r\n", b"\r\n"), (b"\r\n" * 6, b"\r\n")])
async def test_keep_alives_between_messages(pings: bytes, pongs: bytes) -> None:
    """RFC 5626 §3.5.1, §4.4.1: a double CRLF is answered with one; a single one, and one amid requests, harms nothing."""
    async with Lab(ok) as lab:
        peer = await TcpPeer.to(lab.tcp)
        peer.send(asking(1) + pings + asking(1).replace(b"K0", b"K1"))
        await peer.response()
        assert (await peer.octets()).endswith(b"\r\n\r\n")
        peer.send(pings)
        expected = pongs + pongs if pongs else b""
        if expected:
            assert await patiently(peer.reader.readexactly(len(pongs))) == pongs
        await peer.close()
