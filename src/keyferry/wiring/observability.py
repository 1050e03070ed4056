# SPDX-License-Identifier: Apache-2.0
"""The log behind its port: structlog to standard error, one line an event, with the registration that it belongs to."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

from keyferry.ports import Log
from keyferry.ports.correlation import correlation
from keyferry.wiring.metrics import Metrics as Metrics

LogFormat = Literal["text", "json", "none"]
MAX_QUEUED = 10_000  # lines, some 3 MB
MAX_A_SECOND = 200  # lines of one event, or of one event and status


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
    """Write events with named fields, one line each. Keys are `Secret` and print their length only."""

    def __init__(self, format_: LogFormat = "text", stream: TextIO | BackgroundStream | None = None) -> None:
        renderer = structlog.processors.JSONRenderer() if format_ == "json" else structlog.dev.ConsoleRenderer(colors=False)
        self._silent = format_ == "none"
        self._second = 0
        self._seen: dict[tuple[str, object], int] = {}
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(cast("TextIO", stream or sys.stderr)),
            processors=[_add_correlation, structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
        )

    def info(self, event: str, **fields: object) -> None:
        """Record what an operator wants to see."""
        if not self._silent and self._allowed(event, fields.get("status")):
            self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record an alarm."""
        if not self._silent and self._allowed(event, fields.get("status")):
            self._logger.warning(event, **fields)

    def _allowed(self, event: str, status: object) -> bool:
        """Let MAX_A_SECOND lines of one event and status through: strangers cause some, and must not fill the disk, nor mute others."""
        second = int(time.monotonic())
        if second != self._second:
            before, self._second, self._seen = self._seen, second, {}
            for (name, of_status), count in before.items():
                if count > MAX_A_SECOND:
                    also = {} if of_status is None else {"status": of_status}
                    self._logger.warning("log-lines-left-out", of=name, count=count - MAX_A_SECOND, **also)
        self._seen[event, status] = count = self._seen.get((event, status), 0) + 1
        return count <= MAX_A_SECOND


def _add_correlation(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write beside an event which registration it belongs to, if to one."""
    del logger, method
    known = correlation()
    if known:
        event["id"] = known
    return event


class _Bridge(logging.Handler):
    """Bring what libraries log into our log: one place, one format."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name, "text": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))  # places, never local values
        self._log.warning("library", **fields)


def bridge_libraries(log: Log) -> None:
    """Send the warnings and errors of uvicorn and asyncio to `log`; they would go to standard error in a format of their own."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [_Bridge(log)]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
