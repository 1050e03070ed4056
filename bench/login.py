# SPDX-License-Identifier: Apache-2.0
"""Measure what SimLogin adds to a GET in CPU time: proven requests over a key store on the disk, without a network.

    python bench/login.py
    python bench/login.py --requests 20000 --rounds 9 --json

Each round gives as many requests to the bare application and to the one behind the login, and the cheapest round counts:
what others do on the machine makes a round dearer, never cheaper. `keyferry bench --only get` measures the same over TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from keyferry.asgi import SimLogin
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims import keys as ims_keys
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.database import Database
from keyferry.stores.sqlite.keys import SqliteKeyStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.wiring.observability import Metrics
from keyferry.wiring.serving import spare_the_collector

AS_ID = AsId("app.example")
HOME = "home1.net"
USERS = 200
PATH = f"/simservs.ngn.etsi.org/users/sip:user1234_public1@{HOME}/simservs.xml"

_Scope = dict[str, Any]
_App = Callable[..., Coroutine[Any, Any, None]]


def key_of(number: int) -> Secret:
    """Return the K_AS of a user."""
    return Secret(hashlib.sha256(b"login %d" % number).digest())


async def measure(requests: int, rounds: int, folder: Path, *, audit: bool = False) -> dict[str, float]:
    """Return microseconds of CPU time of a request, without the login and behind it."""
    clock, chance = SystemClock(), SystemRandom()
    with open_state(folder / "state", random=chance) as state, Database(state.path("login.db")) as database:
        store = SqliteKeyStore(database, state.keyring, now=clock.now(), skew=0.0)
        await fill(store, int(clock.now()))
        log = folder / "audit.log" if audit else None
        login = SimLogin(_hello, as_id=AS_ID, keys=PushedKeys(store, clock, state.user_id_key), counter=Metrics(), audit=log)
        clients = [_Client(number) for number in range(USERS)]
        nonce = await _challenged(login)
        spare_the_collector()
        bare, behind = [], []
        for _ in range(rounds):
            scopes = [clients[number % USERS].scope(nonce) for number in range(requests)]
            bare.append(await _run(_hello, scopes))
            behind.append(await _run(login, scopes))
    return {"bare": min(bare), "login": min(behind), "check": min(behind) - min(bare)}


async def fill(store: SqliteKeyStore, now: int) -> None:
    """Push a key for each user."""
    for number in range(USERS):
        key = key_of(number)
        impus = (Impu(f"sip:user{number}@{HOME}"),)
        pushed = PushedKey(ims_keys.key_id(key, HOME), key, now, now + 3600)
        push = Push(1, Impi(f"user{number}@{HOME}"), AS_ID, Reg("AAAAAAAAAAAA"), (pushed,), impus)
        await store.apply(push, pusher="scscf1", realm=HOME, now=now)


class _Client:
    """One user's side of Digest."""

    def __init__(self, number: int) -> None:
        key = key_of(number)
        self._name, self._realm = ims_keys.key_id(key, HOME), ims_keys.digest_realm(AS_ID)
        self._ha1 = digest.hash_a1("SHA-256", self._name, self._realm, ims_keys.digest_password(ims_keys.ua_key(key)))
        self._count = 0

    def scope(self, nonce: str) -> _Scope:
        """Return the next request, as uvicorn would hand it over."""
        self._count += 1
        nc, cnonce = f"{self._count:08x}", "0a4f113b5c2e9d77"
        response = digest.respond("SHA-256", self._ha1, method="GET", uri=PATH, nonce=nonce, qop="auth", nc=nc, cnonce=cnonce)
        answer = digest.Credentials(self._name, self._realm, nonce, PATH, response, "SHA-256", cnonce=cnonce, qop="auth", nc=nc)
        return _scope((b"authorization", digest.build_credentials(answer).encode()))


def _scope(*fields: tuple[bytes, bytes]) -> _Scope:
    head = [(b"host", AS_ID.encode()), (b"user-agent", b"python-httpx/0.28"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip")]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "server": ("192.0.2.2", 443),
        "client": ("192.0.2.1", 1), "scheme": "https", "method": "GET", "root_path": "", "path": PATH, "raw_path": PATH.encode(),
        "query_string": b"", "headers": [*head, *fields], "state": {},
    }  # fmt: skip


async def _challenged(login: SimLogin) -> str:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await login(_scope(), _receive, send)
    return digest.parse_challenge(dict(sent[0]["headers"])[b"www-authenticate"].decode()).nonce


async def _run(app: _App | SimLogin, scopes: list[_Scope]) -> float:
    """Return microseconds of CPU time per request."""
    statuses: list[int] = []
    note = statuses.append

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            note(message["status"])

    begun = time.process_time_ns()
    for scope in scopes:
        await app(scope, _receive, send)
    took = time.process_time_ns() - begun
    if statuses != [200] * len(scopes):
        raise SystemExit(f"not admitted: {sorted(set(statuses))}")
    return took / len(scopes) / 1000


async def _receive() -> _Scope:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _hello(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2"), (b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hi"})


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=5_000, help="of one round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--audit", action="store_true", help="with an audit log")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options.requests, options.rounds, Path(folder), audit=options.audit))
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        sys.stdout.write(
            "CPU of a request: {bare:.1f} µs bare, {login:.1f} µs behind the login; the check {check:.1f} µs\n".format(**found)
        )


if __name__ == "__main__":
    main()
