# SPDX-License-Identifier: Apache-2.0
"""The addresses and prefixes that a configuration trusts, compared as addresses and not as text."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""IPv4 addresses written as IPv6 (RFC 4291 §2.5.5.2), as a socket that serves both shows them."""


class TrustedHosts:
    """Addresses and prefixes, and with them loopback unless it is left out."""

    __slots__ = ("_addresses", "_loopback", "_networks", "holds")

    def __init__(self, texts: Iterable[str] = (), *, loopback: bool = True) -> None:
        """Parse them, once. Raises ValueError."""
        entries = [parse_trusted(text) for text in texts]
        self._addresses = frozenset(each for each in entries if isinstance(each, Address))
        self._networks = tuple(each for each in entries if isinstance(each, Network))
        self._loopback = loopback
        self.holds = lru_cache(maxsize=1024)(self._holds)
        """Returns whether the numeric address of a peer is one of them: cached, so never ask it about a text that a peer wrote."""

    def __bool__(self) -> bool:
        """Return whether any is listed."""
        return bool(self._addresses or self._networks)

    def contains(self, address: Address) -> bool:
        """Return whether an address, in the form that `parse_address` gives it, is one of them."""
        if address in self._addresses or (self._loopback and address.is_loopback):
            return True
        return any(address in network for network in self._networks)

    def _holds(self, host: str) -> bool:
        try:
            return self.contains(parse_address(host.strip("[]")))
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Return an address, an IPv4-mapped one as IPv4. Raises ValueError."""
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def parse_trusted(text: str) -> Address | Network:
    """Return what an entry of a configuration names. Raises ValueError, which says what is wrong with it."""
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no IP address or prefix")
    try:
        return _network(text) if "/" in text else parse_address(text)
    except ValueError:
        pass
    try:
        around = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no IP address or prefix") from None
    raise ValueError(f"{text!r} has bits beyond its prefix, which is {around}")


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        return ipaddress.ip_network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network
