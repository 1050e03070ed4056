# SPDX-License-Identifier: Apache-2.0
"""A whole node, on real loopback sockets (RFC 3261 §8, §17, §18)."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from keyferry.errors import LocalProtocolError, RemoteProtocolError, TransportError
from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.sip.headers import parse_via
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.transports import sip_server
from keyferry.transports.sip_context import Limits
from transports.sipkit import Lab, UdpPeer, ok, patiently, register, request, turns


async def test_port_0_is_the_same_free_port_for_udp_and_tcp() -> None:
    """One address in DNS and in Via."""
    async with Lab() as lab:
        assert lab.udp.port == lab.tcp.port != 0
        assert (lab.udp.transport, lab.tcp.transport) == ("UDP", "TCP")


async def test_two_nodes_talk_over_udp_and_tcp() -> None:
    """ports.SipClient."""
    async with Lab(ok) as server, Lab() as client:
        for hop in (server.udp, server.tcp):
            response = await patiently(client.node.send(request(), hop))
            assert response.status == 200
            assert (response.get("X-Source") or "").startswith(hop.transport.lower())


def test_uvloop_carries_a_node_too() -> None:
    """Its transports have other base classes; add_reader is the same."""

    async def talk() -> list[int]:
        async with Lab(ok) as server, Lab() as client:
            return [(await patiently(client.node.send(request(), hop))).status for hop in (server.udp, server.tcp)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(talk()) == [200, 200]


async def test_a_request_over_1300_octets_goes_over_tcp() -> None:
    """RFC 3261 §18.1.1, with a Via that says so."""
    vias: list[str] = []

    async def note(received: Request, peer: SipPeer) -> Response:
        vias.append(parse_via(received.get("Via") or "").transport)
        return make_response(received, 200, headers=(("X-Transport", peer.transport),))

    async with Lab(note) as server, Lab() as client:
        await patiently(client.node.send(request(0), server.udp))
        bare = client.seen[0].octets - 1  # without the one digit of Content-Length
        most = next(size for size in range(1_300) if bare + len(str(size)) + size == 1_300)
        assert (await patiently(client.node.send(request(most), server.udp))).get("X-Transport") == "UDP"
        assert max(event.octets for event in client.seen) == 1_300
        assert (await patiently(client.node.send(request(most + 1), server.udp))).get("X-Transport") == "TCP"
        assert vias == ["UDP", "UDP", "TCP"]


async def test_a_long_request_does_not_fall_back_to_udp() -> None:
    """DESIGN §6: no key follows a transport change."""
    async with Lab() as client:
        with UdpPeer() as peer:
            with pytest.raises(TransportError, match="no connection"):
                await client.node.send(request(2_000), peer.hop)
            assert peer.nothing()


async def test_a_request_that_no_receiver_takes_is_not_sent() -> None:
    """RFC 3261 §21.5.7: a UE's REGISTER that grew too long on its way must not spoil the connection of others, nor make a hop look dead."""
    async with Lab(ok) as server, Lab() as client:
        for hop in (server.udp, server.tcp):
            with pytest.raises(RemoteProtocolError, match="over 65535 octets") as caught:
                await patiently(client.node.send(request(65_500), hop))
            assert caught.value.status == 513
        assert client.seen == []
        assert (await patiently(client.node.send(request(65_000), server.tcp))).status == 200


async def test_a_node_without_tcp_listener_can_still_open_connections() -> None:
    """Responses come back on the connection."""
    async with Lab(ok) as server:
        client = Lab()
        await client.node.listen("127.0.0.1", 0, ("UDP",))
        response = await patiently(client.node.send(request(), server.tcp))
        assert response.status == 200
        await client.node.aclose()


async def test_names_are_resolved_and_unknown_ones_are_an_error() -> None:
    """The policy sees the numeric destination."""
    asked: list[SipPeer] = []
    async with Lab(ok) as server, Lab() as client:
        response = await patiently(client.node.send(request(), server.udp._replace(host="localhost"), check=asked.append))
        assert response.status == 200
        assert asked == [server.udp]
        with pytest.raises(TransportError, match="the host is unknown"):
            await patiently(client.node.send(request(), SipPeer("UDP", "no-such-host.invalid", 5060)))
        with pytest.raises(TransportError, match="a transport this node does not have"):
            await client.node.send(request(), SipPeer("SCTP", "127.0.0.1", 5060))
        with pytest.raises(TransportError, match="does not listen"):
            await client.node.send(request(), SipPeer("UDP", "::1", 5060))
        with pytest.raises(TransportError, match="does not listen"):
            await client.node.send(request(), SipPeer("TCP", "::1", 5060))
        with pytest.raises(LocalProtocolError, match="CSeq"):
            await client.node.send(request().without("CSeq"), server.udp)


async def test_a_node_of_another_family_is_not_reached() -> None:
    """A v4 address in a form only the resolver knows, a v6 node."""
    client = Lab()
    await client.node.listen("::1", 0)
    with pytest.raises(TransportError, match="no address of a family"):
        await patiently(client.node.send(request(), SipPeer("UDP", "127.1", 5060)))
    await client.node.aclose()


async def test_many_numeric_hosts_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """MAX_KNOWN_HOSTS."""
    monkeypatch.setattr("keyferry.transports.sip_node.MAX_KNOWN_HOSTS", 1)

    def refuse(peer: SipPeer) -> None:
        raise ZeroDivisionError

    async with Lab() as client:
        for last in (1, 2, 3):
            with pytest.raises(ZeroDivisionError):
                await client.node.send(request(), SipPeer("UDP", f"192.0.2.{last}", 5060), check=refuse)


