# SPDX-License-Identifier: Apache-2.0
"""Path rules below a root path: no spelling reaches a protected view of any framework's, and what is open stays open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import FakeKeys
from asgi.frameworks import rooted
from asgi.frameworks.rooted import RULES, Request, Rules, ask, behind, wrongly_reached

ROOT = Path(__file__).resolve().parents[3]
ROOTS = ("", "/app", "/app/", "/a")
MAKERS: dict[str, Callable[[], Any]] = {
    "starlette": rooted.starlette,
    "fastapi": rooted.fastapi,
    "fastapi with a root of its own": lambda: rooted.fastapi("/app"),
    "quart": rooted.quart,
    "litestar": rooted.litestar,
}
DJANGO = """
import asyncio, json, logging, sys
from asgi.frameworks.rooted import RULES, Request, ask, behind, django, force, wrongly_reached

async def main():
    app, told = django(), {}
    logging.disable(logging.CRITICAL)
    for name in (None, "/app", "/app/", "/a"):
        force(name)
        told[str(name)] = wrong, reached = await wrongly_reached(app, ("", "/app", "/a"))
        told[str(name)] = [wrong[:5], sorted(reached)]
    force("/app")
    opened = [Request("", "/app/open", b"/app/open"), Request("", "/open/x", b"/open/x"), Request("/x", "/app/open", b"/app/open")]
    told["opened"] = [await ask(behind(app, RULES[1]), request) for request in opened]
    other = lambda scope, receive, send: app(scope, receive, send)
    told["behind another"] = (await wrongly_reached(other, ("", "/app", "/a")))[0][:5]
    print(json.dumps(told))

asyncio.run(main())
"""


@pytest.mark.parametrize("framework", MAKERS)
async def test_no_spelling_reaches_a_protected_view(framework: str) -> None:
    wrong, reached = await wrongly_reached(MAKERS[framework](), ROOTS)
    assert wrong == []
    assert reached == {"home", "open"}


@pytest.mark.parametrize("framework", MAKERS)
async def test_a_protected_view_would_be_reached_without_a_login(framework: str) -> None:
    """That there is something to reach: below the root, and from look-alikes."""
    app = MAKERS[framework]()
    _, reached = await wrongly_reached(app, ROOTS, [Rules(("/",), (), frozenset())])
    assert reached >= {"home", "open", "account"}


@pytest.mark.parametrize("framework", MAKERS)
@pytest.mark.parametrize(("path", "raw_path"), [("/app/open", b"/app/open"), ("/app/open/x", b"/open/x"), ("/app/open", b"/%61pp/op%65n")])
async def test_what_is_open_stays_open_below_a_root(framework: str, path: str, raw_path: bytes) -> None:
    for rules in RULES[:2]:
        assert await ask(behind(MAKERS[framework](), rules), Request("/app", path, raw_path)) == ["open"]


async def test_an_open_path_that_holds_the_root_by_chance_stays_open() -> None:
    """/static/app.css, or /apple: Starlette takes nothing off, and nothing protected is there in another reading either."""
    rules = Rules(("/",), ("/account",), frozenset({"open"}))
    for framework in ("starlette", "fastapi", "quart"):
        login = behind(MAKERS[framework](), rules)
        assert not login._rules.needs_login({"path": "/static/app.css", "raw_path": b"/static/app.css", "root_path": "/app"})
    login = behind(MAKERS["fastapi"](), Rules(("/static",), ("/",), frozenset()))
    assert not login._rules.needs_login({"path": "/static/app.css", "raw_path": b"/static/app.css", "root_path": "/app"})


async def test_a_root_of_fastapis_own_counts_in_place_of_the_servers() -> None:
    app = rooted.fastapi("/app")
    for told, path in (("", "/app/open"), ("", "/open"), ("/x", "/app/open/x")):
        assert await ask(behind(app, RULES[1]), Request(told, path, path.encode())) == ["open"]


def test_middleware_of_starlettes_and_fastapis_own_is_in_front_of_a_known_router() -> None:
    from keyferry.asgi import SimLogin

    for app in (rooted.starlette(), rooted.fastapi("/app")):
        app.add_middleware(SimLogin, as_id="localhost", keys=FakeKeys(), open=("/static",))
        login = app.build_middleware_stack()
        while not isinstance(login, SimLogin):
            login = login.app
        assert not login._rules.needs_login({"path": "/static/app.css", "raw_path": b"/static/app.css", "root_path": "/app"})
        assert login._rules.needs_login({"path": "/appstatic", "raw_path": b"/appstatic", "root_path": "/app"})


async def test_litestar_mounts_by_prefix_and_its_own_routes_come_first() -> None:
    app = rooted.litestar()
    for path in ("/files", "/files/x", "/filesX", "/filesystem/x", "/files."):
        assert await ask(app, Request("", path, path.encode())) == ["files"]
        assert await ask(behind(app, RULES[0]), Request("", path, path.encode())) == []
    from litestar import get

    async def answer() -> str:
        rooted.REACHED.append("filesystem")
        return ""

    app.register(get("/filesystem", name="filesystem")(answer))
    assert await ask(behind(app, RULES[0]), Request("", "/filesystem", b"/filesystem")) == ["filesystem"]
    assert await ask(behind(app, RULES[0]), Request("", "/filesystem/x", b"/filesystem/x")) == []


def test_django_and_its_force_script_name() -> None:
    """Through its ASGI handler, in a process of its own: its settings are the process's."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests")))}
    done = subprocess.run([sys.executable, "-c", DJANGO], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for name in ("None", "/app", "/a"):
        assert told[name] == [[], ["home", "open"]], name
    assert told["/app/"][0] == []
    assert told["opened"] == [["open"]] * 3
    assert told["behind another"] == []
