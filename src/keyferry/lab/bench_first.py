# SPDX-License-Identifier: Apache-2.0
"""How long a first request takes over a long way: from no connection at all to the whole answer, by each way to log in."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Literal, NamedTuple, TypeAlias

import httpx

from keyferry.client.http import HostsTransport, open_client, trust
from keyferry.client.http_auth import SimDigest
from keyferry.client.psk import psk_transport
from keyferry.client.ue import HttpCredentials
from keyferry.lab.bench_http import AS_ID, DOCUMENT_OCTETS, Doors, HttpUser, http_user, password_of
from keyferry.lab.bench_register_load import Burst, quantiles
from keyferry.lab.bench_relay import DelayRelay
from keyferry.lab.bench_worker import Link, usage
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.ims.keys import digest_realm, ua_key
from keyferry.transports.clock import SystemRandom

DELAY = 0.05  # seconds, one way
Way: TypeAlias = Literal["401", "nonce", "psk13", "psk12"]
REQUESTS: dict[Way, int] = {"401": 2, "nonce": 1, "psk13": 1, "psk12": 1}
"""HTTP requests that each way takes: another number would be another figure."""


class FirstOrder(NamedTuple):
    """Some first requests, one after the other, each by a user who was not there before."""

    way: Way
    users: tuple[int, ...]


async def load_first_requests(link: Link, delay: float = DELAY) -> None:
    """Take the doors' addresses, then run orders."""
    doors: Doors = await link.receive()
    async with AsyncExitStack() as stack:
        ports: dict[str, int] = {}
        for way, address in {"401": doors.login, "nonce": doors.login, **doors.psk}.items():
            relay = DelayRelay(address, delay)
            stack.push_async_callback(relay.aclose)
            _, ports[way] = await relay.listen()
        link.send(None)
        while isinstance(order := await link.receive(), FirstOrder):
            link.send(await _run(order, doors, ports[order.way]))


async def _run(order: FirstOrder, doors: Doors, port: int) -> Burst:
    latencies: list[float] = []
    problems: list[str] = []
    before, began = usage(), perf_counter()
    for number in order.users:
        user = http_user(number)
        async with _client(order.way, user, doors) as client:
            seconds, problem = await _first(client, f"https://{AS_ID}:{port}{user.path}", REQUESTS[order.way])
        if problem:
            problems.append(problem)
        else:
            latencies.append(seconds)
    seconds, after = perf_counter() - began, usage()
    cpu = after.cpu_user + after.cpu_system - before.cpu_user - before.cpu_system
    return Burst(len(latencies), len(problems), seconds, *quantiles(latencies), cpu, problems=tuple(problems[:5]))


async def _first(client: httpx.AsyncClient, url: str, requests: int) -> tuple[float, str]:
    """Return the seconds that the request took, and what is wrong with the answer."""
    statuses: list[int] = []

    async def note(response: httpx.Response) -> None:
        statuses.append(response.status_code)

    client.event_hooks = {"response": [note]}
    began = perf_counter()
    try:
        response = await client.get(url)
    except httpx.HTTPError as problem:
        return 0.0, f"{type(problem).__name__}: {problem}"
    seconds = perf_counter() - began
    if response.status_code != 200 or len(response.content) != DOCUMENT_OCTETS or len(statuses) != requests:
        return seconds, f"statuses {statuses}, {len(response.content)} octets"
    return seconds, ""


def _client(way: Way, user: HttpUser, doors: Doors) -> httpx.AsyncClient:
    """Return a client that has no connection yet."""
    hosts: dict[str, str] = {AS_ID: "127.0.0.1"}
    if way == "psk13" or way == "psk12":
        k_ua = ua_key(user.k_as)
        password, realm = Secret(password_of(user)), digest_realm(AS_ID)
        credentials = HttpCredentials(AS_ID, user.key_id, password, realm, "SHA-256", user.k_as, k_ua)
        transport = psk_transport(credentials, "1.3" if way == "psk13" else "1.2")
        return httpx.AsyncClient(transport=HostsTransport(transport, hosts), trust_env=False)
    return open_client(_auth(way, user), hosts=hosts, tls=trust(Path(doors.ca)))


def _auth(way: Way, user: HttpUser) -> httpx.Auth:
    if way == "401":
        return httpx.DigestAuth(user.key_id, password_of(user))

    async def claim() -> bool:
        return True

    return SimDigest(key_id=user.key_id, as_id=AS_ID, k_ua=ua_key(user.k_as), random=SystemRandom(), waits=(), claim_first=claim)
