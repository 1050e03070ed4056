# SPDX-License-Identifier: Apache-2.0
"""One note per user, in memory and gone with the process: what an application behind SimLogin looks like."""

from __future__ import annotations

from keyferry.asgi.exchange import Receive, Scope, Send, read_body, respond
from keyferry.errors import LocalProtocolError, RemoteProtocolError

MAX_NOTE = 4096
"""Octets."""
MAX_NOTES = 10_000
"""Notes, 40 MB if all are full."""


class Notes:
    """GET, PUT and DELETE the note of whoever logged in, at any path."""

    def __init__(self) -> None:
        self._notes: dict[str, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise LocalProtocolError("notes are HTTP")
        user = scope["keyferry"].user
        try:
            status, body = await self._serve(user, scope["method"], receive)
        except RemoteProtocolError as problem:
            status, body = problem.status, f"{problem}\n".encode()
        headers = [(b"allow", b"GET, HEAD, PUT, DELETE")] if status == 405 else []
        await respond(send, status, body, headers=headers)

    async def _serve(self, user: str, method: str, receive: Receive) -> tuple[int, bytes]:
        new = user not in self._notes
        if method == "PUT":
            note = await read_body(receive, MAX_NOTE)
            if new and len(self._notes) >= MAX_NOTES:
                raise RemoteProtocolError("no room for more notes", 507)
            self._notes[user] = note
            return (201 if new else 200), b""
        if method not in {"GET", "HEAD", "DELETE"}:
            raise RemoteProtocolError("a note is read, put or deleted", 405)
        if new:
            raise RemoteProtocolError("you have no note", 404)
        return 200, self._notes.pop(user) if method == "DELETE" else self._notes[user]
