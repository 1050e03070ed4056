# SPDX-License-Identifier: Apache-2.0
"""The Digest header fields of SIP and HTTP (RFC 7616 §3.3 to §3.5; RFC 3261 §22.4; TS 24.229 §7.2A, Release 17)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from keyferry.errors import LocalProtocolError, ParseError

MAX_HEADER = 8192
"""Characters; nothing in use comes near, and HTTP servers stop there too."""
MAX_PARAMETERS = 32
"""Per header field; RFC 7616 and TS 24.229 together name fewer than 20."""

Parameters: TypeAlias = tuple[tuple[str, str], ...]

# auth-param = token BWS "=" BWS ( token / quoted-string ), separated by commas; empty elements are allowed (RFC 9110 §11.2, §5.6).
# Every repetition is possessive, and whatever is no parameter is taken to the end in one step: one pass over any input.
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QDTEXT = r"[ -!#-\[\]-~\t\x80-\U0010ffff]*+"
_QUOTED = rf"{_QDTEXT}(?:\\[ -~\t\x80-\U0010ffff]{_QDTEXT})*+"
_PARAMETER = re.compile(rf'({_WORD})[ \t]*+=[ \t]*+(?:"({_QUOTED})"|({_WORD}))[ \t]*+(?:,[ \t,]*+|\Z)|.+', re.DOTALL)
_SCHEME = re.compile(r"[ \t]*+digest[ \t]++[ \t,]*+", re.IGNORECASE)
_TOKEN = re.compile(_WORD)

# What curl, httpx, Chromium and our own client write, in one step instead of one a parameter: these four first, each of the others once
# in any order, the groups in the order of `Credentials`, and at the end what a P-CSCF adds (TS 24.229 §5.2.2). It only ever takes what the
# grammar above takes, with the same values.
_OTHERS = "|".join(
    rf"{name}=(?({group})(?!)){value}"  # not if it was there before
    for group, (name, value) in enumerate(
        {
            "response": f'"({_QDTEXT})"', "algorithm": f"({_WORD})", "cnonce": f'"({_QDTEXT})"',
            "opaque": f'"({_QDTEXT})"', "qop": f"({_WORD})", "nc": f"({_WORD})",
        }.items(), start=5,
    )
)  # fmt: skip
_USUAL = re.compile(
    rf'Digest username="({_QDTEXT})", realm="({_QDTEXT})", nonce="({_QDTEXT})", uri="({_QDTEXT})"(?:, (?:{_OTHERS}))*+(?(5)|(?!))'
    rf'(?:, integrity-protected="({_QDTEXT})")?+'
)
_PAIR = re.compile(r"\\(.)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_BARE_EXTRAS = frozenset({"userhash", "charset"})  # RFC 7616 §3.3 and §3.4 want them bare; everything else unknown is quoted
_KNOWN_IN_CHALLENGE = frozenset({"realm", "domain", "nonce", "opaque", "stale", "algorithm", "qop"})
_KNOWN_IN_CREDENTIALS = frozenset({"username", "realm", "nonce", "uri", "response", "algorithm", "cnonce", "opaque", "qop", "nc", "auts"})


@dataclass(frozen=True, slots=True)
class Challenge:
    """WWW-Authenticate with the Digest scheme.

    `parameters` are the rest, names in lower case, values without quotes; `ck` and `ik` of TS 24.229 are among them, so they never print.
    """

    realm: str
    nonce: str
    algorithm: str = "MD5"
    qop: tuple[str, ...] = ()
    opaque: str | None = None
    stale: bool = False
    domain: str | None = None
    parameters: Parameters = field(default=(), repr=False)

    def parameter(self, name: str) -> str | None:
        """Return one of the other parameters."""
        return _find(self.parameters, name)

    def with_parameters(self, parameters: Parameters) -> Challenge:
        """Return the challenge with these other parameters: a P-CSCF takes `ck` and `ik` out (TS 24.229 §5.2.2)."""
        return replace(self, parameters=parameters)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Authorization with the Digest scheme; `parameters` are the rest, as in `Challenge`.

    Nonce and response are empty in the first REGISTER (TS 24.229 §5.1.1.2.2). What could help to search for a short
    RES is not printed.
    """

    username: str
    realm: str
    nonce: str
    uri: str
    response: str = field(repr=False)
    algorithm: str | None = None
    cnonce: str | None = field(default=None, repr=False)
    opaque: str | None = None
    qop: str | None = None
    nc: str | None = None  # as received: it is an input of the hash
    auts: str | None = field(default=None, repr=False)
    parameters: Parameters = field(default=(), repr=False)

    def parameter(self, name: str) -> str | None:
        """Return one of the other parameters."""
        return _find(self.parameters, name)


