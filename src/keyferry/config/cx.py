# SPDX-License-Identifier: Apache-2.0
"""Settings of Cx over Diameter: our HSS as a server, our I-CSCF and S-CSCFs as clients."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from keyferry.config.reading import Section, address_of, checked, split_address
from keyferry.errors import ConfigError
from keyferry.protocol.identity import parse_as_id
from keyferry.protocol.sip.uri import parse_sip_uri

AAA_PORT, AAAS_PORT = 3868, 5658
"""Ports of Diameter over TCP and over TLS (RFC 6733 §4.3.1)."""
_PEER = re.compile(r"(?P<scheme>aaas?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/;?@\[\]]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)
_CLEAR = "CK and IK would go over it in clear"

Networks = Annotated[
    list[str],
    Meta(description="networks (`172.22.0.0/24`) besides this machine's own addresses with which Cx goes **without TLS**: CK, IK in clear"),
]


class Hss(Section, frozen=True, kw_only=True):
    """The HSS. Without a listener it is asked in its process only; `keyferry serve --role hss` runs it alone."""

    name: Annotated[str, Meta(description="host name: Origin-Host, and what its certificate shows")] = "hss.home1.net"
    listen_diameter: Annotated[
        str | None,
        Meta(description="`HOST:PORT` for Cx over TCP, without TLS: an address of this machine's own, unless `networks` has some"),
    ] = None
    listen_diameters: Annotated[
        str | None,
        Meta(description="`HOST:PORT` for Cx over TLS; a peer shows a certificate of role `scscf` or `icscf`. Usual is port 5658"),
    ] = None
    peers: Annotated[
        list[str], Meta(description="Origin-Hosts that may ask; empty: all that `networks`, or their certificates, let in")
    ] = msgspec.field(default_factory=list)
    networks: Networks = msgspec.field(default_factory=list)
    connections: Annotated[
        int, Meta(ge=1, le=10_000, description="connections of peers that may be open at a time, at most 2 of each; one more is told BUSY")
    ] = 64
    server_names: Annotated[
        Literal["own", "any"],
        Meta(description="Server-Name that a peer may use: with its Origin-Host as host, or any, for peers behind a Diameter agent"),
    ] = "own"
    scscfs: Annotated[
        list[str],
        Meta(description="SIP URIs of S-CSCFs that a UAA offers for a user without one; empty: those of this file if it has several"),
    ] = msgspec.field(default_factory=list)
    marker_for: Annotated[
        list[str],
        Meta(
            description="Origin-Hosts of S-CSCFs, such as Kamailio with our script, that make the nonce of the whole SIP-Authenticate: "
            "it gets the release marker for users with `release` 6 or later"
        ),
    ] = msgspec.field(default_factory=list)
    marker_flags: Annotated[Literal[7, 3], Meta(description="what the marker says of them: 7, or 3 where their 200s carry no rspauth")] = 7


class Cx(Section, frozen=True, kw_only=True):
    """How the I-CSCF and the S-CSCFs of this file ask the HSS. Without `peers`: the HSS runs in their process."""

    peers: Annotated[
        list[str],
        Meta(description="`aaa://HOST:PORT` or, over TLS, `aaas://NAME:PORT`, in order of preference; names are looked up in `[hosts]`"),
    ] = msgspec.field(default_factory=list)
    realm: Annotated[str | None, Meta(description="Destination-Realm; default: `network.home_domain`")] = None
    timeout: Annotated[
        float,
        Meta(
            gt=0, le=30, description="seconds that an answer may take; then the UE gets 504. After half of it the next peer is asked, too"
        ),
    ] = 5.0
    watchdog: Annotated[
        float,
        Meta(ge=6, le=300, description="seconds of silence after which a peer is asked whether it lives, ±2; 6 at least (RFC 3539 §3.4.1)"),
    ] = 6.0
    networks: Networks = msgspec.field(default_factory=list)


class CxPeer(NamedTuple):
    """Where an HSS is."""

    host: str  # address, or a name that the system resolves
    port: int
    name: str  # that its certificate shows; "" without TLS
    tls: bool


def check_hss(path: Path, settings: Hss) -> None:
    """Refuse what the HSS could not use, or would tell strangers. Raises ConfigError."""
    checked(f"{path}: hss.name", parse_as_id, settings.name)
    _check_networks(f"{path}: hss.networks", settings.networks)
    for name in ("listen_diameter", "listen_diameters"):
        if getattr(settings, name) is not None:
            split_address(getattr(settings, name), f"{path}: hss.{name}")
    _check_connections(f"{path}: hss.connections", settings)
    for name in ("peers", "marker_for"):
        for place, host in enumerate(getattr(settings, name)):
            checked(f"{path}: hss.{name}[{place}]", parse_as_id, host)
    for place, uri in enumerate(settings.scscfs):
        checked(f"{path}: hss.scscfs[{place}]", parse_sip_uri, uri)
    if settings.listen_diameter is not None and not settings.networks:
        address = address_of(split_address(settings.listen_diameter, "")[0])
        if address is None or not address.is_loopback:
            remedy = "Use listen_diameters, or 127.0.0.1; where something else protects the network (IPsec), name it in hss.networks"
            raise ConfigError(f"{path}: hss.listen_diameter", f"other machines can reach it, and {_CLEAR}", remedy)


def _check_connections(where: str, settings: Hss) -> None:
    peers = len(settings.peers)
    if peers > settings.connections:
        remedy = f"Set it to {2 * peers}: a peer may connect again before its dead connection is noticed"
        raise ConfigError(where, f"{peers} peers are listed, and {settings.connections} may connect", remedy)


def check_cx(path: Path, settings: Cx, hosts: Mapping[str, str]) -> None:
    """Refuse peers that cannot be asked, or not safely. Raises ConfigError."""
    _check_networks(f"{path}: cx.networks", settings.networks)
    cx_peers(settings, hosts, f"{path}: ")


def cx_peers(settings: Cx, hosts: Mapping[str, str], where: str = "") -> list[CxPeer]:
    """Return where the HSSs are, in order of preference. Raises ConfigError."""
    return [_peer_of(f"{where}cx.peers[{place}]", text, settings, hosts) for place, text in enumerate(settings.peers)]


def _peer_of(where: str, text: str, settings: Cx, hosts: Mapping[str, str]) -> CxPeer:
    match = _PEER.fullmatch(text)
    if match is None or int(match["port"] or 1) not in range(1, 65536):
        raise ConfigError(where, f"{text!r} is no address of an HSS", "Write aaa://127.0.0.1:3868, or aaas://hss.home1.net:5658")
    tls, name = match["scheme"] == "aaas", match["host"].strip("[]").lower().rstrip(".")
    port = int(match["port"] or (AAAS_PORT if tls else AAA_PORT))
    host, port = _looked_up(where, name, port, hosts)
    if tls:
        if address_of(name) is not None:
            raise ConfigError(
                where, "a certificate names a host, and this is an address", "Write its name here, and its address in [hosts]"
            )
        return CxPeer(host, port, checked(where, parse_as_id, name), tls=True)
    address = address_of(host)
    if address is None:
        raise ConfigError(where, f"where {name} is cannot be told", "Write its address here, or in [hosts]; or use aaas://, over TLS")
    networks = [ipaddress.ip_network(each) for each in settings.networks]
    if not address.is_loopback and not any(address in network for network in networks):
        remedy = "Use aaas://; where something else protects the network (IPsec), name it in cx.networks"
        raise ConfigError(where, f"is on another machine, and {_CLEAR}", remedy)
    return CxPeer(host, port, "", tls=False)


def _looked_up(where: str, name: str, port: int, hosts: Mapping[str, str]) -> tuple[str, int]:
    known = next((address for host, address in hosts.items() if host.lower().rstrip(".") == name), None)
    if known is None:
        return name, port
    return split_address(known, f"{where} in [hosts]") if known.count(":") == 1 or known.startswith("[") else (known, port)


def _check_networks(where: str, networks: Sequence[str]) -> None:
    for place, text in enumerate(networks):
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ConfigError(f"{where}[{place}]", f"{text!r} is no network", "Write for example 172.22.0.0/24") from None
