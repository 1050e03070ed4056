# SPDX-License-Identifier: Apache-2.0
"""A page of another site changes nothing (RFC 6454 §7, Fetch Metadata)."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry.asgi.origin import Origins, changes
from keyferry.errors import ConfigError

NAME = "notes.home1.net"
ORIGINS = Origins(("https://app.example", "https://app.example:8443", "capacitor://localhost"))


def same(*fields: tuple[str, str]) -> bool | None:
    return ORIGINS.same({"headers": [(name.encode(), value.encode()) for name, value in fields]}, NAME)


@pytest.mark.parametrize(
    "origin",
    ["https://notes.home1.net", "https://notes.home1.net:8443", "https://app.example", "https://app.example:8443", "capacitor://localhost"],
)
def test_a_page_of_this_host_or_of_a_trusted_one_may(origin: str) -> None:
    assert same(("origin", origin)) is True
    assert same(("origin", origin), ("sec-fetch-site", "cross-site")) is True


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://notes.home1.net", "https://evil.example", "https://notes.home1.net.evil.example", "https://www.notes.home1.net",
     "https://notesxhome1.net", "https://notes.home1.net:", "https://notes.home1.net/", "https://evil@notes.home1.net", "https://app.example:444",
     "https://notes.home1.net\n"],
)  # fmt: skip
def test_any_other_page_may_not(origin: str) -> None:
    assert same(("origin", origin)) is False
    assert same(("origin", origin), ("sec-fetch-site", "same-origin")) is (origin == "null")
    assert same(("origin", "https://notes.home1.net"), ("origin", origin)) is False


@pytest.mark.parametrize(
    ("site", "verdict"), [("same-origin", True), ("none", True), ("same-site", False), ("cross-site", False), ("", False)]
)
def test_a_browser_that_sends_no_origin_says_where_the_page_is_from(site: str, verdict: bool) -> None:
    assert same(("sec-fetch-site", site)) is verdict
    assert same(("sec-fetch-site", "same-origin"), ("sec-fetch-site", site)) is False


@pytest.mark.parametrize(
    ("sites", "verdict"),
    [
        (["same-origin"], True),
        ([], False),
        (["none"], False),
        (["same-site"], False),
        (["cross-site"], False),
        (["same-origin", "cross-site"], False),
    ],
)
def test_a_page_that_hides_its_origin_is_known_by_the_browsers_word(sites: list[str], verdict: bool) -> None:
    """Fetch: Referrer-Policy: no-referrer makes Origin null, for the page's own site too."""
    assert same(("origin", "null"), *(("sec-fetch-site", site) for site in sites)) is verdict
    assert same(("origin", "null"), ("origin", "null"), *(("sec-fetch-site", site) for site in sites)) is False


def test_who_says_nothing_is_no_browser() -> None:
    assert same() is None


@pytest.mark.parametrize(
    ("kind", "method", "verdict"),
    [
        ("http", "GET", False),
        ("http", "HEAD", False),
        ("http", "OPTIONS", False),
        ("http", "PUT", True),
        ("http", "POST", True),
        ("http", "DELETE", True),
        ("http", "get", True),
        ("websocket", "GET", True),
    ],
)
def test_what_may_change_something(kind: str, method: str, verdict: bool) -> None:
    assert changes({"type": kind, "method": method}) is verdict


@pytest.mark.parametrize(
    "trusted", ["https://app.example", ("app.example",), ("https://app.example/",), ("*",), ("https://App.example",), ("null",)]
)
def test_origins_that_no_browser_writes_are_refused(trusted: Any) -> None:
    with pytest.raises(ConfigError, match="trusted_origins"):
        Origins(trusted)
