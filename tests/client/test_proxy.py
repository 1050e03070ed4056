# SPDX-License-Identifier: Apache-2.0
"""`keyferry ue proxy` before a server of ours: over TLS and without, in both directions, and against pages that want the login."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi.doorkit import Echo, FakeClock, FakeRandom, Pki, make_door, record, serving
from keyferry.asgi.exchange import App, Receive, Scope, Send
from keyferry.client.http_auth import SimDigest
from keyferry.client.proxy import UeProxy
from keyferry.errors import ConfigError, RegistrationFailed
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys
from keyferry.transports.clock import SystemClock
from keyferry.transports.http_server import tls_context
from keyferry.transports.pki import Pki as ProxyPki
from keyferry.wiring.observability import StructLog

LOCAL = AsId("localhost")
ALICE = record(as_id=LOCAL)
BROWSER = {"User-Agent": "Mozilla/5.0"}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


class Proxied:
    """A proxy, and how to reach it."""

    def __init__(self, address: tuple[str, int], ca: Path, port: int) -> None:
        self.address = f"http://{address[0]}:{address[1]}"
        self.trust = ssl.create_default_context(cafile=ca)
        self.http, self.https = (f"{scheme}://localhost:{port}" for scheme in ("http", "https"))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(proxy=self.address, verify=self.trust, trust_env=False)

    async def raw(self, octets: bytes) -> bytes:
        host, _, port = self.address.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(octets)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await writer.wait_closed()
        return answer


async def no_sleep(_: float) -> None:
    return None


def login(held: Any = ALICE) -> SimDigest:
    return SimDigest(key_id=held.key_id, as_id=LOCAL, k_ua=ims_keys.ua_key(held.k_as), random=FakeRandom("ue"), sleep=no_sleep)


@asynccontextmanager
async def proxied(app_of: Callable[[bytes], App], pki: Pki, folder: Path, auth: Callable[[], httpx.Auth] = login) -> AsyncIterator[Proxied]:
    """Serve an application behind TLS, and a proxy to it."""
    certificate = pki.issue("localhost", "upstream")
    mine = ProxyPki(folder, SystemClock(), folder="proxy", ca="proxy-ca.pem", permitted=["localhost"])
    shown = mine.ensure("localhost", "proxy")
    async with serving(app_of(certificate.sha256), certificate) as port:
        proxy = UeProxy(
            [LOCAL], client_of=lambda _: httpx.AsyncClient(verify=pki.trust(), auth=auth()), log=StructLog("none"),
            tls_of={LOCAL: tls_context(shown.certificate, shown.key)}.__getitem__,
        )  # fmt: skip
        try:
            yield Proxied(await proxy.listen("127.0.0.1", 0), mine.ca_file, port)
        finally:
            await proxy.aclose()


def door(app: App) -> Callable[[bytes], App]:
    """Put the real door before an application."""
    return lambda sha256: make_door(ALICE, app=app, as_id=LOCAL, certificate_hashes=(sha256,)).door  # type: ignore[arg-type]


async def test_http_and_https_are_logged_in(pki: Pki, tmp_path: Path) -> None:
    """Absolute-form goes on over TLS; CONNECT ends at a CA good for these names alone."""
    echo = Echo()
    async with proxied(door(echo), pki, tmp_path) as at, at.client() as client:
        for base in (at.http, at.https):
            for _ in range(2):
                assert (await client.get(f"{base}/a%2Fb?c=%20d")).text == "sip:alice@home1.net"
            response = await client.put(f"{base}/note", content=b"milk", headers={"Connection": "X-Hop", "X-Hop": "1", "X-End": "2"})
            assert response.status_code == 200
            assert "authentication-info" not in response.headers
        seen = dict(echo.scopes[-1]["headers"])
        assert (seen[b"x-end"], b"x-hop" in seen, b"proxy-connection" in seen) == (b"2", False, False)
        assert {scope["scheme"] for scope in echo.scopes} == {"https"}
        assert echo.bodies[-1] == b"milk"


async def test_large_bodies_stream_both_ways(pki: Pki, tmp_path: Path) -> None:
    """Neither is ever whole in memory: what comes back begins before all has gone."""
    block, count = b"x" * 65_536, 40

    async def mirror(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})

    async def body() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    async with proxied(door(mirror), pki, tmp_path) as at, at.client() as client:
        for base in (at.http, at.https):
            response = await client.put(f"{base}/x", content=body())
            assert len(response.content) == count * len(block)
            sized = await client.put(f"{base}/x", content=block * 3)
            assert len(sized.content) == 3 * len(block)


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.net"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)
async def test_a_page_of_another_origin_does_not_get_the_login(pki: Pki, tmp_path: Path, headers: dict[str, str]) -> None:
    echo = Echo()
    async with proxied(door(echo), pki, tmp_path) as at, at.client() as client:
        for base in (at.http, at.https):
            refused = await client.post(f"{base}/transfer", content=b"all", headers={**BROWSER, **headers})
            assert refused.status_code == 403
            assert "another origin" in refused.text
        assert echo.scopes == []
        own = await client.post(f"{at.https}/transfer", headers={**BROWSER, "Origin": at.https, "Sec-Fetch-Site": "same-origin"})
        assert own.status_code == 200
        plain = await client.get(f"{at.http}/", headers=BROWSER)
        assert (plain.status_code, "open it as https://" in plain.text) == (403, True)


@pytest.mark.parametrize(
    ("octets", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.net:8899\r\n\r\n", b"400"),
        (b"GET http://evil.net/ HTTP/1.1\r\nHost: evil.net\r\n\r\n", b"403"),
        (b"CONNECT evil.net:443 HTTP/1.1\r\nHost: evil.net:443\r\n\r\n", b"403"),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET /proxy.pac HTTP/1.1\r\nHost: evil.net\r\n\r\n", b"400"),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)  # fmt: skip
async def test_it_is_nobodys_way_to_anywhere_else(pki: Pki, tmp_path: Path, octets: bytes, status: bytes) -> None:
    """Other hosts, other services of this machine, a page that rebound its name to it, requests that read two ways."""
    echo = Echo()
    async with proxied(door(echo), pki, tmp_path) as at:
        answer = await at.raw(octets)
    assert answer.startswith(b"HTTP/1.1 " + status) or (status == b"400" and b"transfer-encoding" in octets.lower())
    assert echo.scopes == []


async def test_a_browser_is_told_what_comes_here(pki: Pki, tmp_path: Path) -> None:
    async with proxied(door(Echo()), pki, tmp_path) as at, httpx.AsyncClient(trust_env=False) as client:
        pac = await client.get(f"{at.address}/proxy.pac")
    assert '"localhost": 1' in pac.text
    assert at.address.removeprefix("http://") in pac.text


async def test_a_websocket_is_refused_and_not_made_a_get(pki: Pki, tmp_path: Path) -> None:
    echo = Echo()
    async with proxied(door(echo), pki, tmp_path) as at, at.client() as client:
        refused = await client.get(f"{at.https}/", headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert (refused.status_code, echo.scopes) == (501, [])


async def test_in_a_tunnel_another_host_is_refused(pki: Pki, tmp_path: Path) -> None:
    async with proxied(door(Echo()), pki, tmp_path) as at, at.client() as client:
        refused = await client.get(f"{at.https}/", headers={"Host": "xcap.home1.net"})
        assert refused.status_code == 421


async def test_what_goes_wrong_behind_it_is_said(pki: Pki, tmp_path: Path) -> None:
    async def open_to_all(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"forged"})

    async with proxied(lambda _: open_to_all, pki, tmp_path) as at, at.client() as client:
        answer = await client.get(f"{at.https}/")
        assert (answer.status_code, "not to be trusted" in answer.text) == (502, True)
        dead = await client.get("https://localhost:9/")
        assert (dead.status_code, "ConnectError" in dead.text) == (502, True)

    eve = record("eve", as_id=LOCAL)
    async with proxied(door(Echo()), pki, tmp_path, lambda: login(eve)) as at, at.client() as client:
        answer = await client.get(f"{at.https}/")
        assert (answer.status_code, "register again" in answer.text) == (502, True)

    class NotRegistered(httpx.Auth):
        """A UE without keys."""

        async def async_auth_flow(self, request: httpx.Request) -> Any:
            if request.url.host == "localhost":
                raise RegistrationFailed("this UE is not registered")
            yield request

    async with proxied(door(Echo()), pki, tmp_path, NotRegistered) as at, at.client() as client:
        answer = await client.get(f"{at.http}/")
        assert (answer.status_code, "not registered" in answer.text) == (502, True)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.net"])
async def test_it_listens_to_this_machine_alone(host: str) -> None:
    proxy = UeProxy([LOCAL], client_of=lambda _: httpx.AsyncClient(), tls_of=lambda _: ssl.create_default_context(), log=StructLog("none"))
    with pytest.raises(ConfigError, match="loopback"):
        await proxy.listen(host, 0)


def test_its_ca_is_good_for_its_hosts_alone_and_made_again_when_they_change(tmp_path: Path) -> None:
    """RFC 5280 §4.2.1.10: a browser that trusts it trusts it for these names."""
    from cryptography import x509

    made = []
    for hosts in (["a.home1.net"], ["a.home1.net"], ["a.home1.net", "b.home1.net"]):
        mine = ProxyPki(tmp_path, FakeClock(), folder="proxy", ca="proxy-ca.pem", permitted=hosts)
        mine.ensure("a.home1.net", "proxy")
        made.append(x509.load_pem_x509_certificate(mine.ca_file.read_bytes()))
    assert made[0] == made[1] != made[2]
    constraints = made[2].extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert [name.value for name in constraints.value.permitted_subtrees or []] == ["a.home1.net", "b.home1.net"]
    assert not (tmp_path / "ca.pem").exists()
    assert (tmp_path / "proxy" / "ca.key").stat().st_mode & 0o777 == 0o600


async def test_a_certificate_for_another_name_is_not_believed(tmp_path: Path) -> None:
    """The constraint, as OpenSSL sees it."""
    mine = ProxyPki(tmp_path, SystemClock(), folder="proxy", ca="proxy-ca.pem", permitted=["a.home1.net"])
    stolen = mine.ensure("localhost", "proxy")

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls_context(stolen.certificate, stolen.key))
    async with server:
        trust = ssl.create_default_context(cafile=mine.ca_file)
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
            await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=trust, server_hostname="localhost")
