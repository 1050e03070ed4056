# SPDX-License-Identifier: Apache-2.0
"""A Diameter server over real sockets: who may connect, over TCP and TLS, what it asks of whom, and how it ends (RFC 6733 §5, §13.1)."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.errors import TransportError
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DiameterIdentity, ResultCode, result_of
from keyferry.transports.diameter_client import DiameterPeer
from keyferry.transports.diameter_connection import DiameterConnection
from keyferry.transports.diameter_context import Admission, DiameterLimits
from keyferry.transports.diameter_server import DiameterServer
from keyferry.transports.pki import MutualTls, Pki
from protocol.diameter.cxkit import HSS, SCSCF
from transports.diameterkit import HSS2, Answering, Net, a_mar, an_rtr, asking
from transports.diameterkit import net_fixture as net_fixture
from transports.sipkit import PATIENCE
from transports.tlskit import foreign_fixture as foreign_fixture
from transports.tlskit import pki_fixture as pki_fixture
from transports.tlskit import tls_of

OTHER = DiameterIdentity("scscf2.home1.net", "home1.net")
THIRD = DiameterIdentity("scscf3.home1.net", "home1.net")
CALLERS = Admission.of([SCSCF.origin_host, OTHER.origin_host], ["scscf", "icscf"])


def at(port: int, tls: MutualTls | None) -> DiameterPeer:
    return DiameterPeer("127.0.0.1", port, HSS.origin_host, tls)


async def refused(net: Net, reason: str = "", problem: str = "") -> None:
    """Wait until the client's connection came to nothing, for this reason as the server counts it."""
    if reason:
        await net.tallies.until("diameter_dropped", reason)
    await net.until(lambda: net.said("diameter-peer-refused"))
    assert any(problem in str(fields["problem"]) for fields in net.said("diameter-peer-refused")), net.said("diameter-peer-refused")


# ---- TLS


async def test_over_tls_both_prove_their_names(net: Net, pki: Pki) -> None:
    handler = Answering()
    server, port = await net.server(handler, allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    client = await net.client(at(port, tls_of(pki, SCSCF.origin_host, "scscf")), handler=Answering(SCSCF))
    answers = await asyncio.gather(*[client.send(a_mar(), timeout=30.0) for _ in range(500)])
    assert all(result_of(answer).success for answer in answers)
    assert (handler.peers[0].role, client.connected()[0].role) == ("scscf", "hss")
    assert result_of(await server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)).success
    await net.end(client)
    await net.until(lambda: not server.connected())
    assert net.tallies.counts["diameter_dropped", "tls-record"] == 0


