# SPDX-License-Identifier: Apache-2.0
"""DESIGN §3, §7: the first nonce at doors over real key stores: two workers, a restart, a store that was lost, a push that comes again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi.doorkit import ALICE, AS_ID, Answer, Client, Echo, FakeClock, FakeRandom, call, record
from keyferry.asgi.auth import SimLogin
from keyferry.protocol import digest
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.ims import keys as ims_keys
from keyferry.protocol.ims.keypush import Push, PushedKey
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from keyferry.stores.sqlite.keys import SqliteKeyStore

HELD = record()
CLOCK = FakeClock()
START = int(CLOCK.now())
KEY = PushedKey(HELD.key_id, HELD.k_as, START, START + 3600)


class Worker:
    """One process of an application, with its own connection to the key store of them all."""

    def __init__(self, database: Database, keyring: Keyring, name: str, now: float) -> None:
        self.store = SqliteKeyStore(database, keyring, now=now, skew=0)
        self.app = Echo()
        self.door = SimLogin(
            self.app, as_id=AS_ID, keys=PushedKeys(self.store, CLOCK), clock=CLOCK, random=FakeRandom(name), user_id_key=bytes(32)
        )

    async def push(self, seq: int) -> None:
        await self.store.apply(Push(seq, HELD.impi, AS_ID, HELD.reg, (KEY,), ALICE), pusher="s", realm="home1.net", now=CLOCK.now())


@pytest.fixture
def keyring() -> Keyring:
    return Keyring({b"kek1": Secret(bytes(64))}, b"kek1", random=FakeRandom("seal"))


@contextlib.contextmanager
def worker(file: Path, keyring: Keyring, name: str, now: float = START - 10) -> Iterator[Worker]:
    with Database(file) as database:
        yield Worker(database, keyring, name, now)


def first(method: str = "GET") -> tuple[str, str]:
    client = Client(HELD)
    nonce = ims_keys.first_nonce(ims_keys.ua_key(HELD.k_as))
    return client.answer(digest.Challenge(client.realm, nonce, "SHA-256", ("auth",)), method=method)


def stale(answer: Answer) -> bool:
    return answer.status == 401 and answer.challenge().stale


async def test_two_workers_admit_it_once(tmp_path: Path, keyring: Keyring) -> None:
    """At the same time, from two event loops' worth of connections: exactly one 2xx, and the application runs once."""
    with worker(tmp_path / "as.db", keyring, "one") as one, worker(tmp_path / "as.db", keyring, "two") as two:
        await one.push(1)
        answers = await asyncio.gather(*(call(which.door, headers=[first()]) for which in (one, two) * 4))
        assert sorted(answer.status for answer in answers) == [200] + [401] * 7
        assert all(stale(answer) for answer in answers if answer.status == 401)
        assert len(one.app.scopes) + len(two.app.scopes) == 1


async def test_neither_a_restart_nor_a_push_brings_it_back(tmp_path: Path, keyring: Keyring) -> None:
    """The claim is in the store, and is not the key's row."""
    with worker(tmp_path / "as.db", keyring, "one") as one:
        await one.push(1)
        assert (await call(one.door, headers=[first()])).status == 200
        await one.push(2)
        assert stale(await call(one.door, headers=[first()]))
    with worker(tmp_path / "as.db", keyring, "two") as two:
        assert stale(await call(two.door, "PUT", headers=[first("PUT")]))
        await two.push(3)
        assert stale(await call(two.door, headers=[first()]))


async def test_a_store_that_was_lost_and_filled_again_takes_none_of_before(tmp_path: Path, keyring: Keyring) -> None:
    """The attack: record the first request, wait until the AS has lost its store and got its keys again, replay."""
    with worker(tmp_path / "old.db", keyring, "one") as one:
        await one.push(1)
        assert (await call(one.door, headers=[first()])).status == 200
    with worker(tmp_path / "new.db", keyring, "two", now=START + 1) as two:
        await two.push(2)
        answer = await call(two.door, headers=[first()])
        assert stale(answer)
        assert two.app.scopes == []
        again = Client(HELD).answer(answer.challenge())
        assert (await call(two.door, headers=[again])).status == 200  # the user goes on all the same
