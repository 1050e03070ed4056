# SPDX-License-Identifier: Apache-2.0
"""Phones at the door, over real sockets (DESIGN §7; TS 24.109 §5.2): one challenge, one 401 in a hundred requests, and never a 403."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asgi.doorkit import ALICE, Client, FakeClock, FakeCounter, FakeKeys, FakeRandom, Pki, call, record, serving
from asgi.handsets import AospPhone, Phone, PhoneGaveUp, SamsungPhone
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.asgi.notes import Notes
from keyferry.asgi.session import SessionCookie
from keyferry.asgi.static_keys import StaticKey, StaticKeys
from keyferry.errors import ConfigError
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi
from keyferry.transports.http_server import HttpServer

LOCAL = AsId("localhost")
BTID = "Gh/x+Q2k3w==@bsf.home1.net"
KS_NAF = bytes(range(32))
LOOPBACK = ("127.0.0.0/8", "::1/128")
BOTH = f"3GPP-bootstrapping@{LOCAL};3GPP-bootstrapping-uicc@{LOCAL}"
PUSHED = record(as_id=LOCAL)


class FirstRealm(SamsungPhone):
    """Takes the first of a list."""


class SecondRealm(SamsungPhone):
    """Takes the second of a list."""

    realm_part = 1


class WholeRealm(SamsungPhone):
    """Sends a list back as it came."""

    realm_part = None


class Site:
    """A door for phones and for pushed keys, and what it counted."""

    def __init__(self, *, realm: str = "", phones: bool = True, **settings: Any) -> None:
        self.clock, self.counter = FakeClock(), FakeCounter()
        static = StaticKeys([StaticKey(BTID, Secret(KS_NAF), Impi("alice@home1.net"), ALICE)], realm=realm)
        self.pushed = FakeKeys(PUSHED)
        self.keys = (self.pushed, static) if phones else self.pushed
        self.settings = {"as_id": LOCAL, "clock": self.clock, "random": FakeRandom(), "counter": self.counter, **settings}
        self.door = self.started()

    def started(self) -> SimLogin:
        return SimLogin(Notes(), keys=self.keys, **self.settings)

    @property
    def refused(self) -> list[str]:
        return [reason for reason in self.counter.seen if reason != "door granted"]


@contextlib.asynccontextmanager
async def reached(site: Site, path: Path, *, tls: bool = True) -> AsyncIterator[int]:
    """Serve a site over TLS or plain http; yields the port."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await site.door(scope, receive, send)  # whichever is there now

    if tls:
        async with serving(app, Pki(path).issue(LOCAL, "server")) as port:
            yield port
        return
    server = HttpServer(app)
    try:
        yield (await server.listen("127.0.0.1", 0))[1]
    finally:
        await server.aclose()


def hundred(phone: Phone) -> None:
    """Do what a settings menu does, a hundred times."""
    phone.request("PUT", "/simservs.ngn.etsi.org/users/sip:alice@home1.net/simservs.xml/~~/ss:simservs?xmlns(ss=x)", b"0")
    for number in range(1, 100):
        if number % 2:
            assert phone.request("GET", "/simservs.ngn.etsi.org/users/sip%3aalice@home1.net/simservs.xml") == b"%d" % (number - 1)
        else:
            assert phone.request("PUT", "/a/~~/cp:rule%5B@id=%22x%22%5D", b"%d" % number) == b""


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
@pytest.mark.parametrize("kind", [AospPhone, SamsungPhone])
async def test_a_hundred_requests_cost_one_401(kind: type[Phone], tls: bool, tmp_path: Path) -> None:
    """HANDSETS H1 to H6, H14, H15: and so one bootstrapping."""
    site = Site(http_networks=() if tls else LOOPBACK)
    async with reached(site, tmp_path, tls=tls) as port:
        phone = kind(port, BTID, KS_NAF, tls=tls)
        await asyncio.to_thread(hundred, phone)
    assert (len(phone.statuses), phone.statuses.count(401), phone.bootstrappings) == (101, 1, 1)
    assert set(phone.statuses) == {401, 201, 200}
    assert site.refused == ["door challenge"]


@pytest.mark.parametrize("kind", [AospPhone, FirstRealm, SecondRealm, WholeRealm])
async def test_a_phone_may_take_either_realm_of_a_list(kind: type[Phone], tmp_path: Path) -> None:
    """HANDSETS H8."""
    site = Site(realm=BOTH)
    async with reached(site, tmp_path) as port:
        phone = kind(port, BTID, KS_NAF)
        await asyncio.to_thread(hundred, phone)
    assert (phone.statuses.count(401), phone.bootstrappings) == (1, 1)


