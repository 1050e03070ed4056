# SPDX-License-Identifier: Apache-2.0
"""Where a SIP URI is served: a table, before there is DNS (RFC 3263 §4, in the form a lab needs)."""

from __future__ import annotations

import ipaddress

from keyferry.errors import TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.sip.uri import SipUri

DEFAULT_PORT = 5060  # RFC 3261 §19.1.2
DEFAULT_TLS_PORT = 5061
TRANSPORTS = {"": "UDP", "udp": "UDP", "tcp": "TCP", "tls": "TLS"}  # "tls" is deprecated (§26.2.2), and in use


class TableResolver:
    """Resolve names by a table; an IP literal needs none. Names of functions in this process are added as they begin to listen."""

    def __init__(self, hosts: dict[str, str] | None = None) -> None:
        self._hosts = {name.lower().rstrip("."): address for name, address in (hosts or {}).items()}
        self._served: dict[tuple[str, bool], tuple[str, int]] = {}  # name, whether with TLS

    def serve(self, name: str, host: str, port: int, transport: str = "UDP") -> None:
        """Note where a function of this process listens; a line of the hosts table for the same name goes before it."""
        self._served[name.lower(), transport == "TLS"] = (host, port)

    def resolve(self, uri: SipUri) -> SipPeer:
        """Return the next hop over UDP, or TCP if the URI says so; the sender changes to TCP for large requests.

        A `sips` URI, and transport=tls, ask for TLS with the host of the URI in the certificate (RFC 3261 §26.2.2; RFC 5922 §7.3).
        """
        asked = (uri.parameter("transport") or "").lower()
        transport = TRANSPORTS.get(asked)
        if transport is None or (uri.scheme == "sips" and asked == "udp"):
            raise TransportError(uri.host, "its URI asks for a transport that is not there; UDP, TCP and TLS are, and sips is never UDP")
        if uri.scheme == "sips":
            transport = "TLS"
        host, port = self._address(uri, tls=transport == "TLS")
        return SipPeer(transport, host, port, uri.host.rstrip(".")) if transport == "TLS" else SipPeer(transport, host, port)

    def _address(self, uri: SipUri, *, tls: bool) -> tuple[str, int]:
        default = uri.port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT)
        name = uri.host.rstrip(".")
        address = self._hosts.get(name)
        if address is not None:
            host, _, port = address.rpartition(":") if address.count(":") == 1 else (address, "", "")
            return host, int(port) if port else default
        served = self._served.get((name, tls))
        if served is not None:
            return served
        literal = uri.host.strip("[]")
        try:
            ipaddress.ip_address(literal)
        except ValueError:
            if (name, not tls) in self._served:
                raise TransportError(uri.host, f"is served in this process {'without' if tls else 'only with'} TLS") from None
            raise TransportError(uri.host, "is not in the hosts table; add it under [hosts]") from None
        return literal, default
