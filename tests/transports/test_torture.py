# SPDX-License-Identifier: Apache-2.0
"""RFC 4475, torture tests: what a node answers to each message, and that it goes on."""

from __future__ import annotations

import pytest

from keyferry.protocol.sip.headers import parse_via_list
from protocol.sip.torture import SENDER, Tortured, messages
from transports.sipkit import Lab, UdpPeer, ok, register


@pytest.mark.parametrize("one", messages(), ids=lambda one: f"{one.section}-{one.id}")
async def test_it_is_answered_or_not_and_the_next_request_is_served(one: Tortured) -> None:
    """RFC 4475 §3, each section."""
    async with Lab(ok) as lab:
        with UdpPeer() as peer:
            peer.send(one.data.replace(SENDER, b"127.0.0.1:%d" % peer.hop.port), lab.udp)
            if one.answer:
                assert (await peer.response()).status == one.answer
            peer.send(register(peer.hop.port, branch="z9hG4bKnext"), lab.udp)
            response = await peer.response()
            assert (response.status, parse_via_list(response.get("Via") or "")[0].branch) == (200, "z9hG4bKnext")
