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
