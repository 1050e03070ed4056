# SPDX-License-Identifier: Apache-2.0
"""Bodies under auth-int that strangers send slowly, or never to the end: they keep nobody out, be it from the same address."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi.doorkit import AS_ID, Client, Door, Echo, FakeRandom, Pki, call, make_door, record, serving
from asgi.test_signed_body import rooms_of
from keyferry.asgi import signed_body
from keyferry.asgi.door import MAX_BODY
from keyferry.asgi.exchange import Message, Receive, Scope, Send, read_body, respond
from keyferry.asgi.limits import FailureLimits
from keyferry.client.http_auth import SimDigest
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys

ALICE_KEY, BOB_KEY = record(), record("bob")
NAT: dict[str, Any] = {"client": ("192.0.2.1", 1)}
ELSEWHERE: dict[str, Any] = {"client": ("198.51.100.1", 1)}
LARGE = 100_000
EMPTY: list[Any] = [(4 * LARGE, {}, {})] * 2


def make(**settings: Any) -> Door:
    limits = FailureLimits(burst=2, per_second=0.001, at_once=2)
    return make_door(ALICE_KEY, BOB_KEY, qop=("auth", "auth-int"), max_body=LARGE, limits=limits, **settings)


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bodies of full length, and as much for answers."""
    monkeypatch.setattr(signed_body.Room.__init__, "__defaults__", (4 * LARGE, 0))