async def test_ipv6_works_with_brackets_in_via() -> None:
    """RFC 3261 §25.1, IPv6reference."""
    server, client = Lab(ok), Lab()
    udp, tcp = await server.node.listen("::1", 0)
    await client.node.listen("::1", 0)
    for hop in (udp, tcp):
        assert (await patiently(client.node.send(request(), hop))).status == 200
        assert (await patiently(client.node.send(request(), hop._replace(host="[::1]")))).status == 200
    via = parse_via(server.seen[0].message.get("Via") or "")
    assert via.host == "[::1]"
    await client.node.aclose()
    await server.node.aclose()


async def test_a_wildcard_needs_an_address_to_advertise() -> None:
    """Via must say where to answer."""
    server, client = Lab(ok), Lab()
    with pytest.raises(TransportError, match="give the address to advertise"):
        await server.node.listen("0.0.0.0", 0)
    udp, tcp = await server.node.listen("0.0.0.0", 0, advertise="127.0.0.1")
    await client.node.listen("0.0.0.0", 0, advertise="127.0.0.1")
    assert udp.host == tcp.host == "127.0.0.1"
    for hop in (udp, tcp, tcp):
        assert (await patiently(client.node.send(request(), hop))).status == 200
    assert client.node.connections == 1
    await client.node.aclose()
    await server.node.aclose()


async def test_a_port_in_use_says_what_to_do() -> None:
    """An error says what to do, and nothing stays open."""
    async with Lab() as lab:
        other = Lab()
        with pytest.raises(TransportError, match="port in use"):
            await other.node.listen("127.0.0.1", lab.udp.port)
        with pytest.raises(TransportError, match="give `tls`"):
            await other.node.listen("127.0.0.1", 0, ("TLS",))
        with pytest.raises(TransportError, match="UDP, TCP and TLS"):
            await other.node.listen("127.0.0.1", 0, ("SCTP",))
        with pytest.raises(TransportError, match="UDP, TCP and TLS"):
            await other.node.listen("127.0.0.1", 0, ())
        await other.node.aclose()


async def test_a_port_free_for_udp_only_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 must be free for both."""
    refusals = 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        bind = socket.socket.bind

        class Stubborn(socket.socket):
            """Refuse the first stream port, as if another program had it."""

            def bind(self, address: object) -> None:
                nonlocal refusals
                if self.type == socket.SOCK_STREAM and refusals:
                    refusals -= 1
                    address = taken.getsockname()
                bind(self, address)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "socket", Stubborn)
        async with Lab() as lab:
            assert (refusals, lab.udp.port) == (0, lab.tcp.port)
        refusals = 100
        with pytest.raises(TransportError, match="no port is free for UDP and TCP alike"):
            await Lab().node.listen("127.0.0.1", 0)


async def test_keep_alives_are_counted_and_not_answered() -> None:
    """Empty datagrams of handsets and NAT helpers."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            for data in (b"\r\n\r\n", b"\0\0\0\0", b""):
                peer.send(data, lab.udp)
            await patiently(lab.tallies.until("sip_dropped", "keep-alive", 3))
            assert peer.nothing()


async def test_a_bug_of_ours_costs_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's last line."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer, monkeypatch.context() as bug:
            bug.setattr(sip_server, "server_key", None)
            peer.send(register(peer.hop.port), lab.udp)
            await patiently(lab.tallies.until("sip_dropped", "internal-error"))
            bug.undo()
            assert lab.tallies.events[-1] == ("sip-internal-error", {"node": "node", "problem": "TypeError"})
            peer.send(register(peer.hop.port), lab.udp)
            assert (await peer.response()).status == 200


async def test_a_node_may_call_itself_through_others() -> None:
    """A proxy's handler sends while it answers (RFC 3261 §16)."""
    async with Lab(ok) as server:

        async def proxy(received: Request, peer: SipPeer) -> Response:
            return await middle.node.send(received, server.udp)

        middle = Lab(proxy)
        async with middle, Lab() as client:
            responses = await patiently(asyncio.gather(*(client.node.send(request(), middle.udp) for _ in range(20))))
            assert {response.status for response in responses} == {200}
            assert {response.get("Via") for response in responses} == {None}
            assert middle.node.remembered == 20


async def test_the_observer_sees_a_ladder() -> None:
    """ports.SipEvent."""
    async with Lab(ok) as server, Lab() as client:
        await patiently(client.node.send(request(), server.udp))
        both: list[SipEvent] = sorted(client.seen + server.seen, key=lambda event: (event.message.get("CSeq") or "", not event.outgoing))
        assert [type(event.message).__name__ for event in both] == ["Request", "Response", "Response", "Request"] or len(both) == 4
        assert client.seen[0].octets == server.seen[0].octets
        assert client.seen[0].peer == server.seen[0].local == server.udp
        assert not any(event.retransmission for event in both)


async def test_one_peer_cannot_take_everything() -> None:
    """A flood of new requests while the handler waits: 503 above the limit, retransmissions absorbed, then all is well again."""
    go = asyncio.Event()

    async def wait(received: Request, peer: SipPeer) -> Response:
        await go.wait()
        return make_response(received, 200)

    async with Lab(wait, Limits(in_progress=10)) as lab:
        with UdpPeer() as peer:
            for number in range(50):
                peer.send(register(peer.hop.port, branch=f"z9hG4bK{number}"), lab.udp)
            statuses = [(await peer.response()).status for _ in range(40)]
            assert statuses == [503] * 40
            assert lab.node.in_progress == 10
            go.set()
            assert [(await peer.response()).status for _ in range(10)] == [200] * 10
            await turns()
            assert lab.node.in_progress == 0
