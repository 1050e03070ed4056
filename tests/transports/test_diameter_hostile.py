# SPDX-License-Identifier: Apache-2.0
"""Peers that break the rules, and HSSs that come and go: what each costs, and whom (RFC 6733 §5; RFC 3539 §3.4)."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from keyferry.errors import TransportError
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DisconnectCause, ResultCode, result_of
from keyferry.protocol.diameter.message import render_message
from keyferry.protocol.identity import Impi
from keyferry.transports.clock import SystemClock
from keyferry.transports.diameter_client import DiameterPeer
from keyferry.transports.diameter_context import Admission
from keyferry.transports.pki import Pki
from protocol.diameter.cxkit import HSS, IMPI, SCSCF
from transports.diameterkit import HSS2, Answering, Net, Wire, a_mar, an_maa, an_rtr, asking, pair
from transports.diameterkit import net_fixture as net_fixture
from transports.tlskit import tls_of


def reset(wire: Wire) -> None:
    """End a connection with a RST."""
    wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.writer.transport.abort()


# ---- an HSS


async def test_of_two_answers_to_one_request_the_first_counts_and_no_other_request_gets_the_second(net: Net) -> None:
    one, _, client = await pair(net)
    tasks = await asking(client, 2)
    first, second = await one.read(), await one.read()
    one.send(an_maa(first), an_maa(first), an_maa(first).with_ids(second.hop_by_hop, first.end_to_end))
    assert (await tasks[0]).end_to_end == first.end_to_end
    await net.tallies.until("diameter_dropped", "late-answer")
    await net.tallies.until("diameter_dropped", "wrong-answer")
    assert not tasks[1].done()
    one.send(an_maa(second))
    assert (await tasks[1]).end_to_end == second.end_to_end


async def test_who_answers_with_identifiers_of_its_own_is_one_that_does_not_answer(net: Net) -> None:
    one, two, client = await pair(net)
    (task,) = await asking(client)
    asked = await one.read()
    one.send(an_maa(asked).with_ids(asked.hop_by_hop ^ 0xFFFF, asked.end_to_end), an_maa(asked).with_ids(asked.hop_by_hop, 1))
    await net.tallies.until("diameter_dropped", "wrong-answer")
    await net.passes(2.6)
    two.send(an_maa(await two.read(), HSS2))
    await task


async def test_a_reset_in_the_middle_of_an_answer_is_no_answer(net: Net) -> None:
    one, two, client = await pair(net)
    (task,) = await asking(client)
    one.send(render_message(an_maa(await one.read()))[:100])
    await net.settles()
    reset(one)
    again = await two.read()
    assert again.retransmitted
    two.send(an_maa(again, HSS2))
    assert base.identity_of(await task, base.ORIGIN_HOST) == HSS2.origin_host


async def test_a_peer_that_closes_its_half_is_gone(net: Net) -> None:
    one, two, client = await pair(net)
    (task,) = await asking(client)
    await one.read()
    one.writer.write_eof()
    two.send(an_maa(await two.read(), HSS2))
    await task
    await one.closed()


async def test_an_hss_that_says_goodbye_and_goes_on_is_left_after_a_while(net: Net) -> None:
    one, two, client = await pair(net)
    one.send(base.build_dpr(HSS, DisconnectCause.REBOOTING).with_ids(7, 7))
    assert (await one.read()).code == base.DISCONNECT_PEER
    for _ in range(5):
        one.send(base.build_dwr(HSS).with_ids(8, 8), an_rtr().with_ids(9, 9))
        assert (await one.read()).code == base.DEVICE_WATCHDOG
        assert result_of(await one.read()).code == ResultCode.UNABLE_TO_DELIVER
        await net.passes(1.0)
    await net.until(lambda: net.tallies.counts["diameter_peer", "disconnected"], step=0.5)
    await one.closed()
    (task,) = await asking(client)
    two.send(an_maa(await two.read(), HSS2))
    await task


async def test_while_both_are_away_requests_fail_at_once_and_the_first_that_is_back_answers(net: Net) -> None:
    ports = []
    for identity in (HSS, HSS2):
        server, port = await net.server(Answering(identity), identity=identity)
        ports.append((server, port))
    client = await net.client(*[port for _, port in ports])
    await net.until(lambda: len(client.connected()) == 2)
    for server, _ in ports:
        await net.end(server)
    (waits,) = await asking(client)
    await net.passes(2.1)
    with pytest.raises(TransportError, match="no peer is connected"):
        await waits
    for _ in range(3):
        with pytest.raises(TransportError, match="no peer is connected"):
            await client.send(a_mar(), timeout=5.0)
    await net.server(Answering(HSS2), identity=HSS2, port=ports[1][1])
    await net.until(client.connected, step=1.0)
    answer = await client.send(a_mar(), timeout=5.0)
    assert base.identity_of(answer, base.ORIGIN_HOST) == HSS2.origin_host
    await net.server(Answering(HSS), identity=HSS, port=ports[0][1])
    await net.until(lambda: len(client.connected()) == 2, step=1.0)
    answer = await client.send(a_mar(), timeout=5.0)
    assert base.identity_of(answer, base.ORIGIN_HOST) == HSS.origin_host


async def test_a_crowd_that_a_frozen_hss_holds_is_answered_by_the_other_within_its_time(net: Net) -> None:
    """The peer reads and says nothing; 1,000 requests are under way."""
    listener = await net.listener()
    handler = Answering(HSS2)
    _, port = await net.server(handler, identity=HSS2)
    client = await net.client(listener.port, port)
    await (await listener.wire()).welcome(HSS)
    await net.until(lambda: len(client.connected()) == 2)
    users = [Impi(f"user{number}@home1.net") for number in range(1_000)]
    tasks = [asyncio.ensure_future(client.send(a_mar(user), timeout=5.0)) for user in users]
    await asyncio.sleep(0)
    await net.passes(2.6)
    answers = await asyncio.gather(*tasks)
    assert [cx.parse_maa(answer).impi for answer in answers] == users
    assert all(request.retransmitted for request in handler.asked)
    assert result_of(await client.send(a_mar(), timeout=5.0)).success  # without any time passing
    assert len(net.said("diameter-peer-suspect")) == 1


# ---- an S-CSCF


async def test_a_thousand_requests_in_one_write_are_answered_each_its_own_in_turns(net: Net) -> None:
    handler = Answering()
    _, port = await net.server(handler)
    wire, other = await net.wire(port), await net.wire(port)
    await wire.hello()
    await other.hello()
    users = [Impi(f"user{number}@home1.net") for number in range(1_000)]
    wire.send(*[a_mar(user).with_ids(number, number) for number, user in enumerate(users)])
    other.send(a_mar().with_ids(5_000, 5_000))
    answers = [await wire.read() for _ in users]
    assert {(answer.hop_by_hop, cx.parse_maa(answer).impi) for answer in answers} == set(enumerate(users))
    place = [peer.port for peer in handler.peers].index(other.writer.get_extra_info("sockname")[1])
    assert place < 999  # it did not wait for all of them


async def test_an_s_cscf_that_says_goodbye_and_goes_on_gets_nothing_done(net: Net) -> None:
    handler = Answering()
    server, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    wire.send(base.build_dpr(SCSCF, DisconnectCause.REBOOTING).with_ids(6, 6))
    assert (await wire.read()).code == base.DISCONNECT_PEER
    for number in range(5):
        wire.send(a_mar().with_ids(number, number))
        assert result_of(await wire.read()).code == ResultCode.UNABLE_TO_DELIVER
        await net.passes(1.0)
    await net.until(lambda: net.tallies.counts["diameter_peer", "disconnected"], step=0.5)
    await wire.closed()
    assert (server.connected(), handler.asked) == ([], [])


async def test_a_message_that_comes_octet_by_octet_holds_its_connection_no_longer_than_the_watchdog(net: Net) -> None:
    handler = Answering()
    _, port = await net.server(handler)
    wire, other = await net.wire(port), await net.wire(port)
    await wire.hello()
    await other.hello()
    octets = iter(render_message(a_mar().with_ids(5, 5)))
    while not net.tallies.counts["diameter_peer", "watchdog"]:
        wire.send(bytes([next(octets)]))
        await net.passes(1.0)
        other.send(base.build_dwr(SCSCF).with_ids(8, 8))
        await other.read()
    await wire.closed()
    assert not handler.asked


async def test_an_s_cscf_that_is_reset_while_it_is_answered_costs_nobody_else_anything(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    _, port = await net.server(handler)
    wire, other = await net.wire(port), await net.wire(port)
    await wire.hello()
    await other.hello()
    wire.send(*[a_mar().with_ids(number, number) for number in range(300)])
    await handler.until(256)
    reset(wire)
    await net.tallies.until("diameter_peer", "lost")
    handler.gate.set()
    other.send(a_mar().with_ids(7, 9_999))
    assert (await other.read()).hop_by_hop == 7
    assert len(handler.asked) <= 300 + 1


# ---- certificates


class Earlier(SystemClock):
    """A clock that is years late."""

    def now(self) -> float:
        return super().now() - 9 * 365 * 86_400.0


@pytest.mark.parametrize("expired", ["hss", "scscf"])
async def test_an_expired_certificate_is_none_on_either_side(net: Net, tmp_path: Path, expired: str) -> None:
    pki = Pki(tmp_path, SystemClock())
    pki.ensure("other.home1.net", "scscf")  # so that there is a CA
    past = Pki(tmp_path, Earlier())
    names = {"hss": HSS.origin_host, "scscf": SCSCF.origin_host}
    hss, scscf = (tls_of(past if role == expired else pki, name, role) for role, name in names.items())
    server, port = await net.server(allowed=Admission.of([SCSCF.origin_host]), tls=hss)
    client = await net.client(DiameterPeer("127.0.0.1", port, HSS.origin_host, scscf))
    await net.tallies.until("diameter_dropped", "tls-handshake")
    await net.until(lambda: any("expired" in str(said["problem"]) for said in net.said("diameter-peer-refused")))
    assert (client.connected(), server.connected()) == ([], [])


async def test_a_plain_hss_of_another_name_than_is_wanted_is_not_asked(net: Net) -> None:
    listener = await net.listener()
    client = await net.client(DiameterPeer("127.0.0.1", listener.port, HSS.origin_host))
    wire = await listener.wire()
    await wire.welcome(HSS2)
    await wire.closed()
    assert client.connected() == []
    assert net.tallies.counts["diameter_peer", "wrong-peer"] == 1


async def test_the_answer_of_another_user_under_right_identifiers_is_for_the_caller_to_refuse(net: Net) -> None:
    """The transport cannot tell; roles.cx_client does (tests/roles/test_cx_client.py)."""
    one, _, client = await pair(net)
    (task,) = await asking(client)
    asked = await one.read()
    other = an_maa(a_mar(Impi("other@home1.net")).with_ids(asked.hop_by_hop, asked.end_to_end))
    one.send(replace(other, hop_by_hop=asked.hop_by_hop, end_to_end=asked.end_to_end))
    assert cx.parse_maa(await task).impi != IMPI
