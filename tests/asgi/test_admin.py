# SPDX-License-Identifier: Apache-2.0
"""Health and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry, Counter

from asgi.doorkit import call
from keyferry.asgi.admin import AdminApp
from keyferry.errors import LocalProtocolError, StoreError


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
