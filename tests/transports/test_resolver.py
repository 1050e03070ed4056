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


@pytest.mark.parametrize(
    ("uri", "peer"),
    [
        ("sips:table.home1.net", SipPeer("TLS", "10.0.0.1", 5061, "table.home1.net")),
        ("sip:TABLE.home1.net.;transport=TLS", SipPeer("TLS", "10.0.0.1", 5061, "table.home1.net")),
        ("sips:table.home1.net:5099;transport=tcp", SipPeer("TLS", "10.0.0.1", 5099, "table.home1.net")),
        ("sips:ported.home1.net", SipPeer("TLS", "10.0.0.2", 5080, "ported.home1.net")),
        ("sips:both.home1.net", SipPeer("TLS", "127.0.0.1", 40_001, "both.home1.net")),
        ("sip:both.home1.net", SipPeer("UDP", "127.0.0.1", 40_000)),
        ("sips:127.0.0.1", SipPeer("TLS", "127.0.0.1", 5061, "127.0.0.1")),
    ],
)
def test_tls_is_asked_for_by_scheme_or_parameter_and_names_the_host_of_the_uri(uri: str, peer: SipPeer) -> None:
    """RFC 3261 §19.1.2, §26.2.2; RFC 5922 §7.3: what the URI says, not where the table leads."""
    resolver = TableResolver({"table.home1.net": "10.0.0.1", "ported.home1.net": "10.0.0.2:5080"})
    resolver.serve("both.home1.net", "127.0.0.1", 40_000)
    resolver.serve("both.home1.net", "127.0.0.1", 40_000, "TCP")
    resolver.serve("both.home1.net", "127.0.0.1", 40_001, "TLS")
    assert resolved(resolver, uri) == peer


@pytest.mark.parametrize("uri", ["sips:a.home1.net;transport=udp", "sip:a.home1.net;transport=sctp"])
def test_a_transport_that_is_not_there_is_an_error(uri: str) -> None:
    """RFC 3261 §26.2.2: TLS needs a stream; a silent change of transport would be worse."""
    with pytest.raises(TransportError, match="UDP, TCP and TLS are"):
        resolved(TableResolver({"a.home1.net": "10.0.0.1"}), uri)


def test_a_name_that_is_served_otherwise_says_so() -> None:
    """Never without TLS where TLS was asked for, nor the other way round."""
    resolver = TableResolver()
    resolver.serve("plain.home1.net", "127.0.0.1", 40_000)
    resolver.serve("sealed.home1.net", "127.0.0.1", 40_001, "TLS")
    with pytest.raises(TransportError, match="without TLS"):
        resolved(resolver, "sips:plain.home1.net")
    with pytest.raises(TransportError, match="only with TLS"):
        resolved(resolver, "sip:sealed.home1.net")


def test_an_unknown_name_says_where_to_add_it() -> None:
    with pytest.raises(TransportError, match=r"\[hosts\]"):
        resolved(TableResolver(), "sip:nowhere.home1.net")
