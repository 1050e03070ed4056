# SPDX-License-Identifier: Apache-2.0
"""Diameter messages and AVPs (RFC 6733 §3, §4): the framing here, the dictionary and the rarer types by python-diameter.

Framing is ours because what comes from a peer has to be walked anyway before the library may see it: it takes lengths that are too
short, knows no limit of depth and does not look at the length of the message (docs/diameter.md). Octets walked are octets parsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812  the module has a class of that kind under a function's name
from typing import Any, Final, TypeAlias

from diameter.message.avp import (
    AvpDecodeError,
    AvpEncodeError,
    AvpEnumerated,
    AvpGrouped,
    AvpOctetString,
    AvpUnsigned32,
    AvpUtf8String,
)
from diameter.message.avp.dictionary import AVP_DICTIONARY, AVP_VENDOR_DICTIONARY

from keyferry.errors import LocalProtocolError, ParseError

MAX_MESSAGE: Final = 1 << 20
"""Octets of a message; the field allows 16 MB, a SAA with a large profile has some thousand."""
MAX_FIRST: Final = 16_384
"""Octets of the first message: who has not said who he is yet makes nobody hold more; a CER has some hundred."""
MAX_AVPS: Final = 512
"""AVPs of a message, those inside of groups counted too: what one message may cost."""
MAX_DEPTH: Final = 8
"""Groups in groups; Cx has three."""
HEADER_OCTETS: Final = 20
VENDOR_3GPP: Final = 10415
VENDOR_ETSI: Final = 13019

FLAG_VENDOR: Final = 0x80
FLAG_MANDATORY: Final = 0x40

INVALID_AVP_VALUE: Final = 5004
UNABLE_TO_COMPLY: Final = 5012
INVALID_AVP_LENGTH: Final = 5014

FAILED_AVP: Final = 279

_REQUEST, _PROXIABLE, _ERROR, _RETRANSMITTED = 0x80, 0x40, 0x20, 0x10
_HEADER = Struct(">IIIII")
_AVP = Struct(">II")
_VENDOR_AVP = Struct(">III")
_NUMBER = Struct(">I")
_SIGNED = Struct(">i")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_WHAT = "Diameter message"

AvpValue: TypeAlias = "str | int | bytes | Sequence[Avp]"


class AvpFault(ParseError):
    """Report an AVP that makes a request wrong: `code` is the Result-Code to answer, `failed` goes into Failed-AVP."""

    def __init__(self, code: int, problem: str, failed: Avp | None = None) -> None:
        super().__init__("Diameter AVP", problem)
        self.code = code
        self.failed = failed


@dataclass(slots=True, repr=False)
class Avp:
    """One attribute-value pair; its octets may be a key and never print. Not to be changed once made.

    It is not frozen only because one frozen costs three times as much to make, and no tuple because a log would write that out.
    """

    code: int
    vendor: int  # 0: of the IETF
    data: bytes  # without padding
    flags: int
    group: tuple[Avp, ...] = ()  # what a Grouped AVP holds
    wire: bytes = field(default=b"", compare=False)  # header, data and padding of one that is rendered once for all, else empty

    @property
    def name(self) -> str:
        """What the dictionary calls it."""
        entry = _entry(self.code, self.vendor)
        return str(entry["name"]) if entry else f"AVP {self.code} of vendor {self.vendor}"

    @property
    def mandatory(self) -> bool:
        """Whether who does not understand it must not go on (§4.1)."""
        return bool(self.flags & FLAG_MANDATORY)

    @property
    def text(self) -> str:
        """The octets as UTF8String or DiameterIdentity. Raises AvpFault: not UTF-8, or control characters."""
        try:
            text = self.data.decode("utf-8")
        except UnicodeDecodeError:
            raise AvpFault(INVALID_AVP_VALUE, f"{self.name} is not UTF-8", self) from None
        if not text.isprintable():
            raise AvpFault(INVALID_AVP_VALUE, f"{self.name} holds control characters", self)
        return text

    @property
    def number(self) -> int:
        """The octets as Unsigned32 or Enumerated. Raises AvpFault."""
        if len(self.data) != 4:
            raise AvpFault(INVALID_AVP_LENGTH, f"{self.name} has not 4 octets", self)
        return int.from_bytes(self.data, "big")

    @property
    def value(self) -> Any:
        """The value as the library's codec reads it, for types that have no property here: Address, Time, floats.

        Raises AvpFault, and takes bytes for an AVP that the dictionary does not know.
        """
        entry = _entry(self.code, self.vendor)
        if entry is None:
            return self.data
        if entry["type"] is AvpGrouped:
            return self.group
        try:
            return entry["type"](self.code, self.vendor, self.data, self.flags).value
        except (AvpDecodeError, StructError, ValueError, OverflowError, OSError):
            # Without its cause, whose text holds the octets.
            raise AvpFault(INVALID_AVP_VALUE, f"{self.name} is not of its type", self) from None

    def first(self, code: int, vendor: int = 0) -> Avp | None:
        """Return the first AVP of this group with a code."""
        return first(self.group, code, vendor)

    def __repr__(self) -> str:
        flags = "".join(letter if self.flags & bit else "-" for letter, bit in (("V", FLAG_VENDOR), ("M", FLAG_MANDATORY)))
        return f"<{self.name} {flags} {len(self.data)} octets>"


@dataclass(frozen=True, slots=True, repr=False)
class DiameterMessage:
    """One message; of its AVPs only the lengths print."""

    code: int
    application: int
    request: bool
    avps: tuple[Avp, ...] = ()
    proxiable: bool = False
    error: bool = False
    retransmitted: bool = False
    hop_by_hop: int = 0
    end_to_end: int = 0

    def first(self, code: int, vendor: int = 0) -> Avp | None:
        """Return the first AVP with a code, not looking into groups."""
        return first(self.avps, code, vendor)

    def all(self, code: int, vendor: int = 0) -> tuple[Avp, ...]:
        """Return every AVP with a code, in their order."""
        return tuple([avp for avp in self.avps if avp.code == code and avp.vendor == vendor])

    def with_ids(self, hop_by_hop: int, end_to_end: int, *, retransmitted: bool = False) -> DiameterMessage:
        """Return the message under other identifiers: as a request is sent, and sent again (§3, §5.5.4)."""
        return DiameterMessage(
            self.code, self.application, self.request, self.avps, self.proxiable, self.error, retransmitted, hop_by_hop, end_to_end
        )

    def __repr__(self) -> str:
        letters = (("R", self.request), ("P", self.proxiable), ("E", self.error), ("T", self.retransmitted))
        flags = "".join(letter if is_set else "-" for letter, is_set in letters)
        return f"<Diameter {self.code} of application {self.application} {flags}: {', '.join(map(repr, self.avps)) or 'no AVPs'}>"


def first(avps: Sequence[Avp], code: int, vendor: int = 0) -> Avp | None:
    """Return the first AVP with a code."""
    for avp in avps:
        if avp.code == code and avp.vendor == vendor:
            return avp
    return None


def make_avp(code: int, vendor: int, value: AvpValue, *, mandatory: bool | None = None) -> Avp:
    """Make an AVP of a Python value: by the dictionary its type, and its M flag if `mandatory` does not say.

    One that the dictionary does not know takes bytes. Raises LocalProtocolError.
    """
    kind, flags = _shape(code, vendor)
    if mandatory is not None:
        flags = flags | FLAG_MANDATORY if mandatory else flags & ~FLAG_MANDATORY
    if kind is AvpGrouped and not isinstance(value, (str, bytes, int)):
        group = tuple(value)
        return Avp(code, vendor, render_avps(group), flags, group)
    return Avp(code, vendor, _encode(code, vendor, kind, value), flags)


def constant(avp: Avp) -> Avp:
    """Return an AVP that is rendered now, once for all messages that it will be in."""
    return Avp(avp.code, avp.vendor, avp.data, avp.flags, avp.group, render_avps((avp,)))


def render_avps(avps: Sequence[Avp]) -> bytes:
    """Return AVPs one after the other, each padded to four octets (§4.1)."""
    parts = []
    for avp in avps:
        if avp.wire:
            parts.append(avp.wire)
            continue
        data = avp.data
        length = len(data)
        if avp.flags & FLAG_VENDOR:
            parts.append(_VENDOR_AVP.pack(avp.code, avp.flags << 24 | length + 12, avp.vendor))
        else:
            parts.append(_AVP.pack(avp.code, avp.flags << 24 | length + 8))
        parts.append(data)
        if length & 3:
            parts.append(_PADDING[length & 3])
    return b"".join(parts)


def render_message(message: DiameterMessage) -> bytes:
    """Return the octets of a message.

    Raises LocalProtocolError if it is over 1 MiB.
    """
    body = render_avps(message.avps)
    length = len(body) + HEADER_OCTETS
    if length > MAX_MESSAGE:
        raise LocalProtocolError(f"a Diameter message has at most {MAX_MESSAGE} octets")
    flags = (
        (_REQUEST if message.request else 0)
        | (_PROXIABLE if message.proxiable else 0)
        | (_ERROR if message.error else 0)
        | (_RETRANSMITTED if message.retransmitted else 0)
    )
    header = _HEADER.pack(1 << 24 | length, flags << 24 | message.code, message.application, message.hop_by_hop, message.end_to_end)
    return header + body


def parse_header(data: bytes) -> DiameterMessage:
    """Read the header alone: what an error answer needs where the rest cannot be read.

    Raises ParseError.
    """
    return _message(data, ())


def parse_message(data: bytes) -> DiameterMessage:
    """Read exactly one message, with what its groups hold, in time and memory that its length and MAX_AVPS bound.

    Raises ParseError: AvpFault if the header is good, so that a request can be answered, another if the connection is out of step.
    """
    if len(data) < HEADER_OCTETS:
        raise ParseError(_WHAT, "shorter than its header")
    if frame_length(data) != len(data):
        raise ParseError(_WHAT, "its length is not that of its octets")
    return _message(data, _Walk(data).avps(HEADER_OCTETS, len(data), 1))


def _message(data: bytes, avps: tuple[Avp, ...]) -> DiameterMessage:
    if len(data) < HEADER_OCTETS:
        raise ParseError(_WHAT, "shorter than its header")
    version_length, flags_code, application, hop_by_hop, end_to_end = _HEADER.unpack_from(data)
    if version_length >> 24 != 1:
        raise ParseError(_WHAT, "not version 1")
    flags = flags_code >> 24  # the lower four bits are ignored (§3)
    return DiameterMessage(
        flags_code & 0xFF_FFFF, application, flags & _REQUEST > 0, avps, flags & _PROXIABLE > 0, flags & _ERROR > 0,
        flags & _RETRANSMITTED > 0, hop_by_hop, end_to_end,
    )  # fmt: skip


def frame_length(head: bytes | bytearray, limit: int = MAX_MESSAGE) -> int:
    """Return how long the message is that begins with these four octets or more, at most `limit`.

    Raises ParseError: from there on nothing on the connection can be found.
    """
    if head[0] != 1:
        raise ParseError(_WHAT, "not version 1")
    length = int.from_bytes(head[1:4], "big")
    if length < HEADER_OCTETS or length & 3:
        raise ParseError(_WHAT, "a length under 20 octets, or not of whole words")
    if length > limit:
        raise ParseError(_WHAT, f"longer than {limit} octets")
    return length


def split(buffer: bytes | bytearray) -> tuple[list[bytes], bytes]:
    """Return the whole messages at the beginning of what a stream brought, and the rest.

    Raises ParseError.
    """
    framer = Framer()
    frames = framer.feed(buffer)
    return frames, framer.rest


class Framer:
    """Find messages in a stream, in time that is linear however small the pieces are.

    `limit` bounds a message, and may be raised once the peer has said who it is.
    """

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self.limit = limit

    @property
    def rest(self) -> bytes:
        """What has come of a message that is not whole yet; under 1 MiB."""
        return bytes(self._buffer)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Take octets, return the messages that are whole.

        Raises ParseError, and then the connection has to end: nothing after is a message.
        """
        self._buffer += data
        return list(self._frames())

    def _frames(self) -> Iterator[bytes]:
        buffer = self._buffer
        while len(buffer) >= 4 and len(buffer) >= (length := frame_length(buffer, self.limit)):
            yield bytes(buffer[:length])
            del buffer[:length]