@dataclass(frozen=True, slots=True)
class AuthenticationInfo:
    """Authentication-Info with Digest parameters (RFC 7616 §3.5); parameters not known here are dropped."""

    rspauth: str | None = field(default=None, repr=False)
    qop: str | None = None
    cnonce: str | None = field(default=None, repr=False)
    nc: str | None = None
    nextnonce: str | None = None


def parse_challenge(text: str) -> Challenge:
    """Parse one Digest challenge.

    Raises ParseError.
    """
    what = "Digest challenge"
    fields = _scan(what, text, _after_scheme(what, text))
    qop = fields.pop("qop", None)
    return Challenge(
        realm=_mandatory(what, fields, "realm"),
        nonce=_mandatory(what, fields, "nonce"),
        algorithm=fields.pop("algorithm", "MD5"),
        qop=() if qop is None else _parse_qop(qop),
        opaque=fields.pop("opaque", None),
        stale=fields.pop("stale", "false").lower() == "true",
        domain=fields.pop("domain", None),
        parameters=tuple(fields.items()),
    )


def build_challenge(challenge: Challenge) -> str:
    """Return the header field value, reverse of `parse_challenge`.

    Raises LocalProtocolError on a value that no header field may carry.
    """
    parts = [f"Digest realm={_quote(challenge.realm)}", f"nonce={_quote(challenge.nonce)}", f"algorithm={_bare(challenge.algorithm)}"]
    if challenge.qop:
        if not all(map(_TOKEN.fullmatch, challenge.qop)):
            raise LocalProtocolError("a qop is not a token")
        parts.append(f'qop="{",".join(challenge.qop)}"')
    if challenge.opaque is not None:
        parts.append(f"opaque={_quote(challenge.opaque)}")
    if challenge.stale:
        parts.append("stale=true")
    if challenge.domain is not None:
        parts.append(f"domain={_quote(challenge.domain)}")
    return ", ".join(parts + _build_rest(challenge.parameters, _KNOWN_IN_CHALLENGE))


def parse_credentials(text: str) -> Credentials:
    """Parse Digest credentials; a repeated parameter is refused, since two readers may take different ones.

    Raises ParseError.
    """
    usual = _USUAL.fullmatch(text) if len(text) <= MAX_HEADER else None
    if usual is not None:
        username, realm, nonce, uri, response, algorithm, cnonce, opaque, qop, nc, protected = usual.groups()
        parameters = () if protected is None else (("integrity-protected", protected),)
        return Credentials(username, realm, nonce, uri, response, algorithm, cnonce, opaque, qop, nc, None, parameters)
    what = "Digest credentials"
    fields = _scan(what, text, _after_scheme(what, text))
    pop = fields.pop
    try:
        return Credentials(
            pop("username"),
            pop("realm"),
            pop("nonce"),
            pop("uri"),
            pop("response"),
            pop("algorithm", None),
            pop("cnonce", None),
            pop("opaque", None),
            pop("qop", None),
            pop("nc", None),
            pop("auts", None),
            tuple(fields.items()) if fields else (),
        )
    except KeyError as problem:
        raise ParseError(what, f"without {problem.args[0]}") from None


def is_digest(text: str) -> bool:
    """Tell whether an Authorization is of the Digest scheme; one of another scheme counts as none (RFC 4475 §3.3.7)."""
    return text.lstrip(" \t")[:7].lower() in {"digest", "digest ", "digest\t"}


def build_credentials(credentials: Credentials) -> str:
    """Return the header field value, reverse of `parse_credentials`.

    Raises LocalProtocolError on a value that no header field may carry.
    """
    parts = [
        f"Digest username={_quote(credentials.username)}",
        f"realm={_quote(credentials.realm)}",
        f"nonce={_quote(credentials.nonce)}",
        f"uri={_quote(credentials.uri)}",
        f"response={_quote(credentials.response)}",
    ]
    parts += _build_known(credentials, bare=("algorithm", "qop", "nc"), quoted=("cnonce", "opaque", "auts"))
    return ", ".join(parts + _build_rest(credentials.parameters, _KNOWN_IN_CREDENTIALS))


def with_parameter(credentials: Credentials, name: str, value: str) -> Credentials:
    """Return the credentials with this one value of an additional parameter (`integrity-protected`, TS 24.229 §5.2.2).

    Raises LocalProtocolError for a parameter that the hash depends on.
    """
    kept = without_parameter(credentials, name)
    return replace(kept, parameters=(*kept.parameters, (name.lower(), value)))