class Slow:
    """Requests with a guessed response, whose bodies stop before their end."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._waiting: list[asyncio.Task[None]] = []
        self.statuses: list[int] = []
        self._ends = asyncio.Event()

    async def begin(self, octets: int, **scope: Any) -> None:
        """Send so many octets, and then wait."""
        header = Client(ALICE_KEY).answer(await self._door.challenge(), method="PUT", qop="auth-int", ha1=Client(BOB_KEY).ha1)
        parts: list[Message] = [{"type": "http.request", "body": b"x" * octets, "more_body": True}]
        stopped = asyncio.Event()

        async def receive() -> Message:
            if parts:
                return parts.pop(0)
            stopped.set()
            await self._ends.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])

        fields = [(b"host", AS_ID.encode()), (b"authorization", header[1].encode())]
        basis = {"type": "http", "scheme": "https", "method": "PUT", "path": "/notes", "raw_path": b"/notes", "headers": fields}
        task = asyncio.create_task(self._door.door({**basis, **scope}, receive, send))
        self._waiting.append(task)
        task.add_done_callback(lambda _: stopped.set())
        async with asyncio.timeout(60):
            await stopped.wait()

    async def end(self) -> None:
        self._ends.set()
        await asyncio.gather(*self._waiting)


@contextlib.asynccontextmanager
async def slow_clients(door: Door) -> AsyncIterator[Slow]:
    slow = Slow(door)
    yield slow
    await slow.end()
    assert rooms_of(door) == EMPTY


def upload(challenge: digest.Challenge, body: bytes, count: int = 1) -> tuple[str, str]:
    return Client(BOB_KEY).answer(challenge, count, method="PUT", qop="auth-int", body=body)


small = pytest.mark.usefixtures("small_room")


@small
async def test_slow_bodies_take_no_turns_from_neighbours() -> None:
    """Over the limit a few requests at a time are looked into: those that are here whole."""
    door = make()
    for _ in range(20):
        await call(door.door, headers=[("Authorization", "Digest x")], **NAT)
    async with slow_clients(door) as slow:
        for _ in range(10):
            await slow.begin(10, **NAT)
        challenge = await door.challenge()
        async with asyncio.timeout(60):
            assert (await call(door.door, headers=[Client(BOB_KEY).answer(challenge)], **NAT)).status == 200
            assert (await call(door.door, "PUT", headers=[upload(challenge, b"note", 2)], body=b"note", **NAT)).status == 200
    assert set(slow.statuses) == {401, 429}


@small
async def test_slow_bodies_take_no_room_from_neighbours() -> None:
    """The address has its share: the bodies that began first give way to the upload of a neighbour, of full length."""
    door = make()
    whole = b"y" * LARGE
    async with slow_clients(door) as slow:
        for _ in range(5):
            await slow.begin(LARGE // 2, **NAT)
        pieces = [whole[at : at + 1000] for at in range(0, LARGE, 1000)]
        answer = await call(door.door, "PUT", headers=[upload(await door.challenge(), whole)], body=pieces, **NAT)
        assert (answer.status, door.app.bodies) == (200, [whole[: signed_body.MEMORY]])
        for _ in range(10):
            await asyncio.sleep(0)
        assert slow.statuses == [503] * 5  # at once, though nothing more has come of them
    assert door.counter.seen.count("door room") == 5


@small
async def test_slow_bodies_of_many_addresses_take_no_room_from_others() -> None:
    door = make()
    async with slow_clients(door) as slow:
        for number in range(8):
            await slow.begin(LARGE // 2, client=(f"192.0.2.{number}", 1))
        answer = await call(door.door, "PUT", headers=[upload(await door.challenge(), b"y" * 60_000)], body=b"y" * 60_000, **ELSEWHERE)
        assert answer.status == 200
    assert sorted(slow.statuses) == [401] * 6 + [503] * 2


@small
async def test_no_request_takes_the_room_of_an_answer() -> None:
    """Else a stranger could have bodies of answers to others go out unsigned."""
    door = make(app=Echo(pieces=[b"z" * LARGE]))
    async with slow_clients(door) as slow:
        for number in range(4):
            await slow.begin(LARGE, client=(f"192.0.2.{number}", 1))
        credentials = Client(BOB_KEY).credentials(await door.challenge(), qop="auth-int")
        answer = await call(door.door, headers=[("Authorization", digest.build_credentials(credentials))], **ELSEWHERE)
    info = digest.parse_authentication_info(str(answer.get("authentication-info")))
    assert info.qop == "auth-int"
    digest.check_rspauth(info, Client(BOB_KEY).ha1, credentials, algorithm="SHA-256", body=b"z" * LARGE)


@small
async def test_a_body_that_gave_way_before_its_turn_reaches_nobody() -> None:
    """It has its right hash still, but not its octets any more; and no count is taken."""
    door = make()
    challenge, whole = await door.challenge(), b"y" * LARGE
    lookup = door.keys.lookup

    async def slowly(*asked: Any) -> Any:
        room = door.door._doors[AS_ID]._room
        next(iter(room._arriving["192.0.2.1"])).give_way()
        return await lookup(*asked)

    door.keys.lookup = slowly  # type: ignore[method-assign, assignment]
    answer = await call(door.door, "PUT", headers=[upload(challenge, whole)], body=whole, **NAT)
    assert (answer.status, answer.get("retry-after"), answer.get("connection"), door.app.scopes) == (503, "1", None, [])
    door.keys.lookup = lookup  # type: ignore[method-assign]
    assert (await call(door.door, "PUT", headers=[upload(challenge, whole)], body=whole, **NAT)).status == 200
    assert rooms_of(door) == EMPTY


@small
async def test_a_refused_body_counts_against_its_address_and_one_without_room_does_not() -> None:
    door = make()
    challenge = await door.challenge()
    for _ in range(3):
        assert (await call(door.door, "PUT", headers=[upload(challenge, b"")], body=b"x" * (LARGE + 1), **NAT)).status == 413
    assert (await call(door.door, headers=[("Authorization", "Digest x")], **NAT)).status == 429
    door.door._doors[AS_ID]._room.left = 0
    for _ in range(3):
        answer = await call(door.door, "PUT", headers=[upload(challenge, b"x")], body=b"x", **ELSEWHERE)
        assert (answer.status, answer.get("retry-after"), answer.get("connection")) == (503, "1", "close")
    answer = await call(door.door, "PUT", headers=[upload(challenge, b"x")], body=b"x", http_version="2", **ELSEWHERE)
    assert (answer.status, answer.get("connection")) == (503, None)
    assert (await call(door.door, headers=[("Authorization", "Digest x")], **ELSEWHERE)).status == 400
    door.door._doors[AS_ID]._room.left = 4 * LARGE


@small
async def test_who_leaves_while_waiting_for_a_turn_leaves_no_body() -> None:
    door = make()
    for _ in range(20):
        await call(door.door, headers=[("Authorization", "Digest x")], **NAT)
    challenge, asked = await door.challenge(), asyncio.Event()

    async def never(*_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    door.keys.lookup = never  # type: ignore[method-assign, assignment]
    tasks = [asyncio.create_task(call(door.door, "PUT", headers=[upload(challenge, b"x" * 10)], body=b"x" * 10, **NAT)) for _ in range(5)]
    await asked.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert door.door._doors[AS_ID]._room.left == 4 * LARGE - 50
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert rooms_of(door) == EMPTY


async def test_an_honest_upload_of_full_length_among_slow_ones_over_a_network(tmp_path: Path) -> None:
    """The true limits, TLS sockets, one address for all, and that one over its limit of failed logins."""
    mine = record(as_id=AsId("localhost"))
    asked: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(await read_body(receive, MAX_BODY))
        await respond(send, 200, b"done")

    pki, whole = Pki(tmp_path), b"0123456789abcdef" * (MAX_BODY // 16)
    server, limits = pki.issue("localhost", "server"), FailureLimits(burst=1, per_second=0.001, at_once=1)
    door = make_door(mine, as_id="localhost", qop=("auth-int",), limits=limits, certificate_hashes=(server.sha256,))
    door.door.app = app
    header = Client(mine).answer(digest.Challenge("r", "n" * 40, "SHA-256", ("auth-int",)), method="PUT", qop="auth-int")[1]
    head = f"PUT /notes HTTP/1.1\r\nHost: localhost\r\nContent-Length: {MAX_BODY}\r\nAuthorization: {header}\r\n\r\n".encode()
    login = SimDigest(key_id=mine.key_id, as_id=mine.as_id, k_ua=ims_keys.ua_key(mine.k_as), random=FakeRandom("client"))
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(door.door, server))
        client = await stack.enter_async_context(httpx.AsyncClient(verify=pki.trust(), auth=login, timeout=30))
        url = f"https://localhost:{port}/notes"
        for _ in range(5):
            refused = await client.get(url, headers={"Authorization": "Digest x"}, auth=httpx.Auth())
            assert refused.status_code in {400, 429}
        for _ in range(5):  # a quarter of the room, and a body more
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=pki.trust(), server_hostname="localhost")
            stack.callback(writer.transport.abort)
            stack.callback(writer.close)
            writer.write(head + whole[:-1])
            await writer.drain()
        answer = await client.put(url, content=whole)
        assert (answer.status_code, answer.extensions["keyferry.qop"], asked) == (200, "auth-int", [whole])
        assert door.counter.seen.count("door room") >= 1
