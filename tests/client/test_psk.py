# SPDX-License-Identifier: Apache-2.0
"""TLS-PSK for httpx: both sides prove the key, or nothing is said (RFC 8446 §4.2.11, RFC 5489; DESIGN §7)."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import uvloop

from asgi.doorkit import Pki
from keyferry.asgi.exchange import Message, Receive, Send
from keyferry.client.http import HostsTransport
from keyferry.client.psk import MAX_IDENTITY, PskTransport, psk_transport
from keyferry.client.ue import HttpCredentials
from keyferry.errors import ConfigError, LocalProtocolError
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import KeyId
from keyferry.protocol.ims.key_record import KeyRecord
from keyferry.protocol.ims.keys import TLS12_PSK_SUITES, digest_password, digest_realm, ua_key
from keyferry.transports.http_server import HttpServer, tls_context
from keyferry.transports.tls_psk import DEFAULT_SUITE, PskVersion, psk_context
from transports.pskkit import AS_ID, make_psk_door, psk_record, psk_serving, who

needs_psk = pytest.mark.skipif(sys.version_info < (3, 13), reason="TLS-PSK needs Python 3.13")
both = pytest.mark.parametrize("version", ["1.3", "1.2"])
ALICE, BOB = psk_record("alice"), psk_record("bob")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def credentials(record: KeyRecord = ALICE, *, k_as: Secret | None = None) -> HttpCredentials:
    """Return what a UE has of this key, or of another one under its name."""
    key = k_as or record.k_as
    k_ua = ua_key(key)
    return HttpCredentials(record.as_id, record.key_id, digest_password(k_ua), digest_realm(record.as_id), "SHA-256", key, k_ua)


def client(transport: PskTransport, *, timeout: float = 10.0) -> httpx.AsyncClient:
    """Return a client that finds the names of the test on the loopback address."""
    hosts = HostsTransport(transport, {AS_ID: "127.0.0.1", "notes.home1.net": "127.0.0.1"})
    return httpx.AsyncClient(transport=hosts, timeout=timeout, trust_env=False)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python can")
def test_an_older_python_is_told() -> None:
    with pytest.raises(ConfigError, match=r"Python 3\.13"):
        psk_transport(credentials())


@needs_psk
@both
@pytest.mark.parametrize("suite", sorted(TLS12_PSK_SUITES))
@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_request_goes_out_as_the_holder_of_the_key_and_names_the_server(version: PskVersion, suite: str, loop: str) -> None:
    named: list[str | None] = []
    bodies: list[bytes] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        event = await receive()
        if scope["method"] == "PUT":
            bodies.append(event.get("body", b""))

        async def replay() -> Message:
            return event

        await who(scope, replay, send)

    async def requests() -> None:
        door = make_psk_door(ALICE, version=version, suite=suite)
        context = psk_context(door)
        context.sni_callback = lambda _tls, name, _context: named.append(name)
        context.wrap_bio = lambda *args, **more: ssl.SSLContext.wrap_bio(context, *args, **more)  # type: ignore[method-assign]
        server = HttpServer(app, tls=context)
        _, port = await server.listen("127.0.0.1", 0)
        try:
            async with client(psk_transport(credentials(), version, suite=suite)) as http:
                for _ in range(3):
                    response = await http.get(f"https://{AS_ID}:{port}/notes")
                    assert (response.status_code, response.text) == (200, ALICE.impi)
                assert (await http.put(f"https://{AS_ID}:{port}/notes", content=b"milk")).status_code == 200
        finally:
            await server.aclose()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(requests())
    assert named == [AS_ID]  # one connection, and RFC 6066 §3
    assert bodies == [b"milk"]


@needs_psk
@both
async def test_a_server_without_the_key_is_refused_whatever_certificate_it_has(
    version: PskVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A valid one for the name, of a CA that this machine trusts."""
    pki = Pki(tmp_path)
    pem = pki.issue(AS_ID, "server").pem
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.path))
    server = HttpServer(who, tls=tls_context(pem, pem))
    _, port = await server.listen("127.0.0.1", 0)
    try:
        async with client(psk_transport(credentials(), version)) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get(f"https://{AS_ID}:{port}/notes")
        async with httpx.AsyncClient(transport=HostsTransport(httpx.AsyncHTTPTransport(verify=pki.trust()), {AS_ID: "127.0.0.1"})) as other:
            assert (await other.get(f"https://{AS_ID}:{port}/notes")).text == "nobody"  # the server is fine
    finally:
        await server.aclose()


