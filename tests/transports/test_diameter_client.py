# SPDX-License-Identifier: Apache-2.0
"""A Diameter client over real sockets: peers in order, failover, failback, watchdog (RFC 6733 §5.1, §5.5; RFC 3539 §3.4)."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.errors import LocalProtocolError, TransportError
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DiameterIdentity, DisconnectCause, ResultCode, result_of
from keyferry.protocol.diameter.message import DiameterMessage, make_avp
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import DiameterLimits
from protocol.diameter.cxkit import HSS, IMPI, KEYS, SCSCF, VECTOR
from transports.diameterkit import HSS2, Answering, Net, Wire, a_mar, an_maa, an_rtr, asking, one_peer, pair, ready, wires
from transports.diameterkit import net_fixture as net_fixture


async def test_a_request_is_answered(net: Net) -> None:
    handler = Answering()
    server, port = await net.server(handler)
    client = await net.client(port)
    answer = await client.send(a_mar(), timeout=5.0)
    assert cx.parse_maa(answer).items[0].vector == VECTOR
    assert handler.peers[0].origin_host == SCSCF.origin_host
    assert [peer.origin_host for peer in client.connected()] == [HSS.origin_host]
    assert [peer.origin_host for peer in server.connected()] == [SCSCF.origin_host]
    assert not handler.asked[0].retransmitted


async def test_ten_thousand_requests_at_once_are_answered_each_its_own(net: Net) -> None:
    handler = Answering()
    _, port = await net.server(handler)
    client = await net.client(port, limits=DiameterLimits(pending=10_000))
    await client.ready()
    users = [type(IMPI)(f"user{number}@home1.net") for number in range(10_000)]
    answers = await asyncio.gather(*[client.send(a_mar(user), timeout=60.0) for user in users])
    assert [cx.parse_maa(answer).impi for answer in answers] == users
    assert len({request.end_to_end for request in handler.asked}) == 10_000


async def test_one_request_too_many_is_refused_as_too_busy(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    _, port = await net.server(handler)
    client = await net.client(port, limits=DiameterLimits(pending=3))
    await client.ready()
    tasks = await asking(client, 3)
    refusal = await client.send(a_mar(), timeout=5.0)
    assert result_of(refusal).code == ResultCode.TOO_BUSY
    handler.gate.set()
    assert all(result_of(answer).success for answer in await asyncio.gather(*tasks))
    assert net.tallies.counts["diameter_sent", "busy"] == 1


async def test_a_lost_connection_sends_its_requests_to_the_next_peer_with_the_t_flag(net: Net) -> None:
    one, two, client = await pair(net)
    tasks = await asking(client, 3)
    first = [await one.read() for _ in range(3)]
    one.close()
    second = [await two.read() for _ in range(3)]
    assert [request.end_to_end for request in second] == [request.end_to_end for request in first]
    assert all(request.retransmitted for request in second)
    assert not any(request.retransmitted for request in first)
    assert [request.avps for request in second] == [request.avps for request in first]
    two.send(*[an_maa(request, HSS2) for request in second])
    assert all(result_of(answer).success for answer in await asyncio.gather(*tasks))


async def test_a_silent_peer_is_suspected_and_whichever_answers_first_counts(net: Net) -> None:
    """RFC 3539 §3.4.1: two watchdogs' time."""
    one, two, client = await pair(net)
    (task,) = await asking(client, timeout=600.0)
    asked = await one.read()
    await net.passes(33)
    assert (await one.read()).code == base.DEVICE_WATCHDOG
    two.send(base.build_dwa(await two.read(), HSS2))
    await net.until(lambda: True)
    await net.passes(33)
    assert [peer.origin_host for peer in client.connected()] == [HSS2.origin_host]
    while (again := await two.read()).code == base.DEVICE_WATCHDOG:
        two.send(base.build_dwa(again, HSS2))
    assert (again.end_to_end, again.retransmitted) == (asked.end_to_end, True)
    one.send(an_maa(asked, HSS))  # it lives, after all
    answer = await task
    assert base.identity_of(answer, base.ORIGIN_HOST) == HSS.origin_host
    await ready(client, HSS.origin_host, HSS2.origin_host)
    two.send(an_maa(again, HSS2))
    await net.tallies.until("diameter_dropped", "late-answer")
    (task,) = await asking(client)  # failback
    one.send(an_maa(await one.read(), HSS))
    await task


