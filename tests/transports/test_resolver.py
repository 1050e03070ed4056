# SPDX-License-Identifier: Apache-2.0
"""Where a SIP URI is served (RFC 3263 §4)."""

from __future__ import annotations

import pytest

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.transports.resolver import TableResolver


def resolved(resolver: TableResolver, uri: str) -> SipPeer:
    """Resolve a URI given as text."""
    return resolver.resolve(parse_sip_uri(uri))


@pytest.mark.parametrize(
    ("uri", "peer"),
    [
        ("sip:127.0.0.1", SipPeer("UDP", "127.0.0.1", 5060)),
        ("sip:127.0.0.1:6060", SipPeer("UDP", "127.0.0.1", 6060)),
        ("sip:127.0.0.1:6060;transport=tcp", SipPeer("TCP", "127.0.0.1", 6060)),
        ("sip:[::1]:6060;transport=TCP", SipPeer("TCP", "::1", 6060)),
        ("sip:table.home1.net", SipPeer("UDP", "10.0.0.1", 5060)),
        ("sip:table.home1.net:5070", SipPeer("UDP", "10.0.0.1", 5070)),
        ("sip:ported.home1.net:5070", SipPeer("UDP", "10.0.0.2", 5080)),
        ("sip:six.home1.net:5070", SipPeer("UDP", "fd00::1", 5070)),
        ("sip:served.home1.net:1", SipPeer("UDP", "127.0.0.1", 40_000)),
    ],
)
def test_a_uri_is_found(uri: str, peer: SipPeer) -> None:
    resolver = TableResolver({"Table.home1.net.": "10.0.0.1", "ported.home1.net": "10.0.0.2:5080", "six.home1.net": "fd00::1"})
    resolver.serve("Served.home1.net", "127.0.0.1", 40_000)
    assert resolved(resolver, uri) == peer


def test_the_hosts_table_goes_before_what_this_process_serves() -> None:
    resolver = TableResolver({"as.home1.net": "10.0.0.1:5090"})
    resolver.serve("as.home1.net", "127.0.0.1", 40_000)
    assert resolved(resolver, "sip:as.home1.net") == SipPeer("UDP", "10.0.0.1", 5090)


def test_an_unknown_name_says_where_to_add_it() -> None:
    with pytest.raises(TransportError, match=r"\[hosts\]"):
        resolved(TableResolver(), "sip:nowhere.home1.net")
