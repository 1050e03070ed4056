# SPDX-License-Identifier: Apache-2.0
"""Log and metrics behind the ports."""

from __future__ import annotations

import io
import json
import logging
import os

from prometheus_client import generate_latest

from keyferry.ports.correlation import correlate
from keyferry.protocol.crypto.secret import Secret
from keyferry.wiring.observability import MAX_A_SECOND, MAX_QUEUED, BackgroundStream, Metrics, StructLog, bridge_libraries


def test_a_log_line_is_one_json_object_and_a_key_prints_its_length() -> None:
    stream = io.StringIO()
    log = StructLog("json", stream)
    log.info("registered", impi="a@home1.net", key=Secret(b"sixteen octets!!"))
    log.warning("alarm")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["impi"]) == ("registered", "info", "a@home1.net")
    assert first["key"] == "Secret(16 octets)"
    assert second["level"] == "warning"


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