async def reopened(net: Net) -> tuple[Wire, Wire, DiameterClient]:
    """Return two peers and their client: the first answered no watchdog, was given up, and is connected again (RFC 3539 §3.4.1, REOPEN)."""
    first, second = await net.listener(), await net.listener()
    client = await net.client(first.port, second.port)
    one, two = await first.wire(), await second.wire()
    await one.welcome(HSS)
    await two.welcome(HSS2)
    await ready(client, HSS.origin_host, HSS2.origin_host)
    for _ in range(3):
        await net.passes(33)
        two.send(base.build_dwa(await two.read(), HSS2))
        await net.settles()
    await one.closed()
    await net.until(lambda: net.tallies.counts["diameter_peer", "watchdog"], step=0.5)
    connecting = asyncio.ensure_future(first.wire())
    await net.until(connecting.done, step=0.1)
    one = await connecting
    await one.welcome(HSS)
    return one, two, client


async def test_a_peer_that_never_answers_again_is_given_up_and_has_to_prove_itself(net: Net) -> None:
    one, _, client = await reopened(net)
    assert (await one.read()).code == base.DEVICE_WATCHDOG  # REOPEN: not used before three answers
    assert [peer.origin_host for peer in client.connected()] == [HSS2.origin_host]


async def test_a_request_without_an_answer_for_half_of_its_time_goes_to_the_next_peer_too(net: Net) -> None:
    """RFC 6733 §5.5.4: a peer that stands still costs the first requests half of their time, and later ones nothing."""
    one, two, client = await pair(net)
    tasks = await asking(client, 3, timeout=5.0)
    asked = [await one.read() for _ in range(3)]
    await net.passes(2.4)
    assert not net.said("diameter-failover")
    await net.passes(0.15)
    again = [await two.read() for _ in range(3)]
    assert [(each.end_to_end, each.retransmitted) for each in again] == [(each.end_to_end, True) for each in asked]
    assert (await one.read()).code == base.DEVICE_WATCHDOG  # does it live?
    assert [peer.origin_host for peer in client.connected()] == [HSS2.origin_host]
    two.send(*[an_maa(each, HSS2) for each in again])
    await asyncio.gather(*tasks)
    (task,) = await asking(client)
    new = await two.read()
    assert not new.retransmitted
    two.send(an_maa(new, HSS2))
    await task
    assert net.tallies.counts["diameter_peer", "suspect"] == 1


async def test_a_peer_that_answers_watchdogs_alone_is_tried_with_one_request_now_and_then(net: Net) -> None:
    one, two, client = await pair(net)

    async def asked_of(wire: Wire, identity: base.DiameterIdentity) -> None:
        """Ask once: this peer gets it, and answers."""
        (task,) = await asking(client)
        wire.send(an_maa(await application(wire, identity), identity))
        await task

    async def application(wire: Wire, identity: base.DiameterIdentity) -> DiameterMessage:
        while (request := await wire.read()).code == base.DEVICE_WATCHDOG:
            wire.send(base.build_dwa(request, identity))
        return request

    (task,) = await asking(client)
    lost = await one.read()
    await net.passes(2.6)
    two.send(an_maa(await two.read(), HSS2))
    await task
    one.send(base.build_dwa(await one.read(), HSS))  # it lives
    await ready(client, HSS.origin_host, HSS2.origin_host)
    for _ in range(3):
        await asked_of(two, HSS2)
    one.send(an_maa(lost, HSS))  # late, so it is no proof
    await net.tallies.until("diameter_dropped", "late-answer")
    await asked_of(two, HSS2)
    await net.passes(30.0)
    trial, other = await asking(client, 2)
    for wire, identity in ((one, HSS), (two, HSS2)):
        wire.send(an_maa(await application(wire, identity), identity))
    await asyncio.gather(trial, other)
    await asked_of(one, HSS)


async def test_a_peer_that_answers_everybody_too_late_is_not_asked_for_long(net: Net) -> None:
    one, two, client = await pair(net)
    tasks: list[asyncio.Task[DiameterMessage]] = []
    for _ in range(4):  # one each second, and the answers come after three
        tasks += await asking(client)
        await net.passes(1.0)
        await net.settles()
    assert [peer.origin_host for peer in client.connected()] == [HSS2.origin_host]
    late = [await one.read() for _ in range(3)]
    one.send(*[an_maa(each, HSS) for each in late])
    asked = [await two.read() for _ in range(4)]
    two.send(*[an_maa(each, HSS2) for each in asked])
    await asyncio.gather(*tasks)
    (task,) = await asking(client)
    two.send(an_maa(await two.read(), HSS2))
    await task


