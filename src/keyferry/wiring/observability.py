# SPDX-License-Identifier: Apache-2.0
"""Log and metrics behind the ports: structlog to standard error, a Prometheus registry."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as PrometheusCounter

from keyferry.ports import Log

LogFormat = Literal["text", "json", "none"]


class StructLog:
    """Write events with named fields, one line each. Keys are `Secret` and print their length only."""

    def __init__(self, format_: LogFormat = "text", stream: TextIO | None = None) -> None:
        renderer = structlog.processors.JSONRenderer() if format_ == "json" else structlog.dev.ConsoleRenderer(colors=False)
        self._silent = format_ == "none"
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(stream or sys.stderr),
            processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
        )

    def info(self, event: str, **fields: object) -> None:
        """Record what an operator wants to see."""
        if not self._silent:
            self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record an alarm."""
        if not self._silent:
            self._logger.warning(event, **fields)


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


class Metrics:
    """Count by name and reason; the names and reasons are words of the code, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters: dict[str, PrometheusCounter] = {}
        self._children: dict[tuple[str, str], PrometheusCounter] = {}

    def count(self, name: str, reason: str = "") -> None:
        """Add one."""
        child = self._children.get((name, reason))
        if child is None:
            if name not in self._counters:
                self._counters[name] = PrometheusCounter(f"keyferry_{name}", name.replace("_", " "), ["reason"], registry=self.registry)
            child = self._children[name, reason] = self._counters[name].labels(reason)
        child.inc()

    def value(self, name: str, reason: str = "") -> float:
        """Return a count."""
        return self.registry.get_sample_value(f"keyferry_{name}_total", {"reason": reason}) or 0.0
