# SPDX-License-Identifier: Apache-2.0
"""Final responses kept for timer J in bounded memory (RFC 3261 §17.2.2).

For 64*T1 = 32 s a retransmitted request gets its response again. At 5,000 registrations a second that is 320,000
responses, so only what the retransmission itself cannot give back is kept: an echoed header field costs two octets.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from keyferry.protocol.sip.message import Request, Response
from keyferry.protocol.sip.names import KNOWN, REASONS

ENTRY_OVERHEAD: Final = 104
"""Octets of memory beside the packed response: its bytes object, the key, the place in a dict (measured)."""
_GENERATIONS: Final = 8
_CODES: Final = {name: code for code, name in enumerate(KNOWN, start=1)}
_HEAD = struct.Struct(">HHB")  # status, number of header fields, octets of an unusual reason
_MAX_LENGTH: Final = 0x7FFF
_MAX_PLACES: Final = 80  # values of one name that are referred to: `how` is one octet
_WHOLE, _SUFFIX, _SPLICED = 0, 1, 2


class _Generation:
    """The responses of one stretch of time; it is dropped whole."""

    __slots__ = ("begun", "entries", "newest", "octets")

    def __init__(self, begun: float) -> None:
        self.begun = begun
        self.newest = begun
        self.octets = 0
        self.entries: dict[int, bytes] = {}


class CompletedResponses:
    """Remember final responses for `lifetime` seconds; over a limit the oldest eighth is forgotten."""

    __slots__ = ("_generations", "_lifetime", "_max_entries", "_max_octets", "entries", "octets")

    def __init__(self, *, lifetime: float = 32.0, max_entries: int = 400_000, max_octets: int = 256 * 1024 * 1024) -> None:
        self._lifetime = lifetime
        self._max_entries = max_entries
        self._max_octets = max_octets
        self._generations: deque[_Generation] = deque()  # the newest first
        self.entries = 0
        self.octets = 0

    def __contains__(self, key: int) -> bool:
        return any(key in generation.entries for generation in self._generations)

    def remember(self, key: int, request: Request, response: Response, now: float) -> None:
        """Keep what `recall` needs; a response that does not pack (a field over 32 kB) is not kept."""
        packed = pack(request, response)
        if packed is None:
            return
        self.sweep(now)
        generation = self._current(now)
        if key in generation.entries:
            return
        generation.entries[key] = packed
        generation.newest = now
        size = len(packed) + ENTRY_OVERHEAD
        generation.octets += size
        self.octets += size
        self.entries += 1
        while len(self._generations) > 1 and (self.entries > self._max_entries or self.octets > self._max_octets):
            self._drop_oldest()

    def recall(self, key: int, request: Request, now: float) -> Response | None:
        """Return the response to a retransmission of `request`, None if it is not known (any more)."""
        self.sweep(now)
        for generation in self._generations:
            packed = generation.entries.get(key)
            if packed is not None:
                return unpack(request, packed)
        return None

    def sweep(self, now: float) -> None:
        """Forget what is older than the lifetime."""
        while self._generations and self._generations[-1].newest + self._lifetime <= now:
            self._drop_oldest()

    def _current(self, now: float) -> _Generation:
        if self._generations:
            newest = self._generations[0]
            if (
                now - newest.begun < self._lifetime / _GENERATIONS
                and len(newest.entries) < max(1, self._max_entries // _GENERATIONS)
                and newest.octets < self._max_octets // _GENERATIONS
            ):
                return newest
        self._generations.appendleft(_Generation(now))
        return self._generations[0]

    def _drop_oldest(self) -> None:
        oldest = self._generations.pop()
        self.entries -= len(oldest.entries)
        self.octets -= oldest.octets


def pack(request: Request, response: Response) -> bytes | None:
    """Encode a response against the request it answers; None if a length does not fit.

    Each header field is: code how …, where `code` counts in KNOWN from 1. `how` is 0 for a value as it is, else one more than three times
    the place of the request's value under the same name, plus _WHOLE, _SUFFIX or _SPLICED. Of another name `code` and `how` are 0, and
    the name comes before the value.
    """
    reason = b"" if response.reason == REASONS.get(response.status) else response.reason.encode("utf-8", "surrogateescape")
    if len(reason) > 255 or len(response.headers) > 0xFFFF:
        return None
    rows = request.rows()
    out = bytearray(_HEAD.pack(response.status, len(response.headers), len(reason)))
    out += reason
    try:
        for name, value in response.headers:
            _pack_header(out, name, value, rows.get(name, ())[:_MAX_PLACES])
    except OverflowError:
        return None
    return bytes(out) + response.body


def unpack(request: Request, packed: bytes) -> Response | None:
    """Decode a response: the reverse of `pack`; None if `request` is not the one it was packed against."""
    status, count, length = _HEAD.unpack_from(packed)
    pos = _HEAD.size + length
    reason = packed[_HEAD.size : pos].decode("utf-8", "surrogateescape") or REASONS.get(status, "")
    headers: list[tuple[str, str]] = []
    try:
        for _ in range(count):
            name, value, pos = _unpack_header(request, packed, pos)
            headers.append((name, value))
    except LookupError:
        return None
    return Response(status, reason, tuple(headers), packed[pos:])


def _pack_header(out: bytearray, name: str, value: str, echoed: Sequence[str]) -> None:
    code = _CODES.get(name, 0)
    out.append(code)
    if not code:
        out.append(0)
        _append(out, name)
        return _append(out, value)
    if value in echoed:
        return out.append(_how(echoed.index(value), _WHOLE))
    for place, given in enumerate(echoed):
        if value.startswith(given):
            out.append(_how(place, _SUFFIX))
            return _append(out, value[len(given) :])
    for given in echoed[:1]:
        start = _common(value, given)
        end = _common(value[: start - len(value) - 1 : -1], given[: start - len(given) - 1 : -1])
        if start + end > 8:
            out.append(_how(0, _SPLICED))
            _append_number(out, start)
            _append_number(out, end)
            return _append(out, value[start : len(value) - end])
    out.append(0)
    return _append(out, value)


def _how(place: int, kind: int) -> int:
    return 1 + 3 * place + kind


def _unpack_header(request: Request, packed: bytes, pos: int) -> tuple[str, str, int]:
    code, how = packed[pos : pos + 2]
    pos += 2
    if code:
        name = KNOWN[code - 1]
    else:
        name, pos = _text(packed, pos)
    if not how:
        value, pos = _text(packed, pos)
        return name, value, pos
    place, kind = divmod(how - 1, 3)
    given = request.rows()[name][place]
    if kind == _WHOLE:
        return name, given, pos
    if kind == _SUFFIX:
        suffix, pos = _text(packed, pos)
        return name, given + suffix, pos
    start, pos = _number(packed, pos)
    end, pos = _number(packed, pos)
    middle, pos = _text(packed, pos)
    return name, given[:start] + middle + given[len(given) - end :], pos


def _common(one: str, other: str) -> int:
    # the length of the common beginning, by halving
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(other[:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def _append(out: bytearray, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    _append_number(out, len(data))
    out += data


def _append_number(out: bytearray, number: int) -> None:
    # 1 octet below 128, else 2; more than 32767 is refused
    if number > _MAX_LENGTH:
        raise OverflowError
    if number > 0x7F:
        out.append(0x80 | number >> 8)
    out.append(number & 0xFF)


def _number(packed: bytes, pos: int) -> tuple[int, int]:
    number = packed[pos]
    if number & 0x80:
        return (number & 0x7F) << 8 | packed[pos + 1], pos + 2
    return number, pos + 1


def _text(packed: bytes, pos: int) -> tuple[str, int]:
    length, pos = _number(packed, pos)
    end = pos + length
    return packed[pos:end].decode("utf-8", "surrogateescape"), end
