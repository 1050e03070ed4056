# SPDX-License-Identifier: Apache-2.0
"""Cut a byte stream into SIP messages (RFC 3261 §7.5, §18.3; RFC 5626 §3.5.1)."""

from __future__ import annotations

import re

from keyferry.errors import ParseError
from keyferry.protocol.sip.grammar import MAX_MESSAGE

_CONTENT_LENGTH = re.compile(rb"\r\n(?:content-length|l)[ \t]*+:[ \t]*+([^\r\n]*+)", re.IGNORECASE)
_FOLD = re.compile(rb"\r\n[ \t]++")


class StreamFramer:
    """Collect octets until whole messages are there; the same messages come out however the octets were cut.

    Holds at most MAX_MESSAGE octets and the last `data`.
    """

    __slots__ = ("_buffer", "_crlf", "_problem", "_searched", "_size", "pings")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # how far the end of the header was looked for: time stays linear, octet by octet too
        self._size = 0  # of the message whose header is there, 0: not known
        self._crlf = 0
        self._problem: ParseError | None = None
        self.pings = 0  # CRLFCRLF between messages; the shell answers each with one CRLF (RFC 5626 §4.4.1)

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._buffer)

    @property
    def problem(self) -> ParseError | None:
        """What made the rest of the stream unreadable, None while it is readable."""
        return self._problem

    def feed(self, data: bytes) -> list[bytes]:
        """Take octets, return the messages they complete.

        Raises ParseError where the stream cannot be cut any more: no Content-Length, or a message too long. If messages came before
        that in the same `data`, they are returned, and the next call raises.
        """
        if self._problem is not None:
            raise self._problem
        self._buffer += data
        found: list[bytes] = []
        pos = 0
        try:
            while (end := self._next(pos)) is not None:
                start, stop = end
                if start < stop:
                    found.append(bytes(self._buffer[start:stop]))
                pos = stop
        except ParseError as problem:
            self._problem = problem
            self._buffer.clear()
            if not found:
                raise
            return found
        del self._buffer[:pos]
        self._searched -= pos
        return found

    def _next(self, pos: int) -> tuple[int, int] | None:
        # the bounds of the next message at or after pos, equal for a CRLF that is skipped, None: not all there
        buffer = self._buffer
        if self._size == 0:
            if buffer.startswith(b"\r\n", pos):
                self._crlf += 1
                if self._crlf % 2 == 0:
                    self.pings += 1
                self._searched = pos + 2
                return pos + 2, pos + 2
            end = buffer.find(b"\r\n\r\n", max(pos, self._searched - 3))
            self._searched = len(buffer)
            if end < 0:
                if len(buffer) - pos > MAX_MESSAGE:
                    raise ParseError("SIP stream", f"no end of the header in {MAX_MESSAGE} octets", 513)
                return None
            self._size = end + 4 - pos + _length(bytes(buffer[pos:end]))
            if self._size > MAX_MESSAGE:
                raise ParseError("SIP stream", f"a message over {MAX_MESSAGE} octets", 513)
        stop = pos + self._size
        if len(buffer) < stop:
            return None
        self._size = 0
        self._crlf = 0
        self._searched = stop
        return pos, stop


def _length(head: bytes) -> int:
    if b"\r\n " in head or b"\r\n\t" in head:
        head = _FOLD.sub(b" ", head)
    values = {value.strip(b" \t") for value in _CONTENT_LENGTH.findall(head)}
    if len(values) != 1:
        raise ParseError("Content-Length", "not exactly one on a stream (RFC 3261 §20.14)")
    value = values.pop()
    if not value.isdigit() or len(value) > 9:
        raise ParseError("Content-Length", "not a number")
    return int(value)
