# SPDX-License-Identifier: Apache-2.0
"""Stock Digest clients against the door over TLS: keep-alive, one 401 in all; and the client of 1997 that knows no qop.

What each client offers and takes stands in docs/clients.md; the table there is this file's.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import ssl
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from asgi.stockclients import (
    Burst,
    Call,
    Drive,
    Got,
    Site,
    burst_of_aiohttp,
    burst_of_httpx,
    site,
    with_aiohttp,
    with_async_httpx,
    with_httpx,
    with_libcurl,
    with_requests,
)
from keyferry.asgi.nonce import WINDOW
from keyferry.protocol import digest
from keyferry.transports.clock import SystemClock

CLIENTS = {
    "httpx": with_httpx,
    "httpx-async": with_async_httpx,
    "requests": with_requests,
    "aiohttp": with_aiohttp,
    "libcurl": with_libcurl,
}
PEERS = {"libcurl"}  # not from requirements/test.txt
FEW = WINDOW + 10  # more than the counts that a nonce remembers one by one
ISSUE = 1_000

clients = pytest.mark.parametrize(
    "drive", [pytest.param(drive, id=name, marks=pytest.mark.interop if name in PEERS else ()) for name, drive in CLIENTS.items()]
)


def puts_and_gets(count: int) -> list[Call]:
    """Return as many PUTs, each with a body of its own, and then the GETs that must give them back."""
    puts = [Call("PUT", f"/notes/{number}?of=alice", b"milk %d " % number * (number % 50 + 1)) for number in range(count)]
    return puts + [Call("GET", one.path) for one in puts]


@clients
@pytest.mark.parametrize("count", [FEW, pytest.param(ISSUE, marks=pytest.mark.interop)])
async def test_one_challenge_is_enough_for_all_requests_of_a_connection(drive: Drive, count: int, tmp_path: Path) -> None:
    """RFC 7616 §3.4: nc counts, no further 401; every body arrives and is given back."""
    calls = puts_and_gets(count)
    async with site(tmp_path) as at:
        got = await drive(at, calls)
        assert got[:count] == [Got(201, b"kept")] * count
        assert got[count:] == [Got(200, one.body) for one in calls[:count]]
        assert at.statuses == [401] + [201] * count + [200] * count
        assert len({entry.connection for entry in at.log}) == 1


@pytest.mark.parametrize("burst", [burst_of_aiohttp, burst_of_httpx], ids=["aiohttp", "httpx"])
@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.interop)])
async def test_a_hundred_first_requests_at_once_are_all_let_in(burst: Burst, rounds: int, tmp_path: Path) -> None:
    """Each has a challenge of its own, and a nonce; the answers come back in any order."""
    async with site(tmp_path, clock=SystemClock()) as at:  # for the oldest of 2,000 nonces are forgotten by their time
        for _ in range(rounds):
            statuses = await burst(at, [f"/notes/{number}" for number in range(100)])
            assert statuses == [404] * 100  # of the application, which has no such notes


@clients
async def test_a_nonce_that_is_too_old_costs_one_more_challenge(drive: Drive, tmp_path: Path) -> None:
    """RFC 7616 §3.3, stale: no stock client takes the nextnonce of §3.5, so each asks again when the nonce's life is over."""
    async with site(tmp_path, nonce_lifetime=60.0, step=25.0) as at:
        assert [got.status for got in await drive(at, puts_and_gets(2))] == [201, 201, 200, 200]
        assert at.statuses == [401, 201, 201, 401, 200, 200]


