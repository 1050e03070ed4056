# SPDX-License-Identifier: Apache-2.0
"""Websockets behind a login (RFC 6455)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from asgi.doorkit import AS_ID, Client, Door, call, make_door, record
from keyferry.asgi.admission import PSK_SCOPE
from keyferry.asgi.exchange import Message, Receive, Scope, Send
from keyferry.asgi.session import SessionCookie
from keyferry.asgi.watch import RECHECK, RETRY, UNKNOWN
from keyferry.errors import StoreError
from keyferry.ports import KeyRecord
from keyferry.protocol import digest

ALICE_KEY = record()
WHOLE: dict[str, Any] = {"websocket.http.response": {}}
HERE = ("Origin", f"https://{AS_ID}")


class Psk(NamedTuple):
    """What a handshake proved."""

    record: KeyRecord
    source: str = "ims-as-key"


def over(held: KeyRecord) -> dict[str, Any]:
    """Return what a connection adds to a scope."""
    return {PSK_SCOPE: Psk(held)}


class Chat:
    """An application that echoes, and says what it saw."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self.seen: list[Message] = []
        self.says_more = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        self.users.append(scope["user"].display_name)
        self.seen.append(await receive())
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            self.seen.append(message)
            if message["type"] == "websocket.disconnect":
                break
            await send({"type": "websocket.send", "text": message["text"]})
        for _ in range(self.says_more):
            await send({"type": "websocket.send", "text": "more"})


async def talk(door: Door, headers: Sequence[tuple[str, str]] = (), messages: Sequence[Any] = ("hello",), **scope: Any) -> list[Message]:
    """Open a socket and say something; a callable among the messages is called in its place."""
    incoming = ["connect", *messages, "disconnect"]
    sent: list[Message] = []

    async def receive() -> Message:
        while callable(incoming[0]):
            incoming.pop(0)()
        word = incoming.pop(0)
        if word in {"connect", "disconnect"}:
            return {"type": f"websocket.{word}"}
        return {"type": "websocket.receive", "text": word}

    async def send(message: Message) -> None:
        sent.append(dict(message))

    fields = [(b"host", AS_ID.encode())] + [(name.lower().encode(), value.encode()) for name, value in headers]
    basis = {"type": "websocket", "scheme": "wss", "path": "/chat", "raw_path": b"/chat", "query_string": b"", "headers": fields}
    await door.door({**basis, **scope}, receive, send)
    return sent


def chat(**settings: Any) -> tuple[Door, Chat]:
    app = Chat()
    return make_door(ALICE_KEY, app=app, **settings), app  # type: ignore[arg-type]


async def answer(door: Door, **wrong: Any) -> tuple[str, str]:
    return Client(ALICE_KEY).answer(await door.challenge(), uri="/chat", **wrong)


async def test_digest_in_the_upgrade_request_opens_a_socket() -> None:
    door, app = chat()
    sent = await talk(door, [await answer(door)])
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send"]
    assert app.users == ["sip:alice@home1.net"]


async def test_so_do_the_connection_and_the_session_of_a_page_of_this_site() -> None:
    door, app = chat(session=SessionCookie())
    assert (await talk(door, **over(ALICE_KEY)))[0]["type"] == "websocket.accept"
    sent = await talk(door, [await answer(door)])
    kept = ("Cookie", dict(sent[0]["headers"])[b"set-cookie"].decode().partition(";")[0])
    assert (await talk(door, [kept, HERE]))[0]["type"] == "websocket.accept"
    assert app.users == ["sip:alice@home1.net"] * 3
    for headers in ([kept], [kept, ("Origin", "https://evil.example")]):
        assert [message["type"] for message in await talk(door, headers)] == ["websocket.close"]
    assert len(app.users) == 3


async def test_who_proves_nothing_is_refused_before_the_socket_opens() -> None:
    door, app = chat()
    for headers in ([], [await answer(door, ha1=Client(record("bob")).ha1)]):
        assert await talk(door, headers) == [{"type": "websocket.close", "code": 1008}]
    assert await talk(door, scheme="ws") == [{"type": "websocket.close", "code": 1008}]
    assert app.users == []