async def test_one_request_that_takes_long_costs_a_peer_that_answers_others_nothing(net: Net) -> None:
    one, two, client = await pair(net)
    (slow,) = await asking(client)
    hard = await one.read()
    await net.passes(1.0)
    (quick,) = await asking(client)
    one.send(an_maa(await one.read(), HSS))
    await quick
    await net.passes(1.6)
    again = await two.read()
    assert (again.end_to_end, again.retransmitted) == (hard.end_to_end, True)
    two.send(an_maa(again, HSS2))
    await slow
    assert net.tallies.counts["diameter_peer", "suspect"] == 0
    (task,) = await asking(client)
    one.send(an_maa(await one.read(), HSS))
    await task


async def test_a_peer_that_has_just_been_asked_is_not_suspected_for_the_time_that_another_lost(net: Net) -> None:
    one, two, client = await pair(net)
    (first,) = await asking(client)
    await one.read()
    await net.passes(0.5)
    (second,) = await asking(client)
    await one.read()
    await net.passes(2.05)  # the first is over its half, and takes the second along
    lost = [await two.read(), await two.read()]
    await net.passes(0.5)  # now it is the second's half
    assert [peer.origin_host for peer in client.connected()] == [HSS2.origin_host]
    two.send(*[an_maa(each, HSS2) for each in lost])
    await asyncio.gather(first, second)
    assert net.tallies.counts["diameter_peer", "suspect"] == 1


async def test_the_only_peer_is_asked_whatever_it_left_unanswered(net: Net) -> None:
    wire, client = await one_peer(net)
    (slow,) = await asking(client)
    asked = await wire.read()
    await net.passes(4.9)
    wire.send(an_maa(asked))
    await slow
    assert net.tallies.counts["diameter_peer", "suspect"] == net.tallies.counts["diameter_sent", "again"] == 0


async def test_of_three_peers_the_third_answers_though_the_others_stand_still(net: Net) -> None:
    third = DiameterIdentity("hss3.home1.net", "home1.net")
    (_, _, last), client = await wires(net, HSS, HSS2, third)
    (task,) = await asking(client, timeout=5.0)
    await net.passes(2.55)
    await net.passes(1.3)
    last.send(an_maa(await last.read(), third))
    await task
    (task,) = await asking(client, timeout=5.0)
    last.send(an_maa(await last.read(), third))
    await task


async def test_a_peer_that_has_to_prove_itself_is_asked_at_once_where_there_is_no_other(net: Net) -> None:
    """REOPEN is for a choice that there is; with the second peer gone there is none."""
    one, two, client = await reopened(net)
    assert (await one.read()).code == base.DEVICE_WATCHDOG
    (task,) = await asking(client)
    await two.read()
    two.close()
    one.send(an_maa(await one.read(), HSS))
    await task


async def test_who_cannot_is_not_asked_again_and_the_next_peer_is(net: Net) -> None:
    busy, free = Answering(HSS), Answering(HSS2)
    busy.code = ResultCode.TOO_BUSY
    _, port = await net.server(busy)
    _, other = await net.server(free, identity=HSS2)
    client = await net.client(port, other)
    await ready(client, HSS.origin_host, HSS2.origin_host)
    answer = await client.send(a_mar(), timeout=5.0)
    assert base.identity_of(answer, base.ORIGIN_HOST) == HSS2.origin_host
    assert not free.asked[0].retransmitted  # RFC 6733 §3: not after an error answer
    free.code = ResultCode.UNABLE_TO_DELIVER
    answer = await client.send(a_mar(), timeout=5.0)
    assert result_of(answer).code == ResultCode.UNABLE_TO_DELIVER
    assert (len(busy.asked), len(free.asked)) == (2, 2)


async def test_any_other_error_is_the_answer(net: Net) -> None:
    handler, other = Answering(HSS), Answering(HSS2)
    handler.code = ResultCode.UNABLE_TO_COMPLY
    client = await net.client((await net.server(handler))[1], (await net.server(other, identity=HSS2))[1])
    await ready(client, HSS.origin_host, HSS2.origin_host)
    assert result_of(await client.send(a_mar(), timeout=5.0)).code == ResultCode.UNABLE_TO_COMPLY
    assert not other.asked


