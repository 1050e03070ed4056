# SPDX-License-Identifier: Apache-2.0
"""Many host names on one listener (TS 33.222 §6.4): the name that the user opened is the AS_ID, and has its own door and server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING

from keyferry.asgi.exchange import App, Header, Message, Receive, Scope, Send, respond
from keyferry.asgi.proxy.fields import VALUE, one, opened
from keyferry.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from keyferry.ports import Clock, Counter

METHODS_REFUSED = frozenset({"TRACE", "CONNECT"})
"""TRACE would show the client what the server behind is told (RFC 9110 §9.3.8); CONNECT is for another kind of proxy."""
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")  # origin-form; "#" begins a fragment, which no target has
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Front:
    """Give each request to the door of its host name; refuse what two readers of HTTP might take for different requests."""

    def __init__(self, doors: Mapping[str, App], *, clock: Clock, counter: Counter | None = None) -> None:
        """Take an application, SimLogin around Forward, for each AS_ID."""
        self._doors = {name.encode("ascii"): door for name, door in doors.items()}
        self._clock = clock
        self._counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise LocalProtocolError("the proxy serves http alone: an upgrade comes as the request that it is")
        dated = self._dated(send)
        try:
            door = self._doors.get(_check(scope))
            if door is None:
                raise RemoteProtocolError("This proxy has no such host.", 421)
        except RemoteProtocolError as problem:
            if self._counter is not None:
                self._counter.count("proxy", "refused")
            await respond(dated, problem.status, f"{problem}\n".encode(), headers=[(b"connection", b"close")])
            return
        await door(scope, receive, dated)

    def _dated(self, send: Send) -> Send:
        """Write Date where an answer has none (RFC 9110 §6.6.1); the HTTP server must not add a second one."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] != 101:
                headers: list[Header] = list(message.get("headers", ()))
                if all(name != b"date" for name, _ in headers):
                    headers.append((b"date", formatdate(self._clock.now(), usegmt=True).encode("ascii")))
                message = {**message, "headers": headers}
            await send(message)

        return dated


def _check(scope: Scope) -> bytes:
    """Return the host name that the user opened. Raises RemoteProtocolError."""
    if scope.get("http_version", "1.1") != "1.1":
        raise RemoteProtocolError("HTTP/1.1, please.", 505)
    if scope["method"] in METHODS_REFUSED:
        raise RemoteProtocolError("No such method here.", 405)
    name, _ = opened(scope["headers"])
    target = scope.get("keyferry.target")
    if target is None:
        raise LocalProtocolError("the proxy needs keyferry's own HTTP server: others do not give the request target as it was sent")
    if not _TARGET.fullmatch(target):
        raise RemoteProtocolError("The request target is not a path.", 400)
    _check_framing(scope["headers"])
    return name


def _check_framing(headers: list[Header]) -> None:
    """Refuse a body that could have two ends (RFC 9112 §6.3, §11.2); our server's parser does most of this before."""
    if not all(VALUE.fullmatch(value) for _, value in headers):
        raise RemoteProtocolError("A header field holds control characters.", 400)
    coding, length = one(headers, b"transfer-encoding"), one(headers, b"content-length")
    if coding is not None and coding.lower() != b"chunked":
        raise RemoteProtocolError("No transfer coding but chunked is known here.", 501)
    if coding is not None and length is not None:
        raise RemoteProtocolError("Content-Length and Transfer-Encoding, which of them?", 400)
    if length is not None and not _LENGTH.fullmatch(length):
        raise RemoteProtocolError("Content-Length is not a number.", 400)
    if (coding is not None or length not in {None, b"0"}) and any(name == b"upgrade" for name, _ in headers):
        raise RemoteProtocolError("An upgrade has no body here.", 400)  # parsers disagree about where it ends
    expect = one(headers, b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise RemoteProtocolError("This expectation cannot be met.", 417)