async def test_an_old_nonce_is_replaced_without_a_new_bootstrapping(tmp_path: Path) -> None:
    """HANDSETS H5, H6: nextnonce comes in time, and is all that AOSP heeds."""
    site = Site(nonce_lifetime=100.0)
    async with reached(site, tmp_path) as port:
        phone = AospPhone(port, BTID, KS_NAF)
        await asyncio.to_thread(phone.request, "PUT", "/a", b"x")
        for _ in range(10):
            site.clock.time += 60
            await asyncio.to_thread(phone.request, "GET", "/a")
    assert (phone.statuses.count(401), phone.bootstrappings) == (1, 1)


@pytest.mark.parametrize(("kind", "bootstrappings"), [(AospPhone, 2), (SamsungPhone, 1)])
async def test_what_a_restart_costs(kind: type[Phone], bootstrappings: int, tmp_path: Path) -> None:
    """HANDSETS H5: a door that forgot its nonces makes AOSP bootstrap once more, though it says `stale`."""
    site = Site()
    async with reached(site, tmp_path) as port:
        phone = kind(port, BTID, KS_NAF)
        await asyncio.to_thread(phone.request, "PUT", "/a", b"x")
        site.settings["random"] = FakeRandom("restarted")
        site.door = site.started()
        await asyncio.to_thread(phone.request, "PUT", "/a", b"x")
    assert (phone.statuses, phone.bootstrappings) == ([401, 201, 401, 201], bootstrappings)
    assert site.refused == ["door challenge", "door stale"]


@pytest.mark.parametrize("kind", [AospPhone, SamsungPhone])
async def test_a_phone_without_a_right_key_is_asked_again_and_never_told_403(kind: type[Phone], tmp_path: Path) -> None:
    """HANDSETS H10."""
    site = Site()
    async with reached(site, tmp_path) as port:
        phone = kind(port, BTID, b"wrong" * 7)
        with pytest.raises(PhoneGaveUp, match="401"):
            await asyncio.to_thread(phone.request, "GET", "/a")
    assert phone.statuses == [401, 401, 401]


@pytest.mark.parametrize("kind", [AospPhone, SamsungPhone])
async def test_where_there_is_nothing_for_phones_they_are_told_to_come_later(kind: type[Phone], tmp_path: Path) -> None:
    """HANDSETS H7, H10: no dead end of a challenge, and no 403 after which many never ask again."""
    site = Site(phones=False)
    async with reached(site, tmp_path) as port:
        phone = kind(port, BTID, KS_NAF)
        for _ in range(2):
            with pytest.raises(PhoneGaveUp, match="503"):
                await asyncio.to_thread(phone.request, "GET", "/a")
    assert site.refused == ["door handset"] * 2
    answer = await call(site.door, headers=[("User-Agent", phone.agent), ("Authorization", "Basic eA==")], host=LOCAL)
    assert (answer.status, answer.get("retry-after"), answer.all("www-authenticate")) == (503, "3600", [])


@pytest.mark.parametrize("kind", [AospPhone, SamsungPhone])
async def test_the_challenge_of_other_clients_would_lock_phones_out(kind: type[Phone], tmp_path: Path) -> None:
    """What the profile is for; and that these instruments can fail."""
    site = Site(handsets="never", algorithms=("SHA-256", "MD5"))
    async with reached(site, tmp_path) as port:
        phone = kind(port, BTID, KS_NAF)
        with pytest.raises(PhoneGaveUp):
            await asyncio.to_thread(phone.request, "GET", "/a")
    assert 200 not in phone.statuses


async def test_the_challenge_is_one_and_has_nothing_that_a_phone_breaks_at() -> None:
    """HANDSETS H2, H3: one field, one qop, no comma or white space in a value, no "=" in the nonce, not the realm of pushed keys."""
    site = Site(algorithms=("SHA-256", "MD5"), qop=("auth", "auth-int"), realm=BOTH)
    answer = await call(site.door, headers=[("User-Agent", "XCAP Client 3gpp-gba")], host=LOCAL)
    (text,) = answer.all("www-authenticate")
    parts = dict(part.split("=", 1) for part in text.removeprefix("Digest ").split(", "))
    assert parts.keys() == {"realm", "nonce", "algorithm", "qop"}
    assert (parts["algorithm"], parts["qop"], parts["realm"]) == ("MD5", '"auth"', f'"{BOTH}"')
    assert "=" not in parts["nonce"]
    assert "IMS-AS-key" not in text
    ordinary = await call(site.door, host=LOCAL)
    assert len(ordinary.all("www-authenticate")) == 2
    assert "bootstrapping" not in "".join(ordinary.all("www-authenticate"))


async def test_a_phone_that_does_not_say_what_it_is_needs_the_override(tmp_path: Path) -> None:
    """HANDSETS H14: 8 of 405 profiles."""

    class Quiet(AospPhone):
        agent = "IMS"

    for profile, works in (("token", False), ("always", True)):
        site = Site(handsets=profile)
        async with reached(site, tmp_path) as port:
            phone = Quiet(port, BTID, KS_NAF)
            if works:
                await asyncio.to_thread(phone.request, "PUT", "/a", b"x")
            else:
                with pytest.raises(PhoneGaveUp):
                    await asyncio.to_thread(phone.request, "PUT", "/a", b"x")