async def test_a_request_that_names_a_peer_goes_there(net: Net) -> None:
    handler, other = Answering(HSS), Answering(HSS2)
    client = await net.client((await net.server(handler))[1], (await net.server(other, identity=HSS2))[1])
    await ready(client, HSS.origin_host, HSS2.origin_host)
    mar = a_mar()
    named = type(mar)(mar.code, mar.application, True, (*mar.avps, make_avp(base.DESTINATION_HOST, 0, "HSS2.home1.net")), True)
    await client.send(named, timeout=5.0)
    assert (len(handler.asked), len(other.asked)) == (0, 1)


async def test_nobody_there_is_said_at_once_after_a_little_patience(net: Net) -> None:
    listener = await net.listener()
    await listener.close()
    client = await net.client(listener.port)
    (task,) = await asking(client, timeout=60.0)
    await net.tallies.until("diameter_peer", "unreachable")
    assert not task.done()
    await net.passes(2.1)
    with pytest.raises(TransportError, match="no peer is connected"):
        await task
    with pytest.raises(TransportError, match="no peer is connected"):
        await client.send(a_mar(), timeout=60.0)
    assert len(net.said("diameter-peer-unreachable")) == 1


async def test_no_answer_in_time_is_an_error_and_a_late_one_is_dropped(net: Net) -> None:
    wire, client = await one_peer(net)
    (task,) = await asking(client, timeout=4.0)
    asked = await wire.read()
    await net.passes(4.1)
    with pytest.raises(TransportError, match=r"hss\.home1\.net: no answer in 4 s"):
        await task
    wire.send(an_maa(asked))
    await net.tallies.until("diameter_dropped", "late-answer")
    said = net.said("diameter-no-answer")
    assert [(fields["command"], fields["peer"]) for fields in said] == [("MAR", HSS.origin_host)]


async def test_answers_to_nothing_or_to_something_else_are_dropped(net: Net) -> None:
    wire, client = await one_peer(net)
    (task,) = await asking(client)
    asked = await wire.read()
    answer = an_maa(asked)
    wire.send(answer.with_ids(asked.hop_by_hop ^ 1, asked.end_to_end), answer.with_ids(asked.hop_by_hop, asked.end_to_end ^ 1))
    wire.send(
        cx.build_saa(asked, cx.Saa(IMPI, b"<x/>"), HSS).__class__(
            301, asked.application, False, answer.avps, True, False, False, asked.hop_by_hop, asked.end_to_end
        )
    )
    await net.tallies.until("diameter_dropped", "wrong-answer", 2)
    assert net.tallies.counts["diameter_dropped", "late-answer"] == 1
    assert not task.done()
    wire.send(answer)
    assert await task == answer


