# SPDX-License-Identifier: Apache-2.0
"""What our HTTP client does, before an ASGI application instead of behind a socket: for test clients that take an application."""

from __future__ import annotations

import httpx

from keyferry.asgi.exchange import App, Message, Receive, Scope, Send


class LoggedIn:
    """Send each request to an application with somebody's credentials, challenges answered and proofs checked.

    Bodies are held in memory; lifespan and websockets pass as they are.
    """

    def __init__(self, app: App, auth: httpx.Auth) -> None:
        """Take the application, SimLogin included, and who logs in."""
        self.app = app
        self._auth = auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope. Raises DigestRejected where the application does not prove that it holds the key."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        flow = self._auth.async_auth_flow(_request(scope, await _body(receive)))
        try:
            outgoing = await anext(flow)
            while True:
                answer = await self._answer(scope, outgoing)
                outgoing = await flow.asend(_response(answer, outgoing))
        except StopAsyncIteration:
            pass
        finally:
            await flow.aclose()
        for message in answer:
            await send(message)

    async def _answer(self, scope: Scope, outgoing: httpx.Request) -> list[Message]:
        answer: list[Message] = []
        incoming: list[Message] = [{"type": "http.request", "body": outgoing.content, "more_body": False}]

        async def receive() -> Message:
            return incoming.pop() if incoming else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answer.append(message)

        path, _, query = outgoing.url.raw_path.partition(b"?")
        headers = [(name.lower(), value) for name, value in outgoing.headers.raw]
        same = {"method": outgoing.method, "headers": headers, "raw_path": path, "query_string": query}
        await self.app({**scope, **same}, receive, send)
        return answer


def _request(scope: Scope, body: bytes) -> httpx.Request:
    headers = [(name, value) for name, value in scope["headers"] if name not in (b"content-length", b"transfer-encoding")]
    host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1")
    query = scope.get("query_string", b"")
    target = scope["raw_path"] + (b"?" + query if query else b"")
    return httpx.Request(scope["method"], f"{scope['scheme']}://{host}{target.decode('ascii')}", headers=headers, content=body or None)


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _response(answer: list[Message], request: httpx.Request) -> httpx.Response:
    body = b"".join(message.get("body", b"") for message in answer[1:])
    coded = (b"content-encoding", b"transfer-encoding")
    headers = [(name, value) for name, value in answer[0].get("headers", []) if name.lower() not in coded]
    return httpx.Response(answer[0]["status"], headers=headers, content=body, request=request)
