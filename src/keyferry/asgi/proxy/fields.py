# SPDX-License-Identifier: Apache-2.0
"""Header fields of the authentication proxy (RFC 9110 §7.6, TS 24.109 §7.2, Release 17).

What a stranger sends in a field that the server behind trusts is dropped in every spelling: only names of letters, digits and hyphens
go on at all, since CGI and WSGI take `X_3GPP_Asserted_Identity` for `X-3GPP-Asserted-Identity`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from keyferry.asgi.exchange import Header, Scope
from keyferry.errors import LocalProtocolError, ParseError, RemoteProtocolError
from keyferry.protocol.identity import Impu, parse_impu

ASSERTED = b"x-3gpp-asserted-identity"
INTENDED = b"x-3gpp-intended-identity"
SECRET = b"x-keyferry-secret"
"""Carries what the server behind and the proxy alone know, where it cannot see otherwise that a request is the proxy's."""
VIA = b"1.1 keyferry"
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
"""What a field may hold (RFC 9110 §5.5)."""
HTTPS = 443
"""The port that no URI of https needs to name (RFC 9110 §4.2.2)."""
PORTS = range(1, 65_536)
MAX_INTENDED = 1_024
"""Octets of an intended identity, which has 255 at most."""

_HOST = re.compile(rb"([A-Za-z0-9_.\-]{1,253}?)\.?(?::([0-9]{1,5}))?")
_NAME = re.compile(rb"[a-z0-9\-]{1,128}")
_PRIVATE = (b"x-3gpp-", b"x-keyferry-", b"x-forwarded-")
_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings",
        b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info",
    )
)  # fmt: skip
_OURS = frozenset((b"authorization", b"forwarded", b"x-real-ip", b"host", b"content-length", b"expect", b"via"))
"""Of a request: what ends here, or is written anew."""
_DOORS = frozenset((b"authentication-info", b"www-authenticate"))
"""Of an answer: the door alone says who is logged in; nobody could answer a challenge of the server behind."""
_QUOTABLE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,255}")  # a URI: nothing that a quoted-string would have to escape


class Route(NamedTuple):
    """What a request needs to be told to the server behind."""

    name: str  # the host name that the user opened: the AS_ID
    host: bytes | None = None  # what Host shall say; None: what the user opened, port included
    secret: bytes | None = None
    user_id: bytes | None = None  # the name of the field that carries the opaque user id


def opened(fields: Iterable[Header]) -> tuple[bytes, int]:
    """Return the host name, in lower case, and the port that the user opened, by Host (RFC 9110 §7.2); 443 where it names none.

    The port is the client's word, and nobody else knows better: a listener may stand behind a mapping of ports.

    Raises RemoteProtocolError.
    """
    hosts = [value for name, value in fields if name == b"host"]
    host = _HOST.fullmatch(hosts[0].strip(b" \t")) if len(hosts) == 1 else None
    if host is None or (port := int(host[2] or HTTPS)) not in PORTS:
        raise RemoteProtocolError("One Host field with a name, please, and no port but 1 to 65535.", 400)
    return host[1].lower(), port


def asserted_identities(impus: Sequence[Impu], intended: Sequence[bytes]) -> Sequence[Impu]:
    """Return whom to assert: all of the user's public identities, the default first, or the one that the UE intends (TS 24.109 §7.2).

    Raises RemoteProtocolError: 403 for an intended identity that is not the user's, 400 for two of them.
    """
    if not intended:
        return impus
    if len(intended) > 1 or len(intended[0]) > MAX_INTENDED:
        raise RemoteProtocolError("One X-3GPP-Intended-Identity field, please.", 400)
    text = intended[0].decode("latin-1").strip(" \t")
    if len(text) >= 2 and text[0] == text[-1] == '"':  # the standard quotes it, some clients do not
        text = text[1:-1]
    try:
        wanted = parse_impu(text)
    except ParseError:
        wanted = Impu("")
    if wanted not in impus:
        raise RemoteProtocolError("The intended identity is not yours.", 403)
    return (wanted,)


def asserted_field(impus: Iterable[Impu]) -> Header:
    """Return X-3GPP-Asserted-Identity, a list of quoted URIs.

    Raises LocalProtocolError for an identity that no such field can carry.
    """
    if not all(map(_QUOTABLE.fullmatch, impus)):
        raise LocalProtocolError("a public identity has characters that no URI has")
    return ASSERTED, ", ".join(f'"{impu}"' for impu in impus).encode("ascii")


