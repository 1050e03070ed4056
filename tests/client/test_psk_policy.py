# SPDX-License-Identifier: Apache-2.0
"""DESIGN §7: TLS-PSK where it can be had, Digest where policy allows, and nothing silently."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import httpx
import pytest

from asgi.doorkit import AS_ID, Echo, FakeClock, FakeRandom, make_door
from client.test_login import LIFE, client_with, held
from client.test_ue import state
from keyferry.client.http import HostsTransport
from keyferry.client.login import UeLogin
from keyferry.client.psk import psk_transport
from keyferry.client.psk_policy import PSK, RETRY, PskOrCertificate, PskPolicy, asking, why_not
from keyferry.client.ue import HttpCredentials, UeClient, http_credentials
from keyferry.errors import ConfigError, LocalProtocolError, RegistrationFailed, TransportError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import parse_as_id

URL = f"https://{AS_ID}:8443/notes"
PORTS: dict[str, int] = {AS_ID: 8453}
OLD = state(expires_at=LIFE)
NEW = state(expires_at=LIFE, k_m=Secret(b"n" * 32))


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


# ---- names


@pytest.mark.parametrize("host", ["bücher.example", "xn--bcher-kva.example", "BÜCHER.example."])
@pytest.mark.parametrize("table", ["Bücher.example", "xn--bcher-kva.example"])
async def test_a_name_may_be_written_in_both_forms(host: str, table: str) -> None:
    """DESIGN §3: the AS_ID has A-labels; httpx shows U-labels."""
    books = parse_as_id("xn--bcher-kva.example")
    keyed = Keyed()
    transport = PskOrCertificate(httpx.MockTransport(lambda _: httpx.Response(500)), {table: 8453}, make=keyed.make)
    request = asking(httpx.Request("GET", f"https://{host}:8443/notes"), http_credentials(OLD, books))
    assert (await transport.handle_async_request(request)).status_code == 200
    assert [(sent.url.raw_host.rstrip(b".").lower(), sent.url.port) for sent in keyed.seen] == [(books.encode(), 8453)]


# ---- how long a refusal is remembered


class Trial:
    """A UE that prefers TLS-PSK, over some time."""

    def __init__(self, keyed: Keyed, client: UeClient, ports: dict[str, int] = PORTS) -> None:
        self.clock = client.clock
        self.keyed, self.log, self.client = keyed, Noted(), client
        self.door = make_door(held(OLD), held(NEW), app=Echo())
        self.login = UeLogin(client, AS_ID, FakeRandom("client"), psk="prefer", log=self.log)
        self.http = httpx.AsyncClient(
            transport=PskOrCertificate(httpx.ASGITransport(self.door.door), ports, make=keyed.make), auth=self.login
        )  # fmt: skip

    async def way(self, after: float = 0.0) -> str:
        """Let time pass and ask; return which way the request went."""
        assert isinstance(self.clock, FakeClock)
        self.clock.time += after
        text = (await self.http.put(URL, content=b"milk")).text
        return "psk" if text == "over psk" else "digest"


@pytest.mark.parametrize("problem", [httpx.ConnectTimeout("a SYN was lost"), httpx.ConnectError("ssl: alert handshake failure")])
async def test_a_failure_of_the_network_is_forgotten_after_a_minute(problem: Exception) -> None:
    keyed = Keyed(problem)
    keyed.fails = 2
    trial = Trial(keyed, await client_with(OLD))
    assert [await trial.way(), await trial.way(), await trial.way(RETRY - 1)] == ["digest"] * 3
    assert await trial.way(1) == "digest"  # tried, and failed again
    assert await trial.way(RETRY - 1) == "digest"
    assert [await trial.way(1), await trial.way()] == ["psk", "psk"]
    assert trial.log.warnings == [("psk-refused", "digest")] * 2


async def test_while_one_request_finds_out_the_others_do_not_wait() -> None:
    """A server that does not answer takes ten seconds to be sure of."""
    keyed, asked_again, answered = Keyed(httpx.ConnectTimeout("late")), asyncio.Event(), asyncio.Event()
    trial = Trial(keyed, await client_with(OLD))
    assert await trial.way() == "digest"
    plain = keyed.handle_async_request

    async def slow(request: httpx.Request) -> httpx.Response:
        asked_again.set()
        await answered.wait()
        return await plain(request)

    keyed.handle_async_request = slow  # type: ignore[method-assign]
    first = asyncio.create_task(trial.way(RETRY))
    await asked_again.wait()
    assert [await trial.way() for _ in range(3)] == ["digest"] * 3
    answered.set()
    assert await first == "digest"


@pytest.mark.parametrize("ports", [PORTS, {}])
async def test_what_cannot_change_is_not_tried_again_with_the_same_key(ports: dict[str, int]) -> None:
    keyed = Keyed(ConfigError("TLS-PSK", "needs Python 3.13"))
    keyed.fails = 1
    trial = Trial(keyed, await client_with(OLD), ports)
    assert [await trial.way(), await trial.way(RETRY), await trial.way(100 * RETRY)] == ["digest"] * 3
    assert trial.log.warnings == [("psk-refused", "digest")]
    await trial.client.store.save(NEW)
    assert await trial.way() == ("psk" if ports else "digest")


async def test_what_becomes_of_an_old_key_says_nothing_of_the_new_one() -> None:
    keyed = Keyed()
    trial = Trial(keyed, await client_with(OLD))
    begun, ended = asyncio.Event(), asyncio.Event()
    plain = keyed.handle_async_request

    async def late(request: httpx.Request) -> httpx.Response:
        if begun.is_set():
            return await plain(request)
        begun.set()
        await ended.wait()
        raise httpx.ConnectError("the old key is gone")

    keyed.handle_async_request = late  # type: ignore[method-assign]
    old = asyncio.create_task(trial.way())
    await begun.wait()
    await trial.client.store.save(NEW)
    assert await trial.way() == "psk"
    ended.set()
    assert await old == "digest"
    assert await trial.way() == "psk"


ALERT = bytes.fromhex("15 0303 0002 02")  # TLSPlaintext of a fatal alert, before its description (RFC 8446 §5.1, §6)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")
@pytest.mark.parametrize(
    "answer",
    [ALERT + b"\x33", ALERT + b"\x28", ALERT + b"\x73", b"", b"HTTP/1.1 4"],
    ids=["decrypt_error", "handshake_failure", "unknown_psk_identity", "nothing", "no TLS"],
)
async def test_nothing_that_anybody_on_the_way_can_forge_is_remembered_for_long(answer: bytes) -> None:
    """RFC 8446 §6: alerts of this time are in clear. One packet must not do what an attacker would have to do for a day."""

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        transport = PskOrCertificate(
            httpx.MockTransport(lambda _: httpx.Response(500)), {AS_ID: port},
            make=lambda found: HostsTransport(psk_transport(found), {AS_ID: "127.0.0.1"}),
        )  # fmt: skip
        response = await transport.handle_async_request(asking(httpx.Request("GET", URL), http_credentials(OLD, AS_ID)))
        await transport.aclose()
    refusal = why_not(response)
    assert refusal is not None
    assert not refusal.lasting
