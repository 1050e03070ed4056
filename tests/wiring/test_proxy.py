# SPDX-License-Identifier: Apache-2.0
"""How `keyferry proxy` is put together: secrets, the way to the servers behind, and the endpoint for nginx (TS 33.222 §6)."""

from __future__ import annotations

import asyncio
import base64
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from asgi.doorkit import Certificate, Client, FakeClock, FakeKeys, FakeRandom, Pki, record
from asgi.proxy.proxykit import KEY, LIMIT, Recorder, answer, recording, status
from keyferry.asgi.auth import Identity
from keyferry.asgi.certificates import READ_EVERY
from keyferry.asgi.identity import SimUser
from keyferry.client.upstream import Address
from keyferry.errors import ConfigError, StateError
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId
from keyferry.stores.database import Database
from keyferry.stores.state_dir import open_state
from keyferry.wiring.observability import Metrics, StructLog
from keyferry.wiring.proxy import ProxyProcess, ProxySettings, parse_target
from wiring.test_proxy_secrets import secret_file

NAME = AsId("localhost")


def process(folder: Path, stack: AsyncExitStack, **settings: Any) -> ProxyProcess:
    """Return a proxy whose state has a key store for NAME."""
    state = stack.enter_context(open_state(folder / "state", random=FakeRandom()))
    Database(state.path(f"as-{NAME}.db")).close()
    return ProxyProcess(ProxySettings(**settings), state, FakeClock(), FakeRandom(), StructLog("none"), Metrics(), stack)


@pytest.mark.parametrize(
    ("text", "address", "tls"),
    [
        ("n.home1.net=http://127.0.0.1", Address("127.0.0.1", 80), False),
        ("n.home1.net=http://[::1]:8000/", Address("::1", 8000), False),
        ("n.home1.net=http://localhost:8000", Address("localhost", 8000), False),
        ("n.home1.net=https://app.home1.net", Address("app.home1.net", 443), True),
        ("n.home1.net=unix:/run/app.sock", Address("", 0, "/run/app.sock"), False),
    ],
)
def test_where_a_server_may_be(text: str, address: Address, tls: bool) -> None:
    target = parse_target(text, plain=False)
    assert (target.as_id, target.address, target.tls) == ("n.home1.net", address, tls)


def test_identities_go_to_another_machine_in_clear_only_if_somebody_says_so() -> None:
    """TS 33.222 §6: the way to the application server is protected."""
    with pytest.raises(ConfigError, match="in clear"):
        parse_target("n.home1.net=http://app.home1.net", plain=False)
    assert parse_target("n.home1.net=http://app.home1.net", plain=True).address == Address("app.home1.net", 80)


@pytest.mark.parametrize("shown", [True, False])
async def test_a_server_behind_may_demand_a_certificate(tmp_path: Path, shown: bool) -> None:
    """TS 33.222 §6: it trusts this proxy alone."""
    pki = Pki(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.issue("localhost", "server").pem)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pki.path)
    recorder = Recorder()
    server = await asyncio.start_server(recorder.serve, "localhost", 0, family=2, ssl=context)
    target = parse_target(f"{NAME}=https://localhost:{server.sockets[0].getsockname()[1]}", plain=False)
    mine = pki.issue("proxy", "proxy").pem
    async with AsyncExitStack() as stack:
        settings = {"upstream_ca": pki.path, **({"upstream_certificate": mine, "upstream_key": mine} if shown else {})}
        proxy = process(tmp_path, stack, targets=[target], **settings)
        forward = proxy._forward(target)
        assert await _passes(forward) is shown
    server.close()
    if shown:
        await recorder.ended.wait()


async def _passes(forward: Any) -> bool:
    """Tell whether a request of a logged-in user comes through."""
    scope: dict[str, Any] = {
        "keyferry": Identity(KEY.impus, KEY.key_id, "digest"), "user": SimUser("u", KEY.impus), "keyferry.target": b"/", "client": None,
    }  # fmt: skip
    return (await asyncio.wait_for(_call(forward, scope), LIMIT)) == 200


