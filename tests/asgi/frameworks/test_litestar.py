# SPDX-License-Identifier: Apache-2.0
"""Litestar behind SimLogin, served by uvicorn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litestar import Litestar, Request, get
from litestar.openapi import OpenAPIConfig

from asgi.frameworks.browsing import ALICE, ALICE_ID, OPEN, browser
from asgi.stockclients import site
from keyferry.asgi.frameworks.litestar import COMPONENTS, SECURITY, sim_required, sim_user


@get("/me", security=SECURITY)
async def me(request: Request[Any, Any, Any]) -> list[str]:
    assert sim_user(request) is request.user
    return [request.user.id, *request.user.public_identities]


@get("/maybe", guards=[sim_required])
async def maybe(request: Request[Any, Any, Any]) -> str:
    return str(request.user.display_name)


@get("/open")
async def welcome(request: Request[Any, Any, Any]) -> str:
    return request.user.display_name or "nobody"


async def test_request_user_works_as_it_is_and_the_guard_asks(tmp_path: Path) -> None:
    app: Any = Litestar([me, maybe, welcome])
    async with site(tmp_path, app=app, open=OPEN) as at, browser(at) as alice, browser(at, login=False) as nobody:
        assert (await alice.get("/me")).json() == [ALICE_ID, ALICE, "tel:+15551234"]
        assert (await nobody.get("/open")).text == "nobody"
        assert (await nobody.get("/maybe")).status_code == 401
        assert (await alice.get("/maybe")).text == ALICE
        assert (await nobody.get("/me")).status_code == 401


async def test_the_openapi_document_shows_the_scheme(tmp_path: Path) -> None:
    app: Any = Litestar([me], openapi_config=OpenAPIConfig("Notes", "1", components=COMPONENTS))
    async with site(tmp_path, app=app, open=OPEN) as at, browser(at, login=False) as nobody:
        document = (await nobody.get("/schema/openapi.json")).json()
    assert document["components"]["securitySchemes"]["SimLogin"]["scheme"] == "digest"
    assert document["paths"]["/me"]["get"]["security"] == [{"SimLogin": []}]
