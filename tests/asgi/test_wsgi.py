# SPDX-License-Identifier: Apache-2.0
"""WSGI applications behind SIM login: who the user is, bodies that stream, a login that ends, a loop that goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from flask import Flask, request

from keyferry.asgi.exchange import Message
from keyferry.asgi.identity import SimUser
from keyferry.asgi.notes import Notes
from keyferry.asgi.wsgi import WsgiAdapter, is_wsgi

LIMIT = 60
Start = Callable[..., Any]
app = Flask(__name__)


@app.post("/form")
def form() -> dict[str, object]:
    """Show what a handler sees."""
    headers = sorted(name for name, _ in request.headers)
    return {
        "user": request.remote_user,
        "name": request.environ["keyferry.user"].display_name,
        "body": request.data.decode(),
        "sees": headers,
    }


class Wire:
    """What a server does for one request: parts of a body that come when they come, and an answer."""

    def __init__(self, *headers: tuple[bytes, bytes], user: SimUser | None = None, method: str = "POST") -> None:
        self.parts: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.scope: dict[str, Any] = {
            "type": "http", "http_version": "1.1", "method": method, "path": "/form", "query_string": b"", "headers": list(headers),
            "scheme": "https", "user": user or SimUser("the-id", ["sip:alice@home1.net"]),
        }  # fmt: skip

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def part(self, octets: bytes, *, more: bool = True) -> None:
        self.parts.put_nowait({"type": "http.request", "body": octets, "more_body": more})

    def run(self, application: WsgiAdapter) -> asyncio.Task[None]:
        return asyncio.ensure_future(application(self.scope, self.parts.get, self.send))

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def test_flask_sees_the_user_and_a_body_in_chunks() -> None:
    wire = Wire((b"transfer-encoding", b"chunked"))
    work = wire.run(WsgiAdapter(app))
    wire.part(b"one ")
    wire.part(b"two", more=False)
    await asyncio.wait_for(work, LIMIT)
    assert b'"body":"one two"' in wire.body
    assert b'"user":"the-id"' in wire.body
    assert b'"name":"sip:alice@home1.net"' in wire.body


@pytest.mark.parametrize("field", [b"remote-user", b"remote_user", b"keyferry.user", b"x_keyferry_user"])
@pytest.mark.parametrize("user", [SimUser(), SimUser("the-id")])
async def test_a_client_does_not_name_itself(field: bytes, user: SimUser) -> None:
    wire = Wire((field, b"somebody-else"), (b"content-length", b"0"), user=user)
    seen: list[dict[str, Any]] = []

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        seen.append(environ)
        start("200 OK", [])
        return [b""]

    wire.part(b"", more=False)
    await asyncio.wait_for(wire.run(WsgiAdapter(application)), LIMIT)
    assert "somebody-else" not in map(str, seen[0].values())
    assert seen[0].get("REMOTE_USER") == (user.id or None)
    assert seen[0]["keyferry.user"] is user


async def test_the_end_of_a_login_ends_the_read_of_a_body() -> None:
    """a2wsgi would take what has come for the whole body."""
    wire, said = Wire((b"transfer-encoding", b"chunked")), []

    def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        assert environ["wsgi.input"].read(4) == b"half"
        try:
            environ["wsgi.input"].read()
            said.append("a whole body")
        except ConnectionAbortedError:
            said.append("ended")
            raise
        return []

    wire.part(b"half")
    work = wire.run(WsgiAdapter(application))
    wire.parts.put_nowait({"type": "http.disconnect"})
    await asyncio.wait_for(work, LIMIT)
    assert said == ["ended"]
    assert wire.sent == []


async def test_a_request_that_is_cancelled_leaves_no_thread_behind() -> None:
    """While the application reads, and while it writes what nobody takes; one thread in all, so that the next request would wait for it."""
    bridge, wire = WsgiAdapter(app, workers=1), Wire((b"transfer-encoding", b"chunked"))
    work = wire.run(bridge)
    wire.part(b"half")
    while not wire.parts.empty():
        await asyncio.sleep(0)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    again = Wire((b"content-length", b"3"))
    again.part(b"one", more=False)
    await asyncio.wait_for(again.run(bridge), LIMIT)
    assert b'"body":"one"' in again.body


@pytest.mark.parametrize("raises", [False, True])
async def test_an_answer_without_end_ends_when_nobody_takes_it(raises: bool) -> None:
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            closed.set()

    def application(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        start("200 OK", [])
        return endless()

    class Gone(Exception):
        """What the door raises where a login has ended."""

    wire, taken = Wire(), asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            taken.set()
            if raises:
                raise Gone
            await asyncio.Event().wait()

    work = asyncio.ensure_future(WsgiAdapter(application)(wire.scope, wire.parts.get, send))
    await asyncio.wait_for(taken.wait(), LIMIT)
    if not raises:
        work.cancel()
    outcome = await asyncio.wait_for(asyncio.gather(work, return_exceptions=True), LIMIT)
    assert isinstance(outcome[0], Gone if raises else asyncio.CancelledError)
    assert await asyncio.to_thread(closed.wait, LIMIT)


async def test_a_slow_application_does_not_stop_the_loop() -> None:
    goes_on, wire = threading.Event(), Wire()

    def application(_environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        assert goes_on.wait(LIMIT)
        start("200 OK", [])
        return [b"done"]

    work = wire.run(WsgiAdapter(application))
    for _ in range(100):
        await asyncio.sleep(0)
    goes_on.set()  # by the loop: it turns while the application waits
    await asyncio.wait_for(work, LIMIT)
    assert wire.body == b"done"


async def test_an_error_of_the_application_is_the_servers_to_see() -> None:
    def application(_environ: dict[str, Any], _start: Start) -> Iterable[bytes]:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await asyncio.wait_for(Wire().run(WsgiAdapter(application)), LIMIT)


def test_what_is_wsgi_is_seen() -> None:
    async def asgi(scope: object, receive: object, send: object) -> None: ...

    def plain(scope: object, receive: object, send: object) -> None: ...

    def anything(*arguments: object) -> None: ...

    class Django:
        def __call__(self, environ: object, start_response: object) -> list[bytes]:
            return []

    assert [is_wsgi(one) for one in (app, Django())] == [True, True]
    assert [is_wsgi(one) for one in (asgi, plain, anything, Notes(), Django, None)] == [False] * 6
