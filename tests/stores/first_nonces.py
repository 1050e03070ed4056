# SPDX-License-Identifier: Apache-2.0
"""What every KeyStore promises of first nonces (DESIGN §3, §7)."""

from __future__ import annotations

import asyncio

from keyferry.ports import KeyRecord, KeyStore
from keyferry.protocol.ims.keypush import MAX_KEY_LIFE, SKEW, Push
from stores.made import AS_ID, IMPI, IMPU, NOW, PUSHER, REALM, REG, push, pushed_key

BEGAN = NOW - 100
"""When the stores of these tests began; their skew is 0."""


class FirstNonceContract:
    """ports.KeyStore.claim_first; for a fixture `store` that began at BEGAN."""

    async def pushed(self, store: KeyStore, message: Push, name: str = "a", now: float = NOW) -> KeyRecord:
        await store.apply(message, pusher=PUSHER, realm=REALM, now=now)
        record = store.lookup_now(pushed_key(name).key_id, AS_ID, now)
        assert record is not None
        return record

    async def test_a_lookup_need_not_wait(self, store: KeyStore) -> None:
        record = await self.pushed(store, push(1, "a"))
        assert record == await store.lookup(record.key_id, AS_ID, NOW)
        assert record.not_before == NOW
        assert store.lookup_now(pushed_key("b").key_id, AS_ID, NOW) is None

    async def test_of_many_claims_at_once_one_is_granted(self, store: KeyStore) -> None:
        record = await self.pushed(store, push(1, "a"))
        assert sorted(await asyncio.gather(*(store.claim_first(record) for _ in range(5)))) == [False] * 4 + [True]
        assert not await store.claim_first(record)
        other = await self.pushed(store, push(2, "a", "b"), "b")
        assert await store.claim_first(other)

    async def test_a_claim_outlives_every_push_of_the_key(self, store: KeyStore) -> None:
        assert await store.claim_first(await self.pushed(store, push(1, "a")))
        assert not await store.claim_first(await self.pushed(store, push(2, "a")))
        await store.apply(push(3), pusher=PUSHER, realm=REALM, now=NOW)
        assert not await store.claim_first(await self.pushed(store, push(4, "a")))
        await store.sweep(NOW + 3600)  # the key is over, and comes once more, refreshed
        key = pushed_key("a", end=NOW + 7200)
        record = await self.pushed(store, Push(5, IMPI, AS_ID, REG, (key,), (IMPU,)), now=NOW + 3600)
        assert not await store.claim_first(record)

    async def test_a_key_that_was_erased_meanwhile_has_no_first_nonce(self, store: KeyStore) -> None:
        record = await self.pushed(store, push(1, "a"))
        await store.apply(push(2), pusher=PUSHER, realm=REALM, now=NOW)
        assert not await store.claim_first(record)

    async def test_a_claim_is_swept_when_no_push_can_bring_the_key_back(self, store: KeyStore) -> None:
        assert await store.claim_first(await self.pushed(store, push(1, "a")))
        end = NOW + MAX_KEY_LIFE + SKEW
        await store.sweep(end - 1)
        assert await store.sweep(end) == 1
        assert await store.sweep(end) == 0

    async def test_a_store_does_not_know_what_was_before_it_began(self, store: KeyStore) -> None:
        old = pushed_key("old", start=BEGAN - 1)
        record = await self.pushed(store, Push(1, IMPI, AS_ID, REG, (old,), (IMPU,)), "old")
        assert not await store.claim_first(record)
