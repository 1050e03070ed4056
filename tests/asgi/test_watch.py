# SPDX-License-Identifier: Apache-2.0
"""Answers that last longer than the login: the key is looked for now and then, and what outlives it is cut off."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from asgi.doorkit import AS_ID, Client, Door, FakeClock, FakeKeys, Pki, call, make_door, record, serving
from keyferry.asgi.admission import PSK_SCOPE
from keyferry.asgi.audit import Event
from keyferry.asgi.exchange import Message, Receive, Scope, Send
from keyferry.asgi.session import SessionCookie
from keyferry.asgi.watch import BODY_RECHECK, RECHECK, RETRY, UNKNOWN, LoginEnded, Watch, watching
from keyferry.errors import StoreError
from keyferry.protocol import digest
from keyferry.protocol.ims.key_record import PskProof
from keyferry.protocol.ims.keys import UA_TLS13_PSK
from keyferry.transports.http_server import HttpServer

KEY = record()
LOCAL = record(as_id="localhost")  # type: ignore[arg-type]
PSK = PskProof(KEY, "ims-as-key", UA_TLS13_PSK, "TLS_AES_128_GCM_SHA256")
Step = str | Callable[[], None]


# ---- the watch


class Asked:
    """Tell whether a key is there, and count who asks."""

    def __init__(self, *says: bool | Exception) -> None:
        self.says = list(says)

    async def __call__(self) -> bool:
        said = self.says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


async def test_nothing_is_asked_before_its_time() -> None:
    clock = FakeClock()
    watch = Watch(Asked(True, False), clock.monotonic)
    assert not watch.due()
    clock.time += RECHECK - 0.1
    assert not watch.due()
    clock.time += 0.1
    assert watch.due()
    await watch.check()
    assert not watch.due()
    clock.time += RECHECK
    assert watch.due()
    with pytest.raises(LoginEnded):
        await watch.check()
    assert (watch.ended, watch.due()) == ("over", True)
    with pytest.raises(OSError, match="has ended"):  # what ASGI promises for a client that is gone
        await watch.check()


async def test_a_store_that_fails_is_asked_again_soon_and_not_for_ever() -> None:
    clock = FakeClock()
    asked = Asked(*[StoreError("busy")] * 2, True, StoreError("busy"), StoreError("busy"), StoreError("busy"))
    watch = Watch(asked, clock.monotonic)
    clock.time += 10 * UNKNOWN  # silence is no failure
    assert [await watch.ask(), watch.due()] == ["", False]
    clock.time += RETRY
    assert [watch.due(), await watch.ask()] == [True, ""]
    clock.time += UNKNOWN
    assert [await watch.ask() for _ in range(2)] == ["", ""]  # it answered, so that time begins anew
    clock.time += UNKNOWN - 1
    assert await watch.ask() == ""
    clock.time += 1
    assert [await watch.ask(), await watch.ask(), asked.says] == ["store", "store", []]


# ---- behind a door


class Events:
    """An application that sends events; what is no text among them is called in its place. It may be stubborn."""

    def __init__(self, *steps: Step, stubborn: bool = False, begins: int = 0) -> None:
        self.steps = steps
        self.stubborn = stubborn
        self.begins = begins  # with which step the answer begins
        self.stopped: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for number, step in enumerate(self.steps):
            if number == self.begins:
                await self.send(send, {"type": "http.response.start", "status": 200, "headers": []})
            if isinstance(step, str):
                await self.send(send, {"type": "http.response.body", "body": step.encode(), "more_body": True})
            else:
                step()
        await self.send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def send(self, send: Send, message: Message) -> None:
        try:
            await send(message)
        except OSError as problem:
            self.stopped.append(type(problem).__name__)
            if not self.stubborn:
                raise


class Scene:
    """A door in front of events, and hands to change the world while they are sent."""

    def __init__(self, *steps: str, stubborn: bool = False, begins: int = 0, **settings: Any) -> None:
        words: dict[str, Step] = {
            "-later": self.later,
            "-gone": self.gone,
            "-broken": self.broken,
            "-long": self.long,
            "-works": self.works,
        }
        self.app = Events(*[words.get(step, step) for step in steps], stubborn=stubborn, begins=begins)
        self.audit: list[Event] = []
        self.door: Door = make_door(KEY, app=self.app, audit=self.audit.append, **settings)  # type: ignore[arg-type]
        self.sent: list[Message] = []

    def later(self) -> None:
        self.door.clock.time += RECHECK

    def long(self) -> None:
        self.door.clock.time += UNKNOWN

    def gone(self) -> None:
        self.door.keys.records.clear()

    def broken(self) -> None:
        self.door.keys.lookup_fails, self.door.keys.problem = True, StoreError("broken")

    def works(self) -> None:
        self.door.keys.lookup_fails = False

    async def run(self, **wrong: Any) -> list[str]:
        """Let a user ask; return what went out: the status, events, "end" for a whole answer."""
        challenge = await self.door.challenge()
        self.audit.clear()
        fields = [(b"host", AS_ID.encode()), (b"authorization", Client(KEY).answer(challenge, **wrong)[1].encode())]

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            self.sent.append(dict(message))

        scope: Scope = {"type": "http", "scheme": "https", "method": "GET", "path": "/notes", "raw_path": b"/notes", "query_string": b""}
        await self.door.door({**scope, "headers": fields, "client": ("192.0.2.1", 5)}, receive, send)
        bodies = [message for message in self.sent if message["type"] == "http.response.body"]
        ends = ["end"] if bodies and not bodies[-1].get("more_body", False) else []
        return [str(self.sent[0]["status"]), *[message["body"].decode() for message in bodies if message["body"]], *ends]


async def test_a_stream_ends_with_its_key() -> None:
    """The next event after the de-registration does not go out, and the answer is not made whole."""
    scene = Scene("one", "-later", "two", "-gone", "-later", "three", "four")
    assert await scene.run() == ["200", "one", "two"]
    assert scene.app.stopped == ["LoginEnded"]
    assert scene.door.counter.seen[-2:] == ["door granted", "door_ended over"]
    granted, ended = scene.audit
    assert (ended.result, ended.reason, ended.user, ended.key_id) == ("ended", "over", granted.user, granted.key_id)
    assert (ended.source, ended.method, ended.mechanism, ended.time) == ("192.0.2.1", "GET", "digest", scene.door.clock.now())


async def test_the_last_octets_are_no_exception() -> None:
    scene = Scene("one", "-gone", "-later")
    assert await scene.run() == ["200", "one"]


async def test_an_application_that_does_not_listen_sends_nothing_more() -> None:
    scene = Scene("one", "-gone", "-later", "two", "three", stubborn=True)
    assert await scene.run() == ["200", "one"]
    assert scene.app.stopped == ["LoginEnded"] * 3
    assert scene.door.counter.seen.count("door_ended over") == 1


async def test_a_short_answer_asks_nobody() -> None:
    scene = Scene("one", "-gone", "two")
    before = len(scene.door.keys.asked)
    assert await scene.run() == ["200", "one", "two", "end"]
    assert len(scene.door.keys.asked) == before + 1


async def test_a_store_that_is_down_for_a_moment_cuts_nothing_off() -> None:
    scene = Scene("one", "-broken", "-later", "two", "-works", "-later", "three")
    assert await scene.run() == ["200", "one", "two", "three", "end"]


async def test_a_store_that_stays_down_does() -> None:
    scene = Scene("one", "-broken", "-later", "two", "-long", "three")
    assert await scene.run() == ["200", "one", "two"]
    assert scene.audit[-1].reason == "store"
    assert scene.door.counter.seen[-1] == "door_ended store"


async def test_an_answer_that_has_not_begun_says_so() -> None:
    """A long poll: what it would tell belongs to nobody any more. No 401: the request may have been carried out."""
    scene = Scene("-gone", "-later", "one", begins=2)
    assert await scene.run() == ["503", "The login ended before the answer began.\n", "end"]
    assert (b"connection", b"close") in scene.sent[0]["headers"]


async def test_what_is_signed_is_watched_too() -> None:
    """Held until it is whole, then let go in parts."""
    scene = Scene("one", "-gone", "-later", "two", qop=("auth-int",))
    assert (await scene.run(qop="auth-int"))[0] == "503"


async def test_a_key_that_is_now_anothers_is_over() -> None:
    scene = Scene("one")
    other = record("bob")

    def rebound() -> None:
        scene.door.keys.records[KEY.key_id] = KEY._replace(impi=other.impi)

    scene.app.steps = ("one", rebound, scene.later, "two")
    assert await scene.run() == ["200", "one"]


async def test_a_login_ends_with_its_key_also_where_another_has_its_name() -> None:
    """Whoever proved the old K_AS has not proved the new one, whose identities are the same."""
    scene = Scene("one")

    def replaced() -> None:
        scene.door.keys.records[KEY.key_id] = KEY._replace(k_as=record("bob").k_as)

    scene.app.steps = ("one", replaced, scene.later, "two")
    assert await scene.run() == ["200", "one"]


async def test_errors_of_the_application_stay_its_own() -> None:
    def breaks() -> None:
        raise RuntimeError("of the application")

    scene = Scene("one")
    scene.app.steps = ("one", breaks)
    with pytest.raises(RuntimeError, match="of the application"):
        await scene.run()


async def test_a_session_and_an_open_path_are_watched_too() -> None:
    scene = Scene("one", session=SessionCookie(), open=("/notes",))
    challenge = (await call(scene.door.door, target="/elsewhere")).challenge()
    answer = await call(scene.door.door, headers=[Client(KEY).answer(challenge)])
    cookie = ("Cookie", (answer.get("set-cookie") or "").partition(";")[0])
    scene.app.steps = ("one", scene.gone, scene.later, "two")
    with pytest.raises(AssertionError):  # the answer has no end
        await call(scene.door.door, headers=[cookie])
    assert scene.door.counter.seen[-2:] == ["door granted", "door_ended over"]


# ---- bodies that arrive slowly


class Uploads:
    """An application that reads a body to its end, and says nothing; it may begin its answer first."""

    def __init__(self, *, begins: bool = False) -> None:
        self.begins = begins
        self.heard: asyncio.Queue[Message] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"listening", "more_body": True})
        more = True
        while more:
            message = await receive()
            self.heard.put_nowait(message)
            more = message.get("more_body", False)


@asynccontextmanager
async def uploading(door: Door, head: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Begin an upload to our own server, which is told that TLS ended before it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await door.door({**scope, "scheme": "https", **({PSK_SCOPE: PSK} if b"Authorization" not in head else {})}, receive, send)

    server = HttpServer(app)
    reader, writer = await asyncio.open_connection(*await server.listen("127.0.0.1", 0))
    try:
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        yield reader, writer
    finally:
        writer.close()
        await server.aclose()


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("way", ["digest", "psk"])
async def test_no_octet_of_a_slow_upload_reaches_the_application_after_the_end_of_its_key(way: str, begins: bool) -> None:
    """It is told that the client is gone, and the connection ends, over real sockets."""
    app = Uploads(begins=begins)
    door = make_door(KEY, app=app)  # type: ignore[arg-type]
    head = f"PUT /notes HTTP/1.1\r\nHost: {AS_ID}\r\n"
    if way == "digest":
        head += "{}: {}\r\n".format(*Client(KEY).answer(await door.challenge(), method="PUT"))
    async with asyncio.timeout(60), uploading(door, head.encode()) as (reader, writer):
        assert (await app.heard.get())["body"] == b"a"
        door.clock.time += 0.9
        writer.write(b"1\r\nb\r\n")
        assert (await app.heard.get())["body"] == b"b"  # the key lives
        door.keys.records.clear()
        door.clock.time += 0.9
        writer.write(b"1\r\nc\r\n")
        assert (await app.heard.get())["type"] == "http.disconnect"
        said = await reader.read()  # to the end of the connection
    assert said.startswith(b"HTTP/1.1 200" if begins else b"HTTP/1.1 503")
    assert not said.endswith(b"0\r\n\r\n")  # an answer that was begun is cut off
    assert door.counter.seen[-1] == "door_ended over"


async def test_the_end_of_a_body_is_no_exception_nor_is_one_that_was_signed() -> None:
    watch = Watch(Asked(True, False), (clock := FakeClock()).monotonic)
    pieces = [{"type": "http.request", "body": b"a", "more_body": True}] * 2 + [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return pieces.pop(0)

    watched = watching(receive, watch)
    for expected in ("http.request", "http.request", "http.disconnect", "http.disconnect"):
        assert (await watched())["type"] == expected
        clock.time += BODY_RECHECK
    assert watch.due()  # nothing is sent any more


# ---- over the wire


async def read_until_cut(port: int, pki: Pki, door: Door, go_on: asyncio.Event) -> tuple[bytes, str]:
    """Read a stream, take the key away after its first piece; return what came in all, and how it ended."""
    tls = ssl.create_default_context(cafile=str(pki.path))
    got, url = b"", f"https://localhost:{port}/stream"
    async with httpx.AsyncClient(verify=tls, trust_env=False) as client:
        challenge = (await client.get(url)).headers["www-authenticate"]
        field = Client(LOCAL).answer(digest.parse_challenge(challenge), uri="/stream")
        try:
            async with client.stream("GET", url, headers=[field]) as response:
                async for piece in response.aiter_raw():
                    got += piece
                    door.keys.records.clear()
                    door.clock.time += RECHECK
                    go_on.set()
        except httpx.RemoteProtocolError:
            return got, "cut off"
    return got, "whole"


def raw(go_on: asyncio.Event) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def starlette(go_on: asyncio.Event) -> Starlette:
    async def events() -> Any:
        yield b"one"
        await go_on.wait()
        yield b"two"

    async def stream(_request: Any) -> StreamingResponse:
        return StreamingResponse(events())

    return Starlette(routes=[Route("/stream", stream)])


@pytest.mark.parametrize("make", [raw, starlette])
async def test_the_client_sees_an_answer_that_is_cut_off(make: Any, tmp_path: Path) -> None:
    """By uvicorn over TLS: no last chunk, so no client takes what it has for the whole."""
    pki, go_on = Pki(tmp_path), asyncio.Event()
    door = make_door(app=make(go_on), keys=FakeKeys(LOCAL), as_id="localhost")
    async with serving(door.door, pki.issue("localhost", "server")) as port:
        assert await asyncio.wait_for(read_until_cut(port, pki, door, go_on), 60) == (b"one", "cut off")
    assert door.counter.seen[-1] == "door_ended over"
