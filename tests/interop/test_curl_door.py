# SPDX-License-Identifier: Apache-2.0
"""curl against the door itself (RFC 7616): paths as typed, bodies, many processes at a time, MD5 where it is configured."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asgi.doorkit import Certificate, Client, Door, Pki, make_door, record, serving
from asgi.stockclients import Notes, site
from interop.peers import program
from keyferry.protocol.identity import AsId

pytestmark = pytest.mark.interop

HOST = AsId("xcap.home1.net")
ALICE = record(as_id=HOST)
LIMIT = 30.0  # seconds


class Curl:
    """Run curl against one door."""

    def __init__(self, port: int, ca: Path) -> None:
        self._base = f"https://{HOST}:{port}"
        self._port = port
        self._ca = ca

    async def __call__(self, path: str, *arguments: str, password: bytes | None = None) -> str:
        """Return the last status and the body."""
        secret = (password or Client(ALICE).password.reveal()).decode()
        process = await asyncio.create_subprocess_exec(
            program("curl"), "--disable", "--config", "-", "--noproxy", "*", "--silent", "--show-error", "--digest", "--path-as-is",
            "--globoff", "--cacert", str(self._ca), "--resolve", f"{HOST}:{self._port}:127.0.0.1",
            "--write-out", " %{http_code}", *arguments, self._base + path,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, errors = await asyncio.wait_for(process.communicate(f'user = "{ALICE.key_id}:{secret}"\n'.encode()), LIMIT)
        assert process.returncode == 0, errors.decode()
        return out.decode()


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


@pytest.fixture
def certificate(pki: Pki) -> Certificate:
    return pki.issue(HOST, "server")


@pytest.mark.parametrize(
    "path",
    [
        "/notes",
        "/",
        "/notes?",
        "/notes?a=1&b=%20",
        "/a/../notes",
        "/users/sip:alice@home1.net/x",
        "/users/sip%3Aalice%40home1.net/x",
        "/x/~~/a%5b@id=%22x%22%5D?xmlns(cp=urn:ietf:params:xml:ns:common-policy)",
        "/caf%C3%A9",
    ],
)
async def test_a_path_is_signed_as_it_is_sent(pki: Pki, certificate: Certificate, path: str) -> None:
    """RFC 7616 §3.4: uri."""
    async with serving(make_door(ALICE).door, certificate) as port:
        assert await Curl(port, pki.path)(path) == "sip:alice@home1.net 200"


async def test_a_body_arrives_after_the_challenge(pki: Pki, certificate: Certificate) -> None:
    """RFC 9110 §10.1.1: with and without Expect."""
    door = make_door(ALICE)
    async with serving(door.door, certificate) as port:
        curl = Curl(port, pki.path)
        assert await curl("/notes", "-X", "PUT", "--data-binary", "milk") == "sip:alice@home1.net 200"
        assert await curl("/notes", "-X", "PUT", "-H", "Expect: 100-continue", "--data-binary", "milk") == "sip:alice@home1.net 200"
    assert door.app.bodies == [b"milk", b"milk"]


async def test_many_processes_each_with_a_nonce_of_their_own(pki: Pki, certificate: Certificate) -> None:
    """More nonces than are remembered of one key."""
    door: Door = make_door(ALICE)
    async with serving(door.door, certificate) as port:
        curl = Curl(port, pki.path)
        for _ in range(5):
            door.clock.time += 1
            answers = await asyncio.gather(*(curl("/notes") for _ in range(8)))
            assert set(answers) == {"sip:alice@home1.net 200"}


@pytest.mark.parametrize(("arguments", "method", "good"), [((), "GET", 200), (("-X", "PUT", "--data-binary", "milk"), "PUT", 201)])
async def test_the_command_is_challenged_once_for_each_url(tmp_path: Path, arguments: tuple[str, ...], method: str, good: int) -> None:
    """RFC 7616 §3.3: a thousand in one process keep one connection, but the command forgets the nonce; libcurl does not."""
    count = 1_000
    async with site(tmp_path, step=0.001) as at:
        assert isinstance(at.door.app, Notes)
        at.door.app.notes = {f"/notes/{number}": b"milk" for number in range(count)}
        process = await asyncio.create_subprocess_exec(
            program("curl"), "--disable", "--config", "-", "--noproxy", "*", "--silent", "--show-error", "--digest", "--cacert", str(at.ca),
            "--output", "/dev/null", "--write-out", "%{http_code} ", *arguments, f"{at.url}/notes/[0-{count - 1}]",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(f'user = "{at.user}:{at.password}"\n'.encode()), 2 * LIMIT)
        assert out.split() == [str(good).encode()] * count
        assert at.statuses == [401, good] * count
        assert {(entry.method, entry.connection) for entry in at.log} == {(method, at.log[0].connection)}


async def test_a_wrong_password_gets_nothing(pki: Pki, certificate: Certificate) -> None:
    """RFC 7616 §3.3."""
    door = make_door(ALICE)
    async with serving(door.door, certificate) as port:
        assert (await Curl(port, pki.path)("/notes", password=b"wrong")).endswith(" 401")
    assert door.app.scopes == []


@pytest.mark.parametrize("algorithms", [("MD5",), ("SHA-256", "MD5"), ("MD5", "SHA-256")])
async def test_md5_where_it_is_configured(pki: Pki, certificate: Certificate, algorithms: tuple[str, ...]) -> None:
    """RFC 7616 §3.7."""
    async with serving(make_door(ALICE, algorithms=algorithms).door, certificate) as port:
        assert await Curl(port, pki.path)("/notes") == "sip:alice@home1.net 200"
