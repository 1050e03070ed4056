# SPDX-License-Identifier: Apache-2.0
"""ports.UseLedger within one process (DESIGN §7)."""

from __future__ import annotations

import re

import pytest

from asgi.doorkit import FakeClock, FakeKeys, FakeRandom, record
from keyferry.asgi.ledger import FirstUses, LocalLedger
from keyferry.errors import DigestRejected
from keyferry.roles.appserver import PushedKeys
from keyferry.stores.memory import MemoryKeyStore

ALICE = record()


def make(clock: FakeClock, first: FirstUses | None = None) -> LocalLedger:
    return LocalLedger(scope="xcap.home1.net", clock=clock, random=FakeRandom(), lifetime=100.0, first=first)


async def test_a_nonce_is_issued_counted_and_grows_old() -> None:
    """RFC 7616 §3.4, §3.5."""
    clock = FakeClock()
    ledger = make(clock)
    nonce = ledger.issue()
    assert re.fullmatch(r"[A-Za-z0-9_-]{40}", nonce)
    assert ledger.issue() != nonce
    assert await ledger.claim(nonce, ALICE, 1) is False
    with pytest.raises(DigestRejected) as caught:
        await ledger.claim(nonce, ALICE, 1)
    assert caught.value.stale
    clock.time += 60
    assert await ledger.claim(nonce, ALICE, 2) is True


async def test_a_restart_forgets_every_nonce() -> None:
    """Nothing that was taken before can be taken again."""
    clock, random = FakeClock(), FakeRandom()
    one = LocalLedger(scope="a", clock=clock, random=random, lifetime=100.0)
    nonce = one.issue()
    await one.claim(nonce, ALICE, 1)
    for scope in ("a", "b"):
        two = LocalLedger(scope=scope, clock=clock, random=random, lifetime=100.0)
        with pytest.raises(DigestRejected):
            await two.claim(nonce, ALICE, 1)


async def test_first_nonces_are_remembered_by_the_store_or_refused() -> None:
    """DESIGN §7."""
    assert not await make(FakeClock()).claim_first(ALICE)
    keys = FakeKeys(ALICE)
    ledgers = [make(FakeClock(), keys), make(FakeClock(), keys)]
    assert [await ledger.claim_first(ALICE) for ledger in ledgers] == [True, False]


def test_pushed_keys_remember_first_nonces() -> None:
    """The door finds out by itself which source does."""
    assert isinstance(PushedKeys(MemoryKeyStore(), FakeClock()), FirstUses)
