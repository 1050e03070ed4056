# SPDX-License-Identifier: Apache-2.0
"""Diameter messages as a trace shows them (RFC 6733 §3, §4.1; Cx names of TS 29.229 §6.3, Release 17); keys are lengths only."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from keyferry.errors import ParseError

MAX_MESSAGE: Final = 262_144
"""Octets; the field allows 16 MB, an answer with user data has some thousand."""
MAX_AVPS: Final = 1_024
"""AVPs of one message or group."""

VENDOR_3GPP: Final = 10415
USER_NAME: Final = 1
RESULT_CODE: Final = 268
ORIGIN_HOST: Final = 264
EXPERIMENTAL_RESULT: Final = 297
EXPERIMENTAL_RESULT_CODE: Final = 298
PUBLIC_IDENTITY: Final = 601
SERVER_NAME: Final = 602
AUTH_SCHEME: Final = 608
AUTHENTICATE: Final = 609
AUTHORIZATION: Final = 610
AUTH_DATA_ITEM: Final = 612
ASSIGNMENT_TYPE: Final = 614

Kind: TypeAlias = Literal["text", "number", "group", "octets", "secret"]


class AvpName(NamedTuple):
    """What the dictionary says of an AVP; of `octets` only the length is told, of `secret` too, and that it is one."""

    name: str
    kind: Kind


_BASE: dict[int, AvpName] = {
    1: AvpName("User-Name", "text"),
    258: AvpName("Auth-Application-Id", "number"),
    260: AvpName("Vendor-Specific-Application-Id", "group"),
    263: AvpName("Session-Id", "text"),
    264: AvpName("Origin-Host", "text"),
    266: AvpName("Vendor-Id", "number"),
    268: AvpName("Result-Code", "number"),
    277: AvpName("Auth-Session-State", "number"),
    283: AvpName("Destination-Realm", "text"),
    293: AvpName("Destination-Host", "text"),
    296: AvpName("Origin-Realm", "text"),
    297: AvpName("Experimental-Result", "group"),
    298: AvpName("Experimental-Result-Code", "number"),
}
_3GPP: dict[int, AvpName] = {
    405: AvpName("ME-Key-Material", "secret"),
    406: AvpName("UICC-Key-Material", "secret"),
    600: AvpName("Visited-Network-Identifier", "text"),
    601: AvpName("Public-Identity", "text"),
    602: AvpName("Server-Name", "text"),
    603: AvpName("Server-Capabilities", "group"),
    604: AvpName("Mandatory-Capability", "number"),
    605: AvpName("Optional-Capability", "number"),
    606: AvpName("User-Data", "octets"),  # its ServiceInfo may hold keys
    607: AvpName("SIP-Number-Auth-Items", "number"),
    608: AvpName("SIP-Authentication-Scheme", "text"),
    609: AvpName("SIP-Authenticate", "octets"),
    610: AvpName("SIP-Authorization", "secret"),  # XRES, or RAND and AUTS
    611: AvpName("SIP-Authentication-Context", "octets"),
    612: AvpName("SIP-Auth-Data-Item", "group"),
    613: AvpName("SIP-Item-Number", "number"),
    614: AvpName("Server-Assignment-Type", "number"),
    615: AvpName("Deregistration-Reason", "group"),
    616: AvpName("Reason-Code", "number"),
    617: AvpName("Reason-Info", "text"),
    618: AvpName("Charging-Information", "group"),
    623: AvpName("User-Authorization-Type", "number"),
    624: AvpName("User-Data-Already-Available", "number"),
    625: AvpName("Confidentiality-Key", "secret"),
    626: AvpName("Integrity-Key", "secret"),
    628: AvpName("Supported-Features", "group"),
    629: AvpName("Feature-List-ID", "number"),
    630: AvpName("Feature-List", "number"),
    632: AvpName("Associated-Identities", "group"),
    635: AvpName("SIP-Digest-Authenticate", "secret"),  # it holds HA1
    637: AvpName("UAR-Flags", "number"),
}
_COMMANDS = {
    257: "CE", 280: "DW", 282: "DP", 300: "UA", 301: "SA", 302: "LI", 303: "MA", 304: "RT", 305: "PP",
    306: "UD", 307: "PU", 308: "SN", 309: "PN", 310: "BI", 311: "MPU",
}  # fmt: skip
_FLAG_VENDOR = 0x80
_FLAG_REQUEST = 0x80


@dataclass(frozen=True, slots=True)
class Avp:
    """One attribute-value pair; its octets may be a key and never print."""

    code: int
    vendor: int  # 0: the base protocol
    data: bytes = field(repr=False)

    @property
    def known(self) -> AvpName | None:
        """What the dictionary says of it."""
        return {0: _BASE, VENDOR_3GPP: _3GPP}.get(self.vendor, {}).get(self.code)

    @property
    def text(self) -> str:
        """The octets as UTF-8, what is none replaced; for identities and names."""
        return self.data.decode("utf-8", "replace")

    @property
    def number(self) -> int | None:
        """The octets as Unsigned32 or Enumerated, None if they are not four."""
        return int.from_bytes(self.data, "big") if len(self.data) == 4 else None


@dataclass(frozen=True, slots=True)
class DiameterMessage:
    """A Diameter message."""

    command: int
    request: bool
    application: int
    hop_by_hop: int
    end_to_end: int
    avps: tuple[Avp, ...]

    @property
    def name(self) -> str:
        """The usual abbreviation, such as MAR; a number if the command is not known here."""
        known = _COMMANDS.get(self.command, f"command {self.command} ")
        return f"{known}{'R' if self.request else 'A'}"

    def find(self, code: int, vendor: int = 0) -> Avp | None:
        """Return the first AVP with a code, not looking into groups."""
        return find_avp(self.avps, code, vendor)


def find_avp(avps: tuple[Avp, ...], code: int, vendor: int = 0) -> Avp | None:
    """Return the first AVP with a code."""
    return next((avp for avp in avps if avp.code == code and avp.vendor == vendor), None)


def message_length(head: bytes) -> int | None:
    """Return the octets of the Diameter message that begins with `head`, None if none does; 4 octets are needed."""
    if len(head) < 4 or head[0] != 1:
        return None
    length = int.from_bytes(head[1:4], "big")
    return length if 20 <= length <= MAX_MESSAGE and length % 4 == 0 else None


def parse_diameter(data: bytes) -> DiameterMessage:
    """Read exactly one message.

    Raises ParseError.
    """
    if message_length(data) != len(data):
        raise ParseError("Diameter message", "not version 1, or its length is not that of its octets")
    flags, command, application, hop_by_hop, end_to_end = (
        data[4], int.from_bytes(data[5:8], "big"), *struct.unpack_from(">III", data, 8),
    )  # fmt: skip
    return DiameterMessage(command, bool(flags & _FLAG_REQUEST), application, hop_by_hop, end_to_end, parse_avps(data[20:]))


def parse_avps(data: bytes) -> tuple[Avp, ...]:
    """Read the AVPs of a message or of a group.

    Raises ParseError.
    """
    found: list[Avp] = []
    pos = 0
    while pos < len(data):
        if len(found) >= MAX_AVPS:
            raise ParseError("AVP", f"more than {MAX_AVPS} in a row")
        if pos + 8 > len(data):
            raise ParseError("AVP", "a header that is cut")
        code, word = struct.unpack_from(">II", data, pos)
        length, start, vendor = word & 0xFF_FFFF, 8, 0
        if word >> 24 & _FLAG_VENDOR:
            if pos + 12 > len(data):
                raise ParseError("AVP", "a header that is cut")
            start = 12
            (vendor,) = struct.unpack_from(">I", data, pos + 8)
        if not start <= length <= len(data) - pos:
            raise ParseError("AVP", "a length that is not that of its octets")
        found.append(Avp(code, vendor, data[pos + start : pos + length]))
        pos += (length + 3) // 4 * 4
    return tuple(found)


def group_of(avp: Avp) -> tuple[Avp, ...]:
    """Return the AVPs inside one; none where they cannot be read."""
    try:
        return parse_avps(avp.data)
    except ParseError:
        return ()


def describe(avp: Avp, *, depth: int = 3) -> str:
    """Say an AVP in one line: text and numbers as they are, of everything else, and of every key, the length only."""
    known = avp.known
    name = known.name if known else f"AVP {avp.code}" + (f" of vendor {avp.vendor}" if avp.vendor else "")
    kind = known.kind if known else "octets"
    if kind == "group" and depth > 1:
        return f"{name} {{{', '.join(describe(inner, depth=depth - 1) for inner in group_of(avp))}}}"
    if kind == "text":
        return f"{name} {''.join(c if c.isprintable() else '?' for c in avp.text[:200])}"
    if kind == "number" and avp.number is not None:
        return f"{name} {avp.number}"
    return f"{name} {len(avp.data)} octets"
