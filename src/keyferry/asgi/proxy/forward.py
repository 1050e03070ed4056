# SPDX-License-Identifier: Apache-2.0
"""One request behind the door: to the server of its name and back, both ways as it comes, nothing held but what is on the way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from keyferry.asgi.exchange import Header, Message, Receive, Scope, Send, headers_named, respond
from keyferry.asgi.origin import Origins
from keyferry.asgi.proxy.fields import INTENDED, Route, answer_fields, asserted_identities, expects, request_fields
from keyferry.asgi.proxy.tunnel import IDLE, LIVES, Lives, Tunnel, accepts, join, offered_tunnel
from keyferry.asgi.watch import LoginEnded
from keyferry.errors import RemoteProtocolError, UpstreamFailed

if TYPE_CHECKING:
    from keyferry.asgi.auth import Identity
    from keyferry.ports import Counter, Log

PER_USER = 64
"""Requests of one user under way at once, WebSockets included: one user cannot take all connections to the server behind."""
CLIENT_TIMEOUT = 60.0
"""Seconds without an octet of a body from the client, or in which it takes none of the answer."""
LEFT = "keyferry.left"
"""In the scope, by our HTTP server: a future that is done when the client's connection has ended."""


class RequestHead(NamedTuple):
    """What the server behind is sent first."""

    method: str
    target: bytes  # origin-form, as the client sent it
    fields: Sequence[Header]


class AnswerHead(NamedTuple):
    """What the server behind sends first; its status is final, or 101."""

    status: int
    fields: Sequence[Header]


class Exchange(Protocol):
    """One request and its answer on a connection to the server behind; every method but `abort` raises UpstreamFailed."""

    async def continued(self) -> bool:
        """Wait until the server wants the body, or a second; false if it has answered without."""

    async def write(self, octets: bytes) -> None:
        """Send a piece of the body; returns when the server takes more."""

    async def finish(self) -> None:
        """End the body."""

    async def answer(self) -> AnswerHead:
        """Return the head of the answer."""

    async def read(self) -> bytes:
        """Return a piece of the answer's body, or after a 101 of the tunnel; empty at its end."""

    def abort(self) -> None:
        """Break the connection off: the server sees that the request will not be whole."""


class Upstream(Protocol):
    """The server behind, with its connections."""

    def exchange(self, head: RequestHead) -> AbstractAsyncContextManager[Exchange]:
        """Send the head; at the end the connection is kept if both sides are done with it. Raises UpstreamFailed."""


