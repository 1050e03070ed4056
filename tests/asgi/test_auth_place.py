# SPDX-License-Identifier: Apache-2.0
"""Where a request goes and who relays it: scheme, Host, uri, certificate (DESIGN §7)."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from asgi.doorkit import AS_ID, Answer, Client, Door, call, make_door, record
from keyferry.asgi.door import BOUND_CNONCE
from keyferry.errors import LocalProtocolError

ALICE_KEY = record()
CERTIFICATE = hashlib.sha256(b"certificate").digest()
CERTIFICATE_TEXT = "R7o7KZpqlyx0P7fxbEkfiXvWF4gK0CFLnUY7yFTfk2c"


async def logged_in(door: Door, client: Client, *, target: str = "/notes", method: str = "GET", **wrong: Any) -> Answer:
    challenge = await door.challenge()
    return await call(door.door, method, target, [client.answer(challenge, method=method, **wrong)])


# ---- attacks on the place


async def test_plain_http_is_refused_before_any_challenge() -> None:
    """DESIGN §3: K_UA is never used on http://."""
    door = make_door(ALICE_KEY)
    answer = await call(door.door, scheme="http")
    assert (answer.status, answer.all("www-authenticate")) == (403, [])
    assert b"plain http" in answer.body


@pytest.mark.parametrize("host", ["xcap.home1.net", "XCAP.Home1.NET", "xcap.home1.net:8443", "xcap.home1.net.", "xcap.home1.net.:443"])
async def test_the_host_is_the_as_id_whatever_its_port(host: str) -> None:
    """DESIGN §3: one FQDN, whatever its ports, is one AS."""
    assert (await call(make_door().door, host=host)).status == 401


@pytest.mark.parametrize(
    "host", ["", "other.home1.net", "xcap.home1.net.evil.net", "xcapxhome1.net", "xcap.home1.net:", "xcap.home1.net\n", "[::1]"]
)
async def test_another_host_is_misdirected(host: str) -> None:
    """RFC 9110 §15.5.20."""
    door = make_door(ALICE_KEY)
    answer = await call(door.door, headers=[Client(ALICE_KEY).answer(await door.challenge())], host=host)
    assert answer.status == 421
    assert door.app.scopes == []


async def test_there_is_exactly_one_host() -> None:
    """RFC 9112 §3.2."""
    door = make_door().door
    assert (await call(door, host=None)).status == 400
    assert (await call(door, headers=[("Host", AS_ID)])).status == 400


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        ("/notes", "/notes"),
        ("/notes?a=1", "/notes?a=1"),
        ("/notes", "/notes?"),  # ASGI cannot tell an empty query from none
        ("/users/sip%3Aalice%40home1.net", "/users/sip%3Aalice%40home1.net"),
        ("/users/sip:alice@home1.net", "/users/sip:alice@home1.net"),
        ("/b\udcc3\udca9", "/b\udcc3\udca9"),  # curl sends octets as typed
        ("/notes?a=1", "https://xcap.home1.net/notes?a=1"),  # absolute-form, of which ASGI shows the path alone
        ("/notes", "HTTPS://XCAP.home1.net/notes?"),
    ],
)
async def test_the_uri_is_the_request_target(target: str, uri: str) -> None:
    """RFC 7616 §3.4."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    assert (await logged_in(door, client, target=target, uri=uri)).status == 200


@pytest.mark.parametrize(
    ("target", "uri"),
    [
        ("/notes", "/other"),
        ("/notes?a=1", "/notes"),
        ("/notes?a=1", "/notes?a=1?"),
        ("/notes", "http://xcap.home1.net/notes"),
        ("/notes", "https://other.home1.net/notes"),
        ("/notes", "https://xcap.home1.net:8443/notes"),
        ("/notes", "https://xcap.home1.net/other"),
        ("/", "https://xcap.home1.net"),
        ("/notes", "//xcap.home1.net/notes"),
        ("/notes", "https:/notes"),
        ("/notes", "notes"),
        ("/notes", ""),
        ("/notes?", "/notes??"),
        ("/users/sip%3Aalice", "/users/sip:alice"),
        ("/users/sip:alice", "/users/sip%3Aalice"),
        ("/users/sip%3aalice", "/users/sip%3Aalice"),
        ("/a/../b", "/b"),
        ("//notes", "/notes"),
        ("https://xcap.home1.net/notes", "https://xcap.home1.net/notes"),  # absolute-form as h11 passes it on
        ("*", "*"),
    ],
)
async def test_another_uri_is_refused_however_similar(target: str, uri: str) -> None:
    """RFC 7616 §3.4.6: an answer for one document must not open another."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    answer = await logged_in(door, client, target=target, uri=uri)
    assert (answer.status, door.app.scopes) == (400, [])


