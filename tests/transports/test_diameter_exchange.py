# SPDX-License-Identifier: Apache-2.0
"""A request until its answer: of two answers the first counts, and nothing is left where it waited."""

from __future__ import annotations

import pytest

from keyferry.errors import TransportError
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.transports.diameter_exchange import Exchange
from transports.diameterkit import HSS2, Net, a_mar, an_maa, asking, pair
from transports.diameterkit import net_fixture as net_fixture


def answer(exchange: Exchange) -> DiameterMessage:
    return an_maa(exchange.request)


async def test_of_two_answers_the_first_counts() -> None:
    exchange = Exchange(a_mar().with_ids(0, 7))
    first = answer(exchange)
    exchange.succeed(first)
    exchange.succeed(answer(exchange).with_ids(1, 1))
    exchange.fail("hss.home1.net", "too late")
    assert await exchange.future is first


async def test_a_failure_names_the_peer_and_an_answer_after_it_is_nothing() -> None:
    exchange = Exchange(a_mar())
    exchange.fail("hss.home1.net", "no answer")
    exchange.succeed(answer(exchange))
    with pytest.raises(TransportError, match=r"^hss\.home1\.net: no answer$"):
        await exchange.future


async def test_it_waits_on_each_connection_under_a_number_of_its_own_and_then_nowhere() -> None:
    net = Net()
    first, second = await net.listener(), await net.listener()
    client = await net.client(first.port, second.port)
    one, two = await first.wire(), await second.wire()
    await one.welcome()
    await two.welcome()
    await net.until(lambda: len(client.connected()) == 2)
    exchange = Exchange(a_mar().with_ids(0, 7))
    connections = list(client._of_connection)
    connections[0].ask(exchange)
    exchange.again = True
    connections[1].ask(exchange)
    asked, again = await one.read(), await two.read()
    assert (asked.end_to_end, again.end_to_end) == (7, 7)
    assert (asked.retransmitted, again.retransmitted) == (False, True)
    assert [connection.waiting for connection in connections] == [{asked.hop_by_hop: exchange}, {again.hop_by_hop: exchange}]
    assert exchange.attempts == 2
    exchange.forget()
    assert [connection.waiting for connection in connections] == [{}, {}]
    await net.aclose()


async def test_an_answer_after_another_peers_is_told_as_late(net: Net) -> None:
    """The first has carried it out after all, and after what was asked of the second since."""
    one, two, client = await pair(net)
    late: list[DiameterMessage] = []
    client.late_answer = late.append
    (task,) = await asking(client, timeout=5.0)
    asked = await one.read()
    await net.passes(2.6)
    two.send(an_maa(await two.read(), HSS2))
    await task
    assert not late
    one.send(an_maa(asked))
    await net.until(lambda: late)
    assert (late[0].end_to_end, net.tallies.counts["diameter_dropped", "late-answer"]) == (asked.end_to_end, 1)
