# SPDX-License-Identifier: Apache-2.0
"""FastAPI behind SimLogin, served by uvicorn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Security

from asgi.frameworks.browsing import ALICE, ALICE_ID, OPEN, browser
from asgi.stockclients import site
from keyferry.asgi import SimUser
from keyferry.asgi.frameworks.fastapi import SimSecurity, optional_sim_user, sim_user


def application() -> Any:
    app = FastAPI()

    @app.get("/me")
    async def me(user: Annotated[SimUser, Security(sim_user)]) -> list[str]:
        return [user.id, *user.public_identities]

    @app.put("/me")
    def put(user: Annotated[SimUser, Security(sim_user)], text: str) -> str:
        return f"{user.display_name} {text}"

    @app.get("/maybe")
    async def maybe(user: Annotated[SimUser, Security(sim_user)]) -> str:
        return user.id

    @app.get("/open")
    async def welcome(user: Annotated[SimUser, Security(optional_sim_user)]) -> str:
        return user.display_name or "nobody"

    return app


async def test_security_sim_user_is_who_logged_in(tmp_path: Path) -> None:
    async with site(tmp_path, app=application(), open=OPEN) as at, browser(at) as alice, browser(at, login=False) as nobody:
        assert (await alice.get("/me")).json() == [ALICE_ID, ALICE, "tel:+15551234"]
        assert (await alice.put("/me?text=hi")).json() == f"{ALICE} hi"
        assert (await nobody.get("/open")).json() == "nobody"
        refused = await nobody.get("/maybe")
        assert (refused.status_code, refused.json()) == (401, {"detail": "Log in with a SIM"})
        assert refused.headers["www-authenticate"].startswith("Digest realm=")
        assert (await alice.get("/maybe")).json() == ALICE_ID


async def test_the_openapi_document_shows_the_scheme(tmp_path: Path) -> None:
    """And /docs, which is made of it."""
    async with site(tmp_path, app=application(), open=OPEN) as at, browser(at, login=False) as nobody:
        document = (await nobody.get("/openapi.json")).json()
    scheme = document["components"]["securitySchemes"]["SimLogin"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "digest")
    assert "SIM" in scheme["description"]
    assert document["paths"]["/me"]["get"]["security"] == [{"SimLogin": []}]
    assert document["paths"]["/me"]["put"]["security"] == [{"SimLogin": []}]


def test_the_scheme_may_have_another_name() -> None:
    assert SimSecurity(scheme_name="sim", description="x").scheme_name == "sim"
