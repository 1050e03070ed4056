# SPDX-License-Identifier: Apache-2.0
"""An application with its own key agent, and a store that is read without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import Client, call
from keyferry.asgi.exchange import Message, Receive, Scope, Send
from keyferry.errors import ConfigError, LocalProtocolError, StateError, StoreError
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.protocol.ims.keys import first_nonce, ua_key
from keyferry.transports.clock import SystemClock
from keyferry.wiring.agent_app import WithAgent, open_key_store, with_agent
from transports.agentkit import MAIL, WIKI, record

CONFIG = f"""[agent]
as_ids = ["{WIKI}", "{MAIL}"]
sip_uri = "sip:agent.home1.net"
listen_sip = "127.0.0.1:0"
pushers = ["scscf1.home1.net"]
"""


class Page:
    """An application that has a lifespan of its own, or knows none."""

    def __init__(self, *, lifespan: bool = True, fails: bool = False) -> None:
        self.told: list[str] = []
        self._lifespan = lifespan
        self._fails = fails

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            if not self._lifespan:
                raise KeyError("path")
            self.told.append((await receive())["type"])
            if self._fails:
                await send({"type": "lifespan.startup.failed", "message": "no"})
                return
            await send({"type": "lifespan.startup.complete"})
            self.told.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = scope["user"].id.encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Server:
    """What an HTTP server does with a lifespan."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._in: asyncio.Queue[Message] = asyncio.Queue()
        self._out: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def say(self, word: str) -> Message:
        if self._task is None:
            self._task = asyncio.ensure_future(self._app({"type": "lifespan"}, self._in.get, self._out.put))
        await self._in.put({"type": f"lifespan.{word}"})
        return await asyncio.wait_for(self._out.get(), 60)

    async def ended(self) -> None:
        assert self._task is not None
        await asyncio.wait_for(self._task, 60)


def write(folder: Path, text: str = CONFIG) -> Path:
    file = folder / "agent.toml"
    file.write_text(text)
    return file


@asynccontextmanager
async def running(app: WithAgent) -> AsyncIterator[Server]:
    server = Server(app)
    assert await server.say("startup") == {"type": "lifespan.startup.complete"}
    yield server
    assert await server.say("shutdown") == {"type": "lifespan.shutdown.complete"}
    await server.ended()


async def pushed(app: WithAgent) -> Client:
    """Let a key arrive as the S-CSCF's push leaves it."""
    assert app.agent is not None
    now = SystemClock().now()
    held = record()
    key = PushedKey(held.key_id, held.k_as, int(now) + 1, int(now) + 3600)
    await app.agent.keys.apply(
        Push(1, held.impi, WIKI, held.reg, (key,), held.impus, None), pusher="scscf1.home1.net", realm="home1.net", now=now
    )
    return Client(held)


@pytest.mark.parametrize("lifespan", [True, False])
async def test_the_agent_lives_as_long_as_the_server_whether_the_application_has_a_lifespan_or_not(tmp_path: Path, lifespan: bool) -> None:
    page = Page(lifespan=lifespan)
    app = with_agent(page, write(tmp_path), as_id=WIKI, state=tmp_path / "state", log="none")
    with pytest.raises(LocalProtocolError, match="lifespan on"):
        await call(app, host=WIKI)
    async with running(app):
        client = await pushed(app)
        challenge = (await call(app, host=WIKI)).challenge()
        answers = [await call(app, headers=[client.answer(challenge, count)], host=WIKI) for count in (1, 2, 2)]
        assert [answer.status for answer in answers] == [200, 200, 401]
        first = replace(challenge, nonce=first_nonce(ua_key(client.held.k_as)))
        assert [(await call(app, headers=[client.answer(first)], host=WIKI)).status for _ in range(2)] == [200, 401]
        assert app.agent is not None
        late = app.agent.served[WIKI].ledger
    with pytest.raises(StoreError, match="is ending"):  # what the next start would not know of is not taken
        await late.claim(challenge.nonce, client.held, 3)
    assert page.told == (["lifespan.startup", "lifespan.shutdown"] if lifespan else [])
    async with running(again := with_agent(page, write(tmp_path), as_id=WIKI, state=tmp_path / "state", log="none")):
        replayed = await call(again, headers=[client.answer(challenge, 2)], host=WIKI)
        assert replayed.status == 401
        assert (await call(again, headers=[client.answer(challenge, 3)], host=WIKI)).body == answers[0].body  # the same user id


async def test_what_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """Two workers would be two agents."""
    app = with_agent(Page(), write(tmp_path), as_id=WIKI, state=tmp_path / "state", log="none")
    async with running(app):
        second = Server(with_agent(Page(), write(tmp_path), as_id=WIKI, state=tmp_path / "state", log="none"))
        told = await second.say("startup")
        assert told["type"] == "lifespan.startup.failed"
        assert "another process" in told["message"]
        await second.ended()
    failing = Server(with_agent(Page(fails=True), write(tmp_path), as_id=WIKI, state=tmp_path / "state", log="none"))
    assert (await failing.say("startup"))["message"] == "no"
    await failing.ended()
    async with running(app):
        pass


def test_the_application_must_be_one_of_the_agents(tmp_path: Path) -> None:
    for as_id, says in ((None, "has 2 as_ids"), ("other.home1.net", "none of agent.as_ids")):
        with pytest.raises(ConfigError, match=says):
            with_agent(Page(), write(tmp_path), as_id=as_id)


async def test_a_store_is_read_beside_its_agent_or_without_it(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="Start `keyferry agent`"):
        open_key_store(tmp_path / "state" / "agent.db")
    app = with_agent(Page(), write(tmp_path), as_id=WIKI, state=tmp_path / "state", log="none")
    async with running(app):
        client = await pushed(app)
        with open_key_store(tmp_path / "state" / "agent.db") as keys:
            found = await keys.lookup(client.held.key_id, WIKI)
            assert found is not None
            assert found.k_as == client.held.k_as
            assert await keys.lookup(client.held.key_id, MAIL) is None
            assert app.agent is not None
            assert keys.user_id_key(WIKI) == app.agent.state.user_id_key(WIKI)
