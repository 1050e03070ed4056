# SPDX-License-Identifier: Apache-2.0
"""One small site in every framework, and what a stranger's requests reach of it below a root path."""

from __future__ import annotations

import asyncio
import itertools
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from asgi.doorkit import FakeKeys, record
from keyferry.asgi import SimLogin

VIEWS = {"/": "home", "/account": "account", "/account/x": "account", "/open": "open", "/open/x": "open"}
"""Where which view is. A mounted application of Litestar's and Starlette's is at /files."""
REACHED: list[str] = []

_PARTS = ["/app", "/account", "/open", "/files", "/", "x", "X", "..", "/.", "app", "account", "%2f", "%61pp", ";", "%20", "%0a", "//", "/a"]
TARGETS = sorted(
    {"".join(parts) for parts in itertools.product(_PARTS, repeat=2)}
    | {"/appX", "/x/app/account", "/app/../account", "//app", "//app/account", "/app//account", "/%61pp/account", "/app%2faccount"}
    | {"/app/%61ccount", "/app%2Faccount%2Fx", "/app/open/../account", "/app/open/%2e%2e/account", "/open/app/account", "/appaccount"}
    | {"/app/app/account", "/%2561pp/account", "/app/account%0a", "/app/open/x", "/APP/account", "/app/Account", "/filesystem/x"}
)
TARGETS = [target for target in TARGETS if target.startswith("/")]


class Rules(NamedTuple):
    """Of a SimLogin, and the views that they let a stranger see."""

    open: tuple[str, ...]
    required: tuple[str, ...]
    free: frozenset[str]


RULES = (
    Rules(("/",), ("/account", "/files"), frozenset({"home", "open"})),
    Rules(("/open",), ("/",), frozenset({"open"})),
    Rules(("/app", "/a"), ("/",), frozenset()),  # as if somebody had meant all that is below the root, which is not what it says
)


class Request(NamedTuple):
    """What a server makes of a target: uvicorn puts the root in front of it, hypercorn and granian leave it as it is."""

    root: str
    path: str
    raw_path: bytes


def requests(targets: Iterable[str], roots: Iterable[str]) -> Iterator[Request]:
    for target, root in itertools.product(targets, roots):
        yield Request(root, root + unquote(target), (root + target).encode())
        if root:
            yield Request(root, unquote(target), target.encode())


async def ask(app: Any, request: Request) -> list[str]:
    """Return the views that one stranger's request reaches."""
    incoming = [{"type": "http.request", "body": b"", "more_body": False}]
    REACHED.clear()

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        """Drop the answer."""

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https", "path": request.path,
        "raw_path": request.raw_path, "query_string": b"", "root_path": request.root, "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1), "server": ("localhost", 443), "extensions": {}, "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return list(REACHED)


async def wrongly_reached(app: Any, roots: Iterable[str], rules: Iterable[Rules] = RULES) -> tuple[list[str], set[str]]:
    """Return the requests that reach a view without the login that it needs, and the views that are reached where none is needed."""
    wrong, reached = [], set()
    for rule in rules:
        for request in requests(TARGETS, roots):
            for view in await ask(behind(app, rule), request):
                reached.add(view)
                if view not in rule.free:
                    wrong.append(f"{request} reached {view} with open={rule.open}, required={rule.required}")
    return wrong, reached


def behind(app: Any, rules: Rules) -> SimLogin:
    """Return the site behind a login; the same one each time."""
    key = (id(app), rules)
    if key not in _LOGINS:
        keys = FakeKeys(record(as_id="localhost"))  # type: ignore[arg-type]
        _LOGINS[key] = app, SimLogin(app, as_id="localhost", keys=keys, open=rules.open, required=rules.required)
    return _LOGINS[key][1]


_LOGINS: dict[Any, tuple[Any, SimLogin]] = {}


async def mounted(scope: Any, receive: Any, send: Any) -> None:
    """Stand for an application that a framework mounts."""
    REACHED.append("files")
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


# ---- the site


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request as StarletteRequest
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route

    def view(name: str) -> Any:
        async def answer(_request: StarletteRequest) -> PlainTextResponse:
            REACHED.append(name)
            return PlainTextResponse(name)

        return answer

    return Starlette(routes=[*(Route(path, view(name)) for path, name in VIEWS.items()), Mount("/files", mounted)])


def fastapi(root: str = "") -> Any:
    from fastapi import FastAPI

    with warnings.catch_warnings(action="ignore"):  # root_path= is on its way out
        app = FastAPI(root_path=root)

    def add(path: str, name: str) -> None:
        @app.get(path)
        async def answer() -> str:
            REACHED.append(name)
            return name

    for path, name in VIEWS.items():
        add(path, name)
    return app


def quart() -> Any:
    from quart import Quart

    app = Quart(__name__)

    def add(path: str, name: str) -> None:
        async def answer() -> str:
            REACHED.append(name)
            return name

        app.add_url_rule(path, endpoint=path, view_func=answer)

    for path, name in VIEWS.items():
        add(path, name)
    return app


def litestar() -> Any:
    from litestar import Litestar, get
    from litestar.handlers import ASGIRouteHandler
    from litestar.types import Receive, Scope, Send

    def view(path: str, name: str) -> Any:
        async def answer() -> str:
            REACHED.append(name)
            return name

        return get(path, name=path)(answer)

    async def files(scope: Scope, receive: Receive, send: Send) -> None:
        await mounted(scope, receive, send)

    files.__annotations__.update({"scope": Scope, "receive": Receive, "send": Send, "return": None})
    handlers = [view(path, name) for path, name in VIEWS.items()]
    return Litestar([*handlers, ASGIRouteHandler("/files", is_mount=True, copy_scope=True)(files)], openapi_config=None)


def django() -> Any:
    """Set this process up for Django; `force` sets FORCE_SCRIPT_NAME afterwards."""
    import django as package
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse
    from django.urls import path as url

    def view(name: str) -> Any:
        async def answer(_request: HttpRequest) -> HttpResponse:
            REACHED.append(name)
            return HttpResponse(name)

        return answer

    module: Any = types.ModuleType("rooted_urls")
    module.urlpatterns = [url(path[1:], view(name)) for path, name in VIEWS.items()]
    sys.modules["rooted_urls"] = module
    settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"], ROOT_URLCONF="rooted_urls", USE_TZ=True, MIDDLEWARE=[], LOGGING_CONFIG=None)
    package.setup()
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def force(script_name: str | None) -> None:
    """Set Django's FORCE_SCRIPT_NAME."""
    from django.conf import settings

    settings.FORCE_SCRIPT_NAME = script_name
