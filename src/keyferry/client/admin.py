# SPDX-License-Identifier: Apache-2.0
"""Ask the administrator's listener of a process that serves; it answers this machine alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import httpx

from keyferry.errors import ConfigError, TransportError

SECONDS: Final = 5.0
COMMAND_SECONDS: Final = 15.0
"""A command may wait for an S-CSCF on another machine."""
ELSEWHERE: Final = "Ask the process that plays it (--admin); one that is not ours (Kamailio, PyHSS) by its own commands"
MAX_ANSWER: Final = 8_000_000
"""Octets; a thousand failures are one million."""


async def ask(admin: str, path: str, params: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object that GET of a path gives; `admin` is HOST:PORT.

    Raises ConfigError with what the other side says against it, TransportError if nobody listens or what listens is no keyferry.
    """
    return await _exchange("GET", admin, httpx.QueryParams(params), path, None, SECONDS)


async def tell(admin: str, path: str, command: Mapping[str, object]) -> dict[str, Any]:
    """Return the JSON object that is the outcome of a command, which is POSTed; otherwise as `ask`. `path` is escaped."""
    return await _exchange("POST", admin, httpx.QueryParams(), path, dict(command), COMMAND_SECONDS)


async def _exchange(
    method: str, admin: str, params: httpx.QueryParams, path: str, command: dict[str, object] | None, seconds: float
) -> dict[str, Any]:
    body = bytearray()
    try:
        url = httpx.URL(f"http://{admin}{path}", params=params) if params else httpx.URL(f"http://{admin}{path}")
        async with (
            httpx.AsyncClient(timeout=seconds, trust_env=False) as client,
            client.stream(method, url, json=command) as response,
        ):
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise TransportError(f"http:{admin}", "answers without an end")
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        what = type(problem).__name__
        raise TransportError(f"http:{admin}", f"{what}: is `keyferry serve` running, and its [admin] listen this address?") from problem
    if response.status_code != 200:
        said = "".join(c if c.isprintable() else "?" for c in body[:200].decode("latin-1").strip())
        remedy = ELSEWHERE if said.startswith("This process has no ") else ""
        raise ConfigError("--admin", f"{admin} answered {response.status_code}: {said.rstrip('.')}", remedy)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TransportError(f"http:{admin}", "what answers is no keyferry")
    return found
