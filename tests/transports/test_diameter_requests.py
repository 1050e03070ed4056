# SPDX-License-Identifier: Apache-2.0
"""Requests that come again are answered alike and carried out once (RFC 6733 §3, §5.5.4); handlers that fail are answered for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import DiameterIdentity, ResultCode, result_of
from keyferry.protocol.diameter.message import AvpFault, DiameterMessage, make_avp, render_message
from keyferry.protocol.identity import Impi
from keyferry.transports.diameter_context import Admission, DiameterLimits, RemotePeer
from protocol.diameter.cxkit import SCSCF
from transports.diameterkit import Answering, Net, Wire, a_mar
from transports.diameterkit import net_fixture as net_fixture

OTHER = DiameterIdentity("scscf2.home1.net", "home1.net")


async def two_wires(net: Net, handler: Answering, **limits: int | float) -> tuple[Wire, Wire]:
    """Return two connections of the same peer."""
    _, port = await net.server(handler, limits=DiameterLimits(**limits))  # type: ignore[arg-type]
    wires = await net.wire(port), await net.wire(port)
    for wire in wires:
        await wire.hello()
    return wires


def again(request: DiameterMessage, hop_by_hop: int) -> DiameterMessage:
    return request.with_ids(hop_by_hop, request.end_to_end, retransmitted=True)


async def test_a_request_that_comes_again_is_answered_alike_and_carried_out_once(net: Net) -> None:
    handler = Answering()
    one, two = await two_wires(net, handler)
    request = a_mar().with_ids(1, 77)
    one.send(request)
    first = await one.read()
    two.send(again(request, 900))
    second = await two.read()
    assert second == replace(first, hop_by_hop=900)
    assert len(handler.asked) == 1
    assert net.tallies.counts["diameter_requests", "duplicate"] == 1


async def test_one_that_comes_again_while_it_is_carried_out_waits_for_that(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    one, two = await two_wires(net, handler)
    request = a_mar().with_ids(1, 77)
    one.send(request)
    await handler.until(1)
    one.close()
    two.send(again(request, 900))
    await net.tallies.until("diameter_requests", "duplicate")
    handler.gate.set()
    answer = await two.read()
    assert (answer.hop_by_hop, answer.end_to_end, result_of(answer).success) == (900, 77, True)
    assert len(handler.asked) == 1


async def test_the_first_that_arrives_may_have_the_t_flag(net: Net) -> None:
    handler = Answering()
    one, _ = await two_wires(net, handler)
    one.send(again(a_mar().with_ids(1, 77), 4))
    assert result_of(await one.read()).success
    assert len(handler.asked) == 1


async def test_an_original_that_its_copy_overtook_is_not_carried_out_again(net: Net) -> None:
    """They came over two connections; the original has no T flag."""
    handler = Answering()
    one, two = await two_wires(net, handler)
    request = a_mar().with_ids(1, 77)
    two.send(again(request, 900))
    copy = await two.read()
    one.send(request)
    assert await one.read() == replace(copy, hop_by_hop=1)
    assert len(handler.asked) == 1


async def test_identifiers_that_a_careless_peer_uses_again_get_no_other_users_keys(net: Net) -> None:
    handler = Answering()
    one, _ = await two_wires(net, handler)
    one.send(a_mar().with_ids(1, 77))
    await one.read()
    one.send(a_mar().with_ids(2, 77))
    await one.read()
    one.send(again(a_mar().with_ids(3, 77), 3))
    await one.read()
    session = handler.asked[0].avps[0]
    other = a_mar(Impi("other@home1.net"))
    one.send(replace(other, avps=(session, *other.avps[1:]), hop_by_hop=4, end_to_end=77, retransmitted=True))  # its sessions, too
    await one.read()
    assert len(handler.asked) == 4


async def test_nobody_gets_the_answer_that_another_peer_got(net: Net) -> None:
    handler = Answering()
    _, port = await net.server(handler, allowed=Admission.of([SCSCF.origin_host, OTHER.origin_host]))
    one, two = await net.wire(port), await net.wire(port)
    await one.hello()
    await two.hello(OTHER)
    request = a_mar().with_ids(1, 77)
    one.send(request)
    await one.read()
    two.send(again(request, 2))  # in the other's name
    await two.read()
    assert [peer.origin_host for peer in handler.peers] == [SCSCF.origin_host, OTHER.origin_host]


async def test_proxy_info_is_that_of_the_request_that_came_again(net: Net) -> None:
    """RFC 6733 §6.2."""
    handler = Answering()
    one, two = await two_wires(net, handler)

    def through(proxy: str) -> DiameterMessage:
        info = make_avp(base.PROXY_INFO, 0, (make_avp(base.PROXY_HOST, 0, proxy), make_avp(33, 0, proxy.encode())))
        return replace(request, avps=(*request.avps, info))

    request = a_mar().with_ids(1, 77)
    one.send(through("a.home1.net"))
    first = await one.read()
    two.send(again(through("b.home1.net"), 2))
    second = await two.read()
    assert [found.data for found in second.all(base.PROXY_INFO)] == [through("b.home1.net").all(base.PROXY_INFO)[0].data]
    assert [avp for avp in first.avps if avp.code != base.PROXY_INFO] == [avp for avp in second.avps if avp.code != base.PROXY_INFO]


async def test_answers_are_kept_for_a_while_and_no_longer_though_nobody_asks(net: Net) -> None:
    handler = Answering()
    server, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    request = a_mar().with_ids(1, 77)
    wire.send(request)
    await wire.read()
    assert len(server._requests._remembered) == 1
    await net.passes(31, step=1.0)
    assert len(server._requests._remembered) == 0 and server._requests._octets == 0
    wire.send(again(request, 2))
    while (await wire.read()).code == base.DEVICE_WATCHDOG:
        pass
    assert len(handler.asked) == 2


async def test_memory_is_bounded_by_number_and_octets_the_oldest_go(net: Net) -> None:
    handler = Answering()
    server, port = await net.server(handler, limits=DiameterLimits(remembered=50, remembered_octets=20_000))
    wire = await net.wire(port)
    await wire.hello()
    requests = [a_mar().with_ids(number, number) for number in range(1, 201)]
    wire.send(*requests)
    for _ in requests:
        await wire.read()
    kept = server._requests._remembered
    assert len(kept) <= 50
    size = len(render_message(await answer_of(handler)))
    assert server._requests._octets == size * len(kept) <= 20_000
    wire.send(again(requests[-1], 900), again(requests[0], 901))
    await wire.read()
    await wire.read()
    assert len(handler.asked) == 201


async def answer_of(handler: Answering) -> DiameterMessage:
    asked = len(handler.asked)
    answer = await handler(handler.asked[0], RemotePeer("", "", "", 0))
    del handler.asked[asked:]
    return answer


async def test_an_entry_that_had_to_go_while_it_was_carried_out_costs_nothing(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    server, port = await net.server(handler, limits=DiameterLimits(remembered=2))
    wire = await net.wire(port)
    await wire.hello()
    wire.send(*[a_mar().with_ids(number, number) for number in range(1, 6)])
    await handler.until(5)
    handler.gate.set()
    for _ in range(5):
        await wire.read()
    kept = server._requests._remembered.values()
    assert server._requests._octets == sum(entry.octets for entry in kept)
    assert len(kept) == 2


# ---- handlers that fail


async def test_an_error_of_ours_costs_one_request_and_says_nothing(net: Net) -> None:
    async def handler(request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        raise ValueError("XRES is c0ffee")

    _, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    wire.send(a_mar().with_ids(1, 1))
    answer = await wire.read()
    assert result_of(answer).code == ResultCode.UNABLE_TO_COMPLY
    (said,) = net.said("diameter-request-failed")
    assert (said["problem"], said["command"], said["peer"], said["end_to_end"]) == ("ValueError", "MAR", SCSCF.origin_host, 1)
    assert "c0ffee" not in repr(net.tallies.events) and b"c0ffee" not in render_message(answer)


async def test_an_avp_fault_becomes_its_code(net: Net) -> None:
    failed = make_avp(base.USER_NAME, 0, "x")

    async def handler(request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        raise AvpFault(ResultCode.AVP_UNSUPPORTED, "no", failed)

    _, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    wire.send(a_mar().with_ids(1, 1))
    answer = await wire.read()
    found = answer.first(base.FAILED_AVP)
    assert result_of(answer).code == ResultCode.AVP_UNSUPPORTED and found is not None
    assert failed.data in found.data


async def test_a_handler_that_takes_too_long_is_ended_and_answered_for(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    wire, _ = await two_wires(net, handler, in_flight=1)
    request = a_mar().with_ids(1, 1)
    wire.send(request)
    await handler.until(1)
    await net.passes(10.1)
    assert result_of(await wire.read()).code == ResultCode.UNABLE_TO_COMPLY
    handler.gate.set()
    wire.send(again(request, 2), a_mar().with_ids(3, 3))
    assert result_of(await wire.read()).code == ResultCode.UNABLE_TO_COMPLY  # it may have been carried out in part: not again
    assert result_of(await wire.read()).success
    assert [fields["problem"] for fields in net.said("diameter-request-failed")] == ["took too long"]


async def test_an_answer_over_a_megabyte_is_an_error_and_not_sent(net: Net) -> None:
    async def handler(request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        return base.answer_to(request, (make_avp(606, 10415, bytes(1 << 20)),))

    _, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    wire.send(a_mar().with_ids(1, 1))
    assert result_of(await wire.read()).code == ResultCode.UNABLE_TO_COMPLY


async def test_an_end_ends_what_is_in_progress(net: Net) -> None:
    handler = Answering()
    handler.gate.clear()
    server, port = await net.server(handler)
    wire = await net.wire(port)
    await wire.hello()
    wire.send(a_mar().with_ids(1, 1))
    await handler.until(1)
    before = asyncio.all_tasks()
    await net.end(server)
    assert len(asyncio.all_tasks()) < len(before)
    assert not server._requests._tasks


async def test_one_whose_answer_no_proxy_could_place_is_refused_before_it_does_anything(net: Net) -> None:
    """RFC 6733 §6.2: the answer repeats Proxy-Info, and has its own bounds."""
    handler = Answering()
    one, two = await two_wires(net, handler)
    request = a_mar().with_ids(1, 77)
    whole, longer = [
        replace(request, avps=(*request.avps, make_avp(base.PROXY_INFO, 0, (make_avp(33, 0, bytes(octets)),))))
        for octets in (60_000, 70_000)
    ]
    one.send(longer)
    answer = await one.read()
    assert (result_of(answer).code, len(render_message(answer)) < 1_000) == (ResultCode.UNABLE_TO_COMPLY, True)
    assert not handler.asked
    one.send(whole)
    assert len((await one.read()).all(base.PROXY_INFO)[0].data) == 60_008
    two.send(replace(longer, retransmitted=True), replace(whole, hop_by_hop=5, retransmitted=True))  # nor does one that comes again
    assert result_of(await two.read()).code == ResultCode.UNABLE_TO_COMPLY
    again = await two.read()
    assert (again.hop_by_hop, len(again.all(base.PROXY_INFO))) == (5, 1)
    assert len(handler.asked) == 1
    assert net.tallies.counts["diameter_requests", "oversized"] == 2
