# SPDX-License-Identifier: Apache-2.0
"""Rules and limits shared by the SIP parsers (RFC 3261 §25).

Every repetition is possessive, so no pattern here can backtrack: time is linear in the input.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias

from keyferry.errors import ParseError

MAX_MESSAGE = 65_535
"""Octets of one message: what an UDP datagram can hold; TCP needs no more for REGISTER."""
MAX_HEADERS = 256
"""Header fields of one message; a REGISTER has about 20."""
MAX_VALUE = 8_192
"""Characters of one header field, unfolded; the longest we know (a Digest with server data) has under 1,000."""
MAX_METHOD = 64
"""Characters of a method, which logs show; the longest of RFC 4475 has 44."""
MAX_URI = 2_048
"""Characters of one URI."""
MAX_PARAMETERS = 64
"""Parameters of one value; handsets send under 20 feature tags."""
MAX_LIST = 128
"""Values in one comma-separated list."""

NAME_CHARACTERS = r"A-Za-z0-9\-.!%*_+`'~"
"""What a token is made of."""
TOKEN = rf"[{NAME_CHARACTERS}]++"
WS = r"[ \t]*+"
"""SWS, after unfolding."""
QUOTED = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]++|\\[\x01-\x09\x0b\x0c\x0e-\x7f])*+"'
HOST = r"(?:\[[0-9A-Fa-f:.]{2,45}+\]|[A-Za-z0-9_][A-Za-z0-9_\-]*+(?:\.[A-Za-z0-9_][A-Za-z0-9_\-]*+)*+\.?+)"
"""host, and the underscore that real names have; the content of brackets is checked by `host_of`."""

Parameters: TypeAlias = tuple[tuple[str, str | None], ...]
"""Names in lower case, values as written, quotes and all; None for a flag."""

_TOKEN = re.compile(TOKEN)
# generic-param = token [ EQUAL gen-value ]; gen-value here is any run without a separator, as real peers send "@" and "/" in it
_PARAMETER = re.compile(rf'{WS};{WS}({TOKEN})(?:{WS}={WS}({QUOTED}|[^ \t,;"<>\x00-\x1f\x7f]++))?+')
_SPACE = re.compile(WS)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_TO_ESCAPE = re.compile(r'["\\\x01-\x08\x0b\x0c\x0e-\x1f\x7f]')


def is_token(text: str) -> bool:
    """Tell whether `text` is a token."""
    return _TOKEN.fullmatch(text) is not None


def host_of(text: str, what: str) -> str:
    """Return a host matched by HOST in lower case.

    Raises ParseError if it is over 255 characters, or no IPv6 address where one is meant.
    """
    if len(text) > 255:
        raise ParseError(what, "host name longer than 255 characters")
    if text[0] == "[":
        try:
            ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise ParseError(what, "not an IPv6 address between the brackets") from None
    return text.lower()


def port_of(text: str | None, what: str) -> int | None:
    """Return a port number.

    Raises ParseError if it is over 65535.
    """
    if text is None:
        return None
    port = int(text)
    if port > 65_535:
        raise ParseError(what, "port over 65535")
    return port


def scan_parameters(text: str, pos: int, what: str) -> tuple[Parameters, int]:
    """Read `*( SEMI generic-param )` and the space after it; return the parameters and where they end.

    Raises ParseError for a repeated name (RFC 3261 §7.3.1) and for more than MAX_PARAMETERS.
    """
    found: list[tuple[str, str | None]] = []
    match = _PARAMETER.match
    while step := match(text, pos):
        name, value = step.groups()
        found.append((name.lower(), value))
        pos = step.end()
    if len(found) > 1:
        if len(found) > MAX_PARAMETERS:
            raise ParseError(what, f"more than {MAX_PARAMETERS} parameters")
        if len(dict(found)) != len(found):
            raise ParseError(what, "a parameter appears twice")
    return tuple(found), skip_space(text, pos)


def skip_space(text: str, pos: int) -> int:
    """Return the position after spaces and tabs."""
    if pos < len(text) and text[pos] in " \t":
        step = _SPACE.match(text, pos)
        return step.end() if step else pos
    return pos


def build_parameters(parameters: Parameters) -> str:
    """Write parameters: the reverse of `scan_parameters`."""
    return "".join([f";{name}" if value is None else f";{name}={value}" for name, value in parameters])


def parameter_of(parameters: Parameters, name: str) -> str | None:
    """Return a parameter's value without quotes, "" for a flag, None if it is absent."""
    name = name.lower()
    for key, value in parameters:
        if key == name:
            return "" if value is None else unquote(value)
    return None


def with_parameter(parameters: Parameters, name: str, value: str | None) -> Parameters:
    """Return `parameters` with one set, in its place if it was there."""
    for place, (key, _) in enumerate(parameters):
        if key == name:
            return (*parameters[:place], (name, value), *parameters[place + 1 :])
    return (*parameters, (name, value))


def unquote(text: str) -> str:
    """Return the content of a quoted-string, or `text` if it is none."""
    if not text.startswith('"'):
        return text
    text = text[1:-1]
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


def quote(text: str) -> str:
    """Write a quoted-string: the reverse of `unquote`."""
    return f'"{_TO_ESCAPE.sub(_backslash, text)}"'


def _backslash(found: re.Match[str]) -> str:
    return "\\" + found.group()
