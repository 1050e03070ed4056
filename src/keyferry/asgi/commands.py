# SPDX-License-Identifier: Apache-2.0
"""Commands of an operator over HTTP: a JSON object in, a JSON object out; no page of another site can send one without asking first."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping

from keyferry.asgi.exchange import Receive, Scope, Send, headers_named, read_body, respond
from keyferry.errors import KeyferryError, RemoteProtocolError

JSON = "application/json"
MAX_BODY = 1_024
"""Octets of a command."""


def path_of(scope: Scope) -> str:
    """Return the path as it was sent, still escaped."""
    return bytes(scope.get("raw_path") or scope["path"].encode("utf-8")).decode("latin-1")


def want_method(scope: Scope, method: str) -> None:
    """Refuse another method. Raises RemoteProtocolError."""
    if scope["method"] != method:
        raise RemoteProtocolError(f"Use {method}.", 405)


async def read_command(scope: Scope, receive: Receive, fields: Mapping[str, type]) -> dict[str, object]:
    """Read a JSON object of known members, each of its type. Raises RemoteProtocolError."""
    if [value.split(b";")[0].strip().lower() for value in headers_named(scope, b"content-type")] != [JSON.encode("ascii")]:
        raise RemoteProtocolError("Send application/json.", 415)
    try:
        command = json.loads(await read_body(receive, MAX_BODY) or b"{}")
    except (ValueError, RecursionError):
        raise RemoteProtocolError("The body is not JSON.") from None
    if not isinstance(command, dict) or any(type(value) is not fields.get(name) for name, value in command.items()):
        members = f"object with {', '.join(fields)}, each optional" if fields else "empty object"
        raise RemoteProtocolError(f"The body is an {members}.")
    return command


async def respond_with(send: Send, what: str, answer: Awaitable[Mapping[str, object]]) -> None:
    """Send what comes of a question or a command about `what`, or why nothing does; a store's words, which may name a path, stay here."""
    try:
        found = await answer
    except RemoteProtocolError as problem:
        await respond(send, problem.status, f"{problem}\n".encode())
    except KeyferryError:
        await respond(send, 503, f"The {what} cannot be read.\n".encode())
    else:
        await respond_json(send, found)


async def respond_json(send: Send, answer: Mapping[str, object]) -> None:
    """Send 200 with an object that no cache keeps."""
    await respond(send, 200, json.dumps(answer).encode("ascii") + b"\n", JSON, [(b"cache-control", b"no-store")])
