# SPDX-License-Identifier: Apache-2.0
"""Identities: IMPI, IMPU, AS_ID, device (TS 23.003 §13, Release 17; RFC 7542; DESIGN §3)."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from functools import lru_cache
from typing import NewType

from keyferry.errors import ParseError

Impi = NewType("Impi", str)
"""IP multimedia private identity, a NAI: exactly the octets of `username` in Authorization."""
Impu = NewType("Impu", str)
"""IP multimedia public identity, a SIP or tel URI in canonical form."""
AsId = NewType("AsId", str)
"""The host of the URI that the UE opens: lower case, A-labels, no port, no final dot, no IP literal."""
KeyId = NewType("KeyId", str)
"""`base64url(18 octets) "@" realm`: names one AS key (*ours*, docs/protocol.md)."""
Reg = NewType("Reg", str)
"""One device's registration: base64url of 9 octets of SHA-256 over its instance id or Contact."""

MAX_IDENTITY = 255
"""Octets; RFC 7542 §2.3 lets a NAI be 253, TS 23.003 gives no other limit."""
MAX_HOST_NAME = 253
"""Octets of a name in its text form (RFC 1035 §2.3.4)."""

MAX_REMEMBERED = 1_024
"""Texts that are remembered with what they name, some 2 MB: each REGISTER of a registration, and each layer here, brings the same."""

_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_NAI = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\-]{1,128}@[A-Za-z0-9\-]{1,63}(?:\.[A-Za-z0-9\-]{1,63})*+")
_LABEL = re.compile(r"(?!-)[a-z0-9_\-]{1,63}(?<!-)")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_URI_USER = re.compile(r"(?:[A-Za-z0-9\-_.!~*'()&=+$,;?/]|%[0-9A-Fa-f]{2}){1,200}")
_URI_PASSWORD = re.compile(r"(?:[A-Za-z0-9\-_.!~*'()&=+$,]|%[0-9A-Fa-f]{2})*+")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")
_GLOBAL_NUMBER = re.compile(r"\+[\-.()]*+[0-9][0-9\-.()]{0,38}")


def parse_impi(text: str) -> Impi:
    """Check a private identity (TS 23.003 §13.3).

    Raises ParseError.
    """
    if len(text) > MAX_IDENTITY or not _NAI.fullmatch(text):
        raise ParseError("IMPI", "not of the form user@realm")
    return Impi(text)


@lru_cache(MAX_REMEMBERED)
def parse_impu(text: str) -> Impu:
    """Return the canonical form of a public identity (TS 23.003 §13.4; RFC 3261 §10.3 step 5).

    URI parameters, header fields and a password go, the scheme and the host become lower case, and an escape stays only
    where the character itself is not allowed. A tel URI is a global number (TS 23.003 §13.4), without visual separators
    (RFC 3966 §5.1.1). Raises ParseError.
    """
    if _CONTROL.search(text):
        raise ParseError("IMPU", "holds white space or control characters")
    if len(text) > MAX_IDENTITY:
        raise ParseError("IMPU", f"longer than {MAX_IDENTITY} octets")
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in {"sip", "sips", "tel"}:
        raise ParseError("IMPU", "not a sip, sips or tel URI")
    if scheme == "tel":
        number = rest.partition(";")[0]
        if not _GLOBAL_NUMBER.fullmatch(number):
            raise ParseError("IMPU", "not a global telephone number")
        return Impu("tel:" + re.sub(r"[-.()]", "", number))
    userinfo, at, host = rest.rpartition("@")
    user, _, password = userinfo.partition(":")
    if not at or not _URI_USER.fullmatch(user) or not _URI_PASSWORD.fullmatch(password):
        raise ParseError("IMPU", "has no user part, or one with characters that a SIP URI forbids")
    host = re.split(r"[;?]", host, maxsplit=1)[0]
    return Impu(f"{scheme}:{_ESCAPE.sub(_unescape, user)}@{_host_port(host)}")


def parse_as_id(host: str) -> AsId:
    """Return the AS_ID of a host name (DESIGN §3).

    Raises ParseError: an IP address, in whatever notation, has no AS_ID.
    """
    name = _host_name(host, "AS_ID")
    if _NUMERIC.fullmatch(name.rpartition(".")[2]):
        raise ParseError("AS_ID", "an IP address is no host name")
    return AsId(name)


@lru_cache(MAX_REMEMBERED)
def reg_of(instance_or_contact: str) -> Reg:
    """Return the name of one device's registration (DESIGN §6)."""
    digest = hashlib.sha256(instance_or_contact.encode("utf-8", "surrogateescape")).digest()
    return Reg(base64.urlsafe_b64encode(digest[:9]).decode("ascii"))


def _unescape(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else f"%{escape[1].upper()}"


def _host_port(text: str) -> str:
    """Return hostport of RFC 3261 §25.1: a name or an IP literal, and a port if there is one."""
    if text.startswith("["):
        literal, bracket, port = text[1:].partition("]")
        try:
            host = f"[{ipaddress.IPv6Address(literal).compressed}]"
        except ValueError:
            raise ParseError("IMPU", "not an IPv6 address") from None
        if not bracket or "%" in literal:
            raise ParseError("IMPU", "not an IPv6 reference")
    else:
        name, colon, port = text.partition(":")
        host, port = _host_name(name, "IMPU"), colon + port
    if not port:
        return host
    if port[0] != ":" or not _PORT.fullmatch(port[1:]):
        raise ParseError("IMPU", "not a port")
    return host + port


def _host_name(text: str, what: str) -> str:
    if len(text) > MAX_IDENTITY:
        raise ParseError(what, f"longer than {MAX_IDENTITY} octets")  # before the IDNA codec, whose time is not linear
    name = text
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise ParseError(what, "host name has no A-label form") from None
    name = name.lower().removesuffix(".")
    if len(name) > MAX_HOST_NAME or not all(map(_LABEL.fullmatch, name.split("."))):
        raise ParseError(what, "not a host name")
    return name
