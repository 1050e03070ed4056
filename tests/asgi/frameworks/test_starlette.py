# SPDX-License-Identifier: Apache-2.0
"""Starlette behind SimLogin, served by uvicorn."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from asgi.doorkit import Client, FakeKeys, Pki, call, make_door, record, serving
from asgi.frameworks.browsing import ALICE, ALICE_ID, OPEN, browser
from asgi.stockclients import HOST, site
from asgi.test_sockets import talk
from keyferry.asgi import SimLogin
from keyferry.asgi.exchange import Message
from keyferry.asgi.frameworks.starlette import sim_user
from keyferry.errors import LocalProtocolError


async def me(request: Request) -> JSONResponse:
    user = sim_user(request)
    assert user is request.user
    return JSONResponse([user.id, user.public_identities, request.user.is_authenticated, request.user.display_name, request.auth.scopes])


@requires("sim")
async def needs_sim(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.user.display_name)


@requires("sim", status_code=401)
def maybe(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.user.display_name)


@requires("sim")
async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.user.display_name)
    await websocket.close()


ROUTES = [
    Route("/me", me),
    Route("/open/me", me),
    Route("/open/needs", needs_sim),
    Route("/maybe", maybe),
    Mount("/below", routes=[Route("/me", me)]),
    WebSocketRoute("/open/chat", chat),
]


async def test_request_user_and_requires_work_without_an_authentication_middleware(tmp_path: Path) -> None:
    app: Any = Starlette(routes=ROUTES)
    async with site(tmp_path, app=app, open=OPEN) as at, browser(at) as alice, browser(at, login=False) as nobody:
        assert (await alice.get("/me")).json() == [ALICE_ID, [ALICE, "tel:+15551234"], True, ALICE, ["sim"]]
        assert (await alice.get("/below/me")).json()[0] == ALICE_ID
        assert (await nobody.get("/open/me")).json() == ["", [], False, "", []]
        assert (await nobody.get("/open/needs")).status_code == 403
        assert (await nobody.get("/me")).status_code == 401
        assert (await alice.get("/maybe")).text == ALICE  # its 401 became a challenge


async def test_add_middleware_does_it_too(tmp_path: Path) -> None:
    """As anybody would write it, with the clock and the chance of the machine."""
    held, pki = record(as_id=HOST), Pki(tmp_path)
    app = Starlette(routes=ROUTES, middleware=[Middleware(SimLogin, as_id=HOST, keys=FakeKeys(held))])
    password = Client(held).password.reveal().decode()
    async with serving(app, pki.issue(HOST, "server")) as port:
        auth, url = httpx.DigestAuth(held.key_id, password), f"https://{HOST}:{port}/me"
        async with httpx.AsyncClient(verify=pki.trust(), auth=auth, trust_env=False) as alice:
            assert (await alice.get(url)).json()[0] == ALICE_ID


async def test_websockets_know_the_user() -> None:
    held = record()
    door = make_door(held, app=Starlette(routes=ROUTES), open=OPEN)  # type: ignore[arg-type]
    digest = Client(held).answer((await call(door.door)).challenge(), uri="/open/chat")
    scope: dict[str, Any] = {"path": "/open/chat", "raw_path": b"/open/chat"}
    assert [message.get("text") for message in await talk(door, [digest], **scope)] == [None, ALICE, None]
    assert [message["type"] for message in await talk(door, **scope)] == ["websocket.close"]


async def test_the_lifespan_passes() -> None:
    began = []

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        began.append(1)
        yield
        began.append(2)

    app = SimLogin(Starlette(routes=ROUTES, lifespan=lifespan), as_id=HOST, keys=FakeKeys(record(as_id=HOST)))
    incoming, sent = ["lifespan.startup", "lifespan.shutdown"], []

    async def receive() -> Message:
        return {"type": incoming.pop(0)}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert began == [1, 2]


async def test_without_simlogin_there_is_a_plain_word() -> None:
    with pytest.raises(LocalProtocolError, match="no SimLogin"):
        await call(Starlette(routes=ROUTES), target="/me")
