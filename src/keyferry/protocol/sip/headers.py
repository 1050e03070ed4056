# SPDX-License-Identifier: Apache-2.0
"""Typed views of SIP header fields (RFC 3261 §20, §25.1)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from keyferry.errors import ParseError
from keyferry.protocol.sip.grammar import (
    HOST,
    MAX_LIST,
    MAX_URI,
    MAX_VALUE,
    NAME_CHARACTERS,
    QUOTED,
    TOKEN,
    WS,
    Parameters,
    build_parameters,
    host_of,
    parameter_of,
    port_of,
    quote,
    scan_parameters,
    skip_space,
    unquote,
)

MAX_EXPIRES = 2**32 - 1
"""Seconds (RFC 3261 §20.19)."""
MAX_CSEQ = 2**31 - 1
"""RFC 3261 §8.1.1.5: the sequence number MUST be less than 2**31."""
MAX_WARNING = 200
"""Characters of a warning's text that are shown."""
MAX_REMEMBERED = 4_096
"""Values of one kind that are remembered as parsed: each reader of a message, and each REGISTER of one UE, brings the same again."""
MAX_REMEMBERED_LENGTH = 512
"""Characters of a value that is remembered: with what is parsed, those of one kind take at most some 6 MB."""

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*+:"
# name-addr = [ display-name ] LAQUOT addr-spec RAQUOT; display-name = *(token LWS) / quoted-string, and unquoted UTF-8 as phones send it
_NAME_ADDR = re.compile(rf'{WS}(?:({QUOTED}){WS}|([{NAME_CHARACTERS} \t\x80-\U0010ffff]*+))<({_SCHEME}[^ \t<>"\x00-\x1f\x7f]++)>')
# addr-spec outside <>: "," ";" "?" end it (RFC 3261 §20: such a URI MUST be in <>)
_ADDR_SPEC = re.compile(rf'{WS}({_SCHEME}[^ \t,;?<>"\x00-\x1f\x7f]++)')
_USUAL = re.compile(rf'<{_SCHEME}[^ \t<>"\x00-\x1f\x7f]++>(?:;tag={TOKEN})?+')
# via-parm = sent-protocol LWS sent-by *( SEMI via-params ); sent-protocol = "SIP" SLASH "2.0" SLASH transport
_VIA = re.compile(rf"{WS}SIP{WS}/{WS}2\.0{WS}/{WS}({TOKEN})[ \t]++({HOST})(?:{WS}:{WS}([0-9]{{1,5}}+))?+", re.IGNORECASE | re.ASCII)
_CSEQ = re.compile(rf"([0-9]{{1,10}}+)[ \t]++({TOKEN})", re.ASCII)
_DELTA_SECONDS = re.compile(r"[0-9]{1,10}+", re.ASCII)
# warning-value = warn-code SP warn-agent SP warn-text; the agent is a host with or without port, or a token
_WARNING = re.compile(rf"[0-9]{{3}} ({TOKEN}(?::[0-9]{{1,5}}+)?+|\[[0-9A-Fa-f:.]{{2,45}}+\](?::[0-9]{{1,5}}+)?+) ({QUOTED})", re.ASCII)
_LIST_ITEM = re.compile(rf'(?:[^",<>]++|{QUOTED}|<[^<>]*+>)++')


class NameAddr(NamedTuple):
    """From, To, Contact, Route, Path, P-Associated-URI …: an address with parameters."""

    display: str  # without quotes, "" if there is none
    uri: str
    parameters: Parameters = ()

    def parameter(self, name: str) -> str | None:
        """Return a header parameter's value without quotes, "" for a flag, None if it is absent; names have no case."""
        return parameter_of(self.parameters, name)


