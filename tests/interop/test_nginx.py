# SPDX-License-Identifier: Apache-2.0
"""Debian's nginx with examples/nginx/keyferry.conf: auth_request, curl in front, a recording server behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from asgi.doorkit import Client, FakeCounter, FakeKeys, Pki, record
from asgi.proxy.proxykit import Recorder, answer, recording, status
from interop.peers import program
from interop.test_curl_door import HOST, Curl
from keyferry.asgi.auth import SimLogin
from keyferry.asgi.auth_request import AuthRequest, granted
from keyferry.asgi.exchange import App
from keyferry.protocol import digest
from keyferry.protocol.ims import keys as ims_keys
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.http_server import HttpServer
from system.serving import free_port

pytestmark = pytest.mark.interop

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "nginx" / "keyferry.conf"
KEY = record(as_id=HOST)


@dataclass
class Nginx:
    """nginx, running."""

    port: int
    ca: Path
    trust: ssl.SSLContext
    server: Recorder
    log: Path

    async def ask(self, octets: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust, server_hostname=HOST)
        try:
            writer.write(octets)
            return await answer(reader)
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def nginx(folder: Path, edit: Callable[[str], str] = str) -> AsyncIterator[Nginx]:
    pki = Pki(folder)
    certificate = pki.issue(HOST, "server")
    login = SimLogin(
        granted, as_id=HOST, keys=FakeKeys(KEY), clock=SystemClock(), random=SystemRandom(), certificate_hashes=(certificate.sha256,)
    )
    doors: dict[str, App] = {HOST: login}
    endpoint = HttpServer(AuthRequest(doors, clock=SystemClock(), counter=FakeCounter()))
    await endpoint.listen_unix(folder / "auth.sock")
    port = free_port()
    async with recording() as server:
        text = edit(EXAMPLE.read_text("utf-8"))
        for old, new in (
            ("/run/keyferry-proxy/notes/auth.sock", str(folder / "auth.sock")),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("notes.home1.net", HOST),
            ("/etc/keyferry-proxy/notes.pem", str(certificate.pem)),
            ("/etc/keyferry-proxy/notes.key", str(certificate.pem)),
            ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ):
            assert old in text
            text = text.replace(old, new)
        user = "user root;" if os.geteuid() == 0 else ""
        paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "site.conf").write_text(text)
        (folder / "nginx.conf").write_text(
            f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log info; events {{}}"
            f"http {{ access_log off; {paths} include {folder}/site.conf; }}"
        )
        process = await asyncio.create_subprocess_exec(
            program("nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")
        )
        try:
            await _until_listening(port, process)
            yield Nginx(port, pki.path, pki.trust(), server, folder / "error.log")
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await endpoint.aclose()


async def _until_listening(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(20):
        while True:
            assert process.returncode is None
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.transport.abort()
                return


async def test_curl_logs_in_through_nginx(tmp_path: Path) -> None:
    async with nginx(tmp_path) as here:
        curl = Curl(here.port, here.ca)
        assert await curl("/notes?a=%2F", "-H", "X-3GPP-Asserted-Identity: eve", "-H", "X_3GPP_Asserted_Identity: eve") == "ok 200"
        assert await curl("/notes", "-X", "PUT", "--data-binary", "milk") == "ok 200"
        assert await curl("/a/../b%41", "-H", 'X-3GPP-Intended-Identity: "tel:+15551234"') == "ok 200"
        assert (await curl("/notes", password=b"wrong")).endswith(" 401")
        assert (await curl("/notes", "-H", "X-3GPP-Intended-Identity: sip:bob@home1.net")).endswith(" 403")
    first, second, third = here.server.requests()
    assert (first.target, first.all(b"x-3gpp-asserted-identity")) == ("/notes?a=%2F", [b'"sip:alice@home1.net", "tel:+15551234"'])
    assert len(first.all(b"x-keyferry-user")[0]) == 24
    assert (second.method, second.body, second.all(b"authorization")) == ("PUT", b"milk", [])
    assert (third.target, third.all(b"x-3gpp-asserted-identity")) == ("/a/../b%41", [b'"tel:+15551234"'])
    assert b"eve" not in b"".join(here.server.octets)


async def test_what_nginx_passes_on(tmp_path: Path) -> None:
    """One challenge, Authentication-Info with a right rspauth, Retry-After with a 401 to credentials."""
    async with nginx(tmp_path) as here:
        said = await here.ask(f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert status(said) == 401
        assert said.lower().count(b"www-authenticate:") == 1
        assert b"retry-after" not in said.lower()
        client = Client(KEY)
        challenge = digest.parse_challenge(_field(said, b"www-authenticate"))
        credentials = client.credentials(challenge, 1)
        request = f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {digest.build_credentials(credentials)}\r\n\r\n".encode()
        said = await here.ask(request)
        assert status(said) == 200
        info = digest.parse_authentication_info(_field(said, b"authentication-info"))
        digest.check_rspauth(info, client.ha1, credentials, algorithm="SHA-256")
        again = await here.ask(request)
        assert (status(again), _field(again, b"retry-after")) == (401, "1")


async def test_a_first_nonce_needs_no_round_trip_through_nginx_either(tmp_path: Path) -> None:
    async with nginx(tmp_path) as here:
        client = Client(KEY)
        nonce = ims_keys.first_nonce(ims_keys.ua_key(KEY.k_as))
        credentials = client.credentials(digest.Challenge(client.realm, nonce, "SHA-256", ("auth",)), 1)
        request = f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {digest.build_credentials(credentials)}\r\n\r\n".encode()
        assert status(await here.ask(request)) == 200
        assert status(await here.ask(request)) == 401


async def test_a_request_that_nginx_handles_twice_is_one_login(tmp_path: Path) -> None:
    """`index` makes it look for / and then for /index.html; without its request id the second look is a replay."""
    (tmp_path / "index.html").write_text("ok")

    def files(text: str) -> str:
        return text.replace("        proxy_pass http://127.0.0.1:8000;", f"        root {tmp_path}; index index.html;#127.0.0.1:8000")

    async with nginx(tmp_path, files) as here:
        assert await Curl(here.port, here.ca)("/") == "ok 200"
    async with nginx(tmp_path, lambda text: files(text).replace("X-Original-Id", "X-Nothing")) as here:
        challenge = digest.parse_challenge(_field(await here.ask(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()), b"www-authenticate"))
        name, value = Client(KEY).answer(challenge, 1, uri="/")
        assert status(await here.ask(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n{name}: {value}\r\n\r\n".encode())) == 401


def cookies(octets: int, each: int) -> bytes:
    return b"".join(b"Cookie: c%d=%b\r\n" % (at, b"x" * min(each, octets - at)) for at in range(0, octets, each))


def roomy(text: str) -> str:
    """nginx takes lines of 8 kB by default, four of them."""
    return text.replace("server_name", "large_client_header_buffers 4 32k; server_name")


@pytest.mark.parametrize("each", [7_000, 20_000])
async def test_large_cookies_are_the_servers_business(tmp_path: Path, each: int) -> None:
    """20 kB of them, in lines as nginx takes them by default, or in one."""
    async with nginx(tmp_path, roomy if each > 8_000 else str) as here:
        said = await here.ask(f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n".encode() + cookies(20_000, each) + b"\r\n")
        assert status(said) == 401
        name, value = Client(KEY).answer(digest.parse_challenge(_field(said, b"www-authenticate")), 1, uri="/notes")
        head = f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n{name}: {value}\r\n".encode()
        assert status(await here.ask(head + cookies(20_000, each) + b"\r\n")) == 200
    (got,) = here.server.requests()
    assert sum(map(len, got.all(b"cookie"))) > 20_000
    assert got.all(b"x-3gpp-asserted-identity") == [b'"sip:alice@home1.net", "tel:+15551234"']


@pytest.mark.parametrize(
    "fields",
    [
        b"User-Agent: " + b"x" * 20_000,
        b"Authorization: Digest username=" + b"x" * 20_000,
        b"Origin: https://" + b"x" * 20_000,
        b"User-Agent: a\x01b",
    ],
    ids=["agent", "credentials", "origin", "control character"],
)
async def test_what_is_too_large_or_malformed_for_the_endpoint_is_refused_and_no_failure(tmp_path: Path, fields: bytes) -> None:
    async with nginx(tmp_path, roomy) as here:
        said = await here.ask(f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n".encode() + fields + b"\r\n\r\n")
        assert status(said) == 403, said
        assert "unexpected status" not in here.log.read_text()
    assert here.server.octets == []


async def test_pages_of_other_sites_are_known_through_nginx_too(tmp_path: Path) -> None:
    """The endpoint sees the fields that nginx names, and no others: without these it could not tell."""
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    evil, same = b"Origin: https://evil.example\r\n", f"Origin: https://{HOST}\r\n".encode()
    async with nginx(tmp_path) as here:

        async def ask(method: str, fields: bytes) -> int:
            start = f"{method} /notes HTTP/1.1\r\nHost: {HOST}\r\n".encode()
            challenge = digest.parse_challenge(_field(await here.ask(start + b"\r\n"), b"www-authenticate"))
            name, value = Client(KEY).answer(challenge, 1, method=method, uri="/notes")
            return status(await here.ask(start + f"{name}: {value}\r\n".encode() + fields + b"\r\n"))

        for method, fields, wanted in (
            ("DELETE", evil, 403), ("DELETE", b"Sec-Fetch-Site: cross-site\r\n", 403), ("DELETE", same, 200), ("DELETE", b"", 200),
            ("GET", upgrade + evil, 403), ("GET", upgrade + b"Sec-Fetch-Site: cross-site\r\n", 403), ("GET", upgrade + same, 200),
        ):  # fmt: skip
            assert await ask(method, fields) == wanted, (method, fields)


async def test_the_server_behind_is_told_the_name_that_the_login_was_for_and_the_port_that_was_opened(tmp_path: Path) -> None:
    """RFC 9112 §3.2.2: a target in absolute form decides, whatever Host says."""
    async with nginx(tmp_path) as here:
        for target, host in ((b"/notes", f"{HOST}:8443"), (f"https://{HOST}/notes".encode(), "evil.example"), (b"/notes", HOST)):
            start = b"GET " + target + f" HTTP/1.1\r\nHost: {host}\r\n".encode()
            challenge = digest.parse_challenge(_field(await here.ask(start + b"\r\n"), b"www-authenticate"))
            name, value = Client(KEY).answer(challenge, 1, uri="/notes")
            assert status(await here.ask(start + f"{name}: {value}\r\nX-Forwarded-Host: evil\r\n\r\n".encode())) == 200
    for field in (b"host", b"x-forwarded-host"):
        assert [got.all(field) for got in here.server.requests()] == [[f"{HOST}:8443".encode()], [HOST.encode()], [HOST.encode()]]


CLEARED = (
    "Forwarded", "X-Real-IP", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-Scheme", "X-Forwarded-Server", "X-Forwarded-Ssl",
    "X-Forwarded-User", "X-Keyferry-Secret", "X-Keyferry-Public-Identity", "X-Keyferry-Status", "X-Original-URL", "X-Rewrite-URL",
    "Remote-User", "X-Remote-User", "Authorization", "X-3GPP-Intended-Identity",
)  # fmt: skip
SET = ("X-3GPP-Asserted-Identity", "X-Keyferry-User", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto")


@pytest.mark.parametrize("name", CLEARED + SET)
async def test_no_field_that_the_server_may_trust_goes_on_as_a_client_wrote_it(name: str, tmp_path: Path) -> None:
    """Twice, and with underscores: CGI and WSGI take one for a hyphen."""
    async with nginx(tmp_path) as here:
        said = await here.ask(f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        field, value = Client(KEY).answer(digest.parse_challenge(_field(said, b"www-authenticate")), 1, uri="/notes")
        lie = '"tel:+15551234"' if name == "X-3GPP-Intended-Identity" else "eve"
        spelt = {"Authorization": (), "X-3GPP-Intended-Identity": (name,)}.get(name, (name, name.upper(), name.replace("-", "_")))
        lies = "".join(f"{text}: {lie}\r\n" for text in spelt)
        request = f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n{field}: {value}\r\n{lies}\r\n"
        assert status(await here.ask(request.encode())) == 200
    (got,) = here.server.requests()
    assert b"eve" not in b"".join(here.server.octets)
    assert len(got.all(name.lower().encode())) == (1 if name in SET else 0)
    assert "-" not in name or got.all(name.lower().replace("-", "_").encode()) == []


async def test_what_a_client_says_in_nginxs_or_the_endpoints_fields_is_nothing(tmp_path: Path) -> None:
    lies = b"X-Original-Host: other\r\nX-Original-Method: PUT\r\nX-Original-Scheme: http\r\nX-Original-Id: 1\r\nX-Keyferry-Secret: x\r\n"
    async with nginx(tmp_path) as here:
        said = await here.ask(f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        name, value = Client(KEY).answer(digest.parse_challenge(_field(said, b"www-authenticate")), 1, uri="/notes")
        request = f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n{name}: {value}\r\n".encode() + lies + b"\r\n"
        assert [status(await here.ask(request)) for _ in range(2)] == [200, 401]
        twice = f"GET /notes HTTP/1.1\r\nHost: {HOST}\r\n{name}: {value}\r\n{name}: Digest x\r\n\r\n".encode()
        assert status(await here.ask(twice)) in {400, 401, 403}


def _field(said: bytes, name: bytes) -> str:
    return next(line.split(b":", 1)[1].strip().decode() for line in said.split(b"\r\n") if line.lower().startswith(name + b":"))
