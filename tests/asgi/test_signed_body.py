# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.4.3, §3.5: auth-int."""

from __future__ import annotations

from typing import Any

from asgi.doorkit import AS_ID, Answer, Client, Door, Echo, call, make_door, record
from keyferry.asgi.exchange import Message
from keyferry.protocol import digest

ALICE_KEY = record()


async def logged_in(door: Door, client: Client, *, target: str = "/notes", method: str = "GET", **wrong: Any) -> Answer:
    challenge = await door.challenge()
    return await call(door.door, method, target, [client.answer(challenge, method=method, **wrong)])


async def test_auth_int_covers_both_bodies() -> None:
    """RFC 7616 §3.4.3, §3.5."""
    door, client = make_door(ALICE_KEY, qop=("auth-int",), app=Echo(pieces=[b"one", b"two"])), Client(ALICE_KEY)
    challenge = await door.challenge()
    credentials = client.credentials(challenge, method="PUT", qop="auth-int", body=b"note")
    header = ("Authorization", digest.build_credentials(credentials))
    assert (await call(door.door, "PUT", headers=[header], body=b"nope")).status == 401
    answer = await call(door.door, "PUT", headers=[header], body=[b"no", b"", b"te"])
    assert (answer.status, answer.body, door.app.bodies) == (200, b"onetwo", [b"note"])
    info = digest.parse_authentication_info(answer.get("authentication-info") or "")
    digest.check_rspauth(info, client.ha1, credentials, algorithm="SHA-256", body=b"onetwo")


async def test_auth_int_of_head_covers_no_body() -> None:
    """RFC 9110 §9.3.2."""
    door, client = make_door(ALICE_KEY, qop=("auth-int",)), Client(ALICE_KEY)
    credentials = client.credentials(await door.challenge(), method="HEAD", qop="auth-int")
    answer = await call(door.door, "HEAD", headers=[("Authorization", digest.build_credentials(credentials))])
    info = digest.parse_authentication_info(answer.get("authentication-info") or "")
    digest.check_rspauth(info, client.ha1, credentials, algorithm="SHA-256", body=b"")


async def test_auth_int_holds_no_more_than_the_limit() -> None:
    """MAX_BODY."""
    app = Echo(pieces=[b"x" * 30, b"y" * 30, b"z"])
    door, client = make_door(ALICE_KEY, qop=("auth", "auth-int"), max_body=50, app=app), Client(ALICE_KEY)
    challenge = await door.challenge()
    header = client.answer(challenge, method="PUT", qop="auth-int", body=b"x" * 60)
    answer = await call(door.door, "PUT", headers=[header], body=[b"x" * 30, b"x" * 30])
    assert (answer.status, answer.get("connection"), door.keys.asked) == (413, "close", [])
    unsigned = await call(door.door, headers=[client.answer(challenge, qop="auth-int")])
    assert (unsigned.status, unsigned.get("authentication-info")) == (200, None)
    assert unsigned.body == b"x" * 30 + b"y" * 30 + b"z"


async def test_a_client_that_goes_away_with_auth_int_reaches_nobody() -> None:
    """ASGI http.disconnect."""
    door, client = make_door(ALICE_KEY, qop=("auth-int",)), Client(ALICE_KEY)
    header = client.answer(await door.challenge(), qop="auth-int")
    scope = {
        "type": "http",
        "scheme": "https",
        "method": "GET",
        "raw_path": b"/notes",
        "headers": [(b"host", AS_ID.encode()), (b"authorization", header[1].encode())],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await door.door(scope, receive, send)
    assert (sent[0]["status"], door.app.scopes) == (400, [])


async def test_the_application_hears_of_a_disconnect_after_a_replayed_body() -> None:
    """ASGI http.disconnect."""
    kinds = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        kinds.extend([(await receive())["type"], (await receive())["type"]])
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    door, client = make_door(ALICE_KEY, qop=("auth-int",)), Client(ALICE_KEY)
    door.door.app = app
    assert (await logged_in(door, client, qop="auth-int")).status == 200
    assert kinds == ["http.request", "http.disconnect"]
