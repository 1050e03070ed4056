# SPDX-License-Identifier: Apache-2.0
"""Trusted addresses are compared as addresses, whatever the way in which they are written."""

from __future__ import annotations

import pytest

from keyferry.protocol.trusted import TrustedHosts

LISTED = (
    "192.0.2.7",
    "198.51.100.0/24",
    "2001:db8:0:0::1",
    "2001:db8:1::/48",
    "::ffff:203.0.113.7",
    "::ffff:203.0.113.64/124",
    "fe80::1%eth0",
)


@pytest.mark.parametrize(
    ("host", "held"),
    [
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:192.0.2.7", True),
        ("::ffff:c000:207", True),
        ("198.51.100.255", True),
        ("198.51.101.0", False),
        ("2001:db8::1", True),
        ("2001:0DB8::0001", True),
        ("[2001:db8::1]", True),
        ("2001:db8::2", False),
        ("2001:db8:1:ffff::", True),
        ("203.0.113.7", True),
        ("203.0.113.79", True),
        ("203.0.113.80", False),
        ("fe80::1%eth0", True),
        ("fe80::1%eth1", False),
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("", False),
        ("localhost", False),
        ("192.0.2.7/32", False),
    ],
)
def test_a_peer_is_trusted_by_its_address(host: str, *, held: bool) -> None:
    assert TrustedHosts(LISTED).holds(host) is held


def test_loopback_alone_is_trusted_where_nothing_is_listed_and_not_even_that_where_it_is_left_out() -> None:
    assert [TrustedHosts().holds(host) for host in ("127.0.0.1", "::1", "192.0.2.7")] == [True, True, False]
    assert not TrustedHosts(loopback=False).holds("127.0.0.1")
    assert not TrustedHosts()
    assert TrustedHosts(["192.0.2.7"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.1/8", "'10.0.0.1/8' has bits beyond its prefix, which is 10.0.0.0/8"),
        ("2001:db8::1/64", "has bits beyond its prefix, which is 2001:db8::/64"),
        ("10.0.0.0/33", "is no IP address or prefix"),
        ("pcscf1.home1.net", "is no IP address or prefix"),
        ("", "is no IP address or prefix"),
        ("10.0.0", "is no IP address or prefix"),
        ("192.0.2.7:5060", "is no IP address or prefix"),
    ],
)
def test_what_is_no_address_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TrustedHosts([text])
