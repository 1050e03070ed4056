# SPDX-License-Identifier: Apache-2.0
"""Capture files: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng), read as they come."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import ParseError

MAX_FRAME: Final = 262_144
"""Octets of one frame: the largest snapshot length of libpcap and Wireshark (for all links but USB and D-Bus)."""
MAX_BLOCK: Final = MAX_FRAME + 65_536
"""Octets of a pcapng block that is read: a frame and its options. Others are skipped, whatever their length."""
MAX_INTERFACES: Final = 4_096
"""Interfaces of one pcapng section; a machine has a few, a merged file one for each of its parts."""
LAST_TIME: Final = 253_402_300_799.0
"""Seconds: the end of the year 9999. A time outside is shown as 0."""

_WHAT = "capture file"
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_READ = frozenset({_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _ENHANCED})
_TSRESOL, _TSOFFSET = 9, 14
# magic as it stands in the file: byte order, ticks per second
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 10**6),
    b"\xa1\xb2\xc3\xd4": (">", 10**6),
    b"\x4d\x3c\xb2\xa1": ("<", 10**9),
    b"\xa1\xb2\x3c\x4d": (">", 10**9),
}
_PATCHED = frozenset({b"\x34\xcd\xb2\xa1", b"\xa1\xb2\xcd\x34"})


class Record(NamedTuple):
    """One captured frame."""

    number: int  # from 1, as Wireshark counts
    at: float  # seconds since the epoch
    link: int  # LINKTYPE_ value
    data: bytes
    length: int  # octets on the wire, more than those of `data` where the capture cut the frame


class _Interface(NamedTuple):
    link: int
    ticks: int  # per second
    offset: int  # seconds
    snaplen: int  # 0: no limit


_Step: TypeAlias = Callable[[], bool]


class CaptureReader:
    """Cut a capture file into frames, piece by piece; the same frames come out however the file was cut.

    Holds at most MAX_BLOCK octets and the last `data`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._pos = 0
        self._skip = 0  # octets of a block nobody reads
        self._order = "<"
        self._ticks = 10**6
        self._link = 0
        self._interfaces: list[_Interface] = []
        self._found: list[Record] = []
        self._count = 0
        self._last = 0.0
        self._problem: ParseError | None = None
        self._step: _Step = self._magic

    @property
    def partial(self) -> bool:
        """Whether the file, as far as it was fed, ends within a frame: the capture was not closed, or its disk was full."""
        return self._skip > 0 or len(self._buffer) > self._pos

    @property
    def problem(self) -> ParseError | None:
        """What made the rest of the file unreadable, None while it is readable."""
        return self._problem

    def feed(self, data: bytes) -> list[Record]:
        """Take octets, return the frames they complete.

        Raises ParseError where the file cannot be read further. If frames came before that in the same `data`, they are returned,
        and the next call raises.
        """
        if self._problem is not None:
            raise self._problem
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        self._buffer += data
        self._found = []
        try:
            while self._step():
                pass
        except ParseError as problem:
            self._problem = problem
            self._buffer.clear()
            self._pos = 0
            if not self._found:
                raise
            return self._found
        if self._pos:
            del self._buffer[: self._pos]
            self._pos = 0
        return self._found

    # ---- one step: take the next thing if all of it is there

    def _magic(self) -> bool:
        if not self._has(4):
            return False
        magic = bytes(self._buffer[:4])
        if magic == b"\x0a\x0d\x0d\x0a":
            self._step = self._block
            return True
        if magic in _PATCHED:
            raise ParseError(_WHAT, "a patched pcap with longer record headers; convert it: editcap -F pcap IN OUT")
        if magic[:2] == b"\x1f\x8b":
            raise ParseError(_WHAT, "compressed; unpack it with gunzip first")
        if magic not in _PCAP:
            raise ParseError(_WHAT, "neither pcap nor pcapng")
        self._order, self._ticks = _PCAP[magic]
        self._step = self._header
        return True

    def _header(self) -> bool:
        if not self._has(24):
            return False
        major, _minor, _zone, _figures, _snaplen, link = struct.unpack_from(f"{self._order}HHiIII", self._buffer, 4)
        if major != 2:
            raise ParseError(_WHAT, "a version of pcap other than 2")
        self._link = link & 0xFFFF  # above: whether frames end with a check sequence
        self._pos = 24
        self._step = self._record
        return True

    def _record(self) -> bool:
        if not self._has(16):
            return False
        seconds, ticks, captured, length = struct.unpack_from(f"{self._order}IIII", self._buffer, self._pos)
        if captured > MAX_FRAME:
            raise ParseError(_WHAT, f"a frame over {MAX_FRAME} octets, or a file that is damaged")
        if not self._has(16 + captured):
            return False
        self._take(self._pos + 16, captured, length, seconds + ticks / self._ticks, self._link)
        self._pos += 16 + captured
        return True

    def _block(self) -> bool:
        if not self._has(12):
            return False
        kind, length = self._block_head()
        if length < 12 or length % 4:
            raise ParseError(_WHAT, "a pcapng block with an impossible length")
        if kind not in _READ:
            return self._skip_block(length)
        if length > MAX_BLOCK:
            raise ParseError(_WHAT, f"a pcapng block over {MAX_BLOCK} octets, or a file that is damaged")
        if not self._has(length):
            return False
        if struct.unpack_from(f"{self._order}I", self._buffer, self._pos + length - 4)[0] != length:
            raise ParseError(_WHAT, "a pcapng block whose two lengths differ")
        self._of_block(kind, self._pos + 8, length - 12)
        self._pos += length
        return True

    def _block_head(self) -> tuple[int, int]:
        kind, length = struct.unpack_from(f"{self._order}II", self._buffer, self._pos)
        if kind != _SECTION:
            return kind, length
        order = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}.get(bytes(self._buffer[self._pos + 8 : self._pos + 12]))
        if order is None:
            raise ParseError(_WHAT, "a pcapng section without a byte order")
        self._order = order  # the type of a section is the same in both, its length is not
        return kind, struct.unpack_from(f"{order}I", self._buffer, self._pos + 4)[0]

    def _skip_block(self, length: int) -> bool:
        available = min(length, len(self._buffer) - self._pos)
        self._skip = length - available
        self._pos += available
        return self._skip == 0

    def _of_block(self, kind: int, start: int, length: int) -> None:
        if kind == _SECTION:
            self._section(start, length)
        elif kind == _INTERFACE:
            self._interface(start, length)
        elif kind == _SIMPLE:
            self._simple(start, length)
        else:
            self._packet(start, length, old=kind == _OLD_PACKET)

    def _section(self, start: int, length: int) -> None:
        self._within(length, 16)
        if struct.unpack_from(f"{self._order}H", self._buffer, start + 4)[0] != 1:
            raise ParseError(_WHAT, "a version of pcapng other than 1")
        self._interfaces = []

    def _interface(self, start: int, length: int) -> None:
        if len(self._interfaces) >= MAX_INTERFACES:
            raise ParseError(_WHAT, f"more than {MAX_INTERFACES} interfaces")
        self._within(length, 8)
        link, _, snaplen = struct.unpack_from(f"{self._order}HHI", self._buffer, start)
        ticks, offset = 10**6, 0
        for code, value in self._options(start + 8, start + length):
            if code == _TSRESOL and value:
                ticks = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
            elif code == _TSOFFSET and len(value) == 8:
                (offset,) = struct.unpack(f"{self._order}q", value)
        self._interfaces.append(_Interface(link, ticks, offset, snaplen))

    def _options(self, pos: int, end: int) -> list[tuple[int, bytes]]:
        found = []
        while pos + 4 <= end:
            code, length = struct.unpack_from(f"{self._order}HH", self._buffer, pos)
            if code == 0 or pos + 4 + length > end:
                break
            found.append((code, bytes(self._buffer[pos + 4 : pos + 4 + length])))
            pos += 4 + (length + 3) // 4 * 4
        return found

    def _simple(self, start: int, length: int) -> None:
        self._within(length, 4)
        (original,) = struct.unpack_from(f"{self._order}I", self._buffer, start)
        if not self._interfaces:
            raise ParseError(_WHAT, "a pcapng frame before its interface")
        interface = self._interfaces[0]
        captured = min(original, length - 4, interface.snaplen or original)
        self._take(start + 4, captured, original, self._last, interface.link)  # this block has no time of its own

    def _packet(self, start: int, length: int, *, old: bool) -> None:
        self._within(length, 20)
        number, high, low, captured, original = struct.unpack_from(f"{self._order}IIIII", self._buffer, start)
        if old:  # two octets of interface, two of drops
            (number,) = struct.unpack_from(f"{self._order}H", self._buffer, start)
        if number >= len(self._interfaces):
            raise ParseError(_WHAT, "a pcapng frame before its interface")
        if captured > MAX_FRAME or captured > length - 20:
            raise ParseError(_WHAT, "a pcapng frame longer than its block")
        interface = self._interfaces[number]
        self._take(start + 20, captured, original, (high << 32 | low) / interface.ticks + interface.offset, interface.link)

    # ---- small things

    def _has(self, count: int) -> bool:
        return len(self._buffer) - self._pos >= count

    @staticmethod
    def _within(length: int, needed: int) -> None:
        if length < needed:
            raise ParseError(_WHAT, "a pcapng block that is too short")

    def _take(self, start: int, captured: int, length: int, at: float, link: int) -> None:
        self._count += 1
        self._last = at if 0 <= at <= LAST_TIME else 0.0
        self._found.append(Record(self._count, self._last, link, bytes(self._buffer[start : start + captured]), max(length, captured)))


def parse_capture(data: bytes) -> list[Record]:
    """Read a whole file; one that ends within a frame gives those before.

    Raises ParseError.
    """
    reader = CaptureReader()
    found = reader.feed(data)
    if reader.problem is not None:
        raise reader.problem
    return found