@clients
@pytest.mark.parametrize(
    ("algorithms", "qop", "chosen"),
    [
        (("SHA-256",), ("auth",), {"": ("SHA-256", "auth")}),
        (("SHA-256", "MD5"), ("auth",), {"": ("SHA-256", "auth"), "requests": ("MD5", "auth")}),
        (("MD5",), ("auth",), {"": ("MD5", "auth")}),
        (("SHA-256",), ("auth", "auth-int"), {"": ("SHA-256", "auth"), "aiohttp": ("SHA-256", "auth-int")}),
    ],
    ids=["sha-256", "sha-256+md5", "md5", "auth-int"],
)
async def test_which_challenge_a_client_answers(
    drive: Drive, algorithms: tuple[str, ...], qop: tuple[str, ...], chosen: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    """The table in docs/clients.md: the first of two for all but requests; auth-int for aiohttp, when it is offered."""
    name = next(name for name, known in CLIENTS.items() if known is drive)
    async with site(tmp_path, algorithms=algorithms, qop=qop) as at:
        assert await drive(at, [Call("PUT", "/a", b"milk"), Call("GET", "/a")]) == [Got(201, b"kept"), Got(200, b"milk")]
        assert at.statuses == [401, 201, 200]
        assert {(entry.algorithm, entry.qop) for entry in at.log[1:]} == {chosen.get(name, chosen[""])}


@clients
async def test_only_aiohttp_knows_auth_int_alone(drive: Drive, tmp_path: Path) -> None:
    """RFC 7616 §3.4.2: libcurl signs every body as if it were empty, the others do not try; a door for stock clients offers auth."""
    async with site(tmp_path, qop=("auth-int",)) as at:
        if drive in {with_httpx, with_async_httpx}:
            with pytest.raises(NotImplementedError):
                await drive(at, [Call("GET", "/a")])
            return
        put, get = await drive(at, [Call("PUT", "/a", b"milk"), Call("GET", "/a")])
        wanted: dict[Drive, tuple[int, int]] = {with_aiohttp: (201, 200), with_libcurl: (401, 404), with_requests: (401, 401)}
        assert (put.status, get.status) == wanted[drive]


@clients
async def test_a_wrong_password_is_refused_and_no_client_asks_for_ever(drive: Drive, tmp_path: Path) -> None:
    """A user's own 401, with the reason to try again later (DESIGN §7)."""
    async with site(tmp_path) as at:
        got = await drive(replace(at, password="wrong"), [Call("GET", "/a")])
        assert [one.status for one in got] == [401]
        assert set(at.statuses) == {401}
        assert len(at.statuses) <= 3


@pytest.mark.parametrize("algorithms", [("SHA-256",), ("SHA-256", "MD5"), ("MD5",)], ids="+".join)
@pytest.mark.parametrize("hashed", ["MD5", "SHA-256"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
async def test_a_client_without_qop_gets_a_clean_refusal(algorithms: tuple[str, ...], hashed: str, named: bool, tmp_path: Path) -> None:
    """RFC 2069 §2.1.2: no qop, nc, cnonce, so no defence against replay: 400 that says so, the connection stays, nobody is let in."""
    async with site(tmp_path, algorithms=algorithms) as at:
        statuses = await asyncio.to_thread(_old_client, at, hashed, named)
        assert statuses == [401, 400, 400]
        assert at.statuses == statuses
        assert len({entry.connection for entry in at.log}) == 1
        assert at.door.app.scopes == []
        # It has cost the user nothing: the next who knows qop is let in at once.
        assert await with_async_httpx(at, [Call("PUT", "/a", b"milk")]) == [Got(201, b"kept")]


def _old_client(at: Site, hashed: str, named: bool) -> Sequence[int]:
    """Ask, answer the challenge, try again; each answer must be whole and say why."""
    secure = ssl.create_default_context(cafile=str(at.ca))
    host, _, port = at.url.removeprefix("https://").partition(":")
    connection = http.client.HTTPSConnection(host, int(port), context=secure, timeout=30)
    statuses: list[int] = []
    headers: dict[str, str] = {}
    try:
        for _ in range(3):
            connection.request("GET", "/a", headers=headers)
            answer = connection.getresponse()
            statuses.append(answer.status)
            assert (b"RFC 2069" if headers else b"Log in with a SIM") in answer.read()
            assert answer.getheader("authentication-info") is None
            challenges = answer.msg.get_all("www-authenticate", [])
            assert bool(challenges) is not bool(headers)  # a second challenge would be answered like the first
            if challenges:
                challenge = digest.parse_challenge(challenges[0])
                assert challenge.qop == ("auth",)
                headers = {"Authorization": _without_qop(at, challenge, hashed, named)}
    finally:
        connection.close()
    return statuses


def _without_qop(at: Site, challenge: digest.Challenge, hashed: str, named: bool) -> str:
    """RFC 2069 §2.1.2: response = H(H(A1) ":" nonce ":" H(A2))."""

    def over(*parts: str) -> str:
        return hashlib.new(hashed, ":".join(parts).encode(), usedforsecurity=False).hexdigest()

    response = over(over(at.user, challenge.realm, at.password), challenge.nonce, over("GET", "/a"))
    algorithm = f', algorithm="{hashed}"' if named else ""
    known = f'username="{at.user}", realm="{challenge.realm}", nonce="{challenge.nonce}", uri="/a"'
    return f'Digest {known}, response="{response}"{algorithm}'