def request_fields(scope: Scope, route: Route, impus: Sequence[Impu], *, upgrade: bool = False) -> list[Header]:
    """Return the header fields for the server behind, its framing included.

    `scope` is one that the door let in, and whose framing `front` has checked. Raises LocalProtocolError.
    """
    received: list[Header] = scope["headers"]
    ended = _HOP | _OURS | _named_by_connection(received) | ({route.user_id} if route.user_id else set())
    kept = [(name, value.strip(b" \t")) for name, value in received if name not in ended and _goes_on(name)]
    via = [value.strip(b" \t") for name, value in received if name == b"via"]
    _, port = opened(received)
    authority = route.name if port == HTTPS else f"{route.name}:{port}"
    fields: list[Header] = [(b"host", route.host or authority.encode("ascii")), *kept, (b"via", b", ".join([*via, VIA]))]
    fields += _about_client(scope, authority, port)
    fields.append(asserted_field(impus))
    if route.user_id:
        fields.append((route.user_id, str(scope["user"].id).encode("ascii")))
    if route.secret:
        fields.append((SECRET, route.secret))
    return fields + (_upgrading() if upgrade else _framing(scope["method"], received))


def answer_fields(status: int, received: Sequence[Header]) -> list[Header]:
    """Return the header fields of an answer for the client.

    Raises RemoteProtocolError for a value that would break the framing of our own answer.
    """
    ended = _HOP | _DOORS | _named_by_connection(received)
    if status in {204, 304} or any(name == b"transfer-encoding" for name, _ in received):
        ended = ended | {b"content-length"}
    if not all(VALUE.fullmatch(value) for _, value in received):
        raise RemoteProtocolError("a header field of the answer holds control characters", 502)
    return [(name, value) for name, value in received if name not in ended]


def one(fields: Iterable[Header], name: bytes) -> bytes | None:
    """Return the value of a field that is there once.

    Raises RemoteProtocolError if it is there twice.
    """
    values = [value.strip(b" \t") for field, value in fields if field == name]
    if len(values) > 1:
        raise RemoteProtocolError(f"One {name.decode('latin-1')} field, please.", 400)
    return values[0] if values else None


def _goes_on(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None and not name.startswith(_PRIVATE)


def _named_by_connection(fields: Iterable[Header]) -> set[bytes]:
    """Return the fields that are for this hop alone because Connection says so (RFC 9110 §7.6.1)."""
    return {token.strip(b" \t").lower() for name, value in fields if name == b"connection" for token in value.split(b",")}


def _framing(method: str, received: Sequence[Header]) -> list[Header]:
    """Return how the body will be delimited: as the client did, since it is not held back to be measured."""
    fields: list[Header] = []
    length = one(received, b"content-length")
    if one(received, b"transfer-encoding") is not None:
        fields.append((b"transfer-encoding", b"chunked"))
    elif length is not None or method in {"POST", "PUT", "PATCH"}:
        fields.append((b"content-length", length or b"0"))
    if expects(received):
        fields.append((b"expect", b"100-continue"))
    return fields


def expects(received: Iterable[Header]) -> bool:
    """Tell whether the client waits for 100 before it sends a body (RFC 9110 §10.1.1)."""
    return (one(received, b"expect") or b"").lower() == b"100-continue"


def _upgrading() -> list[Header]:
    return [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]


def _about_client(scope: Scope, authority: str, port: int) -> list[Header]:
    """Return Forwarded (RFC 7239) and the fields that are older; what came in them was dropped."""
    quoted = f'"{authority}"' if ":" in authority else authority  # RFC 7239 §4: no token has a colon
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        shown = "unknown"  # RFC 7239 §6.2: a UNIX socket
        host = ""
    else:
        shown = f'"[{address}]"' if address.version == 6 else str(address)
    fields = [
        (b"forwarded", f"for={shown};host={quoted};proto=https".encode("ascii")),
        (b"x-forwarded-host", authority.encode("ascii")),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-port", b"%d" % port),
    ]
    return [*fields, (b"x-forwarded-for", host.encode("ascii"))] if host else fields
