# SPDX-License-Identifier: Apache-2.0
"""TS 33.203 §7, annex M; RFC 4301 §5; RFC 3948 §5: what the SAs of both sides let through."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from keyferry.errors import EspRejected
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.esp import EspKeys, OutboundSa, expand_keys
from keyferry.protocol.ims.gm_association import OVERLAP, REG_AWAIT_AUTH, AssociationSet, Endpoint, GmAssociations, State
from keyferry.protocol.ip_packet import InnerDatagram
from keyferry.transports.esp_sas import EspSas, Outer
from transports.sipkit import FakeClock, Numbers

KEYS = expand_keys(Secret(b"c" * 16), Secret(b"i" * 16), alg="hmac-sha-1-96", ealg="aes-cbc")
UE, PCSCF = ip_address("192.0.2.1"), ip_address("198.51.100.7")
NEAR, FAR = Outer("192.0.2.1", 40_000), Outer("203.0.113.9", 40_001)


class Pair:
    """A UE and a P-CSCF that agreed."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.ue = EspSas(GmAssociations("ue"), self.clock, Numbers(), UE, (5_101, 5_100), Outer("198.51.100.7", 14_500), PCSCF)
        self.pcscf = EspSas(GmAssociations("pcscf"), self.clock, Numbers(), PCSCF, (5_201, 5_200))
        self.dropped: list[AssociationSet] = []
        self.pcscf.watch(self.dropped.append)

    def begin(self, keys: EspKeys = KEYS) -> tuple[AssociationSet, AssociationSet]:
        ours = self.ue.allocate()
        theirs = self.pcscf.allocate(ours)
        ends = Endpoint(UE, *ours, *self.ue.ports), Endpoint(PCSCF, *theirs, *self.pcscf.ports)
        return self.ue.begin("alice", *ends, keys), self.pcscf.begin("alice", *ends, KEYS)

    def sealed(self, association: AssociationSet, payload: bytes = b"REGISTER") -> bytes:
        return self.ue.seal(self.ue.tunnel_of(association.spi_us), payload)


def reason(sas: EspSas, packet: bytes, source: Outer = NEAR) -> str:
    with pytest.raises(EspRejected) as rejected:
        sas.open(packet, source)
    return rejected.value.reason


def test_a_request_and_its_answer_go_from_client_port_to_server_port() -> None:
    """TS 33.203 §7.1, for UDP."""
    pair = Pair()
    mine, _ = pair.begin()
    tunnel, datagram = pair.pcscf.open(pair.sealed(mine), NEAR)
    assert datagram == InnerDatagram(UE, 5_101, PCSCF, 5_200, b"REGISTER")
    assert (tunnel.peer.transport, tunnel.peer.host, tunnel.peer.port) == ("ESP", "192.0.2.1", 5_100)
    assert tunnel.outer == NEAR
    _, answer = pair.ue.open(pair.pcscf.seal(tunnel, b"200"), Outer("198.51.100.7", 14_500))
    assert answer == InnerDatagram(PCSCF, 5_201, UE, 5_100, b"200")


def test_keys_that_differ_are_found_by_the_icv() -> None:
    """DESIGN §5: a UE with CK, IK against a P-CSCF with CK', IK'."""
    pair = Pair()
    mine, _ = pair.begin(expand_keys(Secret(b"d" * 16), Secret(b"j" * 16), alg="hmac-sha-1-96", ealg="aes-cbc"))
    assert reason(pair.pcscf, pair.sealed(mine)) == "icv"


def test_a_replayed_packet_is_rejected_and_moves_no_address() -> None:
    pair = Pair()
    mine, _ = pair.begin()
    first, second = pair.sealed(mine), pair.sealed(mine)
    tunnel, _ = pair.pcscf.open(second, NEAR)
    assert reason(pair.pcscf, second, FAR) == "replay"
    pair.pcscf.open(first, FAR)  # late: it is taken, but where it came from says nothing
    assert tunnel.outer == NEAR
    pair.pcscf.open(pair.sealed(mine), FAR)  # the newest: a NAT changed the address
    assert tunnel.outer == FAR