async def _call(forward: Any, scope: dict[str, Any]) -> int:
    """One GET whose client stays until it is answered."""
    sent: list[Any] = []
    stays = asyncio.Event()

    async def receive() -> Any:
        await stays.wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await forward({"type": "http", "method": "GET", "headers": [(b"host", NAME.encode())], **scope}, receive, send)
    return int(sent[0]["status"])


async def test_a_server_behind_is_not_reached_by_a_socket_that_anybody_could_make(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    async with AsyncExitStack() as stack:
        target = parse_target(f"{NAME}=unix:{tmp_path}/open/app.sock", plain=False)
        proxy = process(tmp_path, stack, targets=[target], listen="127.0.0.1:0")
        with pytest.raises(StateError, match="the server behind"):
            await proxy.start()


async def test_the_endpoint_for_nginx_listens_on_its_socket(tmp_path: Path) -> None:
    socket = tmp_path / "auth.sock"
    async with AsyncExitStack() as stack:
        proxy = process(tmp_path, stack, auth_request=f"unix:{socket}", names=[NAME])
        assert await proxy.start() == [{"proto": "unix", "path": str(socket), "names": [NAME]}]
        reader, writer = await asyncio.open_unix_connection(socket)
        fields = "".join(f"X-Original-{name}: {value}\r\n" for name, value in (("Method", "GET"), ("URI", "/"), ("Scheme", "https")))
        writer.write(f"GET / HTTP/1.1\r\nHost: a\r\nX-Original-Host: {NAME}\r\n{fields}\r\n".encode())
        said = await answer(reader)
        writer.close()
    assert status(said) == 401
    assert b"IMS-AS-key@localhost" in said
    assert not socket.exists()


async def test_the_endpoint_knows_a_certificate_that_nginx_was_given_later(tmp_path: Path) -> None:
    """certbot renews the file and nginx reloads it; nobody thinks of the endpoint, and our own clients come in all the same."""
    socket, shown, key = tmp_path / "auth.sock", tmp_path / "shown.pem", record(as_id=NAME)
    pki = Pki(tmp_path)
    old, new = pki.issue(NAME, "old"), pki.issue(NAME, "new")

    class Held(ProxyProcess):
        def _stored(self, as_id: AsId) -> Any:
            return FakeKeys(key)

    async def ask(authorization: str = "") -> bytes:
        reader, writer = await asyncio.open_unix_connection(socket)
        fields = "".join(f"X-Original-{name}: {value}\r\n" for name, value in (("Method", "GET"), ("URI", "/"), ("Scheme", "https")))
        writer.write(f"GET / HTTP/1.1\r\nHost: a\r\nX-Original-Host: {NAME}\r\n{fields}{authorization}\r\n".encode())
        said = await answer(reader)
        writer.close()
        return said

    async def login(certificate: Certificate) -> int:
        field = next(line for line in (await ask()).split(b"\r\n") if line.lower().startswith(b"www-authenticate:"))
        challenge = digest.parse_challenge(field.partition(b":")[2].strip().decode())
        seen = base64.urlsafe_b64encode(certificate.sha256).decode().rstrip("=")
        return status(await ask("{}: {}\r\n".format(*Client(key).answer(challenge, uri="/", cnonce=f"cb1.AAAA.{seen}"))))

    shown.write_bytes(old.pem.read_bytes())
    async with AsyncExitStack() as stack:
        made = process(tmp_path, stack, auth_request=f"unix:{socket}", names=[NAME], certificate=shown)
        proxy = Held(made.settings, made.state, made.clock, made.random, made.log, made.metrics, stack)
        await proxy.start()
        assert [await login(old), await login(new)] == [204, 403]
        new.pem.replace(shown)
        assert isinstance(proxy.clock, FakeClock)
        proxy.clock.time += READ_EVERY
        assert [await login(new), await login(old)] == [204, 204]


async def test_a_secret_goes_to_its_own_server_alone(tmp_path: Path) -> None:
    """What one server behind learns is not what another one, or the endpoint for nginx, believes."""
    other = AsId("other.home1.net")
    files = {name: secret_file(tmp_path / name, letter * 32) for name, letter in ((NAME, "a"), ("nginx", "n"))}
    async with AsyncExitStack() as stack, recording() as first, recording() as second:
        targets = [parse_target(f"{name}=http://127.0.0.1:{one.port}", plain=False) for name, one in ((NAME, first), (other, second))]
        proxy = process(
            tmp_path, stack, targets=targets, auth_request="127.0.0.1:0", names=[NAME], secret_files={NAME: files[NAME]},
            auth_request_secret_file=files["nginx"], listen="127.0.0.1:0",
        )  # fmt: skip
        Database(proxy.state.path(f"as-{other}.db")).close()
        for target in targets:
            assert await _passes(proxy._forward(target))
        endpoint = next(one for one in await proxy.start() if one["proto"] == "http")
        for letter, wanted in (("a", 403), ("n", 401)):
            reader, writer = await asyncio.open_connection("127.0.0.1", cast("int", endpoint["port"]))
            fields = "".join(f"X-Original-{name}: {value}\r\n" for name, value in (("Method", "GET"), ("URI", "/"), ("Scheme", "https")))
            writer.write(
                f"GET / HTTP/1.1\r\nHost: a\r\nX-Keyferry-Secret: {letter * 32}\r\nX-Original-Host: {NAME}\r\n{fields}\r\n".encode()
            )
            assert status(await answer(reader)) == wanted
            writer.transport.abort()
    assert first.requests()[0].all(b"x-keyferry-secret") == [b"a" * 32]
    assert second.requests()[0].all(b"x-keyferry-secret") == []


@pytest.mark.parametrize(("trusted", "seen"), [(["127.0.0.0/8"], b"198.51.100.7"), ([], b"127.0.0.1")])
async def test_the_server_behind_hears_of_the_client_from_a_trusted_proxy_alone(tmp_path: Path, trusted: list[str], seen: bytes) -> None:
    """A load balancer in front says who the client is; of anybody else, that is dropped."""
    key = record(as_id=NAME)

    class Held(ProxyProcess):
        def _stored(self, as_id: AsId) -> Any:
            return FakeKeys(key)

    async with AsyncExitStack() as stack, recording() as behind:
        target = parse_target(f"{NAME}=http://127.0.0.1:{behind.port}", plain=False)
        made = process(tmp_path, stack, targets=[target], listen="127.0.0.1:0", trusted_proxies=trusted)
        proxy = Held(made.settings, made.state, made.clock, made.random, made.log, made.metrics, stack)
        port = cast("int", (await proxy.start())[0]["port"])
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the clock here is not the certificate's

        async def ask(authorization: str = "") -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=NAME)
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Forwarded-For: 198.51.100.7\r\n{authorization}\r\n".encode())
            said = await answer(reader)
            writer.close()
            return said

        field = next(line for line in (await ask()).split(b"\r\n") if line.lower().startswith(b"www-authenticate:"))
        challenge = digest.parse_challenge(field.partition(b":")[2].strip().decode())
        said = await ask("{}: {}\r\n".format(*Client(key).answer(challenge, uri="/")))
        assert status(said) == 200
    assert behind.requests()[0].all(b"x-forwarded-for") == [seen]


async def test_a_proxy_is_trusted_by_its_address(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        target = parse_target(f"{NAME}=http://127.0.0.1:1", plain=False)
        with pytest.raises(ConfigError, match="--trusted-proxy: 'balancer' is no IP address or prefix"):
            await process(tmp_path, stack, targets=[target], listen="127.0.0.1:0", trusted_proxies=["balancer"]).start()


async def test_a_port_without_a_secret_is_refused(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(ConfigError, match="--auth-request-secret-file"):
            await process(tmp_path, stack, auth_request="127.0.0.1:0", names=[NAME]).start()
