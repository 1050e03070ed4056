# SPDX-License-Identifier: Apache-2.0
"""The last failures of registrations for operators: GET /failures, GET /failures?impi=… (*ours*)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Protocol
from urllib.parse import parse_qs

from keyferry.asgi.exchange import Scope, Send, respond
from keyferry.errors import RemoteProtocolError
from keyferry.protocol.identity import Impi, parse_impi
from keyferry.protocol.ims.failures import MAX_FAILURES, Failure

JSON: Final = "application/json"
PATH: Final = "/failures"
MAX_QUERY: Final = 2_048
"""Octets; an IMPI has at most 255, three times as many escaped."""
DEFAULT_LIMIT: Final = 100


class Failures(Protocol):
    """What remembers failures."""

    def last(self, limit: int) -> Sequence[Failure]:
        """Return the last ones, the newest first."""

    def of_impi(self, impi: Impi) -> Sequence[Failure]:
        """Return one user's, the newest first."""


class FailuresApp:
    """Answer GET /failures with `impi` and `limit`, both optional; the caller checks who asks."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures

    async def __call__(self, scope: Scope, send: Send) -> None:
        """Serve one http scope."""
        try:
            if scope["path"] != PATH or scope["method"] != "GET":
                raise RemoteProtocolError("Use GET /failures, GET /failures?impi=IMPI.", 404 if scope["path"] != PATH else 405)
            impi, limit = _asked(bytes(scope.get("query_string", b"")))
        except RemoteProtocolError as problem:
            await respond(send, problem.status, f"{problem}\n".encode())
            return
        found = self._failures.last(limit) if impi is None else self._failures.of_impi(impi)[:limit]
        body = json.dumps({"failures": [shown(failure) for failure in found]}).encode("ascii") + b"\n"
        await respond(send, 200, body, JSON, [(b"cache-control", b"no-store")])


def shown(failure: Failure) -> dict[str, object]:
    """Return a failure as JSON has it."""
    return {
        "at": datetime.fromtimestamp(failure.at, UTC).isoformat(timespec="milliseconds"),
        "count": failure.count,
        "function": failure.function,
        "impi": failure.impi,
        "reg": failure.reg,
        "source": failure.source,
        "status": failure.status or None,
        "server": failure.server or None,
        "reasons": list(failure.analysis.reasons),
        "because": failure.analysis.text,
        "remedy": failure.analysis.remedy,
        "problem": failure.problem,
    }


def _asked(query: bytes) -> tuple[Impi | None, int]:
    """Read the query. Raises RemoteProtocolError."""
    try:
        fields = parse_qs(query[: MAX_QUERY + 1].decode("latin-1"), max_num_fields=8)
    except ValueError:
        fields = {"": []}
    if len(query) > MAX_QUERY or not set(fields) <= {"impi", "limit"} or any(len(values) != 1 for values in fields.values()):
        raise RemoteProtocolError("Ask with impi=IMPI and limit=NUMBER, both optional.")
    limit = fields.get("limit", [str(DEFAULT_LIMIT)])[0]
    if not (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= MAX_FAILURES):
        raise RemoteProtocolError(f"limit goes from 1 to {MAX_FAILURES}.")
    return parse_impi(fields["impi"][0]) if "impi" in fields else None, int(limit)
