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


@pytest.mark.parametrize("framework", MAKERS)
async def test_a_path_that_holds_the_root_by_chance_is_open_if_what_follows_the_root_is(framework: str) -> None:
    login = behind(MAKERS[framework](), Rules(("/",), ("/account",), frozenset({"open"})))
    for path, needs in (("/static/app.css", False), ("/static/app/account", True)):
        assert login._rules.needs_login({"path": path, "raw_path": path.encode(), "root_path": "/app"}) is needs


@pytest.mark.parametrize("outer", ["starlette", "fastapi"])
@pytest.mark.parametrize("inner", ["quart", "litestar"])
async def test_who_is_mounted_at_the_root_of_another_takes_it_off_in_its_own_way(outer: str, inner: str) -> None:
    """Starlette passes /appaccount on as it is, and Quart makes /account of it."""
    from starlette.routing import Mount

    app = MAKERS[outer]()
    app.router.routes[:] = [Mount("", app=MAKERS[inner]())]
    assert "account" in (await wrongly_reached(app, ["/app"], [Rules(("/",), (), frozenset())]))[1]
    free = frozenset({"home", "open", "files"})  # what Litestar mounts further inside is not seen: docs/simlogin.md says so
    wrong, reached = await wrongly_reached(app, ["/app"], [Rules(("/",), ("/account",), free), RULES[1]])
    assert wrong == []
    assert "open" in reached


async def test_a_root_of_fastapis_own_counts_in_place_of_the_servers() -> None:
    app = rooted.fastapi("/app")
    for told, path in (("", "/app/open"), ("", "/open"), ("/x", "/app/open/x")):
        assert await ask(behind(app, RULES[1]), Request(told, path, path.encode())) == ["open"]


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
