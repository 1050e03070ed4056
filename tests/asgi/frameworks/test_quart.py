# SPDX-License-Identifier: Apache-2.0
"""Quart behind SimLogin, served by hypercorn."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, websocket

from asgi.doorkit import AS_ID, Client, FakeKeys, Pki, call, make_door, record
from asgi.frameworks.browsing import ALICE, ALICE_ID
from asgi.stockclients import HOST
from asgi.test_sockets import talk
from keyferry.asgi import SimLogin
from keyferry.asgi.frameworks.quart import sim_required, sim_user


def application() -> Quart:
    app = Quart(__name__)

    @app.get("/me")
    async def me() -> list[str]:
        return [sim_user().id, *sim_user().public_identities]

    @app.get("/maybe")
    @sim_required
    async def maybe() -> str:
        return sim_user().display_name

    @app.get("/open")
    async def welcome() -> str:
        return sim_user().display_name or "nobody"

    @app.websocket("/chat")
    async def chat() -> None:
        await websocket.send(sim_user().display_name)

    return app


async def test_a_view_knows_who_logged_in(tmp_path: Path) -> None:
    app, held, pki = application(), record(as_id=HOST), Pki(tmp_path)
    app.asgi_app = SimLogin(app.asgi_app, as_id=HOST, keys=FakeKeys(held), open=("/open", "/maybe"))  # type: ignore[method-assign,assignment]
    certificate, ended, config = pki.issue(HOST, "server"), asyncio.Event(), Config()
    config.certfile = config.keyfile = str(certificate.pem)
    config.accesslog = config.errorlog = None
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config.bind = [f"fd://{listener.fileno()}"]
        server = asyncio.ensure_future(serve(app, config, shutdown_trigger=ended.wait))
        try:
            await browse(f"https://{HOST}:{listener.getsockname()[1]}", pki, Client(held))
        finally:
            ended.set()
            await server
            listener.detach()  # hypercorn has closed it


async def browse(url: str, pki: Pki, client: Client) -> None:
    auth = httpx.DigestAuth(client.held.key_id, client.password.reveal().decode())
    tls: Any = {"verify": pki.trust(), "trust_env": False, "base_url": url, "timeout": 20}
    async with httpx.AsyncClient(auth=auth, **tls) as alice, httpx.AsyncClient(**tls) as nobody:
        assert (await alice.get("/me")).json() == [ALICE_ID, ALICE, "tel:+15551234"]
        assert (await nobody.get("/open")).text == "nobody"
        refused = await nobody.get("/maybe")
        assert (refused.status_code, refused.headers["www-authenticate"][:6]) == (401, "Digest")
        assert (await alice.get("/maybe")).text == ALICE
        assert (await nobody.get("/me")).status_code == 401


async def test_a_websocket_knows_it_too() -> None:
    door = make_door(record(), app=application())  # type: ignore[arg-type]
    digest = Client(record()).answer((await call(door.door, host=AS_ID)).challenge(), uri="/chat")
    sent = await talk(door, [digest], http_version="1.1", client=("127.0.0.1", 1), server=("127.0.0.1", 2), subprotocols=[], root_path="")
    assert ALICE in [message.get("text") for message in sent]