@needs_psk
@both
async def test_a_server_that_has_another_key_of_that_name_is_refused(version: PskVersion) -> None:
    async with (
        psk_serving(make_psk_door(ALICE, BOB, version=version)) as port,
        client(psk_transport(credentials(k_as=BOB.k_as), version)) as http,
    ):
        with pytest.raises(httpx.ConnectError):
            await http.get(f"https://{AS_ID}:{port}/notes")


@needs_psk
@pytest.mark.parametrize(("of_client", "of_server"), [("1.2", "1.3"), ("1.3", "1.2")])
async def test_one_version_is_spoken_and_no_other(of_client: PskVersion, of_server: PskVersion) -> None:
    async with psk_serving(make_psk_door(ALICE, version=of_server)) as port, client(psk_transport(credentials(), of_client)) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"https://{AS_ID}:{port}/notes")


@needs_psk
@pytest.mark.parametrize(
    "url", [f"http://{AS_ID}:1/", "https://notes.home1.net:1/", "https://127.0.0.1:1/", "https://xcap.home1.net.evil:1/"]
)
async def test_the_name_of_a_key_goes_nowhere_else(url: str) -> None:
    async with client(psk_transport(credentials())) as http:
        with pytest.raises(LocalProtocolError, match="https alone" if url.startswith("http:") else "for xcap.home1.net alone"):
            await http.get(url)


@needs_psk
@both
@pytest.mark.parametrize("in_fact", ["certificate", "nothing known"])
def test_a_handshake_that_openssl_is_content_with_is_not_enough(version: PskVersion, in_fact: str, tmp_path: Path) -> None:
    """Were the trust store not empty, the key would still have to be used."""
    from keyferry.client import psk

    context = psk._context("IMS-AS-key;0100000007;x@home1.net", Secret(b"k" * 32), version, DEFAULT_SUITE)
    assert context.cert_store_stats()["x509"] == 0
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL")
    pem = Pki(tmp_path).issue(AS_ID, "server").pem
    server = tls_context(pem, pem)
    if in_fact == "nothing known":
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.set_ciphers("AECDH:@SECLEVEL=0")
        context.set_ciphers("AECDH:@SECLEVEL=0")
        if version == "1.3":
            pytest.skip("TLS 1.3 has nothing anonymous")
    one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
    there, here = server.wrap_bio(one, other, server_side=True), context.wrap_bio(other, one, server_hostname=AS_ID)
    with pytest.raises(ssl.SSLError, match="a certificate instead" if in_fact == "certificate" else "without our key"):
        for _ in range(6):
            for end in (here, there):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue


@needs_psk
def test_what_cannot_be_said_in_tls_is_said_at_once() -> None:
    long = KeyId("x" * 24 + "@" + "a" * (MAX_IDENTITY - 46) + ".net")
    with pytest.raises(LocalProtocolError, match="home realm is too long"):
        psk_transport(credentials()._replace(username=long))
    with pytest.raises(ConfigError, match=r"did not prove \(ue\.rspauth\)"):
        psk_transport(credentials()._replace(proven=False))  # DESIGN §10
    with pytest.raises(LocalProtocolError, match="not a suite"):
        psk_transport(credentials(), "1.2", suite="PSK-NULL-SHA")
