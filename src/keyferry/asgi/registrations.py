# SPDX-License-Identifier: Apache-2.0
"""Registrations for operators: who is registered, end it, ask for a new authentication (TS 24.229 §5.4.1.5, §5.4.1.6, Release 17)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, get_args
from urllib.parse import parse_qs, unquote

from keyferry.asgi.commands import path_of, read_command, respond_with, want_method
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.errors import RemoteProtocolError
from keyferry.protocol.identity import Impi, Reg, parse_impi

PATH = "/registrations"
MAX_QUERY = 2_048
"""Octets; an IMPI has at most 255, three times as many escaped."""
MAX_SECONDS = 86_400
PAGE, MAX_PAGE = 100, 1_000
"""Registrations of one answer, where none and where many are asked for: a thousand are half a million octets."""

EndEvent: TypeAlias = Literal["deactivated", "rejected", "probation"]
FIELDS = {"deregister": {"reg": str, "event": str, "retry_after": int}, "reauthenticate": {"reg": str, "seconds": int}}


class Operations(Protocol):
    """What an S-CSCF lets its operator do."""

    async def list(self, impi: Impi) -> Sequence[Mapping[str, object]]:
        """Return a user's registrations without keys."""

    async def page(self, after: str, limit: int) -> Mapping[str, object]:
        """Return `registrations` of the users above `after`, sorted, `next`, after which there are more, and `unreadable`, IMPIs.

        At most `limit`, except that one user's are never parted.
        """

    async def pending(self, impi: Impi) -> Mapping[str, object]:
        """Return what waits for a user: `challenges`, a number, `owed`, pushes not delivered, and `failures`, the last few."""

    async def deregister(self, impi: Impi, reg: Reg | None, event: EndEvent, retry_after: int | None) -> int:
        """End registrations; return how many."""

    async def reauthenticate(self, impi: Impi, reg: Reg | None, seconds: int) -> int:
        """Ask for a new authentication; return of how many devices."""


class RegistrationsApp:
    """Answer GET /registrations, also with ?impi=…, and POST /registrations/IMPI/deregister and …/reauthenticate.

    The caller checks who asks. A command is `application/json`, which no page of another site can send without asking first.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one http scope."""
        await respond_with(send, "registrations", self._answer(scope, receive))

    async def _answer(self, scope: Scope, receive: Receive) -> Mapping[str, object]:
        path = path_of(scope)
        if path == PATH:
            want_method(scope, "GET")
            query = _query(scope)
            if "impi" not in query:
                return await self._operations.page(*_page(query))
            if len(query) > 1:
                raise RemoteProtocolError("Ask for impi alone, or for after and limit.", 400)
            impi = parse_impi(query["impi"])
            return {"registrations": list(await self._operations.list(impi)), **await self._operations.pending(impi)}
        parts = path.removeprefix(f"{PATH}/").split("/")
        if len(parts) != 2 or parts[1] not in FIELDS:
            raise RemoteProtocolError(
                "There are /registrations, /registrations?impi=IMPI, /registrations/IMPI/deregister and …/reauthenticate.", 404
            )
        want_method(scope, "POST")
        impi = parse_impi(unquote(parts[0]))
        command = await read_command(scope, receive, FIELDS[parts[1]])
        reg = Reg(str(command["reg"])) if "reg" in command else None
        if parts[1] == "reauthenticate":
            return {"devices": await self._operations.reauthenticate(impi, reg, _seconds(command.get("seconds", 60)))}
        event = command.get("event", "deactivated")
        if event not in get_args(EndEvent):
            raise RemoteProtocolError(f"event is one of {', '.join(get_args(EndEvent))}.")
        after = _seconds(command["retry_after"]) if "retry_after" in command else None
        kind: EndEvent = "rejected" if event == "rejected" else "probation" if event == "probation" else "deactivated"
        return {"devices": await self._operations.deregister(impi, reg, kind, after)}


def _query(scope: Scope) -> dict[str, str]:
    """Return impi, after and limit, each at most once, and nothing else. Raises RemoteProtocolError."""
    query = bytes(scope.get("query_string", b""))
    try:
        if len(query) > MAX_QUERY:
            raise ValueError
        found = parse_qs(query.decode("latin-1"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8)
    except ValueError:
        found = {"": []}
    if not found.keys() <= {"impi", "after", "limit"} or any(len(values) != 1 for values in found.values()):
        raise RemoteProtocolError("Ask for /registrations?impi=IMPI, or for /registrations?after=IMPI&limit=NUMBER.", 400)
    return {name: values[0] for name, values in found.items()}


def _page(query: Mapping[str, str]) -> tuple[str, int]:
    after, limit = query.get("after", ""), query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= MAX_PAGE):
        raise RemoteProtocolError(f"limit goes from 1 to {MAX_PAGE}.", 400)
    return (parse_impi(after) if after else ""), int(limit)


def _seconds(value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= MAX_SECONDS:
        raise RemoteProtocolError(f"Seconds go from 1 to {MAX_SECONDS}.")
    return value
