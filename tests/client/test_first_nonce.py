# SPDX-License-Identifier: Apache-2.0
"""DESIGN §7: the first request of a key needs no challenge; over TLS, bound to the certificate that is shown."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi.doorkit import AS_ID, Door, FakeRandom, Pki, make_door, record, serving
from keyferry.asgi.exchange import Receive, Scope, Send
from keyferry.client.http_auth import BODY, ONCE, REWINDABLE, SimDigest
from keyferry.errors import DigestRejected
from keyferry.ports import KeyRecord
from keyferry.protocol import digest
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims import keys as ims_keys

ALICE = record()
URL = f"https://{AS_ID}/notes"
LOCAL = AsId("localhost")
LOCAL_ALICE = record(as_id=LOCAL)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


class FirstDoor:
    """Stand before a door and note what comes; let it have taken the first nonce before, or be silent about the next one."""

    def __init__(self, door: Door, held: KeyRecord, *, takes: bool = True, nextnonce: bool = True) -> None:
        self.seen: list[tuple[str, str, str]] = []  # method, nc, cnonce
        self.bodies = door.app.bodies
        self.counted = door.counter.seen
        self._door, self._nextnonce = door, nextnonce
        if not takes:
            door.keys.first.add(held.key_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = dict(scope["headers"]).get(b"authorization", b"").decode()
        got = digest.parse_credentials(text) if text else None
        self.seen.append((scope["method"], got.nc or "" if got else "", got.cnonce or "" if got else ""))

        async def changed(message: Any) -> None:
            fields = message.get("headers", [])
            if not self._nextnonce:
                fields = [(name, value.partition(b", nextnonce")[0]) for name, value in fields]
            await send({**message, "headers": fields} if "headers" in message else message)

        await self._door.door(scope, receive, changed)


def sim(held: KeyRecord, *, allowed: bool = True, claimed: list[str] | None = None) -> SimDigest:
    async def claim() -> bool:
        await asyncio.sleep(0)
        if claimed is not None:
            claimed.append("claimed")
        return allowed

    async def sleep(_: float) -> None:
        raise AssertionError("nobody has to wait")

    return SimDigest(
        key_id=held.key_id, as_id=held.as_id, k_ua=ims_keys.ua_key(held.k_as), random=FakeRandom("client"), claim_first=claim, sleep=sleep
    )


def made(certificate_hash: bytes | None = None, as_id: AsId = AS_ID, held: KeyRecord = ALICE) -> Door:
    return make_door(held, as_id=as_id, certificate_hashes=() if certificate_hash is None else (certificate_hash,))


async def test_the_first_request_is_answered_at_once_with_its_body_and_the_next_by_nextnonce() -> None:
    claimed: list[str] = []
    door = FirstDoor(made(), ALICE)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), auth=sim(ALICE, claimed=claimed)) as client:
        assert (await client.put(URL, content=b"note")).text == "sip:alice@home1.net"
        assert (await client.get(URL)).text == "sip:alice@home1.net"
        assert (await client.get(URL)).status_code == 200
    assert [(method, nc) for method, nc, _ in door.seen] == [("PUT", "00000001"), ("GET", "00000001"), ("GET", "00000002")]
    assert door.bodies == [b"note", b"", b""]
    assert claimed == ["claimed"]


@pytest.mark.parametrize("nextnonce", [True, False])
async def test_over_tls_the_first_request_names_the_certificate_of_its_own_connection(pki: Pki, nextnonce: bool) -> None:
    """There is no earlier connection to have learnt it from."""
    certificate = pki.issue(LOCAL, f"first{nextnonce}")
    door = FirstDoor(made(certificate.sha256, LOCAL, LOCAL_ALICE), LOCAL_ALICE, nextnonce=nextnonce)
    async with serving(door, certificate) as port, httpx.AsyncClient(verify=pki.trust(), auth=sim(LOCAL_ALICE)) as client:
        for _ in range(2):
            assert (await client.get(f"https://localhost:{port}/notes")).text == "sip:alice@home1.net"
    bound = "." + base64.urlsafe_b64encode(certificate.sha256).decode().rstrip("=")
    assert [cnonce.startswith("cb1.") and cnonce.endswith(bound) for _, nc, cnonce in door.seen if nc] == [True, True]
    assert len(door.seen) == (2 if nextnonce else 3)


async def test_a_door_that_does_not_take_it_costs_one_more_request_and_no_wait() -> None:
    """A store that began after the key, a door of another make."""
    door = FirstDoor(made(), ALICE, takes=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), auth=sim(ALICE)) as client:
        assert (await client.put(URL, content=b"note")).text == "sip:alice@home1.net"
    assert [(method, nc) for method, nc, _ in door.seen] == [("PUT", "00000001"), ("PUT", "00000001")]


async def test_a_nonce_that_was_used_before_is_not_used_again() -> None:
    """By another process of this UE."""
    door = FirstDoor(made(), ALICE)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), auth=sim(ALICE, allowed=False)) as client:
        assert (await client.get(URL)).text == "sip:alice@home1.net"
    assert [(method, nc) for method, nc, _ in door.seen] == [("HEAD", ""), ("GET", "00000001")]


async def test_of_two_requests_at_once_one_uses_it() -> None:
    door = FirstDoor(made(), ALICE)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), auth=sim(ALICE)) as client:
        answers = await asyncio.gather(client.get(URL), client.get(URL))
    assert [answer.status_code for answer in answers] == [200, 200]
    assert sorted((method, nc) for method, nc, _ in door.seen) == [("GET", "00000001"), ("GET", "00000001"), ("HEAD", "")]


async def test_on_a_connection_that_somebody_else_opened_the_server_is_asked_first(pki: Pki) -> None:
    """Which certificate it showed is not known, so the key is not used over it unnamed."""
    certificate = pki.issue(LOCAL, "pooled")
    door = FirstDoor(made(certificate.sha256, LOCAL, LOCAL_ALICE), LOCAL_ALICE)
    async with serving(door, certificate) as port, httpx.AsyncClient(verify=pki.trust()) as client:
        url = f"https://localhost:{port}/notes"
        assert (await client.get(url)).status_code == 401
        assert (await client.get(url, auth=sim(LOCAL_ALICE))).text == "sip:alice@home1.net"
    assert [(method, nc) for method, nc, _ in door.seen] == [("GET", ""), ("HEAD", ""), ("GET", "00000001")]


@pytest.mark.parametrize("kind", [None, REWINDABLE, ONCE])
async def test_on_such_a_connection_no_body_is_sent_to_be_refused(pki: Pki, kind: str | None) -> None:
    """After a registration anew the connections are those of the key before: a large body would go twice, a pipe would be empty."""
    certificate = pki.issue(LOCAL, f"reused{kind}")
    door = FirstDoor(made(certificate.sha256, LOCAL, LOCAL_ALICE), LOCAL_ALICE)
    arrived: list[tuple[str, int, str]] = []

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        messages = [await receive()]
        while messages[-1].get("more_body", False):
            messages.append(await receive())
        octets = sum(len(message.get("body", b"")) for message in messages)
        fields = dict(scope["headers"])
        told = {b"content-length", b"transfer-encoding", b"content-type"} & set(fields)
        arrived.append((scope["method"], octets, ",".join(sorted(name.decode() for name in told))))

        async def again() -> Any:
            return messages.pop(0)

        await door(scope, again, send)

    body = Body()
    async with serving(counted, certificate) as port, httpx.AsyncClient(verify=pki.trust()) as client:
        url = f"https://localhost:{port}/notes"
        assert (await client.get(url)).status_code == 401
        extensions = {} if kind is None else {BODY: kind}
        put = await client.put(
            url, content=body, extensions=extensions, headers={"Content-Type": "text/plain"}, auth=sim(LOCAL_ALICE)
        )  # fmt: skip
        assert put.text == "sip:alice@home1.net"
    proven = [("HEAD", 0, "")] if kind == ONCE else []
    assert arrived == [("GET", 0, ""), ("HEAD", 0, ""), *proven, ("PUT", 4, "content-type,transfer-encoding")]
    assert body.begun == 1


async def test_through_a_proxy_the_first_nonce_goes_into_the_tunnel(pki: Pki) -> None:
    """CONNECT is none of the server's requests, and on a tunnel that is open the server is asked first, too."""
    certificate = pki.issue(LOCAL, "tunnel")
    door = FirstDoor(made(certificate.sha256, LOCAL, LOCAL_ALICE), LOCAL_ALICE)
    heard: list[bytes] = []
    async with serving(door, certificate) as port:

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            inward, outward = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(_copied(reader, outward), _copied(inward, writer))

        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        address = proxy.sockets[0].getsockname()[1]
        async with proxy, httpx.AsyncClient(verify=pki.trust(), proxy=f"http://127.0.0.1:{address}", trust_env=False) as client:
            url = f"https://localhost:{port}/notes"
            assert (await client.put(url, content=b"note", auth=sim(LOCAL_ALICE))).text == "sip:alice@home1.net"
            assert (await client.put(url, content=b"note", auth=sim(LOCAL_ALICE))).text == "sip:alice@home1.net"
    assert [text.split(b" ")[0] for text in heard] == [b"CONNECT"]
    assert b"uthorization" not in heard[0]
    assert [(method, nc) for method, nc, _ in door.seen] == [("PUT", "00000001"), ("HEAD", ""), ("PUT", "00000001")]


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while octets := await reader.read(65_536):
        writer.write(octets)
    writer.close()


