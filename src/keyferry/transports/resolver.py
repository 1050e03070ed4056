# SPDX-License-Identifier: Apache-2.0
"""Where a SIP URI is served: a table, before there is DNS (RFC 3263 §4, in the form a lab needs)."""

from __future__ import annotations

import ipaddress

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.uri import SipUri

DEFAULT_PORT = 5060  # RFC 3261 §19.1.2


class TableResolver:
    """Resolve names by a table; an IP literal needs none. Names of functions in this process are added as they begin to listen."""

    def __init__(self, hosts: dict[str, str] | None = None) -> None:
        self._hosts = {name.lower().rstrip("."): address for name, address in (hosts or {}).items()}
        self._served: dict[str, tuple[str, int]] = {}

    def serve(self, name: str, host: str, port: int) -> None:
        """Note where a function of this process listens; a line of the hosts table for the same name goes before it."""
        self._served[name.lower()] = (host, port)

    def resolve(self, uri: SipUri) -> SipPeer:
        """Return the next hop over UDP, or TCP if the URI says so; the sender changes to TCP for large requests."""
        transport = "TCP" if (uri.parameter("transport") or "").lower() == "tcp" else "UDP"
        host, port = self._address(uri)
        return SipPeer(transport, host, port)

    def _address(self, uri: SipUri) -> tuple[str, int]:
        address = self._hosts.get(uri.host)
        if address is not None:
            host, _, port = address.rpartition(":") if address.count(":") == 1 else (address, "", "")
            return host, int(port) if port else uri.port or DEFAULT_PORT
        served = self._served.get(uri.host)
        if served is not None:
            return served
        literal = uri.host.strip("[]")
        try:
            ipaddress.ip_address(literal)
        except ValueError:
            raise TransportError(uri.host, "is not in the hosts table; add it under [hosts]") from None
        return literal, uri.port or DEFAULT_PORT
