# SPDX-License-Identifier: Apache-2.0
"""Health and metrics for operators, on a listener of its own without login (Prometheus text format 0.0.4)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from keyferry.asgi.exchange import Receive, Scope, Send, respond
from keyferry.errors import KeyferryError, LocalProtocolError


class AdminApp:
    """Answer GET /health and GET /metrics; it tells counts, never an identity or a key."""

    def __init__(self, *, registry: CollectorRegistry, health: Callable[[], Awaitable[Mapping[str, object]]]) -> None:
        """Take the metrics, and what to say of the system's health: a JSON object whose "ok" decides between 200 and 503."""
        self._registry = registry
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - nothing is read
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise LocalProtocolError("AdminApp serves http alone")
        if scope["path"] not in {"/health", "/metrics"}:
            await respond(send, 404, b"There are /health and /metrics.\n")
        elif scope["method"] not in {"GET", "HEAD"}:
            await respond(send, 405, b"Read only.\n", headers=[(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/metrics":
            await respond(send, 200, generate_latest(self._registry), CONTENT_TYPE_LATEST)
        else:
            await self._tell_health(send)

    async def _tell_health(self, send: Send) -> None:
        try:
            report = dict(await self._health())
        except KeyferryError:  # its text may name a path or a peer
            report = {"ok": False}
        status = 200 if report.get("ok") is True else 503
        await respond(send, status, json.dumps(report).encode("utf-8") + b"\n", "application/json")
