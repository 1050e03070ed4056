# SPDX-License-Identifier: Apache-2.0
"""What the application behind takes a path for: frameworks differ in what root they take off, and where; all readings have to be open.

By itself:     FastAPI(root_path=…) and Django's FORCE_SCRIPT_NAME count in place of the `root_path` that the server tells
In its way:    Starlette takes a root off at the end of a segment, Quart in the midst of one, Litestar wherever it stands first
Look-alikes:   Litestar gives an application that is mounted at /files what begins so, /filesystem too, if no route of its own has that path

None of them is imported here. What stands between must have the application as its `app`, as middleware has.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

MAX_LAYERS: Final = 32
"""Of middleware between SimLogin and the application."""

_FRAMEWORKS: Final = {
    ("fastapi", "FastAPI"): "fastapi",
    ("django", "ASGIHandler"): "django",
    ("litestar", "Litestar"): "litestar",
}


class Router:
    """How the application behind reads paths, as far as that can be seen from here."""

    def __init__(self, app: object = None) -> None:
        """Take the application, with the middleware around it."""
        self._framework, self._app = _found(app)
        self._routes = -1  # how many there were when these were noted
        self._plain: frozenset[str] = frozenset()
        self._mounts: re.Pattern[str] | None = None

    def readings(self, path: str, told: str) -> list[str]:
        """Return what a path may stand for below the application's root; `told` is the server's `root_path`."""
        script = _script_name()
        root = self._own_root(script) or told
        bare = root.rstrip("/")
        found = [_below(path, bare)]
        if bare and bare != root:
            found.append(path)  # some take off nothing then
        if self._framework != "django" and found[0] == path:  # in Starlette and FastAPI any other may be mounted
            found += ["/" + path.partition(part)[2].lstrip("/") for part in {bare, root} if part and part in path]
        if script and self._framework != "django":
            found.append(_below(path, script.rstrip("/")))
        if self._framework == "litestar":
            found += [self._mounted(reading) for reading in found]
        return found

    def _own_root(self, script: str) -> str:
        if self._framework == "fastapi":
            return str(self._app.root_path or "")
        return script if self._framework == "django" else ""

    def _mounted(self, path: str) -> str:
        """Return what Litestar makes of a path that begins as the one of a mounted application does."""
        if self._routes != len(self._app.routes):
            self._note_routes()
        if self._mounts is None or (path.rstrip("/") or "/") in self._plain:
            return path
        match = self._mounts.match(path)
        rest = path[match.end() :] if match else ""
        return f"{path[: -len(rest)]}/{rest}" if rest and not rest.startswith("/") else path

    def _note_routes(self) -> None:
        routes = tuple(self._app.routes)
        mounts = {route.path for route in routes if getattr(getattr(route, "route_handler", None), "is_mount", False)}
        self._plain = frozenset({route.path for route in routes if not route.path_parameters} - mounts)
        paths = sorted(mounts - {"/"})
        self._mounts = re.compile("|".join(paths)) if paths else None  # as Litestar does, which escapes nothing
        self._routes = len(routes)


def _found(app: Any) -> tuple[str, Any]:
    """Return the framework behind and its application; "" for none that is known."""
    for _ in range(MAX_LAYERS):
        for kind in type(app).__mro__:
            framework = _FRAMEWORKS.get((kind.__module__.partition(".")[0], kind.__qualname__))
            if framework is not None:
                return framework, app
        app = getattr(app, "app", None)
        if app is None:
            break
    return "", None


def _script_name() -> str:
    """Return Django's FORCE_SCRIPT_NAME, if there is a Django in this process that has one."""
    conf = sys.modules.get("django.conf")
    settings = getattr(conf, "settings", None)
    return (settings.FORCE_SCRIPT_NAME or "") if settings is not None and settings.configured else ""


def _below(path: str, root: str) -> str:
    """Return a path without a root, if that is its first segments."""
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path
