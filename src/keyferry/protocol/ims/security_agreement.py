# SPDX-License-Identifier: Apache-2.0
"""Security-Client, Security-Server and Security-Verify (RFC 3329 §2.2) with ipsec-3gpp (TS 33.203 annex H, Release 17)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from keyferry.errors import LocalProtocolError, ParseError, RemoteProtocolError
from keyferry.protocol.sip.grammar import (
    MAX_PARAMETERS,
    MAX_VALUE,
    QUOTED,
    TOKEN,
    WS,
    Parameters,
    build_parameters,
    is_token,
    scan_parameters,
    skip_space,
    unquote,
)

IPSEC_3GPP: Final = "ipsec-3gpp"
TRANSPORT: Final = "trans"
UDP_TUNNEL: Final = "UDP-enc-tun"
"""UDP-encapsulated tunnel mode, for a UE behind a NAT (TS 33.203 annex M)."""
SECURITY_AGREEMENT_REQUIRED: Final = 494
"""RFC 3329 §2.4: the status for an agreement that failed."""
MAX_MECHANISMS = 32
"""In one message; a UE that lists every combination of algorithms and modes sends under 20."""
MIN_SPI = 256
"""0 to 255 are reserved (RFC 4303 §2.1), though annex H's grammar has them."""
MAX_SPI = 2**32 - 1
MAX_Q = 1_000
"""Thousandths."""

