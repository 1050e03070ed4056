# SPDX-License-Identifier: Apache-2.0
"""What the parts of a node share."""

from __future__ import annotations

from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.sip.message import Response
from keyferry.protocol.sip.transaction import Timers
from keyferry.transports.sip_context import Limits, SipContext, not_listening
from transports.sipkit import FakeClock, Numbers, Tallies


class Nowhere:
    """A flow that sends nothing."""

    local = SipPeer("UDP", "127.0.0.1", 1)
    peer = SipPeer("UDP", "127.0.0.1", 2)

    def send(self, data: bytes) -> None:
        """Send nothing."""


async def test_an_observer_that_fails_stops_nothing() -> None:
    """Who looks on must not stop what he looks at."""
    tallies = Tallies()

    def observe(event: SipEvent) -> None:
        raise RuntimeError(str(event.octets))

    context = SipContext("n", FakeClock(), Numbers(), tallies, None, observe, Timers(), Limits())
    context.saw(Nowhere(), 5, Response(200, "OK", ()), outgoing=True)
    context.count("anything")
    assert tallies.events == [("sip-observer-failed", {"node": "n", "problem": "RuntimeError"})]


def test_a_missing_transport_is_named() -> None:
    """An error says what to do."""
    assert str(not_listening("TCP")) == "tcp: this node does not listen on it; call listen() first"


def test_no_event_is_made_while_nobody_looks() -> None:
    """Thousands of messages a second pass while one operator in a month looks on."""
    seen: list[SipEvent] = []
    looking = [False]
    context = SipContext("n", FakeClock(), Numbers(), Tallies(), None, seen.append, Timers(), Limits(), lambda: looking[0])
    context.saw(Nowhere(), 5, Response(200, "OK", ()), outgoing=True)
    assert seen == []
    looking[0] = True
    context.saw(Nowhere(), 5, Response(200, "OK", ()), outgoing=True)
    assert [event.octets for event in seen] == [5]