class Forward:
    """Forward requests of logged-in users to one server (TS 33.222 §6.5)."""

    def __init__(
        self,
        upstream: Upstream,
        route: Route,
        *,
        log: Log,
        counter: Counter | None = None,
        client_timeout: float = CLIENT_TIMEOUT,
        tunnel_timeout: float = IDLE,
        per_user: int = PER_USER,
        origins: Origins | None = None,
    ) -> None:
        """Take the server and what it is told; stands behind SimLogin, and that behind `Front`. Times are in seconds."""
        self._upstream = upstream
        self._route = route
        self._log = log
        self._counter = counter
        self._client_timeout = client_timeout
        self._tunnel_timeout = tunnel_timeout
        self._open: set[Exchange] = set()
        self._per_user = per_user
        self._origins = origins or Origins()
        self._of_user: dict[str, int] = {}  # requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        identity: Identity = scope["keyferry"]
        try:
            tunnel = offered_tunnel(scope)
            if tunnel is not None and self._origins.same(scope, self._route.name) is False:  # the door lets a GET of another site pass
                raise RemoteProtocolError("A page of another site opens no WebSocket in your name.", 403)
            impus = asserted_identities(identity.impus, headers_named(scope, INTENDED))
        except RemoteProtocolError as problem:
            self._count("refused")
            await respond(send, problem.status, f"{problem}\n".encode())
            return
        fields = request_fields(scope, self._route, impus, upgrade=tunnel is not None)
        head = RequestHead(scope["method"], scope["keyferry.target"], fields)
        user = scope["user"].id
        if self._of_user.get(user, 0) >= self._per_user:
            self._count("too-many-of-user")
            await respond(send, 429, b"Too many requests at once.\n", headers=[(b"retry-after", b"1"), (b"connection", b"close")])
            return
        self._of_user[user] = self._of_user.get(user, 0) + 1
        try:
            await self._forward(head, _Relay(scope, receive, send, self._client_timeout), tunnel, send)
        finally:
            self._of_user[user] -= 1
            if not self._of_user[user]:
                del self._of_user[user]

    async def _forward(self, head: RequestHead, relay: _Relay, tunnel: Tunnel | None, send: Send) -> None:
        try:
            await self._exchange(head, relay, tunnel, send)
        except LoginEnded:  # raised by what sends the answer
            self._count("ended")
            raise
        except UpstreamFailed as problem:
            await self._failed(problem, relay, send)
        except RemoteProtocolError as problem:  # a body or a reader that stops, or an answer whose fields cannot be passed on
            self._count("client" if problem.status == 408 else "malformed")
            if not relay.started:
                await respond(send, problem.status, f"{problem}\n".encode(), headers=[(b"connection", b"close")])

    async def aclose(self) -> None:
        """Break off what is under way: tunnels know no end of their own."""
        for exchange in tuple(self._open):
            exchange.abort()

    async def _exchange(self, head: RequestHead, relay: _Relay, tunnel: Tunnel | None, send: Send) -> None:
        async with self._upstream.exchange(head) as exchange:
            answer = await relay.run(exchange)
            self._count(f"{answer.status // 100}xx")
            if answer.status == 101:
                if tunnel is None or not accepts(head.fields, answer.fields):
                    raise UpstreamFailed(self._route.name, "malformed", "it switched to a protocol that was not asked for")
                relay.started = True
                upgrade = [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
                await send({"type": "http.response.start", "status": 101, "headers": [*answer_fields(101, answer.fields), *upgrade]})
                self._open.add(exchange)
                try:
                    await join(exchange, tunnel, self._tunnel_timeout, relay.lives)
                finally:
                    self._open.discard(exchange)

    async def _failed(self, problem: UpstreamFailed, relay: _Relay, send: Send) -> None:
        if relay.gone:
            self._count("client")
            return
        self._count(problem.reason)
        self._log.warning("upstream-failed", name=self._route.name, upstream=problem.peer, reason=problem.reason, problem=problem.problem)
        if not relay.started:  # else the server closes the connection before the answer's end, which the client sees
            headers = [(b"retry-after", b"1")] if problem.status == 503 else []
            if relay.uploading:
                headers.append((b"connection", b"close"))
            await respond(send, problem.status, _TEXTS[problem.status], headers=headers)

    def _count(self, reason: str) -> None:
        if self._counter is not None:
            self._counter.count("proxy", reason)


_TEXTS = {
    502: b"The server behind this proxy cannot be reached, or answers what is not HTTP.\n",
    503: b"The server behind this proxy is busy.\n",
    504: b"The server behind this proxy does not answer in time.\n",
}


class _Relay:
    """Carry a request's body up and its answer down at the same time."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._timeout = timeout
        self.started = False  # the client has the head of an answer
        self.gone = False  # the client went away
        self.lives: Lives | None = scope.get(LIVES)
        self._left: asyncio.Future[None] | None = scope.get(LEFT)
        self.uploading = _has_body(scope)
        self._ended = False
        self._late: RemoteProtocolError | None = None

    async def run(self, exchange: Exchange) -> AnswerHead:
        """Return the answer's head, after its end; that of a 101 at once. Raises UpstreamFailed, RemoteProtocolError."""
        with self._watched(exchange):
            return await self._run(exchange)

    @contextlib.contextmanager
    def _watched(self, exchange: Exchange) -> Iterator[None]:
        """Break off as soon as the client's connection ends.

        `receive` tells that too, but not while the server takes none of the body, not after it took no more, and not of a request
        that has others waiting behind it on its connection.
        """
        if self._left is None:
            yield
            return

        def leave(_: object) -> None:
            self._leave(exchange)

        self._left.add_done_callback(leave)
        try:
            yield
        finally:
            self._left.remove_done_callback(leave)

    async def _run(self, exchange: Exchange) -> AnswerHead:
        upload = asyncio.get_running_loop().create_task(self._upload(exchange))
        try:
            answer = await exchange.answer()
            if answer.status != 101:
                await self._download(exchange, answer)
        except UpstreamFailed:
            if self._late is not None:  # we broke it off ourselves
                raise self._late from None
            raise
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)
        if not upload.cancelled() and (problem := upload.exception()) is not None:
            raise problem
        return answer

    async def _upload(self, exchange: Exchange) -> None:
        """Send the body on, then watch whether the client stays; if not, break off, which whoever waits for the answer sees."""
        try:
            if self.uploading and expects(self._scope["headers"]) and not await exchange.continued():
                return
            while self.uploading:
                async with asyncio.timeout(self._timeout):
                    message = await self._receive()
                if message["type"] != "http.request":
                    self._leave(exchange)
                    return
                if message.get("body"):
                    await exchange.write(message["body"])
                self.uploading = message.get("more_body", False)
            await exchange.finish()
            while (await self._receive())["type"] == "http.request":
                pass
            self._leave(exchange)
        except TimeoutError:
            self._late = RemoteProtocolError("The body stopped arriving.", 408)
            exchange.abort()
        except UpstreamFailed:
            return  # it may have answered before, and stopped reading: what the answer's side sees decides

    def _leave(self, exchange: Exchange) -> None:
        """Take the end of the client's interest; a server also calls a complete answer that."""
        if not self._ended:
            self.gone = True
            exchange.abort()

    async def _download(self, exchange: Exchange, answer: AnswerHead) -> None:
        fields = answer_fields(answer.status, answer.fields)
        if self.uploading:  # the server would have to read the rest of the body to find the next request
            fields.append((b"connection", b"close"))
        self.started = True
        await self._pass({"type": "http.response.start", "status": answer.status, "headers": fields})
        while octets := await exchange.read():
            await self._pass({"type": "http.response.body", "body": octets, "more_body": True})
        self._ended = True
        await self._pass({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._send(message)
        except TimeoutError:
            self.gone = True
            raise RemoteProtocolError("The client stopped reading.", 408) from None


def _has_body(scope: Scope) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in scope["headers"])
