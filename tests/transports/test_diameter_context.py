# SPDX-License-Identifier: Apache-2.0
"""Whom a Diameter node talks to, and what its connections share (RFC 6733 §3, §13)."""

from __future__ import annotations

import asyncio
import math

import pytest

from keyferry.protocol.diameter.base import PeerCapabilities
from keyferry.transports.diameter_context import Admission, DiameterContext, command_of
from keyferry.transports.pki import PeerIdentity
from protocol.diameter.cxkit import HSS, requests
from transports.diameterkit import a_mar
from transports.sipkit import FakeClock, Numbers, Tallies

NAME = "scscf1.home1.net"
CLAIMED = PeerCapabilities(NAME, "home1.net")


def context() -> DiameterContext:
    return DiameterContext(HSS, FakeClock(), Numbers(), Tallies())


def shown(*names: str, role: str = "scscf") -> PeerIdentity:
    return PeerIdentity(names, role, math.inf)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.7", True),
        ("fe80::1%eth0", False),
        ("10.0.1.7", False),
        ("::ffff:10.0.1.7", False),
    ],
)
def test_addresses_that_may_come_without_tls(host: str, allowed: bool) -> None:
    admission = Admission.of([NAME], addresses=["127.0.0.0/8", "::1", "10.0.0.0/24"])
    assert admission.address(host) is allowed


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(ValueError, match="home1"):
        Admission.of([], addresses=["home1.net"])


def test_a_name_has_to_be_listed_and_in_the_certificate() -> None:
    admission = Admission.of(["SCSCF1.home1.net."], ["scscf"])
    assert admission.peer(CLAIMED, None)
    assert admission.peer(CLAIMED, shown("a.net", NAME))
    assert not admission.peer(CLAIMED, shown("a.net"))
    assert not admission.peer(PeerCapabilities("a.net", "home1.net"), shown("a.net"))


def test_without_names_it_is_the_certificate_that_says_who() -> None:
    admission = Admission.of([], ["scscf"])
    assert admission.certificate_problem(shown("a.net")) == ""
    assert admission.peer(PeerCapabilities("a.net", "x"), shown("a.net"))
    assert not admission.peer(PeerCapabilities("b.net", "x"), shown("a.net"))


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [
        (shown(NAME), ""),
        (shown(NAME, role=""), "not one of the role"),
        (shown(NAME, role="as"), "not one of the role"),
        (shown("a.net"), "names no peer"),
        (shown(), "names no peer"),
    ],
)
def test_certificates(certificate: PeerIdentity, problem: str) -> None:
    found = Admission.of([NAME], ["icscf", "scscf"]).certificate_problem(certificate)
    assert (problem in found) if problem else not found


def test_end_to_end_identifiers_are_one_sequence_and_hop_by_hop_ones_are_each_connections() -> None:
    """RFC 6733 §3: the high twelve bits are of the time, so that a restart does not use them again."""
    shared = context()
    one, two = shared.identifiers(), shared.identifiers()
    drawn = [one.end_to_end(), two.end_to_end(), one.end_to_end()]
    assert drawn == list(range(drawn[0], drawn[0] + 3))
    assert drawn[0] >> 20 == int(shared.clock.now()) & 0xFFF
    first = one.hop_by_hop()
    two.hop_by_hop()
    assert one.hop_by_hop() == first + 1


def test_jitter_is_two_seconds_either_way() -> None:
    class Chance:
        def __init__(self, octets: bytes) -> None:
            self.drawn = octets

        def octets(self, count: int) -> bytes:
            return self.drawn * count

    for octet, jitter in ((b"\0", -2.0), (b"\xff", 2.0)):
        assert DiameterContext(HSS, FakeClock(), Chance(octet), Tallies()).jitter() == pytest.approx(jitter)


async def test_sleep_is_by_the_clock() -> None:
    shared = context()
    asleep = asyncio.ensure_future(shared.sleep(5.0))
    await asyncio.sleep(0)
    shared.deadlines.run()
    await asyncio.sleep(0)
    assert not asleep.done()
    assert isinstance(shared.clock, FakeClock)
    shared.clock.time += 5.1
    shared.deadlines.run()
    await asleep


def test_commands_have_names_of_a_fixed_set() -> None:
    assert command_of(a_mar()) == "MAR"
    assert {command_of(request) for request in requests().values()} == {"UAR", "SAR", "LIR", "MAR", "RTR", "PPR"}
    assert command_of(type(a_mar())(999, 1, True)) == "other"