@pytest.mark.parametrize(
    ("name", "role", "problem"),
    [
        (SCSCF.origin_host, "as", "not one of the role icscf or scscf"),
        ("evil.home1.net", "scscf", "names no peer of ours"),
    ],
)
async def test_a_certificate_of_the_wrong_role_or_name_is_refused(net: Net, pki: Pki, name: str, role: str, problem: str) -> None:
    handler = Answering()
    server, port = await net.server(handler, allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    await net.client(at(port, tls_of(pki, name, role)))
    await refused(net, "tls-peer", problem)
    assert (server.connected(), handler.asked) == ([], [])


async def test_unless_told_otherwise_an_application_server_gets_nothing(net: Net, pki: Pki) -> None:
    """Its certificate is of the same CA, and no name was listed."""
    server, port = await net.server(allowed=Admission.of([]), tls=tls_of(pki, HSS.origin_host, "hss"))
    await net.client(at(port, tls_of(pki, "as1.home1.net", "as")), identity=DiameterIdentity("as1.home1.net", "home1.net"))
    await refused(net, "tls-peer", "not one of the role")
    assert server.connected() == []


async def test_a_certificate_does_not_speak_for_another_peer(net: Net, pki: Pki) -> None:
    """Both may connect, but the one is not the other."""
    server, port = await net.server(allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    await net.client(at(port, tls_of(pki, OTHER.origin_host, "scscf")), identity=SCSCF)
    await refused(net, problem="is no peer of ours, or not this one")
    assert server.connected() == []


async def test_a_certificate_of_another_ca_is_refused(net: Net, pki: Pki, foreign: Pki) -> None:
    server, port = await net.server(allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    await net.client(at(port, tls_of(foreign, SCSCF.origin_host, "scscf")))
    await refused(net, "tls-handshake", "certificate")
    assert server.connected() == []


@pytest.mark.parametrize(("name", "role"), [(HSS2.origin_host, "hss"), (HSS.origin_host, "scscf")])
async def test_a_client_trusts_its_hss_alone(net: Net, pki: Pki, name: str, role: str) -> None:
    _, port = await net.server(allowed=CALLERS, tls=tls_of(pki, name, role))
    client = await net.client(at(port, tls_of(pki, SCSCF.origin_host, "scscf")))
    await refused(net, "tls-peer")
    assert client.connected() == []


async def test_an_hss_whose_certificate_names_another_is_not_talked_to(net: Net, pki: Pki) -> None:
    _, port = await net.server(identity=HSS2, allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    client = await net.client(at(port, tls_of(pki, SCSCF.origin_host, "scscf")))
    await net.tallies.until("diameter_peer", "wrong-peer")
    assert client.connected() == []


async def test_plain_text_at_the_tls_port_is_nothing(net: Net, pki: Pki) -> None:
    handler = Answering()
    _, port = await net.server(handler, allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    wire = await net.wire(port)
    wire.send(base.build_cer(SCSCF, ["127.0.0.1"]), a_mar())
    await wire.closed()
    await net.tallies.until("diameter_dropped", "tls-handshake")
    assert not handler.asked


async def test_a_handshake_that_never_ends_is_ended(net: Net, pki: Pki) -> None:
    _, port = await net.server(allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    wire = await net.wire(port)
    wire.send(b"\x16\x03\x01\x02\x00")
    await net.until(lambda: net.tallies.counts["diameter_peer", "timeout"], step=1.0)
    await wire.closed()


# ---- TCP


async def test_a_stranger_without_tls_is_cut_off(net: Net) -> None:
    handler = Answering()
    _, port = await net.server(handler, allowed=Admission.of([SCSCF.origin_host], addresses=["192.0.2.0/24"]))
    wire = await net.wire(port)
    await wire.closed()
    assert net.tallies.counts["diameter_dropped", "stranger"] == 1


async def test_a_name_that_is_not_allowed_gets_unknown_peer(net: Net) -> None:
    server, port = await net.server()
    wire = await net.wire(port)
    assert result_of(await wire.hello(OTHER)).code == ResultCode.UNKNOWN_PEER
    await wire.closed()
    assert server.connected() == []


async def test_connections_are_bounded(net: Net) -> None:
    server, port = await net.server(allowed=Admission.of([]), limits=DiameterLimits(connections=2, closing=0.1))
    first, second, third = [await net.wire(port) for _ in range(3)]
    await first.hello(OTHER)
    await second.hello(THIRD)
    await third.hello()
    assert base.parse_dpr(await third.read()) is base.DisconnectCause.BUSY
    third.send(a_mar().with_ids(5, 5))
    assert result_of(await third.read()).code == ResultCode.UNABLE_TO_DELIVER
    await net.passes(0.2)
    await third.closed()
    assert net.tallies.counts["diameter_dropped", "too-many-connections"] == 1
    (said,) = net.said("diameter-peer-refused")
    assert (said["peer"], said["problem"]) == (SCSCF.origin_host, "2 connections are open, and no more may be (hss.connections)")
    second.close()
    await net.until(lambda: len(server._connections) == 1)
    fourth = await net.wire(port)
    assert result_of(await fourth.hello()).success
    assert len(server.connected()) == 2


async def test_a_peer_that_comes_again_where_all_places_are_taken_gets_its_own(net: Net) -> None:
    server, port = await net.server(allowed=CALLERS, limits=DiameterLimits(connections=2))
    first, other, again = [await net.wire(port) for _ in range(3)]
    await first.hello()
    await other.hello(OTHER)
    await again.hello()
    await first.closed()
    again.send(a_mar().with_ids(5, 5))
    assert result_of(await again.read()).success
    assert len(server.connected()) == 2
    assert net.tallies.counts["diameter_dropped", "displaced"] == 1


async def test_who_comes_in_a_loop_where_all_places_are_taken_is_cut_off(net: Net) -> None:
    server, port = await net.server(allowed=Admission.of([]), limits=DiameterLimits(connections=1, strangers=2, closing=60.0))
    first = await net.wire(port)
    await first.hello(OTHER)
    for _ in range(10):
        wire = await net.wire(port)
        wire.send(base.build_cer(SCSCF, ["127.0.0.1"]).with_ids(1, 1))
    await net.tallies.until("diameter_dropped", "too-many-connections", 10)
    await net.until(lambda: len(server._connections) <= 1 + 2 + 1)
    first.send(a_mar().with_ids(5, 5))
    assert result_of(await first.read()).success


async def test_a_peer_with_a_certificate_has_a_place_whoever_of_this_machine_has_taken_all(net: Net, pki: Pki) -> None:
    limits = DiameterLimits(connections=2)
    server, port = await net.server(allowed=Admission.of([]), tls=tls_of(pki, HSS.origin_host, "hss"), limits=limits)
    _, plain = await server.listen("127.0.0.1", 0)
    squatters = [await net.wire(plain) for _ in range(2)]
    for number, wire in enumerate(squatters):
        assert result_of(await wire.hello(DiameterIdentity(f"squatter{number}.home1.net", "home1.net"))).success
    client = await net.client(at(port, tls_of(pki, SCSCF.origin_host, "scscf")))
    assert result_of(await client.send(a_mar(), timeout=30.0)).success
    await squatters[0].closed()
    assert len(server.connected()) == 2


@pytest.mark.parametrize("connections", [2, 64])
async def test_who_says_a_name_displaces_nobody_who_has_proven_it(net: Net, pki: Pki, connections: int) -> None:
    """A process of this machine may connect without TLS; what the HSS asks of an S-CSCF goes to the one with the certificate."""
    limits = DiameterLimits(connections=connections, per_peer=2)
    server, port = await net.server(allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"), limits=limits)
    _, plain = await server.listen("127.0.0.1", 0)
    handler = Answering(SCSCF)
    client = await net.client(at(port, tls_of(pki, SCSCF.origin_host, "scscf")), handler=handler)
    await net.until(server.connected)
    for _ in range(4):
        await (await net.wire(plain)).hello()
    async with asyncio.timeout(PATIENCE):
        assert result_of(await server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)).success
        assert result_of(await client.send(a_mar(), timeout=5.0)).success
    assert (len(handler.asked), len(server._of_host[SCSCF.origin_host])) == (1, 2)
    assert [peer.protected for peer in server._of_host[SCSCF.origin_host]] == [True, False]


async def test_a_flood_from_one_address_keeps_no_stranger_of_another_out(net: Net) -> None:
    _, port = await net.server(allowed=Admission.of([SCSCF.origin_host]), limits=DiameterLimits(strangers=4))
    slow = await net.wire(port, local_addr=("127.0.0.2", 0))
    await net.settles()
    for _ in range(20):
        await net.wire(port)
    await net.tallies.until("diameter_dropped", "too-many-strangers", 17)
    assert result_of(await slow.hello()).success


@pytest.mark.parametrize(
    ("flood", "other"),
    [
        ("2001:db8::{:x}", "2001:db8:0:1::1"),
        ("2001:db8::{:x}%2", "192.0.2.1"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8"),
        ("192.0.2.7", "::1"),
    ],
)
async def test_who_has_a_network_of_addresses_is_one_stranger_to_the_others(net: Net, flood: str, other: str) -> None:
    """A /64 of IPv6 is one subscriber's, who may connect from another address of it each time."""
    server, _ = await net.server()
    alone = stranger(net, server, other)
    flooding = [stranger(net, server, flood.format(number)) for number in range(1, 6)]
    assert server._crowded() is flooding[0]
    del server._strangers[alone]
    assert server._crowded() is flooding[0]


def stranger(net: Net, server: DiameterServer, address: str) -> DiameterConnection:
    """Let somebody wait who has not said who it is."""
    made = DiameterConnection(server.context, server, Admission(), dials=False)
    made.peer = made.peer._replace(address=address)
    server._strangers[made] = None
    return made


async def test_strangers_keep_no_peer_out(net: Net) -> None:
    server, port = await net.server(limits=DiameterLimits(connections=2, strangers=4))
    peer = await net.wire(port)
    await peer.hello()
    strangers = [await net.wire(port) for _ in range(20)]
    await net.tallies.until("diameter_dropped", "too-many-strangers", 16)
    other = await net.wire(port)
    assert result_of(await other.hello()).success
    await strangers[0].closed()
    peer.send(a_mar().with_ids(5, 5))
    assert result_of(await peer.read()).success
    assert len(server._connections) <= 2 + 4
    assert net.tallies.counts["diameter_dropped", "too-many-connections"] == 0


async def test_a_certificate_that_ends_ends_the_connection(net: Net, pki: Pki) -> None:
    server, port = await net.server(allowed=CALLERS, tls=tls_of(pki, HSS.origin_host, "hss"))
    client = await net.client(at(port, tls_of(pki, SCSCF.origin_host, "scscf")))
    await client.ready()
    await net.until(server.connected)
    await net.passes(33)
    await net.settles()
    assert net.tallies.counts["diameter_dropped", "tls-expired"] == 0
    await net.passes(6 * 365 * 86_400.0)
    await net.tallies.until("diameter_dropped", "tls-expired")
    await net.until(lambda: not server.connected())


async def test_a_peer_that_comes_again_is_asked_there_and_too_many_displace_the_oldest(net: Net) -> None:
    server, port = await net.server(limits=DiameterLimits(per_peer=2))
    wires = [await net.wire(port) for _ in range(3)]
    for wire in wires[:2]:
        await wire.hello()
    asking_peer = asyncio.ensure_future(server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0))
    request = await wires[1].read()
    wires[0].send(a_mar().with_ids(5, 5))
    assert (await wires[0].read()).hop_by_hop == 5  # the older one works
    wires[1].send(cx.build_rta(request, cx.Rta(()), SCSCF))
    assert result_of(await asking_peer).success
    await wires[2].hello()
    await wires[0].closed()
    assert net.tallies.counts["diameter_dropped", "displaced"] == 1


async def test_who_is_not_connected_cannot_be_asked(net: Net) -> None:
    server, port = await net.server()
    with pytest.raises(TransportError, match=r"scscf1\.home1\.net: is not connected"):
        await server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)
    wire = await net.wire(port)
    await wire.hello()
    silent = asyncio.ensure_future(server.send_to("SCSCF1.home1.NET", an_rtr(), timeout=4.0))
    await wire.read()
    await net.passes(4.1)
    with pytest.raises(TransportError, match="no answer in 4 s"):
        await silent
    lost = asyncio.ensure_future(server.send_to(SCSCF.origin_host, an_rtr(), timeout=4.0))
    await wire.read()
    wire.close()
    with pytest.raises(TransportError, match="the connection ended"):
        await lost


async def test_requests_of_the_server_are_bounded(net: Net) -> None:
    server, port = await net.server(limits=DiameterLimits(pending=1))
    wire = await net.wire(port)
    await wire.hello()
    first = asyncio.ensure_future(server.send_to(SCSCF.origin_host, an_rtr(), timeout=4.0))
    asked = await wire.read()
    assert result_of(await server.send_to(SCSCF.origin_host, an_rtr(), timeout=4.0)).code == ResultCode.TOO_BUSY
    wire.send(cx.build_rta(asked, cx.Rta(()), SCSCF))
    assert result_of(await first).success


async def test_an_end_in_peace_lets_answers_out(net: Net) -> None:
    """RFC 6733 §5.4."""
    handler = Answering()
    handler.gate.clear()
    server, port = await net.server(handler)
    client = await net.client(port)
    (task,) = await asking(client)
    await handler.until(1)
    closing = asyncio.ensure_future(net.end(server))
    await net.until(lambda: not client.connected())
    handler.gate.set()
    assert result_of(await task).success
    await closing
    assert net.tallies.counts["diameter_sent", "again"] == 0


async def test_a_peer_that_leaves_gets_its_answers(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    _, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    wire.send(a_mar().with_ids(5, 5), base.build_dpr(SCSCF, base.DisconnectCause.REBOOTING).with_ids(6, 6))
    assert (await wire.read()).code == base.DISCONNECT_PEER
    wire.send(a_mar().with_ids(7, 7))
    assert result_of(await wire.read()).code == ResultCode.UNABLE_TO_DELIVER
    handler.gate.set()
    answer = await wire.read()
    assert (answer.hop_by_hop, result_of(answer).success) == (5, True)


async def test_a_port_in_use_is_said(net: Net) -> None:
    server, port = await net.server()
    with pytest.raises(TransportError, match="cannot listen: port in use; stop the program"):
        await server.listen("127.0.0.1", port)


async def test_watchdogs_keep_an_idle_connection(net: Net) -> None:
    server, port = await net.server()
    client = await net.client(port)
    await client.ready()
    for _ in range(10):
        await net.passes(33)
        await net.settles()
    assert server.connected() and client.connected()
    assert net.tallies.counts["diameter_peer", "up"] == 2
    assert result_of(await client.send(a_mar(), timeout=5.0)).success


async def test_the_answer_of_a_wire_peer_is_the_peers(net: Net) -> None:
    """A request over the second connection is answered there."""
    _, port = await net.server()
    one, two = await net.wire(port), await net.wire(port)
    await one.hello()
    await two.hello()
    two.send(a_mar().with_ids(1, 11))
    one.send(a_mar().with_ids(2, 12))
    assert ((await two.read()).end_to_end, (await one.read()).end_to_end) == (11, 12)
