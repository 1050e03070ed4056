# SPDX-License-Identifier: Apache-2.0
"""The protection policies (DESIGN §6): where a key may go; certificates that are read again."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from keyferry.config import ApplicationServer, Config
from keyferry.errors import ProtectionUnmet, StateError, TransportError
from keyferry.ports import SipPeer
from keyferry.ports.correlation import correlate
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.protocol.trusted import TrustedHosts
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.ipsec import IpsecSource
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from keyferry.wiring.key_agent import is_scscf
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.services import Services, only_listed, only_tls
from transports.vicikit import CHILD, charon, sa

AS = "as1.home1.net"
ICID = "0123456789abcdef" * 2


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
        only_listed(TrustedHosts())(SipPeer("UDP", host, 5060))
    with pytest.raises(TransportError, match="policy `loopback`"):
        only_listed(TrustedHosts())(SipPeer("TLS", "192.0.2.1", 5061, AS, "as"))


def test_with_trusted_peers_keys_go_to_those_too() -> None:
    check = only_listed(TrustedHosts(["192.0.2.0/28"]))
    for host in ("127.0.0.1", "192.0.2.1", "::ffff:192.0.2.1"):
        check(SipPeer("UDP", host, 5060))
    with pytest.raises(TransportError, match="`trusted_peers`"):
        check(SipPeer("UDP", "192.0.2.16", 5060))


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
            await asyncio.wait_for(went_on.wait(), 60)
            went_on.clear()
            services.every(3_600.0, work, first=0.0)  # now, and then in an hour
            await asyncio.wait_for(went_on.wait(), 60)


@pytest.mark.parametrize(("host", "known"), [("127.0.0.1", ICID), ("192.0.2.7", ICID), ("203.0.113.9", "")])
async def test_a_stranger_at_the_core_names_no_registration_in_our_log(tmp_path: Path, host: str, known: str) -> None:
    """The line that says that he is not trusted, and the one of his REGISTER, have no id of his making."""
    out, trusted = io.StringIO(), TrustedHosts(["192.0.2.7"])
    headers = (
        ("Via", "SIP/2.0/UDP 192.0.2.7;branch=z9hG4bK1"), ("From", "<sip:a@home1.net>;tag=1"), ("To", "<sip:a@home1.net>"),
        ("Call-ID", "1"), ("CSeq", "1 REGISTER"), ("P-Charging-Vector", f'icid-value="{ICID}-1"'),
    )  # fmt: skip

    async def handle(request: Request, peer: SipPeer) -> Response:
        del peer
        return make_response(request, 401)

    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        services = Services(Config(), state, SystemClock(), SystemRandom(), StructLog("json", out), Metrics())
        async with services.exit:
            node = services.node("I-CSCF", services.trusting(trusted, handle), trusted=trusted)
            handler = node._server._handler
            assert handler is not None
            response = await handler(Request("REGISTER", "sip:home1.net", headers, b""), SipPeer("UDP", host, 5060))
    correlate("")
    assert response.status == (401 if known else 403)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == (["register"] if known else ["peer-not-trusted", "register"])
    assert {line.get("id", "") for line in lines} == {known}


@pytest.mark.parametrize(
    ("protection", "peer", "known"),
    [
        ("tls", SipPeer("TLS", "192.0.2.7", 5061, "scscf1.home1.net", "scscf"), True),
        ("tls", SipPeer("TLS", "127.0.0.1", 5061, "wiki.home1.net", "as"), False),
        ("loopback", SipPeer("TCP", "127.0.0.1", 5090), True),
        ("loopback", SipPeer("TCP", "192.0.2.7", 5090), False),
        ("loopback", SipPeer("TCP", "198.51.100.7", 5090), True),
        ("ipsec", SipPeer("TCP", "10.99.0.1", 5090), True),
        ("ipsec", SipPeer("TCP", "10.99.0.3", 5090), False),
    ],
)
async def test_an_as_believes_what_is_an_scscf_by_the_protection_of_isc(protection: str, peer: SipPeer, *, known: bool) -> None:
    settings = ApplicationServer(as_id="wiki.home1.net", sip_uri="sip:wiki.home1.net", protection=cast("Any", protection))
    if protection == "loopback":
        settings = msgspec.structs.replace(settings, trusted_peers=["198.51.100.0/24"])
    source = None
    async with charon(sa("scscf1.home1.net", local="10.99.0.2/32", remote="10.99.0.1/32")) as served:
        if protection == "ipsec":
            view = SaView(Vici(served.path), SystemClock())
            source = IpsecSource(view, CHILD, "10.99.0.2", 5090)
            await view.start()
            with contextlib.suppress(ProtectionUnmet):
                await source.authenticated(peer)
            await view.aclose()
    assert is_scscf(settings, peer, source) is known
