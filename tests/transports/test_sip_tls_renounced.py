# SPDX-License-Identifier: Apache-2.0
"""A TLS connection whose certificate will not do: another takes its place, so that a peer that was mended is seen (DESIGN §6)."""

from __future__ import annotations

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.transports.pki import Pki
from keyferry.transports.sip_tcp import RENOUNCED
from transports.sipkit import ok, patiently, request
from transports.tlskit import AS, SCSCF, TlsLab, pki_fixture, tls_of

__all__ = ["pki_fixture"]


def only_as(peer: SipPeer) -> None:
    if peer.role != "as":
        raise TransportError(str(peer), "no application server")


@pytest.mark.parametrize("asked", ["by the policy", "by the hop"])
async def test_a_peer_that_shows_another_certificate_later_gets_its_request(pki: Pki, asked: str) -> None:
    """Not more often than every RENOUNCED seconds: a certificate that stays wrong costs few handshakes."""
    check, role = (only_as, "") if asked == "by the policy" else (None, "as")
    mine = tls_of(pki, AS, "icscf")
    async with TlsLab(mine, ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        hop = server.tls._replace(role=role)
        for seconds, connections in ((0.0, 1), (RENOUNCED / 2, 1), (RENOUNCED, 1), (0.1, 2), (0.1, 2)):
            client.clock.time += seconds
            with pytest.raises(TransportError, match=r"role as|no application server"):
                await patiently(client.node.send(request(), hop, check=check))
            assert client.node.connections == connections
        server.node.renew(mine.renew(pki.ensure(AS, "as")))
        client.clock.time += RENOUNCED
        with pytest.raises(TransportError):
            await patiently(client.node.send(request(), hop, check=check))
        assert (await patiently(client.node.send(request(), hop, check=check))).status == 200
        assert [event.peer.role for event in server.seen] == ["scscf", "scscf"]


async def test_what_is_under_way_on_it_is_not_disturbed(pki: Pki) -> None:
    """A third-party REGISTER without keys goes to whoever answers; its answer still comes."""
    async with TlsLab(tls_of(pki, AS, "icscf"), ok) as server, TlsLab(tls_of(pki, SCSCF, "scscf")) as client:
        assert (await patiently(client.node.send(request(), server.tls))).status == 200
        client.clock.time += RENOUNCED
        with pytest.raises(TransportError):
            await patiently(client.node.send(request(), server.tls, check=only_as))
        assert (await patiently(client.node.send(request(), server.tls))).status == 200
        assert client.node.connections == 2
