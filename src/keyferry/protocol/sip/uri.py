# SPDX-License-Identifier: Apache-2.0
"""SIP and SIPS URIs (RFC 3261 §19.1)."""

from __future__ import annotations

import re
from typing import NamedTuple

from keyferry.errors import ParseError
from keyferry.protocol.sip.grammar import HOST, MAX_PARAMETERS, MAX_URI, Parameters, build_parameters, host_of, parameter_of, port_of

_UNRESERVED = r"A-Za-z0-9\-_.!~*'()"
_ESCAPED = r"%[0-9A-Fa-f]{2}"
_USER = rf"(?:[{_UNRESERVED}&=+$,;?/]++|{_ESCAPED})++"
_PASSWORD = rf"(?:[{_UNRESERVED}&=+$,]++|{_ESCAPED})*+"
_PARAMETER_TEXT = rf"(?:[{_UNRESERVED}\[\]/:&+$]++|{_ESCAPED})"
_HEADERS = rf"(?:[{_UNRESERVED}\[\]/?:+$&=]++|{_ESCAPED})++"
# SIP-URI = "sip:" [ userinfo ] hostport uri-parameters [ headers ]; userinfo = user [ ":" password ] "@"
_URI = re.compile(
    rf"(sips?):(?:({_USER})(?::({_PASSWORD}))?@)?({HOST})(?::([0-9]{{1,5}}+))?"
    rf"((?:;{_PARAMETER_TEXT}++(?:={_PARAMETER_TEXT}*+)?+)*+)(?:\?({_HEADERS}))?",
    re.IGNORECASE | re.ASCII,
)
_ESCAPE = re.compile(_ESCAPED)
_NEVER_IGNORED = ("user", "ttl", "method", "maddr")


class SipUri(NamedTuple):
    """A SIP or SIPS URI; user, password, parameters and headers keep their `%HH` escapes."""

    scheme: str  # "sip" or "sips"
    user: str | None
    password: str | None  # never in repr (RFC 3261 §19.1.1: not recommended)
    host: str  # lower case, IPv6 in brackets
    port: int | None
    parameters: Parameters
    headers: str  # without "?"

    def parameter(self, name: str) -> str | None:
        """Return a parameter's value, "" for a flag, None if it is absent; names have no case."""
        return parameter_of(self.parameters, name)

    def __str__(self) -> str:
        return build_sip_uri(self)

    def __repr__(self) -> str:
        return f"SipUri({build_sip_uri(self._replace(password=None, headers=''))!r})"


def parse_sip_uri(text: str) -> SipUri:
    """Read a SIP or SIPS URI.

    Raises ParseError.
    """
    if len(text) > MAX_URI:
        raise ParseError("SIP URI", f"longer than {MAX_URI} characters")
    found = _URI.fullmatch(text)
    if found is None:
        raise ParseError("SIP URI", "not of the form sip:user@host:port;parameters?headers")
    scheme, user, password, host, port, parameters, headers = found.groups()
    return SipUri(
        scheme.lower(),
        user,
        password,
        host_of(host, "SIP URI"),
        port_of(port, "SIP URI"),
        _parameters(parameters) if parameters else (),
        headers or "",
    )


def build_sip_uri(uri: SipUri) -> str:
    """Write a URI: the reverse of `parse_sip_uri`."""
    user = ""
    if uri.user is not None:
        user = f"{uri.user}@" if uri.password is None else f"{uri.user}:{uri.password}@"
    port = "" if uri.port is None else f":{uri.port}"
    headers = f"?{uri.headers}" if uri.headers else ""
    return f"{uri.scheme}:{user}{uri.host}{port}{build_parameters(uri.parameters)}{headers}"


def same_uri(one: SipUri, other: SipUri) -> bool:
    """Compare by RFC 3261 §19.1.4: escapes resolved, an absent port is not the default port."""
    if (one.scheme, one.host, one.port) != (other.scheme, other.host, other.port):
        return False
    if (_decoded(one.user), _decoded(one.password)) != (_decoded(other.user), _decoded(other.password)):
        return False
    if _header_set(one.headers) != _header_set(other.headers):
        return False
    ours, theirs = _comparable(one.parameters), _comparable(other.parameters)
    if any((name in ours) != (name in theirs) for name in _NEVER_IGNORED):
        return False
    return all(theirs.get(name, value) == value for name, value in ours.items())


def _parameters(text: str) -> Parameters:
    found: list[tuple[str, str | None]] = []
    for item in text[1:].split(";"):
        name, equals, value = item.partition("=")
        found.append((name.lower(), value if equals else None))
    if len(found) > MAX_PARAMETERS:
        raise ParseError("SIP URI", f"more than {MAX_PARAMETERS} parameters")
    if len(dict(found)) != len(found):
        raise ParseError("SIP URI", "a parameter appears twice")
    return tuple(found)


def _decoded(text: str | None) -> str | None:
    # only for comparison: "%61" is "a"; the octets need no charset
    return text and _ESCAPE.sub(lambda found: chr(int(found.group()[1:], 16)), text)


def _comparable(parameters: Parameters) -> dict[str, str]:
    return {name: (_decoded(value) or "").lower() for name, value in parameters}


def _header_set(text: str) -> list[str]:
    return sorted((_decoded(item) or "") for item in text.split("&"))
