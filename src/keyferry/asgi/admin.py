# SPDX-License-Identifier: Apache-2.0
"""Health, readiness, metrics and a live trace for operators, on a listener of its own without login (Prometheus text format 0.0.4)."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias
from urllib.parse import parse_qs

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from keyferry.asgi.exchange import Receive, Scope, Send, headers_named, respond
from keyferry.asgi.failures import FailuresApp
from keyferry.asgi.registrations import RegistrationsApp
from keyferry.asgi.subscribers import SubscribersApp
from keyferry.errors import KeyferryError, LocalProtocolError, RemoteProtocolError
from keyferry.protocol.identity import parse_impi

NDJSON = b"application/x-ndjson"
MAX_QUERY = 2_048
"""Octets; an IMPI has at most 255, three times as many escaped."""

THERE_ARE = b"There are /health, /ready, /metrics, /trace?impi=IMPI, /registrations?impi=IMPI, /failures and /profiles.\n"

Follow: TypeAlias = Callable[[str], AbstractAsyncContextManager[AsyncIterator[Mapping[str, object]]]]
"""Follows one IMPI: steps of a ladder without bodies and keys."""


class AdminApp:
    """Answer /health, /ready, /metrics, /trace, and by other apps /registrations, /failures, /profiles, /subscribers; nothing tells a key.

    The first three tell counts and names of functions, never an identity. The others name subscribers, and there is no login: only this
    machine gets them.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        health: Callable[[], Awaitable[Mapping[str, object]]],
        trace: Follow | None = None,
        registrations: RegistrationsApp | None = None,
        failures: FailuresApp | None = None,
        subscribers: SubscribersApp | None = None,
        ready: Callable[[], Awaitable[Mapping[str, object]]] | None = None,
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Take metrics, health (a JSON object whose "ok" decides between 200 and 503), the tracer, and three more apps.

        `ready` is another such object with "ready"; `refresh` brings the metrics up to date before they are shown.
        """
        self._ready = ready
        self._refresh = refresh
        self._registry = registry
        self._health = health
        self._trace = trace
        self._registrations = registrations
        self._failures = failures
        self._subscribers = subscribers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise LocalProtocolError("AdminApp serves http alone")
        if scope["path"].startswith(("/registrations", "/failures", "/profiles", "/subscribers")):
            await self._tell_of_subscribers(scope, receive, send)
        elif scope["path"] not in {"/health", "/ready", "/metrics", "/trace"}:
            await respond(send, 404, THERE_ARE)
        elif scope["method"] not in {"GET", "HEAD"}:
            await respond(send, 405, b"Read only.\n", headers=[(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/metrics":
            await self._show_metrics(send)
        elif scope["path"] == "/trace":
            await self._follow(scope, receive, send)
        elif scope["path"] == "/ready":
            await _tell(send, self._ready, "ready")
        else:
            await _tell(send, self._health, "ok")

    async def _tell_of_subscribers(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _from_here(scope):
            await respond(send, 403, b"This names subscribers: ask from the machine itself, by its loopback address.\n")
        elif self._registrations is not None and scope["path"].startswith("/registrations"):
            await self._registrations(scope, receive, send)
        elif self._failures is not None and scope["path"].startswith("/failures"):
            await self._failures(scope, send)
        elif self._subscribers is not None and scope["path"].startswith(("/profiles", "/subscribers")):
            await self._subscribers(scope, receive, send)
        else:
            function = b"HSS" if scope["path"].startswith(("/profiles", "/subscribers")) else b"S-CSCF"
            await respond(send, 404, b"This process has no %b.\n" % function)

    async def _show_metrics(self, send: Send) -> None:
        if self._refresh is not None:
            with contextlib.suppress(KeyferryError):  # a store that fails has a metric of its own: the others are shown as they were
                await self._refresh()
        await respond(send, 200, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._trace is None:
                raise RemoteProtocolError("This process traces nothing.", 404)
            if not _from_here(scope):
                raise RemoteProtocolError("A trace names a subscriber: ask from the machine itself, by its loopback address.", 403)
            impi = _impi_of(scope)
            if scope["method"] == "HEAD":
                await respond(send, 200, content_type=NDJSON.decode("ascii"))
                return
            async with self._trace(impi) as steps:
                await _stream(steps, receive, send)
        except KeyferryError as problem:
            status = problem.status if isinstance(problem, RemoteProtocolError) else 503
            text = str(problem) if isinstance(problem, RemoteProtocolError) else "the subscriber store cannot be read"
            await respond(send, status, f"{text}\n".encode())


async def _tell(send: Send, report: Callable[[], Awaitable[Mapping[str, object]]] | None, word: str) -> None:
    """Answer 200 or 503, as `word` of a report says; without a report, 200."""
    try:
        told = {word: True} if report is None else dict(await report())
    except KeyferryError:  # its text may name a path or a peer
        told = {word: False}
    status = 200 if told.get(word) is True else 503
    await respond(send, status, json.dumps(told).encode("utf-8") + b"\n", "application/json")


async def _stream(steps: AsyncIterator[Mapping[str, object]], receive: Receive, send: Send) -> None:
    """Send steps, one JSON object a line, until the client goes or the process ends."""
    headers = [(b"content-type", NDJSON), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    # Sent at once, so that the client knows that it follows before it lets the phone register.
    await send({"type": "http.response.body", "body": b"\n", "more_body": True})
    sender = asyncio.ensure_future(_send_steps(steps, send))
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sender, gone):
            task.cancel()
        await asyncio.gather(sender, gone, return_exceptions=True)


async def _send_steps(steps: AsyncIterator[Mapping[str, object]], send: Send) -> None:
    async for step in steps:
        line = json.dumps(step, ensure_ascii=False).encode("utf-8") + b"\n"
        await send({"type": "http.response.body", "body": line, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _from_here(scope: Scope) -> bool:
    """Tell whether a client on this machine asks for this machine: a page in its browser, under a name of its own, does not."""
    host, _port = scope.get("client") or ("", 0)
    names = headers_named(scope, b"host")
    return _is_loopback(str(host)) and len(names) == 1 and _is_here(names[0].decode("latin-1"))


def _is_here(host: str) -> bool:
    name, colon, _port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name = host
    return name.lower() == "localhost" or _is_loopback(name.strip("[]"))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _impi_of(scope: Scope) -> str:
    query = bytes(scope.get("query_string", b""))
    if len(query) > MAX_QUERY:
        raise RemoteProtocolError("The query is too long.", 414)
    try:
        values = parse_qs(query.decode("latin-1"), max_num_fields=8).get("impi", [])
    except ValueError:
        values = []
    if len(values) != 1:
        raise RemoteProtocolError("Ask for /trace?impi=IMPI.", 400)
    return parse_impi(values[0])
