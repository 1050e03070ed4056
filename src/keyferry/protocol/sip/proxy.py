# SPDX-License-Identifier: Apache-2.0
"""What a proxy does to a request before it sends it on (RFC 3261 §16.3, §16.4, §16.6)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.sip.headers import parse_name_addr, split_list
from keyferry.protocol.sip.message import Request
from keyferry.protocol.sip.uri import SipUri, parse_sip_uri

DEFAULT_MAX_FORWARDS = 70  # RFC 3261 §8.1.1.6
MAX_ROUTES = 10
"""Route values; an IMS path has three."""


def forwarded(request: Request, *, uri: str | None = None) -> Request:
    """Return the request with one hop less to go and, if given, another Request-URI; the sender adds its Via.

    Raises RemoteProtocolError 483 when no hop is left, ParseError when Max-Forwards is not a number, or when the Request-URI has headers,
    which must not be sent on (RFC 4475 §3.1.2.11).
    """
    if uri is None and "?" in request.uri and _has_headers(request.uri):
        raise ParseError("Request-URI", "has headers")
    text = request.get("Max-Forwards")
    if text is None:
        hops = DEFAULT_MAX_FORWARDS
    elif text.isascii() and text.isdigit() and len(digits := text.lstrip("0")) <= 3:  # RFC 4475 §3.1.1.1: 0068 is 68
        hops = min(int(digits or "0"), 255)
    else:
        raise ParseError("Max-Forwards", "not a number from 0 to 255")
    if hops == 0:
        raise RemoteProtocolError("Too Many Hops", status=483)
    onward = request.replacing("Max-Forwards", str(hops - 1))
    return onward if uri is None else Request(onward.method, uri, onward.headers, onward.body)


def _has_headers(uri: str) -> bool:
    return uri[:4].lower() in ("sip:", "sips") and bool(parse_sip_uri(uri).headers)


def routes(request: Request) -> tuple[str, ...]:
    """Return the name-addrs of Route, the next hop first. Raises ParseError where there are more than MAX_ROUTES."""
    found = tuple([item for row in request.all("Route") for item in split_list(row)])
    if len(found) > MAX_ROUTES:
        raise ParseError("Route", f"more than {MAX_ROUTES} values")
    return found


def routed(request: Request, route: Sequence[str]) -> Request:
    """Return the request with another Route."""
    return request.replacing("Route", *route) if route else request.without("Route")


def own_route(request: Request, hosts: Collection[str]) -> tuple[Request, SipUri | None]:
    """Take our own value off the top of Route, as a loose router does (§16.4); return it, None where there is none.

    `hosts` are the names we go by, lower case. Raises ParseError.
    """
    found = routes(request)
    if not found:
        return request, None
    top = parse_sip_uri(parse_name_addr(found[0]).uri)
    if top.host not in hosts:
        return request, None
    return routed(request, found[1:]), top


def next_hop(request: Request) -> SipUri:
    """Return where a request goes: the top of Route, else the Request-URI (§16.6 step 7). Raises ParseError."""
    found = routes(request)
    return parse_sip_uri(parse_name_addr(found[0]).uri if found else request.uri)