class Via(NamedTuple):
    """One Via value (RFC 3261 §20.42; RFC 3581)."""

    transport: str  # upper case
    host: str  # sent-by, lower case, IPv6 in brackets
    port: int | None
    parameters: Parameters = ()

    @property
    def branch(self) -> str:
        """The branch, "" if there is none."""
        return parameter_of(self.parameters, "branch") or ""

    @property
    def received(self) -> str | None:
        """The source address that the next element saw."""
        return parameter_of(self.parameters, "received")

    @property
    def rport(self) -> str | None:
        """The source port as text, "" if it is only asked for (RFC 3581 §3), None if absent."""
        return parameter_of(self.parameters, "rport")

    def parameter(self, name: str) -> str | None:
        """Return a parameter's value without quotes, "" for a flag, None if it is absent; names have no case."""
        return parameter_of(self.parameters, name)


class CSeq(NamedTuple):
    """Sequence number and method (RFC 3261 §20.16)."""

    number: int
    method: str


def parse_name_addr(text: str) -> NameAddr:
    """Read exactly one address.

    Raises ParseError.
    """
    return _remembered_name_addr(text) if len(text) <= MAX_REMEMBERED_LENGTH else _one_name_addr(text)


def check_name_addr(text: str) -> None:
    """Raise ParseError where `parse_name_addr` does; a From with the tag of its request, which never comes again, is not remembered."""
    if len(text) > MAX_URI or not _USUAL.fullmatch(text):
        parse_name_addr(text)


def parse_name_addr_list(text: str) -> list[NameAddr]:
    """Read one header field's comma-separated addresses.

    Raises ParseError.
    """
    return list(_remembered_name_addrs(text) if len(text) <= MAX_REMEMBERED_LENGTH else _name_addrs(text))


def build_name_addr(value: NameAddr) -> str:
    """Write an address: the reverse of `parse_name_addr`."""
    display = f"{quote(value.display)} " if value.display else ""
    return f"{display}<{value.uri}>{build_parameters(value.parameters)}"


def parse_via(text: str) -> Via:
    """Read exactly one Via value.

    Raises ParseError.
    """
    value, pos = _via(text, 0)
    if pos != len(text):
        raise ParseError("Via", "something follows the value")
    return value


def parse_via_list(text: str) -> list[Via]:
    """Read one Via header field's values, the newest hop first.

    Raises ParseError.
    """
    found: list[Via] = []
    pos = 0
    while True:
        value, pos = _via(text, pos)
        found.append(value)
        if pos == len(text):
            return found
        pos = _comma(text, pos, len(found), "Via")


def top_via(text: str) -> tuple[Via, str]:
    """Read the first value of a Via header field; return it and the raw rest of the list.

    Raises ParseError if the first value is wrong; the rest is another element's business.
    """
    return _remembered_top_via(text) if len(text) <= MAX_REMEMBERED_LENGTH else _top_via(text)


def build_via(value: Via) -> str:
    """Write a Via: the reverse of `parse_via`."""
    sent_by = value.host if value.port is None else f"{value.host}:{value.port}"
    return f"SIP/2.0/{value.transport} {sent_by}{build_parameters(value.parameters)}"


def parse_cseq(text: str) -> CSeq:
    """Read a CSeq.

    Raises ParseError.
    """
    found = _CSEQ.fullmatch(text)
    if found is None:
        raise ParseError("CSeq", "not a number and a method")
    number = int(found.group(1))
    if number > MAX_CSEQ:
        raise ParseError("CSeq", "number not below 2**31")
    return CSeq(number, found.group(2))


def build_cseq(value: CSeq) -> str:
    """Write a CSeq: the reverse of `parse_cseq`."""
    return f"{value.number} {value.method}"


def parse_expires(text: str) -> int:
    """Read delta-seconds: Expires, Min-Expires, the `expires` parameter.

    Raises ParseError outside 0 … 2**32-1.
    """
    if not _DELTA_SECONDS.fullmatch(text) or (seconds := int(text)) > MAX_EXPIRES:
        raise ParseError("delta-seconds", "not a number from 0 to 2**32-1")
    return seconds