async def test_where_the_server_can_the_refusal_is_a_whole_answer_with_a_challenge() -> None:
    door, _app = chat()
    start, body = await talk(door, extensions=WHOLE)
    assert (start["type"], start["status"], body["type"]) == ("websocket.http.response.start", 401, "websocket.http.response.body")
    challenge = digest.parse_challenge(dict(start["headers"])[b"www-authenticate"].decode())
    sent = await talk(door, [Client(ALICE_KEY).answer(challenge, uri="/chat")], extensions=WHOLE)
    assert sent[0]["type"] == "websocket.accept"
    door.keys.lookup_fails = True
    start, _body = await talk(door, [await answer(door)], extensions=WHOLE)
    assert start["status"] == 503


async def test_auth_int_signs_the_empty_body_and_eats_no_message() -> None:
    door, app = chat(qop=("auth", "auth-int"))
    await talk(door, [await answer(door, qop="auth-int", body=b"")])
    assert [message["type"] for message in app.seen] == ["websocket.connect", "websocket.receive", "websocket.disconnect"]


async def test_an_open_path_takes_everybody() -> None:
    door, app = chat(open=("/chat",))
    assert (await talk(door, scheme="ws"))[0]["type"] == "websocket.accept"
    assert app.users == [""]


async def test_a_socket_ends_with_its_key() -> None:
    """The de-registration erases the key; what comes or goes later finds the socket closed."""
    door, app = chat()
    app.says_more = 2

    def deregister() -> None:
        door.keys.records.clear()
        door.clock.time += RECHECK

    sent = await talk(door, [await answer(door)], ["one", deregister, "two", "three"])
    assert [message.get("text", message["type"]) for message in sent] == ["websocket.accept", "one", "websocket.close"]
    assert sent[-1]["code"] == 1008
    assert [message.get("text", message["type"]) for message in app.seen] == ["websocket.connect", "one", "websocket.disconnect"]


async def test_it_goes_on_while_the_key_is_there_or_nobody_knows() -> None:
    door, _app = chat()

    def later() -> None:
        door.clock.time += RECHECK

    def broken() -> None:
        later()
        door.keys.lookup_fails, door.keys.problem = True, StoreError("broken")

    sent = await talk(door, [await answer(door)], ["one", later, "two", broken, "three"])
    assert [message["text"] for message in sent[1:]] == ["one", "two", "three"]


async def test_a_store_that_does_not_answer_keeps_no_socket_open_for_ever() -> None:
    """Whoever was de-registered meanwhile would stay in as long as the store is down."""
    door, app = chat()
    door.keys.problem = StoreError("broken")

    def broken() -> None:
        door.clock.time += RECHECK
        door.keys.lookup_fails = True

    def later() -> None:
        door.clock.time += UNKNOWN

    sent = await talk(door, [await answer(door)], ["one", broken, "two", later, "three", "four"])
    assert [message.get("text", message["type"]) for message in sent] == ["websocket.accept", "one", "two", "websocket.close"]
    assert sent[-1]["code"] == 1013
    assert app.seen[-1] == {"type": "websocket.disconnect", "code": 1013}
    assert door.counter.seen[-1] == "door_ended store"


async def test_a_store_that_comes_back_in_time_ends_nothing() -> None:
    door, _app = chat()
    door.keys.problem = StoreError("broken")

    def turns(*, fails: bool, passed: float) -> Callable[[], None]:
        def turn() -> None:
            door.clock.time += passed
            door.keys.lookup_fails = fails

        return turn

    steps = [turns(fails=True, passed=RECHECK), turns(fails=False, passed=UNKNOWN), turns(fails=True, passed=RECHECK)]
    steps += [turns(fails=True, passed=RETRY), turns(fails=True, passed=UNKNOWN - RETRY - 1)]
    sent = await talk(door, [await answer(door)], [word for step in steps for word in (step, "hello")])
    assert [message.get("text") for message in sent[1:]] == ["hello"] * 5


async def test_what_the_application_says_meets_a_closed_socket_too() -> None:
    door, app = chat()
    app.says_more = 1

    def deregister() -> None:
        door.keys.records.clear()
        door.clock.time += RECHECK

    sent = await talk(door, [await answer(door)], ["one", deregister])
    assert sent[-1]["type"] == "websocket.close"


async def test_a_socket_is_counted_like_a_request() -> None:
    door, _app = chat()
    await talk(door)
    await talk(door, [await answer(door)])
    assert door.counter.seen == ["door challenge", "door challenge", "door granted"]
    assert (await call(door.door)).status == 401
