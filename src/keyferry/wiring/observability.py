# SPDX-License-Identifier: Apache-2.0
"""The log behind its port: structlog to standard error, one line an event, with the registration that it belongs to."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import traceback
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias, cast

import structlog

from keyferry.ports import Clock
from keyferry.ports.correlation import correlation
from keyferry.transports.clock import SystemClock
from keyferry.wiring.metrics import Metrics as Metrics

LogFormat = Literal["text", "json", "none"]
LogLevel = Literal["info", "warning", "error"]
_Key: TypeAlias = tuple[str, object, object]  # event, status, kind
MAX_QUEUED = 10_000  # lines, some 3 MB
MAX_A_SECOND = 200  # lines of one event, or of one event and status, or of one kind of a library's
MAX_OF_SOURCE = 50  # of them, about one peer
MAX_KINDS = 20  # told apart in a second
MAX_KIND = 100  # characters


class BackgroundStream:
    """Write lines from a thread of its own: a reader that stops reading must not stop the network.

    What does not fit into the queue is dropped and counted; `close` says how much.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Take a line."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: the thread flushes."""

    def close(self, seconds: float = 2.0) -> None:
        """Let the thread write what is queued, if the reader takes it in time."""
        if self._dropped:
            self.write(f"{self._dropped} log lines were dropped: nobody read them\n")
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=seconds)
        self._thread.join(seconds)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                self._dropped += 1  # a closed pipe; the network goes on


class StructLog:
    """Write events with named fields, one line each, from `level` on, which may be set at any time.

    Keys are `Secret` and print their length only.
    """

    def __init__(
        self, format_: LogFormat = "text", stream: TextIO | BackgroundStream | None = None, clock: Clock | None = None,
        level: LogLevel = "info",
    ) -> None:  # fmt: skip
        renderers = [structlog.processors.JSONRenderer()] if format_ == "json" else [_escape, structlog.dev.ConsoleRenderer(colors=False)]
        self._silent = format_ == "none"
        self.level = level
        self._clock = clock or SystemClock()
        self._second = 0
        self._seen: dict[_Key, _Seen] = {}
        self._kinds = 0  # of those
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(cast("TextIO", stream or sys.stderr)),
            processors=[_add_correlation, structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), *renderers],
        )

    def info(self, event: str, **fields: object) -> None:
        """Record what an operator wants to see."""
        if not self._silent and self.level == "info" and self._allowed(event, fields):
            self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record an alarm."""
        if not self._silent and self.level != "error" and self._allowed(event, fields):
            self._logger.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Record what somebody has to mend: a fault of a program, or a file that cannot be used."""
        if not self._silent and self._allowed(event, fields):
            self._logger.error(event, **fields)

    def _allowed(self, event: str, fields: Mapping[str, object]) -> bool:
        """Let so many lines of one event, status and kind through, and of one peer fewer.

        Strangers cause some, and must not fill the disk, nor mute what is of another kind.
        """
        second = int(self._clock.monotonic())
        if second != self._second:
            self._tell_left_out()
            self._second = second
        key: _Key = (event, fields.get("status"), fields.get("kind"))
        seen = self._seen.get(key)
        if seen is None:
            if key[2] is not None:
                self._kinds += 1
                key = key if self._kinds <= MAX_KINDS else (event, key[1], None)
            seen = self._seen.setdefault(key, _Seen())
        seen.count += 1
        allowed = seen.told < MAX_A_SECOND and ("peer" not in fields or seen.may_tell_of(str(fields["peer"])))
        seen.told += allowed
        return allowed

    def _tell_left_out(self) -> None:
        before, self._seen, self._kinds = self._seen, {}, 0
        for (event, status, kind), seen in before.items():
            if seen.count > seen.told:
                also = {name: value for name, value in (("status", status), ("kind", kind)) if value is not None}
                self._logger.warning("log-lines-left-out", of=event, count=seen.count - seen.told, **also)


class _Seen:
    """The lines of one kind in a second."""

    __slots__ = ("count", "peers", "told")

    def __init__(self) -> None:
        self.count = 0
        self.told = 0
        self.peers: dict[str, int] = {}  # as many as lines were told, at most

    def may_tell_of(self, peer: str) -> bool:
        host = peer.rpartition(":")[0] or peer  # whoever connects again has another port
        lines = self.peers.get(host, 0)
        if lines < MAX_OF_SOURCE:
            self.peers[host] = lines + 1
        return lines < MAX_OF_SOURCE


def _add_correlation(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write beside an event which registration it belongs to, if to one."""
    del logger, method
    known = correlation()
    if known:
        event["id"] = known
    return event


def _escape(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write out what cannot be printed: peers wrote some of it, and it could move a cursor or begin a line. JSON does so itself."""
    del logger, method
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join([c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value])
    return event


class _Bridge(logging.Handler):
    """Bring what libraries log into our log: one place, one format."""

    def __init__(self, log: StructLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        # The limit counts by kind, and a stranger must not choose it: the message without its arguments, and what failed where.
        fields: dict[str, object] = {"logger": record.name, "text": record.getMessage(), "kind": _kind_of(record)}
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))  # places, never local values
        record_it = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        record_it("library", **fields)


def _kind_of(record: logging.LogRecord) -> str:
    kind = str(record.msg).partition("\n")[0][:MAX_KIND]
    error, _, places = record.exc_info or (None, None, None)
    if error is None:
        return kind
    while places is not None and places.tb_next is not None:
        places = places.tb_next
    where = f" at {Path(places.tb_frame.f_code.co_filename).name}:{places.tb_lineno}" if places else ""
    return f"{kind}: {error.__name__}{where}"


def bridge_libraries(log: StructLog) -> None:
    """Send the warnings and errors of uvicorn and asyncio to `log`; they would go to standard error in a format of their own."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [_Bridge(log)]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
