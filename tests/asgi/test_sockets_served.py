# SPDX-License-Identifier: Apache-2.0
"""Websockets behind a login through a real server and a client that we did not write."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from asgi.doorkit import Client, record
from asgi.stockclients import HOST, Site, site
from asgi.test_sockets import Chat
from keyferry.asgi.exchange import Receive, Scope, Send, respond
from keyferry.asgi.session import SessionCookie
from keyferry.protocol import digest

ALICE_KEY = record(as_id=HOST)


class Pages(Chat):
    """A chat, and a page to log in at."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send, 200, b"page")
        else:
            await super().__call__(scope, receive, send)


async def say(at: Site, text: str, **headers: str) -> str:
    tls = ssl.create_default_context(cafile=str(at.ca))
    url = at.url.replace("https", "wss") + "/chat"
    async with connect(
        url, ssl=tls, additional_headers={name.replace("_", "-"): value for name, value in headers.items()}, proxy=None
    ) as socket:
        await socket.send(text)
        return str(await socket.recv())


async def test_a_client_answers_the_challenge_of_the_upgrade(tmp_path: Path) -> None:
    app: Any = Pages()
    async with site(tmp_path, app=app) as at:
        with pytest.raises(InvalidStatus) as refused:
            await say(at, "hello")
        assert refused.value.response.status_code == 401
        challenge = digest.parse_challenge(refused.value.response.headers["www-authenticate"])
        _name, answer = Client(ALICE_KEY).answer(challenge, uri="/chat")
        assert await say(at, "hello", Authorization=answer) == "hello"
        with pytest.raises(InvalidStatus):
            await say(at, "hello", Authorization=answer)  # a replay
        assert app.users == ["sip:alice@home1.net"]


async def test_a_page_of_this_site_talks_with_its_session_and_one_of_another_does_not(tmp_path: Path) -> None:
    app: Any = Pages()
    async with site(tmp_path, app=app, session=SessionCookie()) as at:
        tls = ssl.create_default_context(cafile=str(at.ca))
        async with httpx.AsyncClient(verify=tls, auth=httpx.DigestAuth(at.user, at.password), trust_env=False) as browser:
            assert (await browser.get(at.url + "/")).text == "page"
            name, value = next(iter(browser.cookies.items()))
        assert await say(at, "hello", Cookie=f"{name}={value}", Origin=at.url) == "hello"
        for origin, status in (("https://evil.example", 403), (f"http://{HOST}", 403)):
            with pytest.raises(InvalidStatus) as refused:
                await say(at, "hello", Cookie=f"{name}={value}", Origin=origin)
            assert refused.value.response.status_code == status
        at.door.keys.records.clear()
        with pytest.raises(InvalidStatus) as refused:
            await say(at, "hello", Cookie=f"{name}={value}", Origin=at.url)
        assert refused.value.response.status_code == 401
        assert app.users == ["sip:alice@home1.net"]
