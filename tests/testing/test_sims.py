# SPDX-License-Identifier: Apache-2.0
"""`keyferry.testing`: what a developer's tests look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

import keyferry.testing
from asgi.doorkit import Echo, Pki, serving
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.errors import DigestRejected, LocalProtocolError
from keyferry.testing import LoggedIn, Sims
from keyferry.testing.plugin import sim
from keyferry.testing.sims import _at_once

__all__ = ["sim"]

OLD_HTTPX = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient` is deprecated")


async def test_an_httpx_client_is_logged_in_by_name(sim: Sims) -> None:
    echo = Echo()
    app = sim.login(echo)
    async with sim.http(app, "alice") as alice, sim.http(app, "bob") as bob:
        for _ in range(2):
            assert (await alice.get("/notes?a=%5B1%5D")).text == "sip:alice@home1.net"
        assert (await bob.put("/notes", content=b"milk")).text == "sip:bob@home1.net"
    assert [scope["keyferry"].mechanism for scope in echo.scopes] == ["first-nonce", "digest", "first-nonce"]
    assert [scope["user"].id for scope in echo.scopes] == [sim.user_id(name) for name in ("alice", "alice", "bob")]
    assert echo.bodies[-1] == b"milk"


async def test_public_identities_are_those_that_the_test_names(sim: Sims) -> None:
    echo = Echo()
    sim("carol", "tel:+1-555-0100", "sip:carol@home1.net")
    async with sim.http(sim.login(echo), "carol") as carol:
        assert (await carol.get("/")).text == "tel:+15550100"
    assert list(echo.scopes[0]["keyferry"].impus) == sim("carol").public_identities == ["tel:+15550100", "sip:carol@home1.net"]


async def test_whom_nobody_pushed_is_nobody_and_nothing_waits(sim: Sims) -> None:
    """`waits` are empty: a key that is not there now will not come."""
    echo = Echo()
    app = sim.login(echo)
    async with sim.http(app, sim.stranger()) as eve, httpx.AsyncClient(transport=httpx.ASGITransport(app)) as anybody:
        assert (await eve.get("/")).status_code == 401
        assert (await anybody.get(f"https://{sim.as_id}/")).status_code == 401
    assert echo.scopes == []


async def test_a_key_ends_with_deregistration_and_a_second_key_begins(sim: Sims) -> None:
    """DESIGN §5 step 6, §6."""
    app = sim.login(Echo())
    async with sim.http(app, "alice") as alice, sim.http(app, sim("alice", device="tablet")) as tablet:
        assert [(await each.get("/")).status_code for each in (alice, tablet)] == [200, 200]
        old = sim("alice")._digests["app.example"]  # type: ignore[index]
        sim.register("alice")
        assert (await alice.get("/", auth=old)).status_code == 200  # nobody has used the new one
        assert (await alice.get("/")).status_code == 200
        assert (await alice.get("/", auth=old)).status_code == 401
        sim.deregister("alice")
        assert [(await each.get("/")).status_code for each in (alice, tablet)] == [401, 200]  # each device has its own
        sim.register("alice")
        assert (await alice.get("/")).status_code == 200


async def test_time_passes_at_once(sim: Sims) -> None:
    app = sim.login(Echo())
    async with sim.http(app, "alice") as alice:
        assert (await alice.get("/")).status_code == 200
        sim.clock.advance(86_400 + 61)
        assert (await alice.get("/")).status_code == 401


@OLD_HTTPX
def test_starlettes_test_client_is_logged_in(sim: Sims) -> None:
    """With lifespan, whatever httpx it is made of."""
    begun = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            begun.append((await receive())["type"])
            await send({"type": "lifespan.startup.complete"})
            begun.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = (await receive())["body"]
        text = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} {scope['keyferry'].user} {body.decode()}"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": text.encode()})

    with sim.client(sim.login(app), "alice") as client:
        assert client.get("/a%20b?c=%2F").text == "GET /a b c=%2F sip:alice@home1.net "
        assert client.post("/x", content=b"milk").text == "POST /x  sip:alice@home1.net milk"
    assert begun == ["lifespan.startup", "lifespan.shutdown"]
    assert sim.client(sim.login(app), sim.stranger()).get("/").status_code == 401


@OLD_HTTPX
def test_an_application_without_the_middleware_is_found_out(sim: Sims) -> None:
    """It forgot SimLogin: everybody would be in."""

    async def open_to_all(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"secret"})

    with pytest.raises(DigestRejected):
        sim.client(open_to_all, "alice").get("/")


async def test_it_works_over_tls_too(sim: Sims, tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    certificate = pki.issue("localhost", "server")
    app = sim.login(Echo(), as_id="localhost", certificate_hashes=(certificate.sha256,))
    async with serving(app, certificate) as port, httpx.AsyncClient(verify=pki.trust(), auth=sim("alice")) as client:
        assert (await client.get(f"https://localhost:{port}/")).text == "sip:alice@home1.net"
    with pytest.raises(LocalProtocolError):
        httpx.get("http://localhost/", auth=sim("alice"))


async def test_what_waits_is_no_store_in_memory() -> None:
    async def waits() -> None:
        import asyncio

        await asyncio.sleep(0)

    with pytest.raises(LocalProtocolError):
        _at_once(waits())


def test_the_package_says_what_it_has() -> None:
    assert keyferry.testing.LoggedIn is LoggedIn
    with pytest.raises(AttributeError):
        keyferry.testing.Simm  # noqa: B018


def test_a_developers_test_file_runs_as_it_is(tmp_path: Path) -> None:
    """The fixture, in a pytest of its own."""
    (tmp_path / "test_app.py").write_text(DEVELOPERS, "utf-8")
    plugin: list[Any] = ["-p", "keyferry.testing.plugin", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error"]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", *plugin, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


DEVELOPERS = """
import httpx
import asyncio

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["keyferry"].user.encode()})

def test_alice_sees_her_page(sim):
    async def run():
        async with sim.http(sim.login(app), "alice") as client:
            return (await client.get("/")).text

    assert asyncio.run(run()) == "sip:alice@home1.net"
"""