async def test_a_server_that_answers_without_proof_is_not_believed_at_the_first_request_either(pki: Pki) -> None:
    """It has a valid certificate for the name, and no key."""

    async def forger(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"forged"})

    certificate = pki.issue(LOCAL, "forger")
    async with serving(forger, certificate) as port, httpx.AsyncClient(verify=pki.trust()) as client:
        url = f"https://localhost:{port}/notes"
        with pytest.raises(DigestRejected, match="did not prove"):
            await client.get(url, auth=sim(LOCAL_ALICE))
        assert (await client.get(url)).text == "forged"
        with pytest.raises(DigestRejected, match="without asking"):
            await client.get(url, auth=sim(LOCAL_ALICE))  # on the connection that is open


# ---- bodies that are not held in memory


class Body:
    """A body that counts how often it is read."""

    def __init__(self) -> None:
        self.begun = 0

    async def __aiter__(self) -> Any:
        self.begun += 1
        yield b"no"
        yield b"te"


async def put(app: Callable[[Any, Any, Any], Awaitable[None]], kind: str, auth: SimDigest) -> tuple[httpx.Response, Body]:
    body = Body()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), auth=auth) as client:
        return await client.put(URL, content=body, extensions={BODY: kind}), body


async def test_a_file_is_read_again_where_the_first_nonce_was_not_taken() -> None:
    door = FirstDoor(made(), ALICE, takes=False)
    bodies: list[bytes] = []

    async def eager(scope: Scope, receive: Receive, send: Send) -> None:
        messages = [await receive()]
        while messages[-1].get("more_body", False):
            messages.append(await receive())
        bodies.append(b"".join(message.get("body", b"") for message in messages))

        async def again() -> Any:
            return messages.pop(0)

        await door(scope, again, send)

    response, body = await put(eager, REWINDABLE, sim(ALICE))
    assert (response.status_code, body.begun) == (200, 2)
    assert bodies == [b"note", b"note"]