class _Walk:
    """Read AVPs and the groups among them; one count over all."""

    __slots__ = ("_count", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._count = 0

    def avps(self, pos: int, end: int, depth: int) -> tuple[Avp, ...]:
        """Return what stands from `pos` to `end`. Raises AvpFault."""
        data, found, grouped = self._data, [], _GROUPED
        while pos < end:
            start = pos + 8
            if start > end:
                raise AvpFault(INVALID_AVP_LENGTH, "a header that is cut")
            code, word = _AVP.unpack_from(data, pos)
            flags, vendor = word >> 24, 0
            if flags & FLAG_VENDOR:
                start = pos + 12
                if start > end:
                    raise AvpFault(INVALID_AVP_LENGTH, "a header that is cut")
                (vendor,) = _NUMBER.unpack_from(data, pos + 8)
            stop = pos + (word & 0xFF_FFFF)
            if not start <= stop <= end:
                raise AvpFault(INVALID_AVP_LENGTH, "a length that is not that of its octets", Avp(code, vendor, b"", flags))
            self._count += 1
            if self._count > MAX_AVPS:
                raise AvpFault(UNABLE_TO_COMPLY, f"more than {MAX_AVPS} AVPs in a message")
            group = self._group(start, stop, depth) if vendor << 32 | code in grouped else ()
            found.append(Avp(code, vendor, data[start:stop], flags, group))
            # The last one of a group may lack its padding: some peers leave it out of the group's length.
            pos = stop + 3 & ~3
        return tuple(found)

    def _group(self, start: int, stop: int, depth: int) -> tuple[Avp, ...]:
        if depth >= MAX_DEPTH:
            raise AvpFault(UNABLE_TO_COMPLY, f"groups deeper than {MAX_DEPTH}")
        return self.avps(start, stop, depth + 1)


def _entry(code: int, vendor: int) -> Any:
    """Return what the library's dictionary says of an AVP; it is not typed."""
    if not vendor:
        return AVP_DICTIONARY.get(code)
    entries = AVP_VENDOR_DICTIONARY.get(vendor)
    return entries.get(code) if entries is not None else None


@lru_cache(maxsize=512)  # what we make is some dozen; what a peer names comes here in a Failed-AVP at most
def _shape(code: int, vendor: int) -> tuple[Any, int]:
    """Return the type and the flags of an AVP that we make."""
    entry = _entry(code, vendor)
    flags = (FLAG_VENDOR if vendor else 0) | (FLAG_MANDATORY if entry and entry.get("mandatory") else 0)
    return (entry["type"] if entry else AvpOctetString), flags


def _encode(code: int, vendor: int, kind: Any, value: Any) -> bytes:
    """Return the octets of a value; the frequent types at once, the others by the library."""
    try:
        if kind is AvpUtf8String:
            return bytes(value.encode())
        if kind is AvpOctetString:
            return value.encode() if isinstance(value, str) else bytes(memoryview(value))
        if kind is AvpUnsigned32:
            return _NUMBER.pack(value)
        if kind is AvpEnumerated:
            return (_NUMBER if value >= 0 else _SIGNED).pack(value)
        made = kind(code, vendor)
        made.value = value
        return bytes(made.payload)
    except (AvpEncodeError, StructError, AttributeError, TypeError, ValueError, OverflowError, OSError):
        # Without its cause, whose text may hold the value.
        name = Avp(code, vendor, b"", 0).name
        raise LocalProtocolError(f"{name} does not take a value of this kind ({type(value).__name__})") from None


# Of Failed-AVP what stands inside is what somebody could not read, so it is not walked.
_GROUPED: Final = frozenset(
    vendor << 32 | code
    for vendor, entries in ((0, AVP_DICTIONARY), *AVP_VENDOR_DICTIONARY.items())
    for code, entry in entries.items()
    if entry["type"] is AvpGrouped and (vendor, code) != (0, FAILED_AVP)
)