# sec-mechanism = mechanism-name *(SEMI mech-parameters)
_NAME = re.compile(rf"{WS}({TOKEN})")
# qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )
_Q = re.compile(r"0(?:\.[0-9]{0,3}+)?+|1(?:\.0{0,3}+)?+", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}+", re.ASCII)
_ALGORITHM = re.compile(r"[a-z0-9\-]{1,32}+", re.ASCII)
_VALUE = re.compile(rf'{QUOTED}|[^ \t,;"<>\x00-\x1f\x7f]++')
_MAX_OTHERS = MAX_PARAMETERS - 9
_KNOWN = ("alg", "ealg", "prot", "mod", "spi-c", "spi-s", "port-c", "port-s")
_WHAT = "security mechanism"


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One way to protect messages. For another name than ipsec-3gpp all but `name`, `q` and `others` is empty or 0."""

    name: str  # lower case
    alg: str = ""  # integrity, lower case
    spi_c: int = 0  # of the SA that comes in at the sender's protected client port
    spi_s: int = 0  # … at its protected server port
    port_c: int = 0
    port_s: int = 0
    ealg: str = ""  # encryption, lower case; annex H: "null" if it is not written
    prot: str = ""  # annex H: "esp" if it is not written
    mod: str = ""  # annex H: "trans" if it is not written
    q: int | None = None  # preference, thousandths; written by the server
    others: Parameters = ()  # as `scan_parameters` returns them

    @property
    def suite(self) -> tuple[str, str, str, str, str]:
        """What both sides must support for this mechanism."""
        return self.name, self.alg, self.ealg, self.prot, self.mod


class Agreement(NamedTuple):
    """The mechanism that both sides use, as each of them wrote it."""

    client: Mechanism
    server: Mechanism


def ipsec_3gpp(
    *, alg: str, ealg: str, spi_c: int, spi_s: int, port_c: int, port_s: int, mod: str = UDP_TUNNEL, q: int | None = None
) -> Mechanism:
    """Return an ipsec-3gpp mechanism with ESP.

    Raises LocalProtocolError.
    """
    found = Mechanism(IPSEC_3GPP, alg, spi_c, spi_s, port_c, port_s, ealg, "esp", mod, q)
    if problem := _problem(found):
        raise LocalProtocolError(problem)
    return found


def parse_mechanisms(fields: Sequence[str]) -> tuple[Mechanism, ...]:
    """Read all values of one of the three header fields, in their order; no field, no mechanism.

    Raises ParseError.
    """
    if sum(map(len, fields)) > MAX_VALUE:
        raise ParseError(_WHAT, f"longer than {MAX_VALUE} characters")
    found: list[Mechanism] = []
    for text in fields:
        pos = 0
        while True:
            mechanism, pos = _mechanism(text, pos)
            found.append(mechanism)
            if len(found) > MAX_MECHANISMS:
                raise ParseError(_WHAT, f"more than {MAX_MECHANISMS}")
            if pos == len(text):
                break
            if text[pos] != ",":
                raise ParseError(_WHAT, "something other than a comma follows")
            pos += 1
    return tuple(found)


def build_mechanisms(mechanisms: Sequence[Mechanism]) -> str:
    """Write the value of one header field: the reverse of `parse_mechanisms`.

    Raises LocalProtocolError.
    """
    return ", ".join(map(_text, mechanisms))


def by_preference(mechanisms: Sequence[Mechanism]) -> list[Mechanism]:
    """Return the server's mechanisms with the preferred first; of equal ones the first stays first.

    RFC 3329 §2.2 calls two mechanisms with the same q an error; as single ones come without q, it is not enforced.
    """
    return sorted(mechanisms, key=lambda mechanism: -MAX_Q if mechanism.q is None else -mechanism.q)


def choose(client_offer: Sequence[Mechanism], own_preference: Sequence[Mechanism]) -> Agreement:
    """Agree on the server's most preferred mechanism that the client has too (TS 33.203 §7.2).

    The P-CSCF calls it with Security-Client and its own list, the UE with its own offer and Security-Server: both
    come to the same. SPIs that the two chose must differ (TS 33.203 §7.1).
    Raises RemoteProtocolError with status 494.
    """
    offered: dict[tuple[str, ...], Mechanism] = {}
    for mechanism in client_offer:
        offered.setdefault(mechanism.suite, mechanism)
    for server in by_preference(own_preference):
        client = offered.get(server.suite)
        if client is not None and not _share_spi(client, server):
            return Agreement(client, server)
    raise RemoteProtocolError("no security mechanism in common", SECURITY_AGREEMENT_REQUIRED)


def same(verify: Sequence[Mechanism], server: Sequence[Mechanism]) -> bool:
    """Say whether two lists are equivalent (RFC 3329 §2.3.1): the same mechanisms, parameters and order of mechanisms.

    The order of parameters and the case of what is not quoted do not count (RFC 3261 §7.3.1); a default counts as written.
    """
    return [_comparable(one) for one in verify] == [_comparable(one) for one in server]


def check_same(fields: Sequence[str], sent: Sequence[Mechanism]) -> None:
    """Check that the header fields of a protected request say again what was said before protection began.

    That is Security-Verify against the Security-Server sent, and Security-Client of SM7 against that of SM1
    (TS 33.203 §7.2, annex H): a difference means that somebody took the better mechanisms out of a list.
    Raises ParseError, and RemoteProtocolError with status 494.
    """
    if not same(parse_mechanisms(fields), sent):
        raise RemoteProtocolError("the security mechanisms are not those of before", SECURITY_AGREEMENT_REQUIRED)


def _mechanism(text: str, pos: int) -> tuple[Mechanism, int]:
    step = _NAME.match(text, pos)
    if step is None:
        raise ParseError(_WHAT, "no name")
    name = step.group(1).lower()
    pos = skip_space(text, step.end())
    parameters, pos = scan_parameters(text, pos, _WHAT)
    values = dict(parameters)
    q = _q(values["q"]) if "q" in values else None
    if name == IPSEC_3GPP:
        found = _ipsec(parameters, values, q)
    else:
        found = Mechanism(name, q=q, others=tuple(each for each in parameters if each[0] != "q"))
    if problem := _problem(found):
        raise ParseError(_WHAT, problem)
    return found, pos


def _ipsec(parameters: Parameters, values: dict[str, str | None], q: int | None) -> Mechanism:
    return Mechanism(
        IPSEC_3GPP,
        alg=_word(values, "alg", ""),
        spi_c=_number(values, "spi-c"),
        spi_s=_number(values, "spi-s"),
        port_c=_number(values, "port-c"),
        port_s=_number(values, "port-s"),
        ealg=_word(values, "ealg", "null"),
        prot=_word(values, "prot", "esp"),
        mod=_mode(_word(values, "mod", TRANSPORT)),
        q=q,
        others=tuple(each for each in parameters if each[0] != "q" and each[0] not in _KNOWN),
    )


def _text(mechanism: Mechanism) -> str:
    if problem := _problem(mechanism):
        raise LocalProtocolError(problem)
    known: list[tuple[str, str | None]] = []
    if mechanism.q is not None:
        known.append(("q", f"{mechanism.q / MAX_Q:g}"))
    if mechanism.name == IPSEC_3GPP:
        values = (mechanism.alg, mechanism.ealg, mechanism.prot, mechanism.mod)
        numbers = (mechanism.spi_c, mechanism.spi_s, mechanism.port_c, mechanism.port_s)
        known += zip(_KNOWN, (*values, *map(str, numbers)), strict=True)
    return mechanism.name + build_parameters((*known, *mechanism.others))


def _problem(mechanism: Mechanism) -> str:
    """Say what is wrong, "" if nothing is."""
    if not is_token(mechanism.name) or mechanism.name != mechanism.name.lower():
        return "a name that is no token"
    if mechanism.q is not None and not 0 <= mechanism.q <= MAX_Q:
        return "a q over 1"
    if len(mechanism.others) > _MAX_OTHERS or len(dict(mechanism.others)) != len(mechanism.others):
        return "too many parameters, or one twice"
    taken = {"q", *_KNOWN} if mechanism.name == IPSEC_3GPP else {"q"}
    if not all(_writable(name, value) and name not in taken for name, value in mechanism.others):
        return "a parameter that cannot be written"
    return _problem_of_ipsec(mechanism) if mechanism.name == IPSEC_3GPP else ""


def _problem_of_ipsec(mechanism: Mechanism) -> str:
    if not all(_ALGORITHM.fullmatch(word) for word in (mechanism.alg, mechanism.ealg, mechanism.prot)):
        return "no alg, or an ealg or prot that is none"
    if _mode(mechanism.mod.lower()) != mechanism.mod or not _ALGORITHM.fullmatch(mechanism.mod.lower()):
        return "a mod that is none"
    if not all(MIN_SPI <= spi <= MAX_SPI for spi in (mechanism.spi_c, mechanism.spi_s)):
        return f"an SPI that is not from {MIN_SPI} to 2**32-1"
    if not all(0 < port < 65_536 for port in (mechanism.port_c, mechanism.port_s)):
        return "a port that is not from 1 to 65535"
    if mechanism.spi_c == mechanism.spi_s or mechanism.port_c == mechanism.port_s:
        return "one SPI or port for both the client and the server side (TS 33.203 §7.1)"
    return ""


def _writable(name: str, value: str | None) -> bool:
    return is_token(name) and name == name.lower() and (value is None or _VALUE.fullmatch(value) is not None)


def _share_spi(client: Mechanism, server: Mechanism) -> bool:
    return client.name == IPSEC_3GPP and not {client.spi_c, client.spi_s}.isdisjoint((server.spi_c, server.spi_s))


def _comparable(mechanism: Mechanism) -> tuple[object, ...]:
    others = sorted((name, value if value[0] == '"' else value.lower()) for name, value in mechanism.others if value)
    flags = sorted(name for name, value in mechanism.others if not value)
    numbers = (mechanism.spi_c, mechanism.spi_s, mechanism.port_c, mechanism.port_s)
    return *mechanism.suite, *numbers, mechanism.q, others, flags


def _word(values: dict[str, str | None], name: str, default: str) -> str:
    return unquote(values[name] or "").lower() if name in values else default


def _mode(text: str) -> str:
    return UDP_TUNNEL if text == UDP_TUNNEL.lower() else text


def _number(values: dict[str, str | None], name: str) -> int:
    text = values.get(name)
    if text is None or not _NUMBER.fullmatch(text):
        raise ParseError(_WHAT, f"no {name}, or one that is no number of at most 10 digits")
    return int(text)


def _q(text: str | None) -> int:
    if text is None or not _Q.fullmatch(text):
        raise ParseError(_WHAT, "a q that is no qvalue")
    whole, _, rest = text.partition(".")
    return int(whole) * MAX_Q + int(rest.ljust(3, "0"))
