# SPDX-License-Identifier: Apache-2.0
"""The client of the administrator's live trace: follow one subscriber of a process that serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from keyferry.errors import ConfigError, TransportError
from keyferry.lab.ladder import MTU, UDP_LIMIT
from keyferry.wiring.tracing import printable

CONNECT: Final = 5.0  # seconds
MAX_LINE: Final = 8_192  # characters of one step; a note has at most 200


async def follow(admin: str, impi: str, seconds: float | None = None) -> AsyncIterator[dict[str, Any]]:
    """Yield steps as they happen, first an empty one when the other side follows; end after `seconds`, or when it stops.

    Raises ConfigError if there is nothing to follow, TransportError if nobody listens.
    """
    timeout = httpx.Timeout(CONNECT, read=None)
    url = httpx.URL(f"http://{admin}/trace", params={"impi": impi})
    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(timeout=timeout, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != 200:
                raise ConfigError("--follow", f"{admin} answered {response.status_code}: {printable((await response.aread()).decode())}")
            async for line in response.aiter_lines():
                yield _step_of(line)
    except TimeoutError:
        return
    except httpx.RemoteProtocolError:
        return  # the process was killed
    except httpx.HTTPError as problem:
        what = type(problem).__name__
        raise TransportError(f"http:{admin}", f"{what}: is `keyferry serve` running, and its [admin] listen this address?") from problem


def _step_of(line: str) -> dict[str, Any]:
    if not line:
        return {}
    try:
        step = json.loads(line[:MAX_LINE])
    except ValueError:
        raise TransportError("http", "what answers is no live trace of keyferry") from None
    return step if isinstance(step, dict) else {}


def line_of(step: dict[str, Any]) -> str:
    """Return one step as a line of text."""
    if "lost" in step:
        return f"… {step['lost']} steps lost: this terminal is too slow"
    octets = int(step["octets"])
    mark = "> 1500" if octets > MTU else "> 1300" if octets > UDP_LIMIT else ""
    when = datetime.fromtimestamp(float(step["at"]), UTC).strftime("%H:%M:%S.%f")[:-3]
    again = " (again)" if step["retransmission"] else ""
    source, target, what = step["source"], step["target"], step["what"]
    return f"{when} {source:>10} ─> {target:<10} {step['transport']:3} {octets:5} {mark:6} {what}{again}  {step['note']}".rstrip()