async def test_a_pipe_is_read_once_after_the_server_has_proved_itself() -> None:
    """A HEAD with credentials goes first, and its nextnonce serves the body."""
    door = FirstDoor(made(), ALICE)
    response, body = await put(door, ONCE, sim(ALICE))
    assert (response.status_code, body.begun) == (200, 1)
    assert [(method, nc) for method, nc, _ in door.seen] == [("HEAD", "00000001"), ("PUT", "00000001")]


async def test_a_pipe_is_not_begun_where_the_key_is_refused(tmp_path: Path) -> None:
    stranger = record("eve")
    auth = SimDigest(key_id=stranger.key_id, as_id=AS_ID, k_ua=ims_keys.ua_key(stranger.k_as), random=FakeRandom("x"), waits=())
    response, body = await put(made().door, ONCE, auth)
    assert (response.status_code, body.begun) == (401, 0)


async def test_a_pipe_that_must_be_signed_is_read_into_memory() -> None:
    """RFC 7616 §3.4.3: auth-int needs the hash before the body."""
    door = make_door(ALICE, qop=("auth-int",))
    response, body = await put(door.door, ONCE, sim(ALICE, allowed=False))
    assert (response.status_code, body.begun) == (200, 1)
    assert door.app.bodies[-1] == b"note"
