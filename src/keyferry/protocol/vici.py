# SPDX-License-Identifier: Apache-2.0
"""The packets and messages of vici, strongSwan's control interface (README.md of its vici plugin, version 5.9)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import ParseError

MAX_PACKET: Final = 512 * 1024
"""Octets; vici itself sends none that is longer."""
MAX_ELEMENTS: Final = 50_000
"""Of one message: an IKE_SA with 1,000 CHILD_SAs has 30,000, and is about as long as a packet may be."""
STEP: Final = 250
"""Elements that are read without a pause: 1 ms."""
MAX_DEPTH: Final = 8
"""Sections within sections: list-sa has three."""
_LENGTH = 4  # octets

Value: TypeAlias = "str | list[str] | Section"
Section: TypeAlias = "dict[str, Value]"


class Kind(IntEnum):
    """What a packet is."""

    CMD_REQUEST = 0
    CMD_RESPONSE = 1
    CMD_UNKNOWN = 2
    EVENT_REGISTER = 3
    EVENT_UNREGISTER = 4
    EVENT_CONFIRM = 5
    EVENT_UNKNOWN = 6
    EVENT = 7


class _Element(IntEnum):
    SECTION_START = 1
    SECTION_END = 2
    KEY_VALUE = 3
    LIST_START = 4
    LIST_ITEM = 5
    LIST_END = 6


_NAMED: Final = frozenset({Kind.CMD_REQUEST, Kind.EVENT_REGISTER, Kind.EVENT_UNREGISTER, Kind.EVENT})
_BARE: Final = frozenset({Kind.CMD_UNKNOWN, Kind.EVENT_REGISTER, Kind.EVENT_UNREGISTER, Kind.EVENT_CONFIRM, Kind.EVENT_UNKNOWN})


class Packet(NamedTuple):
    """One packet; `name` is "" where its kind has none."""

    kind: Kind
    name: str
    message: Section


def split(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Cut a stream into the packets that are whole, without their lengths, and the rest. Raises ParseError."""
    packets: list[bytes] = []
    place = 0
    while len(buffer) - place >= _LENGTH:
        length = int.from_bytes(buffer[place : place + _LENGTH])
        if not 0 < length <= MAX_PACKET:
            raise ParseError("vici packet", f"has a length of 0 or over {MAX_PACKET}")
        if len(buffer) - place - _LENGTH < length:
            break
        packets.append(buffer[place + _LENGTH : place + _LENGTH + length])
        place += _LENGTH + length
    return packets, buffer[place:]


def build_packet(kind: Kind, name: str = "", message: Mapping[str, Value] | None = None) -> bytes:
    """Return a packet with its length: reverse of `parse_packet`. Raises ValueError for what is too long."""
    body = bytes([kind]) + (_name(name) if kind in _NAMED else b"") + (b"" if message is None else _section(message))
    if len(body) > MAX_PACKET:
        raise ValueError(f"over {MAX_PACKET} octets")
    return len(body).to_bytes(_LENGTH) + body


def parse_packet(data: bytes) -> Packet:
    """Read one packet without its length. Raises ParseError."""
    steps = packet_steps(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Packet = end.value
            return found


def packet_steps(data: bytes) -> Generator[None, None, Packet]:
    """Read one packet without its length, and yield after every STEP elements: the longest takes 0.1 s. Raises ParseError."""
    try:
        kind = Kind(data[0])
    except (IndexError, ValueError):
        raise ParseError("vici packet", "is empty, or of no known type") from None
    name, place = _read(data, 1, 1) if kind in _NAMED else ("", 1)
    if kind in _BARE and place != len(data):
        raise ParseError("vici packet", "goes on after its end")
    return Packet(kind, name, (yield from _Reader(data, place).message()))


class _Reader:
    """Read the elements of one message, each exactly once."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place
        self._open: list[Section] = [{}]
        self._list: list[str] | None = None

    def message(self) -> Generator[None, None, Section]:
        """Return the message, in steps. Raises ParseError."""
        for number in range(1, MAX_ELEMENTS + 1):
            if self._place == len(self._data):
                break
            self._element()
            if number % STEP == 0:
                yield
        else:
            raise ParseError("vici message", f"has over {MAX_ELEMENTS} elements")
        if len(self._open) > 1 or self._list is not None:
            raise ParseError("vici message", "ends within a section or a list")
        return self._open[0]

    def _element(self) -> None:
        element = self._data[self._place]
        self._place += 1
        if (self._list is not None) is not (element in (_Element.LIST_ITEM, _Element.LIST_END)):
            raise ParseError("vici message", "an element stands within a list, or outside of one, where it must not")
        if element == _Element.LIST_ITEM and self._list is not None:
            self._list.append(self._text(2))
        elif element == _Element.LIST_END:
            self._list = None
        elif element == _Element.SECTION_END:
            self._end()
        else:
            self._named(element)

    def _end(self) -> None:
        if len(self._open) == 1:
            raise ParseError("vici message", "ends a section that did not begin")
        self._open.pop()

    def _named(self, element: int) -> None:
        name = self._text(1)
        if name in self._open[-1]:
            raise ParseError("vici message", "has a name twice in one section")  # whoever reads it would see one of the two
        if element == _Element.KEY_VALUE:
            self._open[-1][name] = self._text(2)
        elif element == _Element.LIST_START:
            self._list = []
            self._open[-1][name] = self._list
        elif element == _Element.SECTION_START and len(self._open) <= MAX_DEPTH:
            section: Section = {}
            self._open[-1][name] = section
            self._open.append(section)
        else:
            raise ParseError("vici message", f"has an unknown element, or sections over {MAX_DEPTH} deep")

    def _text(self, octets: int) -> str:
        text, self._place = _read(self._data, self._place, octets)
        return text


def _read(data: bytes, place: int, octets: int) -> tuple[str, int]:
    """Read a text behind its length of so many octets; what is not UTF-8 stays distinguishable."""
    begin = place + octets
    end = begin + int.from_bytes(data[place:begin])
    if begin > len(data) or end > len(data):
        raise ParseError("vici message", "ends within an element")
    return data[begin:end].decode("utf-8", "surrogateescape"), end


def _name(name: str) -> bytes:
    octets = name.encode("utf-8", "surrogateescape")
    if not 0 < len(octets) < 256:
        raise ValueError("a name has 1 to 255 octets")
    return bytes([len(octets)]) + octets


def _section(section: Mapping[str, Value]) -> bytes:
    return b"".join(_built(name, value) for name, value in section.items())


def _built(name: str, value: str | Sequence[str] | Mapping[str, Value]) -> bytes:
    if isinstance(value, str):
        return bytes([_Element.KEY_VALUE]) + _name(name) + _value(value)
    if isinstance(value, Mapping):
        return bytes([_Element.SECTION_START]) + _name(name) + _section(value) + bytes([_Element.SECTION_END])
    items = b"".join(bytes([_Element.LIST_ITEM]) + _value(item) for item in value)
    return bytes([_Element.LIST_START]) + _name(name) + items + bytes([_Element.LIST_END])


def _value(text: str) -> bytes:
    octets = text.encode("utf-8", "surrogateescape")
    if len(octets) > 65_535:
        raise ValueError("a value has at most 65,535 octets")
    return len(octets).to_bytes(2) + octets