async def test_a_server_that_starts_again_loses_no_request(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    server, port = await net.server(handler, limits=DiameterLimits(closing=0.2))
    client = await net.client(port, limits=DiameterLimits(patience=60.0))
    (task,) = await asking(client, timeout=120.0)
    await handler.until(1)
    await net.end(server)
    again = Answering()
    await net.server(again, port=port)
    await net.until(task.done, step=0.1)
    assert result_of(await task).success
    assert again.asked[0].retransmitted
    assert again.asked[0].end_to_end == handler.asked[0].end_to_end


async def test_a_peer_that_leaves_in_peace_still_answers(net: Net) -> None:
    one, two, client = await pair(net)
    (task,) = await asking(client)
    asked = await one.read()
    one.send(base.build_dpr(HSS, DisconnectCause.REBOOTING).with_ids(7, 7))
    assert (await one.read()).code == base.DISCONNECT_PEER
    (new,) = await asking(client)  # goes to the other at once
    two.send(an_maa(await two.read(), HSS2))
    await new
    one.send(an_maa(asked))
    one.close()
    assert base.identity_of(await task, base.ORIGIN_HOST) == HSS.origin_host
    assert net.tallies.counts["diameter_sent", "again"] == 0


async def test_a_peer_that_left_and_answers_no_more_is_waited_for_a_moment_only(net: Net) -> None:
    one, two, client = await pair(net)
    (task,) = await asking(client)
    asked = await one.read()
    one.send(base.build_dpr(HSS, DisconnectCause.BUSY).with_ids(7, 7))
    assert (await one.read()).code == base.DISCONNECT_PEER
    await net.passes(1.1)
    again = await two.read()
    assert (again.end_to_end, again.retransmitted) == (asked.end_to_end, True)
    two.send(an_maa(again, HSS2))
    await task


async def test_who_told_us_to_go_is_left_alone_for_a_while(net: Net) -> None:
    """RFC 6733 §5.4.3."""
    listener = await net.listener()
    client = await net.client(listener.port)
    wire = await listener.wire()
    await wire.welcome()
    await ready(client, HSS.origin_host)
    wire.send(base.build_dpr(HSS, DisconnectCause.DO_NOT_WANT_TO_TALK_TO_YOU).with_ids(7, 7))
    assert (await wire.read()).code == base.DISCONNECT_PEER
    wire.close()
    connecting = asyncio.ensure_future(listener.wire())
    await net.until(lambda: net.said("diameter-peer-down"))
    await net.passes(14, step=0.5)
    assert not connecting.done()
    await net.until(connecting.done, step=1.0)
    await connecting


async def test_a_peer_that_refuses_is_asked_ever_less_often(net: Net) -> None:
    _, port = await net.server(identity=HSS)
    await net.client(port, identity=HSS2)  # not one of the allowed
    await net.until(lambda: net.tallies.counts["diameter_peer", "refused"] >= 4, step=0.1)
    began = net.clock.time
    await net.until(lambda: net.tallies.counts["diameter_peer", "refused"] >= 9, step=0.5)
    assert net.clock.time - began > 20
    assert net.said("diameter-peer-refused")[0]["code"] == ResultCode.UNKNOWN_PEER


async def test_requests_of_the_peer_are_served_and_without_a_handler_refused(net: Net) -> None:
    serving = Answering(SCSCF)
    server, port = await net.server()
    client = await net.client(port, handler=serving)
    await client.ready()
    await net.until(server.connected)
    assert cx.parse_rta(await server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)) is not None
    assert serving.peers[0].origin_host == HSS.origin_host
    await net.end(client)
    client = await net.client(port)
    await client.ready()
    await net.until(server.connected)
    refused = await server.send_to(SCSCF.origin_host, an_rtr(), timeout=5.0)
    assert result_of(refused).code == ResultCode.COMMAND_UNSUPPORTED


async def test_closing_says_goodbye_and_fails_who_waits(net: Net) -> None:
    wire, client = await one_peer(net)
    (task,) = await asking(client, timeout=60.0)
    await wire.read()
    await net.end(client)  # the peer does not answer the DPR
    assert (await wire.read()).code == base.DISCONNECT_PEER
    await wire.closed()
    with pytest.raises(TransportError):
        await task
    with pytest.raises(TransportError, match="closed"):
        await client.send(a_mar(), timeout=1.0)


async def test_a_caller_that_gives_up_leaves_nothing_behind(net: Net) -> None:
    wire, client = await one_peer(net)
    (task,) = await asking(client)
    asked = await wire.read()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wire.send(an_maa(asked))
    await net.tallies.until("diameter_dropped", "late-answer")


async def test_a_peer_of_another_name_is_not_talked_to(net: Net) -> None:
    _, port = await net.server(identity=HSS2)
    client = await net.client(DiameterPeer("127.0.0.1", port, HSS.origin_host))
    await net.tallies.until("diameter_peer", "wrong-peer")
    assert client.connected() == []


def test_a_tls_peer_needs_a_name(net: Net) -> None:
    with pytest.raises(LocalProtocolError):
        DiameterClient([DiameterPeer("127.0.0.1", 1, tls=object())], SCSCF, clock=net.clock, random=net.random, log=net.tallies)  # type: ignore[arg-type]


async def test_no_log_and_no_metric_holds_a_key(net: Net) -> None:
    handler = Answering()
    server, port = await net.server(handler, limits=DiameterLimits(closing=0.2))
    client = await net.client(port)
    await client.send(a_mar(), timeout=5.0)
    handler.code = 9999999999  # cannot be rendered: an error of ours
    assert result_of(await client.send(a_mar(), timeout=5.0)).code == ResultCode.UNABLE_TO_COMPLY
    await net.end(server)
    said = repr(net.tallies.events) + repr(net.tallies.counts)
    assert "diameter-request-failed" in said
    for key in KEYS:
        octets = key.reveal()
        assert octets.hex() not in said and repr(octets) not in said and octets.decode("latin-1") not in said
