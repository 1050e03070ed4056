# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.4.3, §3.5: auth-int."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi.doorkit import AS_ID, Answer, Client, Door, Echo, Pki, call, make_door, record, serving
from keyferry.asgi.exchange import Message, Receive, Scope, Send, read_body, respond
from keyferry.asgi.signed_body import MEMORY, HeldBody, Room, SignedResponse, replayed, take_body
from keyferry.errors import ConfigError, DigestRejected, RemoteProtocolError
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId

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
    credentials = client.credentials(challenge, qop="auth-int")
    unsigned = await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))])
    assert (unsigned.status, unsigned.body) == (200, b"x" * 30 + b"y" * 30 + b"z")
    info = digest.parse_authentication_info(unsigned.get("authentication-info") or "")
    assert info.qop == "auth"  # it says that the body is not signed
    with pytest.raises(DigestRejected):
        digest.check_rspauth(info, client.ha1, credentials, algorithm="SHA-256", body=unsigned.body)
    digest.check_rspauth(info, client.ha1, dataclasses.replace(credentials, qop="auth"), algorithm="SHA-256")


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


def rooms_of(door: Door) -> list[Any]:
    """Return what the bodies of a door take."""
    place = door.door._doors[AS_ID]
    return [(room.left, room._held, room._arriving) for room in (place._room, place._answers)]


# ---- streaming


def held(limit: int = 1_000_000, room: Room | None = None, holder: str = "") -> HeldBody:
    return HeldBody(limit, room or Room(), digest.body_hasher("SHA-256"), holder)


def arriving(*messages: Message) -> Any:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    return receive


def request(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def drain(receive: Any) -> tuple[bytes, int]:
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts), len(parts)


@pytest.mark.parametrize("octets", [0, 1, MEMORY, MEMORY + 1, 5 * MEMORY + 7])
async def test_a_body_is_hashed_as_it_arrives_and_comes_out_in_parts(octets: int) -> None:
    """No part of it is in memory twice, and none of it is lost."""
    whole = hashlib.shake_128(b"body").digest(octets)
    body, pieces = held(), [whole[at : at + 4096] for at in range(0, octets, 4096)]
    await take_body({"headers": []}, arriving(*(request(piece, more=True) for piece in pieces), request(b"")), body, 1_000_000)
    assert body.hash == hashlib.sha256(whole).hexdigest()
    got, parts = await drain(replayed(body, arriving()))
    assert (got, parts) == (whole, max(1, -(-octets // MEMORY)))
    body.close()


async def test_what_comes_after_a_body_is_heard() -> None:
    """ASGI http.disconnect."""
    body = held()
    await take_body({"headers": []}, arriving(request(b"x")), body, 9)
    receive = replayed(body, arriving())
    assert [(await receive())["type"], (await receive())["type"]] == ["http.request", "http.disconnect"]


async def test_a_large_body_lies_in_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nobody else can open it, and nothing is left of it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    body = held()
    body.add(b"x" * MEMORY)
    assert body._file is not None
    assert not body._file._rolled  # type: ignore[attr-defined]
    body.add(b"x")
    assert body._file._rolled  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []
    body.close()


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"11")]])
async def test_a_body_over_the_limit_is_refused_as_soon_as_it_is_known(headers: list[tuple[bytes, bytes]]) -> None:
    """RFC 9110 §15.5.14: by its announced length before any of it is read, so that no 100 Continue is sent."""
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        return request(b"x" * 6, more=True)

    with pytest.raises(RemoteProtocolError) as caught:
        await take_body({"headers": headers}, receive, held(10), 10)
    assert (caught.value.status, asked) == (413, 0 if headers else 2)


async def test_all_bodies_together_have_a_limit_and_give_it_back() -> None:
    """ALL_BODIES: senders are not known yet."""
    room = Room(100, 80)
    one, two = held(80, room, "a"), held(80, room, "b")
    one.add(b"x" * 60)
    with pytest.raises(RemoteProtocolError) as caught:
        two.add(b"x" * 41)
    assert caught.value.status == 503
    one.close()
    one.close()
    three = held(80, room, "c")
    three.add(b"x" * 80)
    del three
    assert (room.left, room._held) == (100, {})


def test_nobody_holds_more_than_a_share_but_one_body_of_full_length() -> None:
    """SHARES."""
    room = Room(100)
    whole = held(25, room, "a")
    whole.add(b"x" * 25)
    with pytest.raises(RemoteProtocolError):
        held(25, room, "a").add(b"x")
    held(25, room, "b").add(b"x" * 25)
    held(70, Room(100, 70), "a").add(b"x" * 70)


