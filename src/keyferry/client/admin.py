# SPDX-License-Identifier: Apache-2.0
"""Ask the administrator's listener of a process that serves; it answers this machine alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import httpx

from keyferry.errors import ConfigError, TransportError

SECONDS: Final = 5.0
MAX_ANSWER: Final = 8_000_000
"""Octets; a thousand failures are one million."""


async def ask(admin: str, path: str, params: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON object that GET of a path gives; `admin` is HOST:PORT.

    Raises ConfigError with what the other side says against it, TransportError if nobody listens or what listens is no keyferry.
    """
    body = bytearray()
    try:
        async with (
            httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client,
            client.stream("GET", httpx.URL(f"http://{admin}{path}", params=params)) as response,
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
        raise ConfigError("--admin", f"{admin} answered {response.status_code}: {said}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise TransportError(f"http:{admin}", "what answers is no keyferry")
    return found