def without_parameter(credentials: Credentials, name: str) -> Credentials:
    """Return the credentials without an additional parameter: what a UE must not have set itself.

    Raises LocalProtocolError for a parameter that the hash depends on.
    """
    name = name.lower()
    if name in _KNOWN_IN_CREDENTIALS:
        raise LocalProtocolError(f"{name} is no additional parameter")
    return replace(credentials, parameters=_without(credentials.parameters, name))


def parse_authentication_info(text: str) -> AuthenticationInfo:
    """Parse Authentication-Info.

    Raises ParseError.
    """
    fields = _scan("Authentication-Info", text, 0)
    return AuthenticationInfo(*(fields.get(name) for name in ("rspauth", "qop", "cnonce", "nc", "nextnonce")))


def build_authentication_info(info: AuthenticationInfo) -> str:
    """Return the header field value, reverse of `parse_authentication_info`.

    Raises LocalProtocolError if there is nothing in it, or a value that no header field may carry.
    """
    parts = _build_known(info, bare=("qop", "nc"), quoted=("rspauth", "cnonce", "nextnonce"))
    if not parts:
        raise LocalProtocolError("an empty Authentication-Info")
    return ", ".join(parts)


def _after_scheme(what: str, text: str) -> int:
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise ParseError(what, "not of the Digest scheme")
    return scheme.end()


def _scan(what: str, text: str, start: int) -> dict[str, str]:
    """Return the parameters by lower-case name, quotes and escapes resolved.

    A value that ought to be a token may be quoted: some stacks quote `algorithm`, `qop` or `nc`.
    """
    if len(text) > MAX_HEADER:
        raise ParseError(what, f"longer than {MAX_HEADER} characters")
    found = _PARAMETER.findall(text, start)
    if not found or not found[-1][0]:
        raise ParseError(what, "not a list of parameters")
    if len(found) > MAX_PARAMETERS:
        raise ParseError(what, f"more than {MAX_PARAMETERS} parameters")
    fields: dict[str, str] = {name.lower(): token or quoted for name, quoted, token in found}
    if len(fields) != len(found):
        raise ParseError(what, "a parameter is repeated")
    if "\\" in text:
        return {name: _PAIR.sub(r"\1", value) for name, value in fields.items()}  # no token holds a backslash
    return fields


def _mandatory(what: str, fields: dict[str, str], name: str) -> str:
    value = fields.pop(name, None)
    if value is None:
        raise ParseError(what, f"without {name}")
    return value


def _parse_qop(text: str) -> tuple[str, ...]:
    """qop-options = <"> 1#qop-value <"> (RFC 7616 §3.3)."""
    values = tuple(value for value in (part.strip(" \t") for part in text.split(",")) if value)
    if not values or len(values) > MAX_PARAMETERS or not all(map(_TOKEN.fullmatch, values)):
        raise ParseError("Digest challenge", "qop is not a list of tokens")
    return values


def _find(parameters: Parameters, name: str) -> str | None:
    name = name.lower()
    return next((value for key, value in parameters if key == name), None)


def _without(parameters: Parameters, name: str) -> Parameters:
    return tuple(pair for pair in parameters if pair[0] != name)


def _build_known(source: object, *, bare: Iterable[str], quoted: Iterable[str]) -> list[str]:
    """Return the parameters that are there, tokens first."""
    present = [(name, _bare(value)) for name in bare if (value := getattr(source, name)) is not None]
    present += [(name, _quote(value)) for name in quoted if (value := getattr(source, name)) is not None]
    return [f"{name}={value}" for name, value in present]


def _build_rest(parameters: Parameters, known: frozenset[str]) -> list[str]:
    seen = set(known)
    parts = []
    for name, value in parameters:
        if name in seen or name != name.lower():
            raise LocalProtocolError("an additional parameter is repeated, not in lower case, or not additional")
        seen.add(name)
        if not _TOKEN.fullmatch(name):
            raise LocalProtocolError("the name of a Digest parameter is not a token")
        parts.append(f"{name}={_bare(value) if name in _BARE_EXTRAS else _quote(value)}")
    return parts


def _bare(value: str) -> str:
    """Return a token as it is; what is none came quoted from a peer, and goes on as it came."""
    return value if _TOKEN.fullmatch(value) else _quote(value)


def _quote(value: str) -> str:
    if _CONTROL.search(value):
        raise LocalProtocolError("a Digest parameter holds a control character")
    if '"' in value or "\\" in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