@pytest.mark.parametrize(
    ("raw_path", "uri", "status"),
    [
        ("/api/notes", "/api/notes", 200),  # uvicorn: raw_path has it
        ("/notes", "/api/notes", 200),  # hypercorn: apart from it
        ("/notes", "/notes", 200),  # somebody came by another way than the proxy
        ("/notes", "https://xcap.home1.net/api/notes", 200),
        ("/api/notes", "/notes", 400),
        ("/api/notes", "/api/api/notes", 400),
        ("/api", "/api", 200),
        ("/api", "/api/api", 400),
        ("/api?x=1", "/api/api?x=1", 400),
        ("/notes", "/api/other", 400),
        ("/notes", "/apinotes", 400),
    ],
)
@pytest.mark.parametrize("root_path", ["/api", "/api/"])
async def test_the_uri_has_the_root_path(root_path: str, raw_path: str, uri: str, status: int) -> None:
    """ASGI `root_path`: what a proxy took away, and what the client signed."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    header = client.answer(await door.challenge(), uri=uri)
    assert (await call(door.door, "GET", raw_path, [header], root_path=root_path)).status == status


async def test_a_server_without_raw_path_is_found_out() -> None:
    """The path as decoded by a server is not what the client signed."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    with pytest.raises(LocalProtocolError, match="raw_path"):
        await call(door.door, headers=[client.answer(await door.challenge())], raw_path=None)


# ---- malformed


async def test_a_doubled_or_oversized_or_unreadable_authorization_is_refused() -> None:
    """RFC 9110 §11.6.2; RFC 6585 §5."""
    door, client = make_door(ALICE_KEY), Client(ALICE_KEY)
    right = client.answer(await door.challenge())
    assert (await call(door.door, headers=[right, right])).status == 400
    assert (await call(door.door, headers=[right, ("Authorization", "Basic eA==")])).status == 400
    assert (await call(door.door, headers=[("Authorization", "Digest " + "x" * 65_536)])).status == 431
    for text in ("Digest", "Digest ", "Digest username", 'Digest username="', right[1] + ', nonce="x"', "Digest \udcff", "Digestive x=y"):
        assert (await call(door.door, headers=[("Authorization", text)])).status == 400, text
    assert door.app.scopes == []


@pytest.mark.parametrize("text", ["Basic YWxpY2U6eA==", "Bearer x", ""])
async def test_another_scheme_is_challenged(text: str) -> None:
    """RFC 9110 §11.6.1."""
    answer = await call(make_door().door, headers=[("Authorization", text)])
    assert (answer.status, answer.get("retry-after")) == (401, "1")


# ---- certificate binding


async def test_a_client_that_saw_our_certificate_is_admitted() -> None:
    """DESIGN §7: cb1."""
    door, client = make_door(ALICE_KEY, certificate_hashes=(b"0" * 32, CERTIFICATE)), Client(ALICE_KEY)
    certificate = base64.urlsafe_b64encode(CERTIFICATE).decode().rstrip("=")
    assert (await logged_in(door, client, cnonce=f"{BOUND_CNONCE}AAAA.{certificate}")).status == 200


@pytest.mark.parametrize("hashes", [(), (b"0" * 32,)])
@pytest.mark.parametrize("end", ["AAAA.", "AAAA.R7o7", "", "AAAA." + CERTIFICATE_TEXT])
async def test_a_relay_with_another_certificate_is_refused(hashes: tuple[bytes, ...], end: str) -> None:
    """DESIGN §7; and what it took from the client is not spent."""
    door, client = make_door(ALICE_KEY, certificate_hashes=hashes), Client(ALICE_KEY)
    challenge = await door.challenge()
    answer = await call(door.door, headers=[client.answer(challenge, cnonce=BOUND_CNONCE + end)])
    assert (answer.status, answer.get("authentication-info"), door.app.scopes) == (403, None, [])
    assert (await call(door.door, headers=[client.answer(challenge)])).status == 200
