# SPDX-License-Identifier: Apache-2.0
"""Log and metrics behind the ports."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import generate_latest

from keyferry.ports.correlation import correlate
from keyferry.protocol.crypto.secret import Secret
from keyferry.transports.clock import SystemClock
from keyferry.wiring.observability import (
    MAX_A_SECOND,
    MAX_KINDS,
    MAX_OF_SOURCE,
    MAX_QUEUED,
    BackgroundStream,
    LogLevel,
    Metrics,
    StructLog,
    bridge_libraries,
)


@dataclass
class Libraries:
    """What a library logs, and what came of it."""

    logger: logging.Logger
    stream: io.StringIO

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def libraries() -> Iterator[Libraries]:
    stream, logger = io.StringIO(), logging.getLogger("uvicorn.error")
    before = logger.handlers, logger.propagate, logger.level
    bridge_libraries(StructLog("json", stream))
    yield Libraries(logger, stream)
    logger.handlers, logger.propagate, level = before
    logger.setLevel(level)


class Seconds(SystemClock):
    """A clock that stands."""

    time = 1.5

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def test_a_log_line_is_one_json_object_and_a_key_prints_its_length() -> None:
    stream = io.StringIO()
    log = StructLog("json", stream)
    log.info("registered", impi="a@home1.net", key=Secret(b"sixteen octets!!"))
    log.warning("alarm")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["impi"]) == ("registered", "info", "a@home1.net")
    assert first["key"] == "Secret(16 octets)"
    assert second["level"] == "warning"


@pytest.mark.parametrize(("level", "told"), [("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_less_than_the_level_is_left_out(level: LogLevel, told: int) -> None:
    """And counts for nothing: no line says later that some were left out."""
    stream, clock = io.StringIO(), Seconds()
    log = StructLog("json", stream, clock, level="error")
    log.level = level
    for _ in range(MAX_A_SECOND + 1):
        log.info("one")
    clock.time += 1
    log.info("two")
    log.warning("three")
    log.error("four")
    levels = [json.loads(line)["level"] for line in stream.getvalue().splitlines()]
    assert levels[-told:] == ["info", "warning", "error"][-told:]
    assert len(levels) == (told if level != "info" else MAX_A_SECOND + 1 + told)


def test_an_error_of_a_library_is_an_error(libraries: Libraries) -> None:
    libraries.logger.error("Exception in ASGI application")
    libraries.logger.warning("Invalid HTTP request received.")
    assert [line["level"] for line in libraries.lines()] == ["error", "warning"]


def test_a_line_says_which_registration_it_belongs_to() -> None:
    """As long as the task works for one; others' lines have no id."""
    stream = io.StringIO()
    log = StructLog("json", stream)
    correlate("0123456789abcdef")
    try:
        log.info("registered")
    finally:
        correlate("")
    log.info("stopping")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["id"] == "0123456789abcdef"
    assert "id" not in second


def test_text_is_one_line_and_none_is_silent() -> None:
    stream = io.StringIO()
    StructLog("text", stream).info("two\nlines", value="a\nb")
    StructLog("none", stream).warning("nothing")
    assert "registered" not in stream.getvalue()
    assert "nothing" not in stream.getvalue()


ODD = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xDC9B]


@pytest.mark.parametrize("format_", ["text", "json"])
def test_what_a_peer_wrote_controls_no_terminal_and_begins_no_line(format_: Any) -> None:
    """C1 controls are escape sequences to some terminals; a line separator or a change of direction makes a line read as another."""
    for code in ODD:
        stream = io.StringIO()
        StructLog(format_, stream).warning("push-refused", to=f"sip:a{chr(code)}b@home1.net", reason=f"two words {chr(code)}")
        line = stream.getvalue().removesuffix("\n")
        assert line.isprintable(), hex(code)


def test_counts_are_kept_by_name_and_reason() -> None:
    metrics = Metrics()
    metrics.count("as_pushes_refused", "seal")
    metrics.count("as_pushes_refused", "seal")
    metrics.count("as_pushes_refused", "kid")
    assert metrics.value("as_pushes_refused", "seal") == 2
    assert metrics.value("as_pushes_refused", "kid") == 1
    assert metrics.value("never") == 0


def test_what_libraries_log_comes_in_our_format_with_its_traceback() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("uvicorn.error")
    before = logger.handlers, logger.propagate, logger.level
    try:
        bridge_libraries(StructLog("json", stream))
        logger.info("not this")
        logger.warning("Invalid %s", "request")
        try:
            raise ValueError("of an application")
        except ValueError:
            logger.exception("Exception in ASGI application")
    finally:
        logger.handlers, logger.propagate, level = before
        logger.setLevel(level)
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["text"]) == ("library", "Invalid request")
    assert "traceback" not in first
    assert "ValueError: of an application" in second["traceback"]


