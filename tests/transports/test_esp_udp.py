# SPDX-License-Identifier: Apache-2.0
"""SIP in ESP in UDP (RFC 3948, TS 33.203 annex M) between two nodes, over real sockets."""

from __future__ import annotations

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.esp import KEEPALIVE, expand_keys
from keyferry.protocol.ims.gm_association import AssociationSet, Endpoint
from keyferry.protocol.sip.message import Request, Response, make_response
from keyferry.transports.esp_sas import EspSas
from keyferry.transports.esp_udp import KEEPALIVE_INTERVAL
from transports.sipkit import Lab, UdpPeer, patiently

KEYS = expand_keys(Secret(b"c" * 16), Secret(b"i" * 16), alg="hmac-sha-1-96", ealg="aes-cbc")
SEEN: list[SipPeer] = []


async def answer(request: Request, peer: SipPeer) -> Response:
    SEEN.append(peer)
    return make_response(request, 200, body=request.body)


def register(body: bytes = b"") -> Request:
    headers = (("Max-Forwards", "70"), ("From", "<sip:a@b>;tag=1"), ("To", "<sip:a@b>"), ("Call-ID", "c"), ("CSeq", "1 REGISTER"))
    return Request("REGISTER", "sip:home1.net", headers, body)


def outer(sas: EspSas) -> SipPeer:
    """Where the socket is."""
    assert sas.bound is not None
    return SipPeer("UDP", *sas.bound)


def agree(ue: EspSas, pcscf: EspSas) -> tuple[AssociationSet, AssociationSet]:
    mine = Endpoint(ue.address, *ue.allocate(), *ue.ports)
    theirs = Endpoint(pcscf.address, *pcscf.allocate((mine.spi_c, mine.spi_s)), *pcscf.ports)
    return ue.begin("alice", mine, theirs, KEYS), pcscf.begin("alice", mine, theirs, KEYS)


@pytest.mark.parametrize("octets", [0, 5_000])
async def test_a_request_of_any_size_and_its_answer_go_through_the_tunnel(octets: int) -> None:
    SEEN.clear()
    async with Lab() as ue, Lab(answer) as pcscf:
        theirs = await pcscf.node.protect("127.0.0.1", 0)
        mine = await ue.node.protect("127.0.0.1", 0, pcscf=outer(theirs))
        ours, at_pcscf = agree(mine, theirs)
        response = await patiently(ue.node.send(register(b"x" * octets), mine.hop(ours)))
        assert (response.status, len(response.body)) == (200, octets)
        assert [event.peer.transport for event in (*ue.seen, *pcscf.seen)] == ["ESP"] * 4
        assert [theirs.of_peer(peer) for peer in SEEN] == [at_pcscf]
        via = ue.seen[0].message.get("Via") or ""
        assert via.startswith(f"SIP/2.0/UDP 127.0.0.1:{mine.ports[1]};")
        assert "rport" not in via


async def test_what_is_no_esp_is_counted_by_reason_and_not_logged() -> None:
    async with Lab(answer) as pcscf:
        theirs = await pcscf.node.protect("127.0.0.1", 0)
        hop = outer(theirs)
        with UdpPeer() as peer:
            for data in (KEEPALIVE, b"\0\0\0\0IKE", b"x", b"REGISTER sip:a SIP/2.0\r\n\r\n"):
                peer.send(data, hop)
            for name, reason in (("dropped", "keep-alive"), ("dropped", "non-esp"), ("rejected", "length"), ("rejected", "spi")):
                await pcscf.tallies.until(f"esp_{name}", reason)
        assert (pcscf.seen, pcscf.tallies.events) == ([], [])


async def test_a_ue_with_a_set_keeps_its_way_open() -> None:
    """RFC 3948 §4."""
    async with Lab() as ue, Lab(answer) as pcscf:
        theirs = await pcscf.node.protect("127.0.0.1", 0)
        with UdpPeer() as peer:
            mine = await ue.node.protect("127.0.0.1", 0, pcscf=peer.hop)
            agree(mine, theirs)
            ue.move(KEEPALIVE_INTERVAL + 1)
            assert await peer.octets() == KEEPALIVE


async def test_a_set_that_ended_a_node_without_tunnel_and_a_wildcard_are_said() -> None:
    async with Lab() as ue, Lab(answer) as pcscf:
        with pytest.raises(TransportError):
            await ue.node.send(register(), SipPeer("ESP", "127.0.0.1", 1, spi=1_000))
        with pytest.raises(TransportError, match="one address"):
            await pcscf.node.protect("0.0.0.0", 0)
        theirs = await pcscf.node.protect("127.0.0.1", 0)
        mine = await ue.node.protect("127.0.0.1", 0, pcscf=outer(theirs))
        ours, at_pcscf = agree(mine, theirs)
        hop = mine.hop(ours)
        with pytest.raises(TransportError, match="unknown"):
            await pcscf.node.send(register(), theirs.hop(at_pcscf))  # nothing came yet: where is it?
        mine.failed(ours)
        with pytest.raises(TransportError, match="no such set"):
            await ue.node.send(register(), hop)