def test_a_forged_packet_is_rejected() -> None:
    pair = Pair()
    mine, _ = pair.begin()
    packet = pair.sealed(mine)
    assert reason(pair.pcscf, packet[:-1] + bytes((packet[-1] ^ 1,))) == "icv"
    assert reason(pair.pcscf, b"\0\0\1\0" + packet[4:]) == "spi"
    assert reason(pair.pcscf, packet[:7]) == "length"
    pair.pcscf.open(packet, NEAR)  # and the right one is still good


@pytest.mark.parametrize(
    ("source", "source_port", "target_port"), [("192.0.2.2", 5_101, 5_200), ("192.0.2.1", 5_102, 5_200), ("192.0.2.1", 5_101, 5_060)]
)
def test_nobody_sends_in_anothers_name_under_keys_of_its_own(source: str, source_port: int, target_port: int) -> None:
    """RFC 4301 §5.2 step 4."""
    pair = Pair()
    _, theirs = pair.begin()
    inner = InnerDatagram(ip_address(source), source_port, PCSCF, target_port, b"REGISTER")
    assert reason(pair.pcscf, OutboundSa(theirs.spi_ps, KEYS).seal_datagram(inner, bytes(16))) == "selector"


def test_a_challenge_that_nobody_answers_ends_with_its_time() -> None:
    """TS 24.229 §5.2.2.2; not only when somebody looks."""
    pair = Pair()
    mine, theirs = pair.begin()
    packet = pair.sealed(mine)
    pair.clock.time += REG_AWAIT_AUTH
    assert reason(pair.pcscf, packet) == "spi"
    pair.pcscf.expire()
    assert (len(pair.pcscf), pair.dropped) == (0, [theirs])


def test_a_new_challenge_ends_the_temporary_set_and_says_so() -> None:
    pair = Pair()
    first, theirs = pair.begin()
    packet = pair.sealed(first)
    pair.begin()
    assert pair.dropped == [theirs]
    assert reason(pair.pcscf, packet) == "spi"


def test_re_authentication_runs_beside_the_set_in_use() -> None:
    """TS 33.203 §7.3, §7.4: the old set drains once the new one carries a message."""
    pair = Pair()
    old, at_pcscf = pair.begin()
    pair.pcscf.open(pair.sealed(old), NEAR)
    pair.pcscf.confirmed(at_pcscf, 600)
    pair.ue.confirmed(old, 600)
    pair.pcscf.open(pair.sealed(old), NEAR)
    new, new_at_pcscf = pair.begin()
    pair.pcscf.open(pair.sealed(new), NEAR)
    pair.pcscf.confirmed(new_at_pcscf, 600)
    assert pair.pcscf.sending("alice") is at_pcscf  # the 200 may be lost: nothing shows yet that the UE has the new one
    pair.pcscf.open(pair.sealed(new), NEAR)
    assert pair.pcscf.sending("alice") is new_at_pcscf
    assert at_pcscf.state is State.OLD
    pair.pcscf.open(pair.sealed(old), NEAR)
    pair.clock.time += OVERLAP
    assert reason(pair.pcscf, pair.sealed(old)) == "spi"


def test_a_de_registration_leaves_time_for_its_200() -> None:
    pair = Pair()
    mine, theirs = pair.begin()
    pair.pcscf.confirmed(theirs, 600)
    pair.pcscf.ended("alice")
    pair.pcscf.open(pair.sealed(mine), NEAR)
    pair.clock.time += OVERLAP
    assert reason(pair.pcscf, pair.sealed(mine)) == "spi"


def test_a_failure_ends_a_set_at_once() -> None:
    pair = Pair()
    mine, theirs = pair.begin()
    hop = pair.pcscf.hop(theirs)
    assert pair.pcscf.of_peer(hop) is theirs
    pair.pcscf.failed(theirs)
    assert reason(pair.pcscf, pair.sealed(mine)) == "spi"
    with pytest.raises(EspRejected):
        pair.pcscf.of_peer(hop)
