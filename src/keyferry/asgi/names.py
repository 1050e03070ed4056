# SPDX-License-Identifier: Apache-2.0
"""The names that a door answers to, and what a proxy in front of it may say: that TLS ended there, and who the client is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from keyferry.asgi.exchange import App, Receive, Scope, Send, headers_named
from keyferry.errors import ConfigError, ParseError
from keyferry.protocol.identity import AsId, parse_as_id
from keyferry.protocol.trusted import Address, TrustedHosts, parse_address

MAX_NAMES = 64
"""Each has keys, nonces and counts of its own."""
MAX_SHOWN = 100
"""Characters of a client's Host that an error shows."""
MAX_HOPS = 32
"""Addresses of X-Forwarded-For that are looked at, from the last."""
UNIX = "unix"
"""Among the trusted proxies: whoever connects over a UNIX socket, which has no address."""

_HOST = re.compile(rb"([A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)*)\.?(?::[0-9]{1,5})?")
_SECURE = {"https": "https", "http": "http", "wss": "https", "ws": "http"}


class PublicNames:
    """Find the AS_ID that a request is for."""

    def __init__(self, as_id: str, others: Iterable[str] = ()) -> None:
        """Take the host names in the URIs that users open, the first AS_ID before the others. Raises ConfigError."""
        if isinstance(others, str):
            raise ConfigError("SimLogin public_names", "is one text, not several names", f'Write public_names=("{others}",)')
        names = [check_as_id("SimLogin as_id", as_id)]
        names += [name for text in others if (name := check_as_id("SimLogin public_names", text)) != names[0]]
        if len(names) > MAX_NAMES or len(set(names)) != len(names):
            raise ConfigError("SimLogin public_names", f"more than {MAX_NAMES} names, or one twice", "Name each once")
        self.names = tuple(names)
        self._by_octets = {name.encode("ascii"): name for name in names}

    def of(self, host: bytes) -> AsId | None:
        """Return the AS_ID that a Host field means, whatever its port and case; None if it is not one of ours."""
        name = self._by_octets.get(host)
        if name is None and len(host) <= MAX_SHOWN + 253 and (match := _HOST.fullmatch(host)):
            name = self._by_octets.get(match[1].lower())
        return name

    def wrong(self, host: bytes) -> str:
        """Say, in one line of ASCII, which name was used and which are served."""
        return f"The client used the name {shown(host)}; here is {', '.join(self.names)}."


class Proxies:
    """Whom to believe about TLS and about the client's address."""

    def __init__(self, trusted: Iterable[str] = (), where: str = "SimLogin trusted_proxies") -> None:
        """Take addresses, networks, or "unix". Raises ConfigError."""
        if isinstance(trusted, str):
            raise ConfigError(where, "is one text, not several addresses", f'Write trusted_proxies=("{trusted}",)')
        given = list(trusted)
        self._unix = UNIX in given
        try:
            self._hosts = TrustedHosts([text for text in given if text != UNIX], loopback=False)
        except ValueError as problem:
            remedy = 'Write addresses such as "127.0.0.1", networks such as "10.0.0.0/8", or "unix"'
            raise ConfigError(where, str(problem), remedy) from problem

    def in_front_of(self, app: App) -> App:
        """Return an application that sees the client's address where a trusted proxy connected."""

        async def seen(scope: Scope, receive: Receive, send: Send) -> None:
            if self._trusts(scope.get("client")):
                scope = {**scope, "client": (self.source(scope), 0)}
            await app(scope, receive, send)

        return seen

    def secure(self, scope: Any) -> bool:
        """Tell whether the client came over TLS: the server saw it, or a proxy that we trust says so in one clear word."""
        if _SECURE.get(scope.get("scheme", "http")) == "https":
            return True
        if not self._trusts(scope.get("client")):
            return False
        said = headers_named(scope, b"x-forwarded-proto")
        return len(said) == 1 and said[0].strip().lower() in {b"https", b"wss"}

    def source(self, scope: Any) -> str:
        """Return the client's address: the last one in X-Forwarded-For that no trusted proxy has; "" if nobody knows it."""
        client = scope.get("client")
        address = str(client[0]) if client else ""
        if not self._trusts(client):
            return address
        said = b",".join(headers_named(scope, b"x-forwarded-for"))
        for hop in [text.strip() for text in said.decode("latin-1").split(",")][: -MAX_HOPS - 1 : -1]:
            parsed = _address(hop)
            if parsed is None:
                break
            address = str(parsed)
            if not self._hosts.contains(parsed):
                break
        return address

    def _trusts(self, client: Any) -> bool:
        if not client or not client[0]:
            return self._unix
        return bool(self._hosts) and self._hosts.holds(str(client[0]))


def check_as_id(where: str, text: str) -> AsId:
    """Return an AS_ID that is written as it is hashed. Raises ConfigError, which says how to write it."""
    remedy = "Give the host name in the URI that users open, such as notes.home1.net"
    if not isinstance(text, str):
        raise ConfigError(where, f"is a {type(text).__name__}, not a text", remedy)
    if "://" in text or "/" in text:
        raise ConfigError(where, f"{text!r} is a URI", remedy)
    if re.fullmatch(r".*:[0-9]*", text):
        raise ConfigError(where, f"{text!r} has a port: one name is one AS, whatever its ports", f"Write {text.rpartition(':')[0]}")
    try:
        canonical = parse_as_id(text)
    except ParseError as problem:
        raise ConfigError(where, str(problem), remedy) from problem
    if canonical != text:
        raise ConfigError(where, "not in canonical form", f"Write {canonical}")
    return canonical


def shown(host: bytes) -> str:
    """Return a client's Host as printable ASCII without quotes and angle brackets, bounded."""
    text = "".join(chr(octet) if 0x21 <= octet <= 0x7E and octet not in b"\"'<>&\\" else f"%{octet:02X}" for octet in host[:MAX_SHOWN])
    return f"{text}..." if len(host) > MAX_SHOWN else text or "(none)"


def _address(text: str) -> Address | None:
    try:
        return parse_address(text.strip("[]"))
    except ValueError:
        return None