def build_warning(agent: str, text: str) -> str:
    """Write a Warning value for people (RFC 3261 §20.43, code 399); `agent` is a host, or another token."""
    return f"399 {agent} {quote(_printable(text))}"


def parse_warning(value: str) -> tuple[str, str]:
    """Return who warns, and the text as far as it can be shown on a terminal. Raises ParseError."""
    found = _WARNING.match(value)
    if found is None:
        raise ParseError("Warning", "not a code, a name and a text in quotes")
    return found.group(1), _printable(unquote(found.group(2)))


def _printable(text: str) -> str:
    return "".join([character if character.isprintable() else "?" for character in text[:MAX_WARNING]])


def split_list(text: str) -> list[str]:
    """Split a comma-separated header field, honouring quotes and <>; an empty field is an empty list.

    Raises ParseError for an empty value or an open quote or bracket.
    """
    if len(text) > MAX_VALUE:
        raise ParseError("list", f"longer than {MAX_VALUE} characters")
    if not text.strip(" \t"):
        return []
    found: list[str] = []
    pos = 0
    while True:
        step = _LIST_ITEM.match(text, pos)
        item = step.group().strip(" \t") if step else ""
        if step is None or not item:
            raise ParseError("list", "an empty value, or a quote or bracket that never ends")
        found.append(item)
        pos = step.end()
        if pos == len(text):
            return found
        pos = _comma(text, pos, len(found), "list")


def _one_name_addr(text: str) -> NameAddr:
    value, pos = _name_addr(text, 0)
    if pos != len(text):
        raise ParseError("name-addr", "something follows the address and its parameters")
    return value


def _name_addrs(text: str) -> tuple[NameAddr, ...]:
    found: list[NameAddr] = []
    pos = 0
    while True:
        value, pos = _name_addr(text, pos)
        found.append(value)
        if pos == len(text):
            return tuple(found)
        pos = _comma(text, pos, len(found), "name-addr")


def _name_addr(text: str, pos: int) -> tuple[NameAddr, int]:
    found = _NAME_ADDR.match(text, pos)
    if found is not None:
        quoted, plain, uri = found.groups()
        display = unquote(quoted) if quoted else plain.strip(" \t") if plain else ""
    else:
        found = _ADDR_SPEC.match(text, pos)
        if found is None:
            raise ParseError("name-addr", "no address with a scheme")
        display, uri = "", found.group(1)
    if len(uri) > MAX_URI:
        raise ParseError("name-addr", f"URI longer than {MAX_URI} characters")
    parameters, pos = scan_parameters(text, found.end(), "name-addr")
    return NameAddr(display, uri, parameters), pos


def _top_via(text: str) -> tuple[Via, str]:
    value, pos = _via(text, 0)
    if pos == len(text):
        return value, ""
    return value, text[_comma(text, pos, 1, "Via") :].strip(" \t")


def _via(text: str, pos: int) -> tuple[Via, int]:
    found = _VIA.match(text, pos)
    if found is None:
        raise ParseError("Via", "not of the form SIP/2.0/transport host:port")
    transport, host, port = found.groups()
    parameters, pos = scan_parameters(text, found.end(), "Via")
    return Via(transport.upper(), host_of(host, "Via"), port_of(port, "Via"), parameters), pos


def _comma(text: str, pos: int, count: int, what: str) -> int:
    if count >= MAX_LIST:
        raise ParseError(what, f"more than {MAX_LIST} values in one list")
    if text[pos] != ",":
        raise ParseError(what, "something other than a comma follows a value")
    return skip_space(text, pos + 1)


_remembered_name_addr = lru_cache(MAX_REMEMBERED)(_one_name_addr)
_remembered_name_addrs = lru_cache(MAX_REMEMBERED)(_name_addrs)
_remembered_top_via = lru_cache(MAX_REMEMBERED)(_top_via)