def arriving_from(holder: str, room: Room) -> HeldBody:
    return HeldBody(100, room, digest.body_hasher("SHA-256"), holder, gives_way=True)


def gave_way(body: HeldBody) -> bool:
    """Tell whether a body gave way, and whether nothing can be done with it then."""
    if body.octets:
        return False
    uses: list[Callable[[], None]] = [lambda: body.add(b"x"), lambda: body.add(b""), lambda: body.keep("user")]
    for use in uses:
        with pytest.raises(RemoteProtocolError) as caught:
            use()
        assert caught.value.status == 503
    return True


def test_at_an_address_with_its_share_the_body_that_began_first_gives_way() -> None:
    """Whoever sends slowly loses; a neighbour's new body finds room."""
    room = Room(400)
    slow, other, elsewhere = arriving_from("a", room), arriving_from("a", room), arriving_from("b", room)
    for body in (elsewhere, slow, other):
        body.add(b"x" * 40)
    slow.add(b"x")
    new = arriving_from("a", room)
    new.add(b"x" * 30)
    assert [gave_way(body) for body in (slow, other, elsewhere, new)] == [True, False, False, False]
    assert room.left == 400 - 110
    new.keep("alice")  # proven: it counts against her, and gives way to nobody
    last = arriving_from("a", room)
    last.add(b"x" * 90)
    assert [gave_way(body) for body in (other, new)] == [True, False]
    for body in (elsewhere, new, last):
        body.close()
    assert (room.left, room._held, room._arriving) == (400, {}, {})


def test_in_a_full_room_a_body_of_the_address_that_has_most_gives_way() -> None:
    """Four addresses of one attacker hold no room that others need."""
    room = Room(100, 50)
    small, large, larger = arriving_from("a", room), arriving_from("b", room), arriving_from("b", room)
    for body, octets in ((small, 40), (large, 20), (larger, 30)):
        body.add(b"x" * octets)
    new = arriving_from("c", room)
    new.add(b"x" * 30)
    assert [gave_way(body) for body in (small, large, larger, new)] == [False, True, False, False]
    with pytest.raises(RemoteProtocolError):  # itself the largest, it makes nobody go
        small.add(b"x" * 10)


def test_a_user_has_a_share_too() -> None:
    """A right proof takes no more than that from others."""
    room = Room(100, 50)
    bodies = [arriving_from(name, room) for name in "ab"]
    for body in bodies:
        body.add(b"x" * 30)
    bodies[0].keep("alice")
    with pytest.raises(RemoteProtocolError, match="of this user"):
        bodies[1].keep("alice")
    bodies[1].keep("bob")
    with pytest.raises(RemoteProtocolError):
        arriving_from("c", room).add(b"x" * 50)
    for body in bodies:
        body.close()
    assert (room.left, room._held, room._arriving) == (100, {}, {})


async def test_a_slow_body_ends() -> None:
    """BODY_TIME; the clock of the loop, since a real one is what a slow sender plays on."""

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(RemoteProtocolError) as caught:
        await take_body({"headers": []}, receive, held(), 10, 0.01)
    assert caught.value.status == 408


async def test_a_body_that_was_too_slow_can_give_way_still() -> None:
    """Its time may be over, and the task not yet told, when another one's body needs the room: that one must not fail."""
    room = Room(100, 100)
    slow, other = (HeldBody(100, room, hashlib.sha256(), holder, gives_way=True) for holder in ("a", "b"))
    slow.add(b"x" * 60)

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    waiting = asyncio.get_running_loop().create_task(take_body({"headers": []}, never, slow, 100, 0.0))
    await asyncio.sleep(0)  # from here on its time is over in the loop's next turn
    asyncio.get_running_loop().call_soon(other.add, b"y" * 60)
    with pytest.raises(RemoteProtocolError) as caught:
        await waiting
    assert caught.value.status == 503
    assert other.octets == 60


