# SPDX-License-Identifier: Apache-2.0
"""Fields that a login adds."""

from __future__ import annotations

from typing import Any

import pytest

from asgi.doorkit import Client, FakeRandom, call, make_door, record
from keyferry.asgi.answers import PRIVATE, adding, hsts
from keyferry.asgi.exchange import Header, Message
from keyferry.errors import ConfigError

ALICE_KEY = record()


async def started(*headers: Header, status: int = 200, **options: Any) -> list[Header]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    add = adding(send, options.pop("defaults", PRIVATE), **options)
    await add({"type": "http.response.start", "status": status, "headers": headers})
    await add({"type": "http.response.body", "body": b""})
    assert "headers" not in sent[1]
    return list(sent[0]["headers"])


async def test_what_the_application_chose_stays() -> None:
    assert await started() == list(PRIVATE)
    chosen = (b"Cache-Control", b"public, max-age=60")
    assert await started(chosen) == [chosen, PRIVATE[1]]
    assert await started(chosen, added=((b"set-cookie", b"a"),)) == [chosen, PRIVATE[1], (b"set-cookie", b"a")]


async def test_a_401_of_the_application_becomes_a_challenge_once() -> None:
    fields = [(b"www-authenticate", b"Digest x")]

    async def challenge() -> list[Header]:
        return fields

    assert await started(status=401, defaults=(), challenge=challenge) == fields
    assert await started(status=403, defaults=(), challenge=challenge) == []
    own = (b"WWW-Authenticate", b"Bearer")
    assert await started(own, status=401, defaults=(), challenge=challenge) == [own]


async def test_hsts_is_opt_in() -> None:
    assert hsts(0) == ()
    assert hsts(60) == ((b"strict-transport-security", b"max-age=60"),)
    assert (await call(make_door(ALICE_KEY).door)).get("strict-transport-security") is None
    assert (await call(make_door(ALICE_KEY, hsts_seconds=60).door)).get("strict-transport-security") == "max-age=60"
    opened = make_door(ALICE_KEY, hsts_seconds=60, open=("/",), required=())
    assert (await call(opened.door)).get("strict-transport-security") == "max-age=60"
    assert (await call(opened.door, scheme="http")).get("strict-transport-security") is None
    for path in ("/", "/notes"):
        assert (await call(opened.door, "GET", path, host="other.example")).get("strict-transport-security") is None
    assert (await call(make_door(hsts_seconds=60).door, host="other.example")).get("strict-transport-security") is None
    for wrong in (-1, 10**9, True):
        with pytest.raises(ConfigError, match="hsts"):
            make_door(hsts_seconds=wrong)


async def test_nothing_that_a_user_gets_may_be_kept_for_another() -> None:
    door = make_door(ALICE_KEY)
    for answer in (
        await call(door.door),
        await call(door.door, host="other.example"),
        await call(door.door, scheme="http"),
        await call(door.door, headers=[Client(ALICE_KEY).answer(await door.challenge())]),
    ):
        assert answer.all("cache-control") == ["no-store"]
        assert answer.all("x-content-type-options") == ["nosniff"]


async def test_open_pages_stay_as_they_are_unless_somebody_is_known() -> None:
    door = make_door(ALICE_KEY, open=("/",), required=())
    assert (await call(door.door)).get("cache-control") is None
    login = await call(door.door, headers=[Client(ALICE_KEY).answer((await call(make_door(random=FakeRandom("other")).door)).challenge())])
    assert login.status == 401  # a nonce of another door: whoever claims to be somebody is refused here, too
    answer = Client(ALICE_KEY).answer(login.challenge())
    assert (await call(door.door, headers=[answer])).get("cache-control") == "no-store"
