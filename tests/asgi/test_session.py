# SPDX-License-Identifier: Apache-2.0
"""The session cookie: signed under the key it names, for a time."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.asgi.session import MAX_COOKIES, MAX_LIFETIME, Session, SessionCookie, read, sign, without_session
from keyferry.errors import ConfigError
from keyferry.protocol.crypto.secret import Secret

KEY, OTHER = Secret(bytes(range(32))), Secret(bytes(32))
AS_ID, KEY_ID = "notes.home1.net", "A" * 24 + "@home1.net"
NOW = 1_800_000_000.25


def scope(*cookies: bytes) -> dict[str, Any]:
    return {"headers": [(b"host", b"x"), *((b"cookie", cookie) for cookie in cookies)]}


def named(token: bytes) -> bytes:
    return b"__Host-keyferry=" + token


def session(until: float = NOW + 3600) -> Session:
    found = read(scope(named(sign(KEY, AS_ID, KEY_ID, NOW, until))))
    assert found is not None
    return found


def test_a_cookie_names_its_key_and_holds_in_its_time() -> None:
    found = session()
    assert found.identifier == KEY_ID
    assert found.holds(KEY, AS_ID, NOW)
    assert found.holds(KEY, AS_ID, NOW + 3599)
    assert not found.holds(KEY, AS_ID, NOW + 3600)
    assert not found.holds(KEY, AS_ID, NOW - 61)
    assert (found.young(NOW + 1799), found.young(NOW + 1801)) == (True, False)


def test_another_key_or_as_does_not_take_it() -> None:
    found = session()
    assert not found.holds(OTHER, AS_ID, NOW)
    assert not found.holds(KEY, "xcap.home1.net", NOW)
    for forged in (found._replace(identifier="B" * 24 + "@home1.net"), found._replace(expires_ms=found.expires_ms + 1)):
        assert not forged.holds(KEY, AS_ID, NOW)


def test_who_has_the_key_cannot_make_a_session_for_longer_than_one_may_be() -> None:
    assert session(NOW + MAX_LIFETIME).holds(KEY, AS_ID, NOW)
    assert not session(NOW + MAX_LIFETIME + 1).holds(KEY, AS_ID, NOW)


def test_no_two_cookies_and_no_other_form() -> None:
    token = sign(KEY, AS_ID, KEY_ID, NOW, NOW + 60)
    assert read(scope(b"a=b; " + named(token) + b"; c=d")) is not None
    assert read(scope(b"a=b", named(token))) is not None
    assert read(scope()) is None
    assert read(scope(named(token), named(token))) is None
    assert read(scope(named(token) + b"; " + named(b"x"))) is None
    assert read(scope(b"keyferry=" + token)) is None
    assert read(scope(b"__host-keyferry=" + token)) is None
    assert read(scope(b"a=" + b"b" * MAX_COOKIES, named(token))) is None
    for wrong in (b"", token[:-1], token + b"A", token + b"=", b"2" + token[1:], token.replace(b".", b"", 1), b'"' + token + b'"'):
        assert read(scope(named(wrong))) is None


def test_one_session_has_one_text() -> None:
    """The last characters of base64 have bits that nobody reads."""
    name, times, mac = (b"1", *sign(KEY, AS_ID, "a@b.c", NOW, NOW + 60).split(b".")[1:])[1:]
    assert read(scope(named(b".".join((b"1", name, times, mac))))) is not None
    assert read(scope(named(b".".join((b"1", name[:-1] + chr(name[-1] + 1).encode(), times, mac))))) is None
    assert read(scope(named(b".".join((b"1", b"_w", times, mac))))) is None  # no UTF-8


def test_any_name_of_a_key_may_stand_in_a_cookie() -> None:
    """A B-TID has characters that a cookie may not have."""
    name = 'RAND+/==@bsf"; \\,\u00e9.example'
    token = sign(KEY, AS_ID, name, NOW, NOW + 60)
    assert re.fullmatch(rb"[A-Za-z0-9_.\-]+", token)
    found = read(scope(named(token)))
    assert found is not None
    assert (found.identifier, found.holds(KEY, AS_ID, NOW)) == (name, True)
    assert sign(KEY, AS_ID, "x" * 601, NOW, NOW + 60) == b""


@given(st.binary(max_size=300))
def test_any_octets_are_a_cookie_or_none(octets: bytes) -> None:
    assert read(scope(named(octets))) is None
    assert read(scope(octets)) is None


def test_a_browser_keeps_it_to_this_host_and_from_scripts() -> None:
    name, value = SessionCookie().set(b"token", 60.9)
    assert (name, value) == (b"set-cookie", b"__Host-keyferry=token; Path=/; Max-Age=60; Secure; HttpOnly; SameSite=Lax")
    assert SessionCookie(same_site="Strict").end()[1] == b"__Host-keyferry=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict"


@pytest.mark.parametrize("wrong", [{"lifetime": 0.5}, {"lifetime": 86_401}, {"lifetime": float("nan")}, {"same_site": "lax"}])
def test_settings_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="SessionCookie"):
        SessionCookie(**wrong)


def test_the_application_does_not_see_it() -> None:
    headers = scope(b"a=b; __Host-keyferry=x;  c=d", b"__Host-keyferry=x", b"e=f")["headers"]
    assert without_session(headers) == [(b"host", b"x"), (b"cookie", b"a=b; c=d"), (b"cookie", b"e=f")]
