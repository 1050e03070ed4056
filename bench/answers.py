# SPDX-License-Identifier: Apache-2.0
"""Measure how alike the door's wrong answers are in time: an unknown key id, a wrong password, a key that is gone.

    python bench/answers.py
    python bench/answers.py --rounds 20000 --json

SimLogin over a key store on the disk, in this process, without a network: what a stranger sees through one is wider and noisier.
The kinds take turns in an order drawn anew each round, so that what the machine does besides hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from keyferry.asgi import FailureLimits, SimLogin
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

AS_ID = AsId("app.example")
HOME = "home1.net"
USERS = 200
"""With a key each; what was gone was pushed and erased as often."""


def key_of(name: str) -> Secret:
    """Return a K_AS that follows from a name."""
    return Secret(hashlib.sha256(name.encode()).digest())


async def measure(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return median and quartiles of each kind, in microseconds."""
    clock, chance = SystemClock(), SystemRandom()
    with open_state(folder / "state", random=chance) as state:
        store = SqliteKeyStore(Database(state.path("answers.db")), state.keyring, now=clock.now(), skew=0.0)
        await fill(store, clock)
        source = PushedKeys(store, clock, state.user_id_key)
        login = SimLogin(_hello, as_id=AS_ID, keys=source, limits=FailureLimits(burst=100_000_000, per_second=1_000_000))
        took: dict[str, list[int]] = {"unknown": [], "wrong": [], "gone": []}
        nonce = (await _call(login, ""))[1]
        for number in range(rounds):
            kinds = list(took)
            random.shuffle(kinds)
            for kind in kinds:
                status, nonce, nanoseconds = await _call(login, _answer(kind, number % USERS, nonce))
                if status != 401:
                    raise SystemExit(f"{kind}: {status} instead of 401")
                took[kind].append(nanoseconds)
    return {kind: _summary(times) for kind, times in took.items()}


async def fill(store: SqliteKeyStore, clock: SystemClock) -> None:
    """Push a key for each user, and push and erase another."""
    now = int(clock.now())
    for kind in ("wrong", "gone"):
        for number in range(USERS):
            key = key_of(f"{kind}{number}")
            impi = Impi(f"{kind}{number}@{HOME}")
            pushed = PushedKey(ims_keys.key_id(key, HOME), key, now, now + 3600)
            whole = Push(1, impi, AS_ID, Reg("AAAAAAAAAAAA"), (pushed,), (Impu(f"sip:{kind}{number}@{HOME}"),))
            await store.apply(whole, pusher="scscf1", realm=HOME, now=now)
            if kind == "gone":
                await store.apply(Push(2, impi, AS_ID, Reg("AAAAAAAAAAAA")), pusher="scscf1", realm=HOME, now=now)


def _answer(kind: str, number: int, nonce: str) -> str:
    name = ims_keys.key_id(key_of(f"{kind}{number}"), HOME)
    realm, cnonce = f"IMS-AS-key@{AS_ID}", "c" * 16
    wrong = digest.Credentials(name, realm, nonce, "/", "0" * 64, "SHA-256", cnonce=cnonce, qop="auth", nc="00000001")
    return digest.build_credentials(wrong)


async def _call(login: SimLogin, authorization: str) -> tuple[int, str, int]:
    headers = [(b"host", AS_ID.encode())] + ([(b"authorization", authorization.encode())] if authorization else [])
    scope = {
        "type": "http", "scheme": "https", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"",
        "headers": headers, "client": ("192.0.2.1", 1),
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    begun = time.perf_counter_ns()
    await login(scope, receive, send)
    took = time.perf_counter_ns() - begun
    challenge = dict(sent[0]["headers"]).get(b"www-authenticate", b"").decode()
    return sent[0]["status"], digest.parse_challenge(challenge).nonce if challenge else "", took


async def _hello(_scope: Any, _receive: Any, _send: Any) -> None:
    raise SystemExit("a wrong answer reached the application")


def _summary(times: list[int]) -> dict[str, float]:
    low, _, high = quantiles(times, n=4)
    return {"median": median(times) / 1000, "quartile1": low / 1000, "quartile3": high / 1000}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options.rounds, Path(folder)))
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write("wrong answer      median    quartiles, microseconds\n")
    for kind, figures in found.items():
        sys.stdout.write(f"{kind:14} {figures['median']:9.1f}    {figures['quartile1']:.1f} to {figures['quartile3']:.1f}\n")


if __name__ == "__main__":
    main()
