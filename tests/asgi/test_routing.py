# SPDX-License-Identifier: Apache-2.0
"""What a path may stand for behind; frameworks/test_roots.py asks the frameworks themselves."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from keyferry.asgi.routing import MAX_LAYERS, Router


def framework(module: str, name: str, **fields: Any) -> Any:
    """Return an object of a class of that name."""
    return type(name, (), {"__module__": module, **fields})()


class Layer:
    """Middleware."""

    def __init__(self, app: object) -> None:
        self.app = app


@pytest.mark.parametrize(
    ("path", "told", "readings"),
    [
        ("/a/b", "", {"/a/b"}),
        ("/app/b", "/app", {"/b"}),
        ("/app", "/app", {"/"}),
        ("/app/app/b", "/app", {"/app/b"}),
        ("/b", "/app", {"/b"}),
        ("/appb", "/app", {"/appb", "/b"}),  # Quart, Litestar
        ("/x/app/b", "/app", {"/x/app/b", "/b"}),  # Litestar
        ("/app/b", "/app/", {"/b", "/app/b"}),  # Starlette takes nothing off
        ("/x/apple/app/b", "/app/", {"/x/apple/app/b", "/le/app/b", "/b"}),
        ("/b", "/", {"/b"}),
        ("/app/b", "app", {"/app/b", "/b"}),
    ],
)
def test_an_application_that_is_not_known_may_read_a_path_in_any_way(path: str, told: str, readings: set[str]) -> None:
    assert set(Router().readings(path, told)) == readings


def test_django_takes_a_root_off_in_front_alone_and_can_mount_nobody() -> None:
    django = framework("django.core.handlers.asgi", "ASGIHandler")
    for layers in (django, Layer(Layer(django))):
        assert Router(layers).readings("/static/app.css", "/app") == ["/static/app.css"]
        assert Router(layers).readings("/app/x", "/app") == ["/x"]


def test_a_root_of_the_applications_own_counts_in_place_of_the_servers() -> None:
    app = framework("fastapi.applications", "FastAPI", root_path="/own")
    assert Router(app).readings("/own/x", "/told") == ["/x"]
    assert Router(app).readings("/told/x", "/told") == ["/told/x"]
    app.root_path = ""
    assert Router(app).readings("/told/x", "/told") == ["/x"]


def test_djangos_script_name_counts_for_django_and_is_feared_where_django_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    conf: Any = types.ModuleType("django.conf")
    conf.settings = types.SimpleNamespace(configured=True, FORCE_SCRIPT_NAME="/own")
    monkeypatch.setitem(sys.modules, "django.conf", conf)
    router = Router(framework("django.core.handlers.asgi", "ASGIHandler"))
    assert router.readings("/own/x", "/told") == ["/x"]
    assert set(Router().readings("/own/x", "")) == {"/own/x", "/x"}
    conf.settings.FORCE_SCRIPT_NAME = None
    assert router.readings("/told/x", "/told") == ["/x"]
    conf.settings = types.SimpleNamespace(configured=False)
    assert router.readings("/told/x", "/told") == ["/x"]


def test_litestars_mounts_take_what_begins_so() -> None:
    def route(path: str, *, mount: bool = False, parameters: object = ()) -> Any:
        handler = types.SimpleNamespace(is_mount=mount)
        return types.SimpleNamespace(path=path, path_parameters=parameters, route_handler=handler)

    app = framework(
        "litestar.app", "Litestar", routes=[route("/", mount=True), route("/filesystem"), route("/files/{x:int}", parameters=("x",))]
    )
    assert Router(app).readings("/filesX", "") == ["/filesX"] * 2
    app.routes.append(route("/files", mount=True))
    router = Router(app)
    for path, reading in (
        ("/filesX", "/files/X"), ("/filesystem/x", "/files/ystem/x"), ("/filesystem", "/filesystem"), ("/filesystem/", "/filesystem/"),
        ("/files", "/files"), ("/files/x", "/files/x"), ("/file", "/file"), ("/x/files", "/x/files"),
    ):  # fmt: skip
        assert router.readings(path, "") == [path, reading]
    assert router.readings("/app/filesX", "/app") == ["/filesX", "/files/X"]
    app.routes.append(route("/new", mount=True))
    assert router.readings("/newX", "") == ["/newX", "/new/X"]


def test_layers_without_end_are_not_followed() -> None:
    layer = Layer(None)
    layer.app = layer
    assert Router(layer).readings("/x", "") == ["/x"]
    assert MAX_LAYERS < 100
