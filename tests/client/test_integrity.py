# SPDX-License-Identifier: Apache-2.0
"""RFC 7616 §3.4.3, §3.5: our client and bodies that are signed, or are not."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from asgi.doorkit import Echo, make_door
from client.test_http_auth import ALICE, URL, Spy, client_of, sim
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.client.http_auth import QOP
from keyferry.errors import DigestRejected


async def test_auth_int_proves_the_body_too() -> None:
    """RFC 7616 §3.4.3."""
    door = make_door(ALICE, qop=("auth-int",))
    async with client_of(door.door) as client:
        assert (await client.put(URL, content=b"note")).status_code == 200

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        async def changed(message: Any) -> None:
            await send({**message, "body": b"forged"} if message.get("body") else message)

        await door.door(scope, receive, changed)

    async with client_of(other) as client:
        with pytest.raises(DigestRejected):
            await client.get(URL)


async def test_an_answer_that_is_too_long_to_be_signed_is_proven_by_its_head() -> None:
    """RFC 7616 §3.5: the server's qop says so; whoever wants the body proven gets no answer instead."""
    door = make_door(ALICE, qop=("auth-int",), max_body=50, app=Echo(pieces=[b"x" * 40, b"y" * 40]))
    async with client_of(door.door) as client:
        answer = await client.put(URL, content=b"note")
        assert (answer.status_code, answer.content, answer.extensions[QOP]) == (200, b"x" * 40 + b"y" * 40, "auth")
    async with client_of(door.door, sim(integrity=True)) as client:
        with pytest.raises(DigestRejected, match="did not sign the body"):
            await client.get(URL)


async def test_a_relay_cannot_say_that_a_body_is_unsigned() -> None:
    """The qop is in what rspauth hashes."""

    def change(_: int, message: dict[str, Any]) -> None:
        message["headers"] = [(n, v.replace(b"qop=auth-int", b"qop=auth")) for n, v in message["headers"]]

    spy = Spy(make_door(ALICE, qop=("auth-int",)), lambda number, message: change(number, message) if number > 1 else None)
    async with client_of(spy) as client:
        with pytest.raises(DigestRejected, match="wrong"):
            await client.get(URL)


async def test_who_wants_bodies_proven_signs_them_though_less_is_offered() -> None:
    """A server that offers no auth-int is no server then, and the first nonce, of qop auth, is left alone."""

    async def claim() -> bool:
        raise AssertionError

    spy = Spy(make_door(ALICE, qop=("auth", "auth-int")))
    async with client_of(spy, sim(integrity=True, claim_first=claim)) as client:
        for _ in range(2):
            assert (await client.put(URL, content=b"note")).extensions[QOP] == "auth-int"
    assert [said is not None and "qop=auth-int" in said for said in spy.authorizations] == [False, True, True]
    async with client_of(make_door(ALICE).door, sim(integrity=True)) as client:
        with pytest.raises(DigestRejected, match="qop auth-int"):
            await client.get(URL)


async def test_a_signed_body_is_compared_as_it_was_sent() -> None:
    """The hash is of the content as coded; the client asks for it plain."""
    octets = b"note" * 100

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        packed = b"gzip" in dict(scope["headers"]).get(b"accept-encoding", b"")
        headers = [(b"content-encoding", b"gzip")] if packed else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": gzip.compress(octets) if packed else octets})

    door = make_door(ALICE, qop=("auth-int",))
    door.door.app = app
    async with client_of(door.door) as client:
        assert (await client.get(URL)).content == octets
