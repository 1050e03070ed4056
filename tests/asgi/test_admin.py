# SPDX-License-Identifier: Apache-2.0
"""Health and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from asgi.doorkit import call
from keyferry.asgi.admin import MAX_QUERY, AdminApp
from keyferry.asgi.exchange import Message
from keyferry.errors import LocalProtocolError, RemoteProtocolError, StoreError


def admin(report: Mapping[str, object] | None) -> AdminApp:
    registry = CollectorRegistry()
    Counter("kf_door", "Requests", ["reason"], registry=registry).labels("granted").inc()

    async def health() -> Mapping[str, object]:
        if report is None:
            raise StoreError("/secret/path")
        return report

    return AdminApp(registry=registry, health=health)


async def test_health_is_json_and_a_status() -> None:
    """200 if all is well, else 503."""
    good = await call(admin({"ok": True, "registrations": 3}), target="/health")
    assert (good.status, json.loads(good.body), good.get("content-type")) == (200, {"ok": True, "registrations": 3}, "application/json")
    assert (await call(admin({"ok": False}), target="/health")).status == 503
    assert (await call(admin({}), "HEAD", "/health")).status == 503


async def test_a_failing_check_tells_no_detail() -> None:
    """Whoever can reach the listener learns that it fails, not why."""
    bad = await call(admin(None), target="/health")
    assert (bad.status, json.loads(bad.body)) == (503, {"ok": False})


async def test_metrics_are_in_prometheus_text() -> None:
    """Prometheus exposition format."""
    answer = await call(admin({}), target="/metrics")
    assert answer.status == 200
    assert b'kf_door_total{reason="granted"} 1.0' in answer.body
    assert (answer.get("content-type") or "").startswith("text/plain")


async def test_nothing_else_is_there_and_nothing_can_be_changed() -> None:
    """404, 405."""
    assert (await call(admin({}), target="/")).status == 404
    answer = await call(admin({}), "POST", "/metrics")
    assert (answer.status, answer.get("allow")) == (405, "GET, HEAD")
    with pytest.raises(LocalProtocolError):
        await call(admin({}), type="websocket")


# ---- the live trace

HERE: dict[str, Any] = {"client": ("127.0.0.1", 40_000), "host": "127.0.0.1:8080"}


def tracing(steps: Sequence[Mapping[str, object]], problem: Exception | None = None) -> tuple[AdminApp, list[str]]:
    """Return an application whose trace has these steps, and what it did."""
    did: list[str] = []

    @asynccontextmanager
    async def follow(impi: str) -> AsyncIterator[AsyncIterator[Mapping[str, object]]]:
        if problem is not None:
            raise problem
        did.append(impi)

        async def play() -> AsyncIterator[Mapping[str, object]]:
            for step in steps:
                yield step

        yield play()
        did.append("left")

    async def health() -> Mapping[str, object]:
        return {"ok": True}

    return AdminApp(registry=CollectorRegistry(), health=health, trace=follow), did


async def stream(app: AdminApp, query: bytes = b"impi=a%40home1.net", *, gone: asyncio.Event | None = None) -> list[Message]:
    """Ask for a trace as uvicorn does: the request, then nothing until the client goes."""
    sent: list[Message] = []
    waiting: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
    gone = gone or asyncio.Event()

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "method": "GET", "path": "/trace", "query_string": query, "client": ("::1", 1),
        "headers": [(b"host", b"[::1]:8080")],
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


async def test_a_trace_is_a_line_of_json_for_each_step() -> None:
    """An empty line first: the client knows that it follows."""
    app, did = tracing([{"what": "REGISTER"}, {"what": "401 Ünauthorized"}])
    start, *bodies = await stream(app)
    assert (start["status"], dict(start["headers"])[b"content-type"]) == (200, b"application/x-ndjson")
    lines = b"".join(message["body"] for message in bodies).decode().split("\n")
    assert lines[0] == ""
    assert [json.loads(line)["what"] for line in lines[1:-1]] == ["REGISTER", "401 Ünauthorized"]
    assert not bodies[-1].get("more_body", False)
    assert did == ["a@home1.net", "left"]


async def test_a_client_that_goes_ends_its_trace() -> None:
    """Else the follower would be counted for ever."""
    left = asyncio.Event()

    @asynccontextmanager
    async def follow(_impi: str) -> AsyncIterator[AsyncIterator[Mapping[str, object]]]:
        async def never() -> AsyncIterator[Mapping[str, object]]:
            await asyncio.Event().wait()
            yield {}

        yield never()
        left.set()

    async def health() -> Mapping[str, object]:
        return {}

    gone = asyncio.Event()
    gone.set()
    await stream(AdminApp(registry=CollectorRegistry(), health=health, trace=follow), gone=gone)
    assert left.is_set()


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"client": ("192.0.2.1", 1)}, 403),
        ({"client": None}, 403),
        ({"client": ("x", 1)}, 403),
        ({"host": "evil.example:8080"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": None}, 403),
        ({"host": "192.0.2.1:8080"}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "LOCALHOST:8080"}, 200),
        ({"host": "[::1]"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({}, 200),
    ],
)
async def test_only_this_machine_gets_a_trace(scope: dict[str, Any], status: int) -> None:
    """The listener has no login; and a page in a browser, whose name leads here, is no operator (DNS rebinding)."""
    app, _ = tracing([])
    assert (await call(app, "HEAD", "/trace?impi=a@b.c", **{**HERE, **scope})).status == status


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/trace", 400),
        ("/trace?impi=a@b.c&impi=d@e.f", 400),
        ("/trace?impi=nobody", 400),
        ("/trace?" + "&".join(["x=1"] * 20), 400),
        ("/trace?impi=" + "x" * MAX_QUERY, 414),
    ],
)
async def test_a_trace_needs_one_impi(target: str, status: int) -> None:
    """A bounded query."""
    app, did = tracing([])
    assert (await call(app, "GET", target, **HERE)).status == status
    assert did == []


async def test_a_trace_that_cannot_be_had_is_refused() -> None:
    """Too many, a store that fails, a process without."""
    full, _ = tracing([], RemoteProtocolError("8 follow already", 503))
    answer = await call(full, "GET", "/trace?impi=a@b.c", **HERE)
    assert (answer.status, answer.body) == (503, b"8 follow already\n")
    broken, _ = tracing([], StoreError("/secret/path"))
    answer = await call(broken, "GET", "/trace?impi=a@b.c", **HERE)
    assert answer.status == 503
    assert b"secret" not in answer.body
    assert (await call(admin({}), "GET", "/trace?impi=a@b.c", **HERE)).status == 404


# ---- readiness


async def test_readiness_is_another_thing_than_health() -> None:
    """200 or 503, with reasons; a process without checks is ready when it answers."""

    async def well() -> Mapping[str, object]:
        return {"ok": True}

    async def away() -> Mapping[str, object]:
        return {"ready": False, "reasons": ["I-CSCF: does not answer"]}

    async def broken() -> Mapping[str, object]:
        raise StoreError("/secret/path")

    for ready, status, body in ((None, 200, {"ready": True}), (away, 503, await away()), (broken, 503, {"ready": False})):
        app = AdminApp(registry=CollectorRegistry(), health=well, ready=ready)
        answer = await call(app, target="/ready")
        assert (answer.status, json.loads(answer.body)) == (status, body)
        assert (await call(app, target="/health")).status == 200


async def test_metrics_are_refreshed_first_and_shown_even_where_that_fails() -> None:
    """A store that fails must not hide what else there is."""
    did: list[str] = []

    async def well() -> Mapping[str, object]:
        return {"ok": True}

    async def refresh() -> None:
        did.append("refreshed")
        raise StoreError("/secret/path")

    answer = await call(AdminApp(registry=CollectorRegistry(), health=well, refresh=refresh), target="/metrics")
    assert (answer.status, did) == (200, ["refreshed"])
