# SPDX-License-Identifier: Apache-2.0
"""The XCAP server's HTTP face (RFC 4825 §8); stands behind SimLogin."""

from __future__ import annotations

from keyferry.asgi.auth import Identity
from keyferry.asgi.exchange import Header, Receive, Scope, Send, headers_named, read_body, respond
from keyferry.errors import LocalProtocolError, ParseError, RemoteProtocolError
from keyferry.protocol.xcap.conditions import Conditions
from keyferry.protocol.xcap.errors import MIME, XcapConflict, build_xcap_error
from keyferry.protocol.xcap.uri import XcapUri, parse_xcap_uri
from keyferry.protocol.xcap.usages import MAX_DOCUMENT
from keyferry.roles.xcap_server import XcapAnswer, XcapServer

ALLOWED = b"GET, HEAD, PUT, DELETE"


class XcapApp:
    """Serve documents below one or several roots; phones have a root of their operator's compiled in.

    A path may hold a call-barring password: it is never logged, and the HTTP server's access log must be off.
    """

    def __init__(self, server: XcapServer, *, roots: tuple[str, ...] = ("",)) -> None:
        """Take the server and its XCAP roots, each a path without a final slash."""
        self._server = server
        self._roots = roots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            raise LocalProtocolError("XCAP is HTTP")
        identity = scope.get("keyferry")
        if not isinstance(identity, Identity):
            raise LocalProtocolError("XcapApp stands behind SimLogin")
        try:
            answer = await self._serve(identity, scope, receive)
        except XcapConflict as conflict:
            await respond(send, 409, build_xcap_error(conflict), MIME)
        except RemoteProtocolError as problem:
            headers = [(b"allow", ALLOWED)] if problem.status == 405 else []
            await respond(send, problem.status, f"{problem}\n".encode(), headers=headers)
        else:
            await _answer(send, answer)

    async def _serve(self, identity: Identity, scope: Scope, receive: Receive) -> XcapAnswer:
        uri = self._locate(scope)
        conditions = Conditions(_joined(scope, b"if-match"), _joined(scope, b"if-none-match"))
        method = scope["method"]
        if method in {"GET", "HEAD"}:
            return await self._server.get(identity.impus, uri, conditions)
        if method == "PUT":
            body = await read_body(receive, MAX_DOCUMENT)
            content_type = _joined(scope, b"content-type")
            return await self._server.put(identity.impus, uri, content_type=content_type, body=body, conditions=conditions)
        if method == "DELETE":
            return await self._server.delete(identity.impus, uri, conditions)
        raise RemoteProtocolError("documents are read, put and deleted", 405)

    def _locate(self, scope: Scope) -> XcapUri:
        for root in self._roots[:-1]:
            try:
                return parse_xcap_uri(scope["raw_path"], root)
            except ParseError:
                raise
            except RemoteProtocolError as problem:
                if problem.status != 404:
                    raise
        return parse_xcap_uri(scope["raw_path"], self._roots[-1])


async def _answer(send: Send, answer: XcapAnswer) -> None:
    headers: list[Header] = []
    if answer.etag is not None:
        headers.append((b"etag", f'"{answer.etag}"'.encode("ascii")))
    await respond(send, answer.status, answer.body, answer.content_type or "", headers)


def _joined(scope: Scope, name: bytes) -> str | None:
    """Return a header's values as one list (RFC 9110 §5.3)."""
    values = headers_named(scope, name)
    return b", ".join(values).decode("latin-1") if values else None
