# SPDX-License-Identifier: Apache-2.0
"""Where a request to the forward proxy goes, and who made it."""

from __future__ import annotations

import pytest

from keyferry.client.origin import Target, authority_of, inside, is_forged, parse_absolute, parse_authority
from keyferry.errors import ParseError
from keyferry.protocol.identity import AsId

NOTES = AsId("notes.home1.net")
ORIGIN = "https://notes.home1.net:8444"


@pytest.mark.parametrize(
    ("text", "url", "origin"),
    [
        ("http://notes.home1.net:8444/a%2Fb?c", "https://notes.home1.net:8444/a%2Fb?c", "http://notes.home1.net:8444"),
        ("HTTP://Notes.Home1.net.", "https://notes.home1.net/", "http://notes.home1.net"),
        ("http://notes.home1.net:80/", "https://notes.home1.net/", "http://notes.home1.net"),
        ("http://notes.home1.net:443/", "https://notes.home1.net/", "http://notes.home1.net:443"),
        ("https://notes.home1.net?q", "https://notes.home1.net/?q", "https://notes.home1.net"),
    ],
)
def test_absolute_form_goes_on_over_https(text: str, url: str, origin: str) -> None:
    """RFC 9112 §3.2.2."""
    target = parse_absolute(text)
    assert (target.as_id, target.url, target.origin) == (NOTES, url, origin)


@pytest.mark.parametrize(
    "text",
    ["/", "*", "", "ftp://notes.home1.net/", "http://", "http:///x", "http://a@notes.home1.net/", "http://notes.home1.net:0/",
     "http://notes.home1.net:65536/", "http://notes.home1.net:x/", "http://127.0.0.1:8444/", "http://[::1]/", "http://notes.home1.net/#x",
     "http://notes.home1.net\\@evil.net/", "http://notes.home1.net:/"],
)  # fmt: skip
def test_what_is_no_absolute_form_is_refused(text: str) -> None:
    """Origin-form too: a page that rebinds its own name to this machine has nothing else."""
    with pytest.raises(ParseError):
        parse_absolute(text)


def test_in_a_tunnel_host_must_be_that_of_the_tunnel() -> None:
    """RFC 9110 §7.4."""
    assert inside(NOTES, 8444, "/a?b", "Notes.home1.net:8444") == Target(NOTES, 8444, "/a?b", ORIGIN)
    for text, host in (
        ("/", "xcap.home1.net:8444"),
        ("/", "notes.home1.net"),
        ("http://notes.home1.net:8444/", "notes.home1.net:8444"),
        ("/", ""),
    ):
        with pytest.raises(ParseError):
            inside(NOTES, 8444, text, host)


def test_an_authority_reads_as_it_is_written() -> None:
    for port in (80, 443, 8444):
        for scheme in ("http", "https"):
            assert parse_authority(authority_of(NOTES, port, scheme), scheme) == (NOTES, port)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", []),
        ("PUT", [("User-Agent", "curl/8")]),
        ("GET", [("Sec-Fetch-Site", "same-origin"), ("User-Agent", "Mozilla/5.0")]),
        ("POST", [("Sec-Fetch-Site", "same-origin"), ("Origin", ORIGIN)]),
        ("POST", [("Sec-Fetch-Site", "same-origin"), ("Origin", "null"), ("User-Agent", "Mozilla/5.0")]),
        ("GET", [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")]),
        ("GET", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]),
    ],
)  # fmt: skip
def test_the_user_and_the_applications_own_pages_pass(method: str, headers: list[tuple[str, str]]) -> None:
    """Fetch Metadata."""
    assert not is_forged(method, headers, ORIGIN)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("POST", [("Origin", "https://evil.net")]),
        ("POST", [("Origin", "null")]),
        ("POST", [("Origin", "null"), ("Sec-Fetch-Site", "none")]),
        ("POST", [("Origin", "null"), ("Sec-Fetch-Site", "same-site")]),
        ("POST", [("Origin", "null"), ("Sec-Fetch-Site", "cross-site")]),
        ("POST", [("Origin", "null"), ("Origin", "null"), ("Sec-Fetch-Site", "same-origin")]),
        ("POST", [("Origin", "null"), ("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")]),
        ("POST", [("Origin", "http://notes.home1.net:8444")]),
        ("POST", [("Origin", "https://notes.home1.net:8445")]),
        ("POST", [("Origin", ORIGIN), ("Origin", "https://evil.net")]),
        ("GET", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")]),
        ("GET", [("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")]),
        ("GET", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")]),
        ("POST", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]),
        ("GET", [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")]),
        ("GET", [("User-Agent", "Mozilla/5.0 (X11)")]),
    ],
)  # fmt: skip
def test_pages_of_other_origins_do_not(method: str, headers: list[tuple[str, str]]) -> None:
    """Another port or scheme is another origin; over http a browser does not say who asks (RFC 6454; Fetch Metadata)."""
    assert is_forged(method, headers, ORIGIN)
