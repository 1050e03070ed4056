# SPDX-License-Identifier: Apache-2.0
"""Settings of the protection policy `ipsec`, and what they have to agree with (DESIGN §6)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Protocol

from msgspec import Meta

from keyferry.config.reading import Section, SipSide, address_of, split_address
from keyferry.errors import ConfigError
from keyferry.protocol.sip.uri import parse_sip_uri

IKE_PORTS: Final = frozenset({500, 4500})
"""What the drop rules let through in clear, so nothing else may be there (RFC 7296 §2, RFC 3948)."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)  # a dot would be a section within a section
_IDENTITY = re.compile(r"[A-Za-z0-9@][A-Za-z0-9@._:=,/ -]{0,252}", re.ASCII)


class Ipsec(Section, frozen=True, kw_only=True):
    """charon, for application servers with protection `ipsec` ([IPsec](ipsec.md))."""

    vici: Annotated[str, Meta(description="path of its control socket; root's or this process's own user has to serve it")] = (
        "/var/run/charon.vici"
    )


Child = Annotated[
    str | None,
    Meta(
        description="CHILD_SA that pushes must go, and come, through, with `ipsec`; default: `isc-` and the host in `sip_uri`, "
        "its dots as hyphens"
    ),
]
Identity = Annotated[
    str | None,
    Meta(description="IKE identity that the other side of it must have proven, as charon writes it; default: the host in `sip_uri`"),
]


class ReceivingSide(SipSide, Protocol):
    """Settings of a function that takes pushes, through a security association with `ipsec`."""

    @property
    def ipsec_child(self) -> str | None:
        """Name of the CHILD_SA."""


class IpsecSide(ReceivingSide, Protocol):
    """Settings of an application server, as those know it who push to it."""

    @property
    def ipsec_identity(self) -> str | None:
        """IKE identity."""


class Listening(Protocol):
    """Settings of an S-CSCF."""

    @property
    def name(self) -> str:
        """Host name."""

    @property
    def listen(self) -> str:
        """`HOST:PORT`."""


def child_of(server: ReceivingSide) -> str:
    """Return the name of the CHILD_SA that pushes to this application server go through."""
    return server.ipsec_child or "isc-" + re.sub("[^a-z0-9]+", "-", parse_sip_uri(server.sip_uri).host.strip("[]").lower())


def identity_of(server: IpsecSide) -> str:
    """Return who has to be at its other end."""
    return server.ipsec_identity or parse_sip_uri(server.sip_uri).host


def check_ipsec(path: Path, servers: Sequence[IpsecSide], scscfs: Sequence[Listening]) -> None:
    """Refuse what no SA could protect as written. Raises ConfigError."""
    some = False
    for place, server in enumerate(servers):
        where = f"{path}: application_servers[{place}]"
        if server.protection == "ipsec":
            some = True
            _check_server(where, server)
        elif server.ipsec_child is not None or server.ipsec_identity is not None:
            name = "ipsec_child" if server.ipsec_child is not None else "ipsec_identity"
            raise ConfigError(f"{where}.{name}", f"is not used with protection {server.protection!r}", "Leave it out")
    for place, scscf in enumerate(scscfs if some else ()):
        where = f"{path}: further_scscfs[{place - 1}]" if place else f"{path}: scscf"
        _check_text(f"{where}.name", scscf.name, _IDENTITY)
        check_numeric(f"{where}.listen", scscf.listen)


def _check_server(where: str, server: IpsecSide) -> None:
    uri = parse_sip_uri(server.sip_uri)
    _check_text(f"{where}.ipsec_child", server.ipsec_child, _NAME)
    _check_text(f"{where}.ipsec_identity", server.ipsec_identity, _IDENTITY)
    if server.ipsec_identity is None and address_of(uri.host.strip("[]")) is not None:
        raise ConfigError(f"{where}.sip_uri", "has an address, and certificates name hosts", "Set ipsec_identity, or write a host name")
    if uri.port in IKE_PORTS:
        raise ConfigError(f"{where}.sip_uri", f"port {uri.port} is IKE's, which goes in clear", "Take another port")
    if server.listen_sip is not None:
        check_numeric(f"{where}.listen_sip", server.listen_sip)


def check_receiving(where: str, server: ReceivingSide) -> None:
    """Refuse what no SA could protect as written, of who takes pushes and knows nothing of who pushes. Raises ConfigError."""
    if server.protection == "ipsec":
        check_numeric(f"{where}.listen_sip", server.listen_sip or "")
        _check_text(f"{where}.ipsec_child", server.ipsec_child, _NAME)
    elif server.ipsec_child is not None:
        raise ConfigError(f"{where}.ipsec_child", f"is not used with protection {server.protection!r}", "Leave it out")


def _check_text(where: str, text: str | None, pattern: re.Pattern[str]) -> None:
    if text is not None and not pattern.fullmatch(text):
        raise ConfigError(where, "is nothing that swanctl.conf could hold", "Letters, digits and hyphens will do")


def unfit(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return why no security association, and no rule of the kernel's, can be for an address; "" where they can."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return "is an IPv4 address written as one of IPv6: its packets are IPv4's, and no rule for IPv6 would stop them"
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return "has a zone, which neither charon nor nft knows"
    return "is no machine's" if address.is_multicast or address.is_unspecified else ""


def check_numeric(where: str, listen: str) -> None:
    """Refuse a listener that no security association could end at. Raises ConfigError."""
    host, port = split_address(listen, where)
    address = address_of(host)
    if address is None or address.is_unspecified:
        raise ConfigError(where, "a security association is between two addresses, and this is none", "Write the numeric address")
    if problem := unfit(address):
        raise ConfigError(where, f"{host!r} {problem}", "Write the address that the packets have")
    if port in IKE_PORTS:
        raise ConfigError(where, f"port {port} is IKE's, which goes in clear", "Take another port")
