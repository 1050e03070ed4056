# SPDX-License-Identifier: Apache-2.0
"""How every configuration file is read, and what the files of several commands have in common."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec
from msgspec import Meta

from keyferry.config.explaining import check_kind, explained
from keyferry.errors import ConfigError, ParseError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.protocol.trusted import Network, parse_trusted

MAX_FILE = 4_000_000  # octets; about 10,000 subscribers in a file, more belong in the store

UnsealedEnds = Annotated[
    list[str],
    Meta(
        description="those `pushers` that cannot seal the end of a registration, as Clearwater: their third-party REGISTER with "
        "Expires 0 and no sealed block ends the user's keys, over TLS, through IPsec, from `trusted_peers`, or from this machine, where "
        "any program could send it"
    ),
]

TrustedOnIsc = Annotated[
    list[str],
    Meta(
        description="with `loopback` alone: IP addresses and prefixes of the other ends, S-CSCFs and application servers, where something "
        "else protects the network between the machines; [what that grants](security.md#whom-the-lists-trust)"
    ),
]

_EXAMPLES: Final = {"IMPI": "user1@home1.net", "IMPU": "sip:user1@home1.net", "AS_ID": "xcap.home1.net"}


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a file."""


T = TypeVar("T", bound=Section)


class SipSide(Protocol):
    """Settings of a function that takes pushes."""

    @property
    def sip_uri(self) -> str:
        """ServerName in the filter criteria."""

    @property
    def protection(self) -> str:
        """Where keys may go: `loopback`, `tls` or `ipsec`."""

    @property
    def trusted_peers(self) -> list[str]:
        """Addresses and prefixes of other machines with `loopback`."""

    @property
    def pushers(self) -> list[str]:
        """S-CSCFs that may push."""

    @property
    def unsealed_ends(self) -> list[str]:
        """S-CSCFs whose body-less Expires 0 ends keys."""

    @property
    def listen_sip(self) -> str | None:
        """`HOST:PORT` with `loopback` and `ipsec`."""

    @property
    def listen_sips(self) -> str | None:
        """`HOST:PORT` with `tls`."""

    @property
    def reg_event(self) -> bool:
        """Whether to subscribe to the registration state."""


def split_address(text: str, where: str) -> tuple[str, int]:
    """Split `HOST:PORT`. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise ConfigError(where, f"{text!r} is not HOST:PORT", "Write for example 127.0.0.1:5060, or [::1]:5060")
    return host.strip("[]"), int(port)


def load_file(path: Path, kind: type[T]) -> T:
    """Read a TOML file. Raises ConfigError."""
    document = load_toml(path)
    check_kind(path, document, kind)
    try:
        return msgspec.convert(document, kind, dec_hook=decode_secret)
    except msgspec.ValidationError as problem:
        raise explained(path, str(problem), kind, document) from None


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, of whatever kind. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as problem:
        raise ConfigError(
            str(path), f"cannot be read: {problem.strerror}", "Give the path of a TOML file, for example examples/lab.toml"
        ) from None
    if len(data) > MAX_FILE:
        raise ConfigError(str(path), f"is over {MAX_FILE} octets", "Add subscribers with `keyferry subscriber add` instead")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(str(path), "is not UTF-8", "Save it as UTF-8") from None
    except tomllib.TOMLDecodeError as problem:
        line = re.search(r"at line (\d+)", str(problem))
        where = f"{path}:{line[1]}" if line else str(path)
        raise ConfigError(where, f"is not TOML: {problem}", "Mend that line; text stands in quotation marks") from None


def decode_secret(kind: type[Any], value: object) -> object:
    """Decode hexadecimal to a Secret, for msgspec. Raises ValueError."""
    if kind is Secret:
        if not isinstance(value, str) or not re.fullmatch(r"([0-9a-fA-F]{2}){16,32}", value):
            raise ValueError("not 16 to 32 octets in hexadecimal")
        return Secret(bytes.fromhex(value))
    raise NotImplementedError(f"no decoder for {kind}")


def check_trusted(where: str, texts: Sequence[str]) -> None:
    """Refuse what names no machine, and what names every machine. Raises ConfigError."""
    for place, text in enumerate(texts):
        try:
            entry = parse_trusted(text)
        except ValueError as problem:
            raise ConfigError(f"{where}[{place}]", str(problem), "Write for example 192.0.2.7, 192.0.2.0/24 or 2001:db8:1::/64") from None
        if isinstance(entry, Network) and entry.prefixlen == 0:
            raise ConfigError(f"{where}[{place}]", f"{text!r} trusts everybody", "Write the addresses or prefixes of the peers")


def check_protection(where: str, server: SipSide, *, listens: bool = True) -> None:
    """Refuse an AS whose URI, listener and protection policy do not say the same (DESIGN §6). Raises ConfigError."""
    over_tls = server.protection == "tls"
    if listens:
        _check_listener(where, server, over_tls=over_tls)
    checked(f"{where}.sip_uri", parse_sip_uri, server.sip_uri)
    uri = parse_sip_uri(server.sip_uri)
    says_tls = uri.scheme == "sips" or (uri.parameter("transport") or "").lower() == "tls"
    if says_tls is not over_tls or (over_tls and address_of(uri.host.strip("[]")) is not None):
        remedy = "Write sips:HOST:PORT with a host name for `tls`, and sip: for `loopback` and `ipsec`"
        raise ConfigError(f"{where}.sip_uri", f"does not go with protection {server.protection!r}", remedy)
    check_trusted(f"{where}.trusted_peers", server.trusted_peers)
    if server.trusted_peers and server.protection != "loopback":
        remedy = "Leave it out: there a certificate or a security association shows who the peer is, and no address"
        raise ConfigError(f"{where}.trusted_peers", f"is not used with protection {server.protection!r}", remedy)
    strangers = set(server.unsealed_ends) - set(server.pushers)
    if server.pushers and strangers:
        problem = f"names {', '.join(sorted(strangers))}, which may not push here"
        raise ConfigError(f"{where}.unsealed_ends", problem, "Add it to pushers, or take it out")
    if over_tls and server.reg_event:
        raise ConfigError(
            f"{where}.reg_event", "is not there with protection 'tls': the S-CSCF takes no SUBSCRIBE over TLS", "Leave it out"
        )


def _check_listener(where: str, server: SipSide, *, over_tls: bool) -> None:
    name, other = ("listen_sips", "listen_sip") if over_tls else ("listen_sip", "listen_sips")
    if getattr(server, other) is not None:
        raise ConfigError(f"{where}.{other}", f"is not used with protection {server.protection!r}", f"Set {name} instead")
    if getattr(server, name) is None:
        raise ConfigError(where, f"protection {server.protection!r} needs {name}", f'Add {name} = "HOST:PORT"')
    split_address(getattr(server, name), f"{where}.{name}")


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an IP address, None for what is none."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def checked(where: str, parse: Callable[[str], object], text: str) -> str:
    """Return what `parse` makes of a text. Raises ConfigError that says where."""
    try:
        return str(parse(text))
    except ParseError as problem:
        what = problem.problem.partition(":")[0]
        raise ConfigError(where, problem.problem, f"Write for example {_EXAMPLES.get(what, 'sip:icscf.home1.net:5062')}") from None
