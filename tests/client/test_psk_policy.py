# SPDX-License-Identifier: Apache-2.0
"""DESIGN §7: TLS-PSK where it can be had, Digest where policy allows, and nothing silently."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from asgi.doorkit import AS_ID, Echo, FakeRandom, make_door
from client.test_login import LIFE, client_with, held
from client.test_ue import state
from keyferry.client.login import UeLogin
from keyferry.client.psk_policy import PSK, PskOrCertificate, PskPolicy, asking
from keyferry.client.ue import HttpCredentials, http_credentials
from keyferry.errors import ConfigError, LocalProtocolError, RegistrationFailed, TransportError

URL = f"https://{AS_ID}:8443/notes"
PORTS: dict[str, int] = {AS_ID: 8453}
OLD = state(expires_at=LIFE)


class Noted:
    """Implement ports.Log."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, object]] = []

    def info(self, event: str, **fields: object) -> None:
        raise AssertionError(event)

    def warning(self, event: str, **fields: object) -> None:
        self.warnings.append((event, fields["then"]))


class Keyed(httpx.AsyncBaseTransport):
    """Stands for the transport of one key: notes what it gets, and fails as it is told."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.seen: list[httpx.Request] = []
        self.made: list[str] = []
        self.closed = 0
        self.problem = problem
        self.fails = 10**9

    def make(self, found: HttpCredentials) -> httpx.AsyncBaseTransport:
        self.made.append(found.username)
        return self

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.problem is not None and self.fails > 0:
            self.fails -= 1
            raise self.problem
        self.seen.append(request)
        return httpx.Response(200, text="over psk")

    async def aclose(self) -> None:
        self.closed += 1


async def asked(
    keyed: Keyed, policy: PskPolicy, *, ports: dict[str, int] = PORTS, times: int = 1, sleeps: list[float] | None = None
) -> tuple[list[str], Noted, Any]:
    """Ask some times; return the texts, what was logged, and the door of the certificate's side."""
    door = make_door(held(OLD), app=Echo())
    log = Noted()

    async def sleep(seconds: float) -> None:
        if sleeps is not None:
            sleeps.append(seconds)

    login = UeLogin(await client_with(OLD), AS_ID, FakeRandom("client"), psk=policy, log=log, sleep=sleep)
    transport = PskOrCertificate(httpx.ASGITransport(door.door), ports, make=keyed.make)
    texts = []
    async with httpx.AsyncClient(transport=transport, auth=login) as client:
        for _ in range(times):
            texts.append((await client.put(URL, content=b"milk")).text)
    return texts, log, door


async def test_what_can_go_over_psk_goes_there_without_credentials() -> None:
    keyed = Keyed()
    texts, log, door = await asked(keyed, "prefer", times=2)
    assert texts == ["over psk", "over psk"]
    assert {str(request.url) for request in keyed.seen} == {f"https://{AS_ID}:8453/notes"}
    assert not any("authorization" in request.headers or PSK in request.extensions for request in keyed.seen)
    assert (len(keyed.made), log.warnings, door.counter.seen) == (1, [], [])


@pytest.mark.parametrize(
    "problem", [httpx.ConnectError("ssl: alert"), httpx.ConnectTimeout("late"), ConfigError("TLS-PSK", "needs Python 3.13")]
)  # fmt: skip
async def test_prefer_goes_on_to_digest_and_the_log_says_so_once(problem: Exception) -> None:
    """A server that lacks the key yet, one that is not there, an attacker in between: all are said."""
    texts, log, door = await asked(Keyed(problem), "prefer", times=2)
    assert texts == ["sip:alice@home1.net"] * 2
    assert log.warnings == [("psk-refused", "digest")]
    assert door.app.bodies == [b"milk", b"milk"]


async def test_require_waits_for_the_key_and_never_goes_on_to_digest() -> None:
    sleeps: list[float] = []
    keyed = Keyed(httpx.ConnectError("ssl: alert"))
    keyed.fails = 2
    texts, log, door = await asked(keyed, "require", sleeps=sleeps)
    assert (texts, sleeps, log.warnings) == (["over psk"], [1.0, 2.0], [])
    with pytest.raises(TransportError, match="required"):
        await asked(Keyed(httpx.ConnectError("ssl: alert")), "require")
    with pytest.raises(TransportError, match="psk_ports"):
        await asked(Keyed(), "require", ports={})
    assert door.counter.seen == []


async def test_an_error_after_the_handshake_is_not_a_reason_for_another_way() -> None:
    """The request may have been carried out."""
    with pytest.raises(httpx.ReadError):
        await asked(Keyed(httpx.ReadError("gone")), "prefer")


async def test_off_never_asks() -> None:
    keyed = Keyed()
    texts, _, _ = await asked(keyed, "off")
    assert (texts, keyed.made) == (["sip:alice@home1.net"], [])


async def test_another_transport_is_found_out() -> None:
    """It sends the request over TLS with a certificate, to whoever has one."""
    door = make_door(held(OLD))
    login = UeLogin(await client_with(OLD), AS_ID, FakeRandom("client"), psk="require")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door.door), auth=login) as client:
        with pytest.raises(LocalProtocolError, match="knows nothing"):
            await client.get(URL)


@pytest.mark.parametrize("url", [f"http://{AS_ID}/", "https://evil.net/"])
def test_the_key_is_not_even_named_to_another_host(url: str) -> None:
    with pytest.raises(LocalProtocolError):
        asking(httpx.Request("GET", url), http_credentials(OLD, AS_ID))


async def test_a_new_key_has_connections_of_its_own_and_the_oldest_are_closed() -> None:
    keyed = Keyed()
    transport = PskOrCertificate(httpx.MockTransport(lambda _: httpx.Response(500)), PORTS, make=keyed.make)
    for place in range(3):
        found = http_credentials(OLD, AS_ID)._replace(username=f"key{place}")  # type: ignore[arg-type]
        request = asking(httpx.Request("GET", URL), found)
        assert (await transport.handle_async_request(request)).status_code == 200
    assert (keyed.made, keyed.closed) == (["key0", "key1", "key2"], 1)
    await transport.aclose()


async def test_without_a_key_nothing_is_asked() -> None:
    login = UeLogin(await client_with(None), AS_ID, FakeRandom("client"), psk="require")
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200)), auth=login) as client:
        with pytest.raises(RegistrationFailed):
            await client.get(URL)