async def test_a_full_disk_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is refused, and the next one may find room."""

    def full(*, max_size: int) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", full)
    with pytest.raises(RemoteProtocolError) as caught:
        held().add(b"x")
    assert caught.value.status == 503


async def test_a_refused_body_gives_its_room_back() -> None:
    """Whatever is wrong with the request: a stranger must not fill the door."""
    door, client = make_door(ALICE_KEY, qop=("auth-int",), max_body=50), Client(ALICE_KEY)
    before = rooms_of(door)
    challenge = await door.challenge()
    for count, (body, status) in enumerate([(b"note", 200), (b"nope", 401), (b"x" * 60, 413)], 1):
        header = client.answer(challenge, count, method="PUT", qop="auth-int", body=b"note")
        assert (await call(door.door, "PUT", headers=[header], body=[body])).status == status
    door.keys.lookup_fails = True
    header = client.answer(challenge, 9, method="PUT", qop="auth-int", body=b"note")
    assert (await call(door.door, "PUT", headers=[header], body=b"note")).status == 503
    assert rooms_of(door) == before


async def test_an_application_that_fails_sends_nothing_and_holds_nothing() -> None:
    """The HTTP server answers 500 by itself."""
    door, client = make_door(ALICE_KEY, qop=("auth-int",)), Client(ALICE_KEY)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["extensions"] == {}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError

    door.door.app = app
    before = rooms_of(door)
    with pytest.raises(ValueError):
        await call(door.door, headers=[client.answer(await door.challenge(), qop="auth-int")])
    assert rooms_of(door) == before


async def test_a_large_response_is_signed_in_front_of_its_body() -> None:
    """RFC 7616 §3.5."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    response = SignedResponse(send, lambda body_hash: (body_hash or "none").encode(), held(), head=False)
    await response({"type": "http.response.start", "status": 200})
    for _ in range(3):
        await response({"type": "http.response.body", "body": b"x" * MEMORY, "more_body": True})
        assert sent == []
    await response({"type": "http.response.body"})
    expected = hashlib.sha256(b"x" * 3 * MEMORY).hexdigest().encode()
    assert sent[0]["headers"] == [(b"authentication-info", expected)]
    assert [(len(part["body"]), part["more_body"]) for part in sent[1:]] == [(MEMORY, True), (MEMORY, True), (MEMORY, False)]


def test_auth_int_goes_with_sha_256_alone() -> None:
    """Issue of the door: MD5 protects no body."""
    with pytest.raises(ConfigError, match="auth-int"):
        make_door(qop=("auth-int",), algorithms=("SHA-256", "MD5"))


async def test_md5_with_auth_int_is_not_taken() -> None:
    """It was not offered either."""
    door, client = make_door(ALICE_KEY, qop=("auth", "auth-int"), algorithms=("SHA-256", "MD5")), Client(ALICE_KEY, "MD5")
    first, second = (digest.parse_challenge(text) for text in (await call(door.door)).all("www-authenticate"))
    assert (first.qop, second.qop) == (("auth", "auth-int"), ("auth",))
    answer = await call(door.door, headers=[client.answer(second, qop="auth-int")])
    assert (answer.status, door.counter.seen[-1]) == (401, "door qop")


async def test_three_megabytes_each_way_over_a_network(tmp_path: Path) -> None:
    """uvicorn, TLS, chunks as they come; a changed octet never reaches the application, and one announced too long is not read."""
    held = record(as_id=AsId("localhost"))
    asked: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, 4_000_000)
        asked.append(len(body))
        await respond(send, 200, body[::-1])

    door = make_door(held, as_id="localhost", qop=("auth-int",), max_body=3_500_000)
    door.door.app = app
    pki = Pki(tmp_path)
    whole = hashlib.shake_128(b"whole").digest(3_000_000)
    async with serving(door.door, pki.issue("localhost", "server")) as port, httpx.AsyncClient(verify=pki.trust()) as client:
        url = f"https://localhost:{port}/notes"
        challenge = digest.parse_challenge((await client.get(url)).headers["www-authenticate"])
        for count, (body, status) in enumerate([(whole, 200), (whole[:-1] + b"x", 401)], 1):
            credentials = Client(held).credentials(challenge, count, method="PUT", qop="auth-int", body=whole)
            answer = await client.put(url, content=body, headers={"Authorization": digest.build_credentials(credentials)})
            assert answer.status_code == status
            if status == 200:
                info = digest.parse_authentication_info(answer.headers["authentication-info"])
                digest.check_rspauth(info, Client(held).ha1, credentials, algorithm="SHA-256", body=whole[::-1])
                assert answer.content == whole[::-1]
        # Who waits for 100 Continue is told 413 in its place, and sends nothing in vain.
        value = Client(held).answer(challenge, 9, method="PUT", qop="auth-int")[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pki.trust(), server_hostname="localhost")
        head = (
            f"PUT /notes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\nExpect: 100-continue\r\nAuthorization: {value}\r\n\r\n"
        )
        writer.write(head.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()
    assert asked == [3_000_000]
