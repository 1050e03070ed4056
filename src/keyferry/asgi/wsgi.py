# SPDX-License-Identifier: Apache-2.0
"""WSGI applications (PEP 3333), as Flask's and Django's, behind SIM login: the user is in `REMOTE_USER` and `environ["keyferry.user"]`.

a2wsgi runs them in threads. It does not notice that a client has left, and would take half a body for a whole one; that is done here.
"""

from __future__ import annotations

import asyncio
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from keyferry.asgi.identity import user_of
from keyferry.errors import ConfigError

if TYPE_CHECKING:
    from keyferry.asgi.exchange import Message, Receive, Scope, Send

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
WORKERS: Final = 10
"""Threads of an application: so many requests are worked on at once, the others wait."""

_CALL: Final = "keyferry.wsgi"
_NAME: Final = re.compile(rb"[a-z0-9\-]+")
_REMOTE_USER: Final = b"remote-user"


class WsgiAdapter:
    """An ASGI application made of a WSGI one; it stands behind SimLogin."""

    def __init__(self, app: WsgiApp, *, workers: int = WORKERS) -> None:
        """Prepare the threads. Raises ConfigError where a2wsgi is not installed."""
        try:
            from a2wsgi import WSGIMiddleware
        except ModuleNotFoundError:
            raise ConfigError("app", "is a WSGI application, which needs a2wsgi", "Run pip install 'keyferry[wsgi]'") from None
        self._app = app
        self._bridge: Any = WSGIMiddleware(self._run, workers=workers)  # type: ignore[arg-type]  # it has types of its own for PEP 3333's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; WSGI knows no WebSockets and no lifespan."""
        if scope["type"] != "http":
            await self._bridge(scope, receive, send)
            return
        call = _Call(asyncio.get_running_loop(), receive, send)
        # Two spellings of one field are one variable in WSGI, so no more than one is let through; and who the user is, we say.
        fields = [(name, value) for name, value in scope["headers"] if _NAME.fullmatch(name) and name != _REMOTE_USER]
        work = asyncio.ensure_future(self._bridge({**scope, "headers": fields, _CALL: call}, call.receive, call.send))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            call.leave()  # the thread ends with its next read or write; cancelled, a2wsgi would leave it waiting for ever
            work.add_done_callback(_forgotten)
            raise
        except Exception:
            if not call.gone:  # else it is only what the application made of the client's leaving
                raise
        if call.problem is not None:
            raise call.problem

    def _run(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        """Call the application, in a thread."""
        scope = environ.pop("asgi.scope")
        call: _Call = scope[_CALL]
        user = user_of(scope)
        environ["keyferry.user"] = user
        if user.is_authenticated:
            environ["REMOTE_USER"] = user.id
        environ["wsgi.input"] = io.BufferedReader(_Body(call), 65_536)
        environ["wsgi.input_terminated"] = True  # a body of chunks has an end, too
        environ["wsgi.errors"] = sys.stderr
        return _sent(self._app(environ, start_response), call)


class _Call:
    """One request between the loop and the application's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Receive, send: Send) -> None:
        self.gone = False  # nobody waits for the answer any more, or may still be answered
        self.problem: Exception | None = None  # why nothing more can be sent
        self._loop = loop
        self._receive = receive
        self._send = send
        self._reading: asyncio.Future[Message] | None = None

    async def receive(self) -> Message:
        """Return a part of the body. Raises ConnectionAbortedError where no more comes."""
        if not self.gone:
            self._reading = asyncio.ensure_future(self._receive())
            await asyncio.wait({self._reading})
            if not self._reading.cancelled() and (message := self._reading.result())["type"] == "http.request":
                return message
        self.gone = True
        raise ConnectionAbortedError("the client has left, or its login has ended")

    def read(self) -> Message:
        """Return a part of the body, to the thread. Raises ConnectionAbortedError."""
        return asyncio.run_coroutine_threadsafe(self.receive(), self._loop).result()

    async def send(self, message: Message) -> None:
        """Send a part of the answer; what can no longer be sent is dropped: an error here would leave the thread waiting for ever."""
        if self.gone:
            return
        try:
            await self._send(message)
        except Exception as problem:
            self.gone, self.problem = True, problem

    def leave(self) -> None:
        """End reads and writes."""
        self.gone = True
        if self._reading is not None:
            self._reading.cancel()


class _Body(io.RawIOBase):
    """The body of a request, read in a thread as it comes."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._part = b""
        self._more = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._part and self._more:
            message = self._call.read()
            self._part, self._more = message.get("body", b""), message.get("more_body", False)
        taken, self._part = self._part[: len(buffer)], self._part[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def is_wsgi(app: Any) -> TypeGuard[WsgiApp]:
    """Tell whether an application is called as PEP 3333 says: not a coroutine, with `environ` and `start_response`."""
    if not callable(app) or inspect.isclass(app) or any(map(inspect.iscoroutinefunction, (app, type(app).__call__))):
        return False
    try:
        inspect.signature(app).bind(None, None)
    except (TypeError, ValueError):
        return False
    parameters = inspect.signature(app).parameters.values()
    return not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def _sent(parts: Iterable[bytes], call: _Call) -> Iterator[bytes]:
    """Give the parts of an answer for as long as somebody takes them."""
    try:
        for part in parts:
            if call.gone:
                return
            yield part
    finally:
        getattr(parts, "close", lambda: None)()


def _forgotten(work: asyncio.Future[None]) -> None:
    """Look at an error that nobody waits for."""
    if not work.cancelled():
        work.exception()