async def test_nobody_makes_the_door_forget_a_key_by_naming_it_to_another_source() -> None:
    """A stranger knows a key id, and the realm of phones."""
    site, client = Site(), Client(PUSHED)
    challenge = (await call(site.door, host=LOCAL)).challenge()
    assert (await call(site.door, headers=[client.answer(challenge)], host=LOCAL)).status == 404
    stolen = dataclasses.replace(client.credentials(challenge, 2), realm=f"3GPP-bootstrapping@{LOCAL}", algorithm="MD5")
    assert (await call(site.door, headers=[("Authorization", digest.build_credentials(stolen))], host=LOCAL)).status == 401
    before = site.pushed.derived
    assert (await call(site.door, headers=[client.answer(challenge, 3)], host=LOCAL)).status == 404
    assert (site.pushed.derived, site.pushed.told) == (before, [PUSHED.key_id])


# ---- plain http


async def over_http(site: Site, *headers: tuple[str, str], client: tuple[str, int] | None = ("127.0.0.1", 9)) -> Any:
    return await call(site.door, headers=headers, host=LOCAL, scheme="http", client=client)


@pytest.mark.parametrize("client", [("192.0.2.1", 9), ("::ffff:192.0.2.1", 9), ("2001:db8::1", 9), ("", 9), ("unix", 0), None])
async def test_plain_http_is_for_named_networks_alone(client: tuple[str, int] | None) -> None:
    """HANDSETS H11: the xcap APN's addresses; a phone elsewhere may come again, whoever else is refused."""
    site = Site(http_networks=LOOPBACK)
    assert (await over_http(site, client=client)).status == 403
    assert (await over_http(site, ("User-Agent", "3gpp-gba"), client=client)).status == 503


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
async def test_whoever_comes_over_plain_http_is_taken_for_a_phone(address: str) -> None:
    """There is nothing else to offer."""
    answer = await over_http(Site(http_networks=LOOPBACK), client=(address, 9))
    assert (answer.status, len(answer.all("www-authenticate")), answer.challenge().algorithm) == (401, 1, "MD5")


async def test_a_pushed_key_is_never_taken_over_plain_http() -> None:
    """DESIGN §3: not from a network that may come so, not with a right answer; and the key is not even looked up."""
    site, client = Site(http_networks=LOOPBACK), Client(PUSHED)
    challenge = (await call(site.door, host=LOCAL)).challenge()
    answer = await over_http(site, client.answer(challenge))
    assert (answer.status, site.counter.seen[-1]) == (403, "door scheme")
    assert site.pushed.asked == []
    assert (await call(site.door, headers=[client.answer(challenge)], host=LOCAL)).status == 404  # let in: there is no note


async def test_a_session_is_neither_begun_nor_taken_over_plain_http() -> None:
    """Whoever reads the network would have it."""
    site = Site(http_networks=LOOPBACK, session=SessionCookie())

    async def login(**scope: Any) -> Any:
        challenge = (await call(site.door, headers=[("User-Agent", "3gpp-gba")], host=LOCAL, **scope)).challenge()
        password = Secret(base64.b64encode(KS_NAF))
        ha1 = digest.hash_a1("MD5", BTID, challenge.realm, password)
        nc, cnonce = "00000001", "c" * 16
        response = digest.respond("MD5", ha1, method="GET", uri="/notes", nonce=challenge.nonce, qop="auth", nc=nc, cnonce=cnonce)
        said = digest.Credentials(BTID, challenge.realm, challenge.nonce, "/notes", response, "MD5", cnonce=cnonce, qop="auth", nc=nc)
        return await call(site.door, headers=[("Authorization", digest.build_credentials(said))], host=LOCAL, **scope)

    plain: dict[str, Any] = {"scheme": "http", "client": ("127.0.0.1", 9)}
    answer = await login(**plain)
    assert (answer.status, answer.all("set-cookie")) == (404, [])  # let in: there is no note
    (cookie,) = (await login()).all("set-cookie")
    held = ("Cookie", cookie.partition(";")[0])
    assert (await call(site.door, headers=[held], host=LOCAL)).status == 404
    refused = await call(site.door, headers=[held], host=LOCAL, **plain)
    assert (refused.status, site.counter.seen[-1]) == (401, "door challenge")


def test_plain_http_with_pushed_keys_alone_is_refused_at_once() -> None:
    """Nobody could use it, and everybody would think that it is safe."""
    with pytest.raises(ConfigError, match="pushed"):
        Site(phones=False, http_networks=LOOPBACK)
    with pytest.raises(ConfigError, match="http_networks"):
        Site(http_networks=("10.0.0.1/8",))
