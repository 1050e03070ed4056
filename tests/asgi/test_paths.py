# SPDX-License-Identifier: Apache-2.0
"""Which paths are open, and that no spelling opens another one."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.asgi.paths import MAX_OPEN_PATH, MAX_RULES, PathRules
from keyferry.errors import ConfigError

SITE = PathRules(open=("/", "/admin/help"), required=("/admin", "/api/v1"))
SHOP = PathRules(open=("/health", "/static"))


def needs(rules: PathRules, target: str, root: str = "") -> bool:
    """Ask as a server does: `raw_path` as sent, `path` decoded once."""
    return rules.needs_login({"type": "http", "path": root + unquote(target), "raw_path": (root + target).encode(), "root_path": root})


@pytest.mark.parametrize("path", ["/", "/a", "/administrator", "/admin/help", "/admin/help/me", "/api", "/api/v10", "/100%25", "/a%20b"])
def test_the_most_specific_rule_opens(path: str) -> None:
    assert not needs(SITE, path)


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/x", "/admin/helper", "/api/v1", "/api/v1/users/sip:a@b"])
def test_the_most_specific_rule_requires(path: str) -> None:
    assert needs(SITE, path)


@pytest.mark.parametrize(
    ("path", "login"), [("/health", False), ("/health/", False), ("/static/a.css", False), ("/healthy", True), ("/", True)]
)
def test_what_no_rule_covers_needs_a_login(path: str, login: bool) -> None:
    assert needs(SHOP, path) is login
    assert needs(PathRules(), path)
    assert needs(PathRules(open=("/health", "/static"), required=()), path) is login


@pytest.mark.parametrize(
    "path",
    [
        "/ADMIN", "/Admin/x", "//admin", "/x//admin", "/./admin", "/x/../admin", "/%2e/admin", "/x/%2e%2e/admin", "/%61dmin",
        "/%2561dmin", "/x/%252e%252e/admin", "/admin%2fx", "/admin%252fx", "/%5cadmin", "/x%5c..%5cadmin", "/admin%00", "/admin;x=1",
        "/;a/admin", "/x/..;/admin", "/admin.", "/admin%20", "/admin...", "/%EF%BC%8Fadmin", "/%EF%BD%81dmin", "/%C0%AFadmin",
        "/x/%E2%80%A5/admin", "/x/%E2%80%A4%E2%80%A4/admin", "/admin%0d%0a", "/%ff/admin", "/%EF%BC%85%36%31dmin", "/admin/help/../x",
        "/admin/help//../x", "/admin/help/%2e%2e/x", "/admin/help/..", "/admin/help/..;/x", "/.", "/..", "/api/v1;x/y", "/api;x/v1",
    ],
)  # fmt: skip
def test_no_spelling_opens_a_required_path(path: str) -> None:
    """Some of them mean a required path to few readers; a login costs nothing but a login."""
    assert needs(SITE, path), path


@pytest.mark.parametrize("path", ["/Static/a", "/static/../secret", "/static/..;/secret", "/STATIC/a", "/health.json", "/static./x"])
def test_an_open_rule_is_taken_literally(path: str) -> None:
    assert needs(SHOP, path)


@given(
    st.lists(
        st.sampled_from(["/", "\\", ".", "..", "%2f", "%2e", "%25", "admin", "ADMIN", "help", ";", "x", "%00", "\uff0f", " "]), max_size=8
    )
)
def test_whoever_decodes_further_finds_nothing_required_behind_an_open_path(parts: list[str]) -> None:
    """A reader that decodes until nothing changes, drops parameters, merges slashes and takes dots away, without case."""
    target = "/" + "".join(parts)
    if needs(SITE, quote(target, safe="/%;\\.")):
        return
    path = target
    while unquote(path) != path:
        path = unquote(path)
    segments: list[str] = []
    for segment in path.replace("\\", "/").casefold().split("/"):
        name = segment.partition(";")[0].strip(". ") if segment.strip(".") else segment
        if name == "..":
            segments = segments[:-1]
        elif name not in {"", "."}:
            segments.append(name)
    assert segments[:1] != ["admin"] or segments[:2] == ["admin", "help"]


def test_the_rules_begin_below_root_path() -> None:
    rules = PathRules(open=("/health",))
    assert not needs(rules, "/health", "/app")
    assert needs(rules, "/x", "/app")
    scope: dict[str, Any] = {"path": "/application/health", "root_path": "/app"}
    assert rules.needs_login(scope)
    assert rules.needs_login({"path": "/app", "root_path": "/app"})
    assert not PathRules(open=("/",), required=("/x",)).needs_login({"path": "/app", "root_path": "/app"})


def test_both_what_was_sent_and_what_was_decoded_must_be_open() -> None:
    """A server behind may look at the target as sent."""
    assert needs(SHOP, "/health") is False
    assert SHOP.needs_login({"path": "/health", "raw_path": b"/secret"})
    assert SHOP.needs_login({"path": "/secret", "raw_path": b"/health"})
    assert SHOP.needs_login({"path": "/health", "raw_path": b"/health\xff"})
    assert not SHOP.needs_login({"path": "/health", "raw_path": None})


def test_a_path_out_of_bounds_needs_a_login() -> None:
    assert needs(SITE, "/" + "a" * MAX_OPEN_PATH)
    assert not needs(SITE, "/" + "a" * (MAX_OPEN_PATH - 1))
    assert SITE.needs_login({"path": "*"})
    assert SITE.needs_login({"path": ""})


@pytest.mark.parametrize(
    ("open_", "required", "says"),
    [
        ("/health", ("/",), "not several"),
        ((), "/", "not several"),
        (("health",), (), "Begin it with a slash"),
        ((b"/x",), (), "Begin it with a slash"),
        (("/a/../b",), (), "never be asked for"),
        (("//a",), (), "never be asked for"),
        (("/a%2fb",), (), "never be asked for"),
        (("/a*",), (), "never be asked for"),
        (("/a?b",), (), "never be asked for"),
        (("/a",), ("/a/",), "in both"),
        ([f"/{number}" for number in range(MAX_RULES)], ("/",), "more than"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(open_: Any, required: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PathRules(open_, required)


def test_where_two_rules_fold_into_one_the_login_wins() -> None:
    rules = PathRules(open=("/Files",), required=("/", "/files"))
    assert needs(rules, "/Files")
    assert needs(rules, "/files")


@pytest.mark.parametrize("path", ["/appaccount", "/x/app/account", "/pub/app/account"])
def test_a_root_that_frameworks_take_off_in_other_ways_opens_nothing(path: str) -> None:
    """Quart takes it off without looking for the end of a segment, Litestar wherever it stands."""
    for rules in (PathRules(("/",), ("/account",)), PathRules(("/pub", "/x"))):
        assert rules.needs_login({"path": path, "raw_path": path.encode(), "root_path": "/app"})


@pytest.mark.parametrize("path", ["/app/account", "/v1/account/x", "/APP/Account"])
def test_a_required_path_needs_a_login_below_a_root_that_no_server_told_of(path: str) -> None:
    """FastAPI(root_path=…) puts it into the scope after the rules were asked."""
    assert PathRules(("/",), ("/account",)).needs_login({"path": path, "raw_path": path.encode(), "root_path": ""})


def test_a_longer_open_rule_keeps_what_it_names_open() -> None:
    """The most specific rule decides."""
    rules = PathRules(("/", "/help/account"), ("/account",))
    for path, login in (("/help/account", False), ("/help/account/x", False), ("/help/account/account", True), ("/accounts", False)):
        assert rules.needs_login({"path": path, "raw_path": path.encode(), "root_path": ""}) is login
