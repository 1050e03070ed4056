# SPDX-License-Identifier: Apache-2.0
"""The endpoint for nginx's auth_request: RFC 7616 behind somebody else's proxy."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from asgi.doorkit import AS_ID, Answer, Client, FakeClock, FakeCounter, FakeKeys, FakeRandom, call, record
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.auth_request import SAME_REQUEST, AuthRequest, granted
from keyferry.asgi.exchange import App
from keyferry.errors import LocalProtocolError, StoreError
from keyferry.protocol.crypto.secret import Secret

KEY = record()
CERTIFICATE = hashlib.sha256(b"nginx's certificate").digest()


class Endpoint:
    """An endpoint, and nginx in front of it."""

    def __init__(self, **settings: Any) -> None:
        self.clock, self.counter, self.keys = FakeClock(), FakeCounter(), FakeKeys(KEY)
        login = SimLogin(
            granted,
            as_id=AS_ID,
            keys=self.keys,
            clock=self.clock,
            random=FakeRandom(),
            certificate_hashes=(CERTIFICATE,),
            counter=self.counter,
        )
        doors: dict[str, App] = {AS_ID: login}
        self.app = AuthRequest(doors, clock=self.clock, counter=self.counter, **settings)

    async def ask(self, *fields: tuple[str, str], **original: str | None) -> Answer:
        said = {"method": "GET", "uri": "/a%2Fb?c", "host": "xcap.home1.net:443", "scheme": "https", **original}
        headers = [(f"X-Original-{name.title()}", value) for name, value in said.items() if value is not None]
        return await call(self.app, "GET", "/keyferry-auth", [*headers, *fields], host="keyferry_auth")

    async def answer(self, *, uri: str = "/a%2Fb?c", method: str = "GET", **how: Any) -> tuple[str, str]:
        challenge = (await self.ask()).challenge()
        return Client(KEY).answer(challenge, 1, method=method, uri=uri, **how)


async def test_a_request_without_credentials_is_challenged_once() -> None:
    """nginx passes one WWW-Authenticate on, and drops the body."""
    answer = await Endpoint().ask()
    assert (answer.status, answer.body) == (401, b"")
    (challenge,) = answer.all("www-authenticate")
    assert "algorithm=SHA-256" in challenge
    assert 'qop="auth"' in challenge
    assert answer.get("retry-after") is None


async def test_a_login_is_204_and_says_who() -> None:
    endpoint = Endpoint()
    answer = await endpoint.ask(await endpoint.answer())
    assert answer.status == 204
    assert answer.get("x-3gpp-asserted-identity") == '"sip:alice@home1.net", "tel:+15551234"'
    assert answer.get("x-keyferry-public-identity") == "sip:alice@home1.net"
    assert len(answer.get("x-keyferry-user") or "") == 24
    assert "rspauth=" in (answer.get("authentication-info") or "")


async def test_method_and_target_are_those_of_the_users_request() -> None:
    endpoint = Endpoint()
    assert (await endpoint.ask(await endpoint.answer(method="PUT"), method="PUT")).status == 204
    assert (await endpoint.ask(await endpoint.answer(method="GET"), method="PUT")).status == 401
    assert (await endpoint.ask(await endpoint.answer(uri="/a/b?c"))).status == 403  # 400 by itself: nginx has no word for it
    refused = await endpoint.ask(await endpoint.answer(), uri="/other")
    assert (refused.status, refused.get("x-keyferry-status")) == (403, "400")


async def test_a_wrong_answer_may_be_tried_again() -> None:
    endpoint = Endpoint()
    refused = await endpoint.ask(await endpoint.answer(ha1=Secret(b"0" * 64)))
    assert (refused.status, refused.get("retry-after")) == (401, "1")
    assert (await endpoint.ask(await endpoint.answer())).status == 204


async def test_credentials_are_used_once_except_by_nginx_itself() -> None:
    """`index` and `try_files` make nginx ask twice about one request: it says so by its request id, which no client sets."""
    endpoint = Endpoint()
    answer = await endpoint.answer()
    first = await endpoint.ask(answer, id="a" * 32)
    again = await endpoint.ask(answer, id="a" * 32)
    assert (first.status, again.status, again.headers) == (204, 204, first.headers)
    assert (await endpoint.ask(answer, id="b" * 32)).status == 401
    assert (await endpoint.ask(answer, id="a" * 32, uri="/other")).status == 403
    endpoint.clock.time += SAME_REQUEST
    assert (await endpoint.ask(answer, id="a" * 32)).status == 401


async def test_the_same_request_with_other_credentials_is_judged_anew() -> None:
    """What was granted to one Authorization is granted to no other, and to none, within the time in which nginx may ask again."""
    endpoint = Endpoint()
    assert (await endpoint.ask(await endpoint.answer(), id="a" * 32)).status == 204
    assert (await endpoint.ask(await endpoint.answer(ha1=Secret(b"0" * 64)), id="a" * 32)).status == 401
    assert (await endpoint.ask(id="a" * 32)).status == 401


async def test_the_certificate_that_the_client_saw_is_nginxs() -> None:
    """The cnonce of our own client is bound to it: a relay with another certificate fails."""
    endpoint = Endpoint()
    for shown, wanted in ((CERTIFICATE, 204), (hashlib.sha256(b"a relay's").digest(), 403)):
        cnonce = f"cb1.{'A' * 22}.{base64.urlsafe_b64encode(shown).decode().rstrip('=')}"
        assert (await endpoint.ask(await endpoint.answer(cnonce=cnonce))).status == wanted


async def test_an_intended_identity_is_honoured_or_refused() -> None:
    endpoint = Endpoint()
    answer = await endpoint.ask(await endpoint.answer(), ("X-3GPP-Intended-Identity", "tel:+15551234"))
    assert answer.get("x-3gpp-asserted-identity") == '"tel:+15551234"'
    assert (await endpoint.ask(await endpoint.answer(), ("X-3GPP-Intended-Identity", "sip:bob@home1.net"))).status == 403


@pytest.mark.parametrize(
    ("wrong", "wanted"),
    [
        *(({"host": host}, 403) for host in ("other.home1.net", "a b")),
        *(({"uri": uri}, 403) for uri in ("a", "https://xcap.home1.net/", "/a#b")),
        *(({name: None}, 500) for name in ("method", "uri", "host", "scheme")),
        ({"scheme": "http"}, 403),
        ({"method": "get"}, 403),
    ],
)
async def test_what_nginx_does_not_say_or_says_oddly_opens_nothing(wrong: dict[str, str | None], wanted: int) -> None:
    endpoint = Endpoint()
    assert (await endpoint.ask(await endpoint.answer(), **wrong)).status == wanted


async def test_a_field_that_is_there_twice_opens_nothing() -> None:
    """A client's own X-Original-URI beside nginx's: only where the configuration does not set it."""
    endpoint = Endpoint()
    assert (await endpoint.ask(await endpoint.answer(), ("X-Original-URI", "/b"))).status == 400


async def test_on_a_tcp_listener_nginx_shows_the_secret() -> None:
    endpoint = Endpoint(secret=Secret(b"s" * 32))
    assert (await endpoint.ask()).status == 403
    assert (await endpoint.ask(("X-Keyferry-Secret", "t" * 32))).status == 403
    assert (await endpoint.ask(("X-Keyferry-Secret", "s" * 32), ("X-Keyferry-Secret", "s" * 32))).status == 403
    assert (await endpoint.ask(("X-Keyferry-Secret", "s" * 32))).status == 401
    assert "proxy refused" in endpoint.counter.seen


async def test_a_store_that_fails_is_no_refusal() -> None:
    endpoint = Endpoint()
    answer = await endpoint.answer()
    endpoint.keys.lookup_fails, endpoint.keys.problem = True, StoreError("broken")
    assert (await endpoint.ask(answer)).status == 503


async def test_failures_count_against_the_user_and_not_against_nginx() -> None:
    endpoint = Endpoint()
    wrong = await endpoint.answer(ha1=Secret(b"0" * 64))
    for _ in range(200):
        await endpoint.ask(wrong, address="192.0.2.66")
    assert (await endpoint.ask(await endpoint.answer(), address="192.0.2.7")).status == 204


async def test_a_page_of_another_site_does_not_act_for_the_user() -> None:
    """nginx passes Origin on; that it is a WebSocket shows by its key, as nginx hides Upgrade."""
    endpoint = Endpoint()
    evil, own = ("Origin", "https://evil.example"), ("Origin", "https://xcap.home1.net")
    assert (await endpoint.ask(await endpoint.answer(method="PUT"), evil, method="PUT")).status == 403
    assert (await endpoint.ask(await endpoint.answer(method="PUT"), own, method="PUT")).status == 204
    assert (await endpoint.ask(await endpoint.answer(), evil, ("Sec-WebSocket-Key", "a"))).status == 403
    assert (await endpoint.ask(await endpoint.answer(), own, ("Sec-WebSocket-Key", "a"))).status == 204


async def test_it_is_http() -> None:
    with pytest.raises(LocalProtocolError):
        await Endpoint().app({"type": "websocket"}, None, None)  # type: ignore[arg-type]
