# SPDX-License-Identifier: Apache-2.0
"""The protection policies (DESIGN §6): where a key may go; certificates that are read again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from keyferry.config import Config
from keyferry.errors import StateError, TransportError
from keyferry.ports import SipPeer
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Services, only_loopback, only_tls

AS = "as1.home1.net"


def test_over_tls_the_name_and_the_role_are_wanted() -> None:
    """Anywhere, loopback or not."""
    only_tls(AS)(SipPeer("TLS", "192.0.2.1", 5061, AS, "as"))


@pytest.mark.parametrize(
    "peer",
    [
        SipPeer("TCP", "127.0.0.1", 5060),
        SipPeer("UDP", "127.0.0.1", 5060, AS, "as"),
        SipPeer("TLS", "127.0.0.1", 5061, "as2.home1.net", "as"),
        SipPeer("TLS", "127.0.0.1", 5061, AS, "scscf"),
        SipPeer("TLS", "127.0.0.1", 5061, AS),
    ],
)
def test_nothing_else_gets_a_key_over_tls(peer: SipPeer) -> None:
    """Nor a peer on this machine."""
    with pytest.raises(TransportError, match="policy `tls`"):
        only_tls(AS)(peer)


def test_on_loopback_the_address_decides() -> None:
    """IPv4 and IPv6."""
    for host in ("127.0.0.1", "::1"):
        only_loopback(SipPeer("UDP", host, 5060))
    with pytest.raises(TransportError, match="policy `loopback`"):
        only_loopback(SipPeer("TLS", "192.0.2.1", 5061, AS, "as"))


def test_a_certificate_that_cannot_be_read_again_keeps_no_other_from_it(tmp_path: Path) -> None:
    """The old one stays in use, and the operator is told."""
    random, metrics = SystemRandom(), Metrics()
    renewed: list[str] = []

    def unusable() -> None:
        raise StateError("as-as1.home1.net.pem", "does not go with its key", "Copy both files there again")

    with open_state(tmp_path / "state", random=random) as state:
        services = Services(Config(), state, SystemClock(), random, StructLog("none"), metrics)
        services.renewals += [unusable, lambda: renewed.append("the next")]
        services.renew()
    assert renewed == ["the next"]
    assert metrics.value("sip_certificate", "unusable") == 1


async def test_periodic_work_goes_on_after_a_failure_of_any_kind(tmp_path: Path) -> None:
    """One bad row must not end expiry, pushes and refreshes for ever, in silence."""
    went_on, failures = asyncio.Event(), [ValueError("a bad row"), StateError("x", "y", "z")]

    async def work() -> None:
        if failures:
            raise failures.pop(0)
        went_on.set()

    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        services = Services(Config(), state, SystemClock(), SystemRandom(), StructLog("none"), Metrics())
        async with services.exit:
            services.every(0.001, work)
            await asyncio.wait_for(went_on.wait(), 10)