def test_a_reader_that_stops_reading_stops_nobody() -> None:
    """The writer of a full pipe waits; whoever logs does not."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as full:
        stream = BackgroundStream(full)
        log = StructLog("json", stream)
        for number in range(2 * MAX_QUEUED):
            stream.write(f"{number} {'x' * 100}\n")
        log.warning("still here")
        os.close(read)
        stream.close(5)
        assert not stream._thread.is_alive()
        assert stream._dropped > 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_what_is_queued_is_written_at_close() -> None:
    out = io.StringIO()
    stream = BackgroundStream(out)
    for number in range(100):
        stream.write(f"{number}\n")
    stream.close()
    assert out.getvalue().split() == [str(number) for number in range(100)]


def test_one_event_does_not_fill_the_disk() -> None:
    out = io.StringIO()
    log = StructLog("json", out)
    for _ in range(3 * MAX_A_SECOND):
        log.warning("cx-error")
    log.info("registered")
    lines = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert MAX_A_SECOND <= lines.count("cx-error") <= 2 * MAX_A_SECOND  # a second may end meanwhile
    assert "registered" in lines


def test_a_flood_of_one_librarys_warnings_silences_no_other_error_of_it(libraries: Libraries) -> None:
    """Strangers cause "Invalid HTTP request received." as often as they like; the fault of an application is told all the same."""
    for _ in range(3 * MAX_A_SECOND):
        libraries.logger.warning("Invalid HTTP request received.")
    for kind in (ValueError, KeyError):
        for _ in range(2):
            try:
                raise kind("of an application")
            except (ValueError, KeyError):
                libraries.logger.exception("Exception in ASGI application\n")
    libraries.logger.error("ASGI callable returned without starting response.")
    told = [line.get("traceback", line["text"]) for line in libraries.lines()]
    assert sum("ValueError" in text for text in told) == sum("KeyError" in text for text in told) == 2
    assert "ASGI callable returned without starting response." in told
    assert told.count("Invalid HTTP request received.") <= 2 * MAX_A_SECOND  # a second may end meanwhile


def test_ever_new_texts_of_a_library_do_not_fill_the_disk(libraries: Libraries) -> None:
    for number in range(10 * MAX_KINDS):
        libraries.logger.warning(f"connection {number} was reset")  # asyncio's come formatted, with what the peer is
    assert len(libraries.lines()) <= 2 * (MAX_KINDS + MAX_A_SECOND)


def test_one_peer_does_not_silence_what_is_said_of_another() -> None:
    out = io.StringIO()
    log = StructLog("json", out)
    for port in range(3 * MAX_A_SECOND):
        log.warning("push-refused", peer=f"192.0.2.1:{port + 1024}")
    log.warning("push-refused", peer="[2001:db8::1]:5060")
    peers = [json.loads(line)["peer"] for line in out.getvalue().splitlines() if "log-lines-left-out" not in line]
    assert "[2001:db8::1]:5060" in peers
    assert MAX_OF_SOURCE <= len(peers) - 1 <= 2 * MAX_OF_SOURCE


def test_what_was_left_out_is_counted_with_its_kind(seconds: Seconds) -> None:
    out = io.StringIO()
    log = StructLog("json", out, clock=seconds)
    for _ in range(MAX_A_SECOND + 7):
        log.warning("library", kind="ValueError at app.py:3")
        log.warning("cx-error")
    seconds.time += 1.0
    log.info("registered")
    left_out = [line for line in map(json.loads, out.getvalue().splitlines()) if line["event"] == "log-lines-left-out"]
    assert [(line["of"], line.get("kind"), line["count"]) for line in left_out] == [
        ("library", "ValueError at app.py:3", 7), ("cx-error", None, 7)
    ]  # fmt: skip


def test_what_is_refused_keeps_out_nothing_that_is_accepted() -> None:
    """Of one status in a second no more than of one event; what was left out is told with it."""
    out = io.StringIO()
    log = StructLog("json", out)
    for _ in range(3 * MAX_A_SECOND):
        log.info("register", status=401)
    log.info("register", status=200)
    assert json.loads(out.getvalue().splitlines()[-1])["status"] == 200


def test_counts_are_collected_by_name_and_reason() -> None:
    """Prometheus's text format: what is scraped."""
    metrics = Metrics()
    for reason in ("b", "a", "b"):
        metrics.count("sip_dropped", reason)
    metrics.count("hss_vectors")
    text = generate_latest(metrics.registry).decode()
    assert 'keyferry_sip_dropped_total{reason="a"} 1.0' in text
    assert 'keyferry_sip_dropped_total{reason="b"} 2.0' in text
    assert 'keyferry_hss_vectors_total{reason=""} 1.0' in text
    assert (metrics.value("sip_dropped", "b"), metrics.value("never")) == (2.0, 0.0)
