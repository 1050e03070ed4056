# SPDX-License-Identifier: Apache-2.0
"""The stores in dictionaries keep the contract."""

from __future__ import annotations

import pytest

from keyferry.protocol.identity import KeyId
from keyferry.stores.memory import MemoryDocumentStore, MemoryKeyStore, MemoryRegistrationStore, MemorySubscriberStore, MemoryUeStore
from stores.contract import DocumentContract, KeyContract, RegistrationContract
from stores.first_nonces import BEGAN, FirstNonceContract
from stores.made import AS_ID, NOW, PUSHER, REALM, push, pushed_key
from stores.subscriber_contract import SubscriberContract
from stores.ue_contract import UeContract


class TestMemorySubscribers(SubscriberContract):
    @pytest.fixture
    def store(self) -> MemorySubscriberStore:
        return MemorySubscriberStore()


class TestMemoryRegistrations(RegistrationContract):
    @pytest.fixture
    def store(self) -> MemoryRegistrationStore:
        return MemoryRegistrationStore()


class TestMemoryKeys(KeyContract, FirstNonceContract):
    @pytest.fixture
    def store(self) -> MemoryKeyStore:
        return MemoryKeyStore(began=BEGAN)

    async def test_a_store_that_does_not_know_when_it_began_takes_no_first_nonce(self) -> None:
        store = MemoryKeyStore()
        await store.apply(push(1, "a"), pusher=PUSHER, realm=REALM, now=NOW)
        (record,) = [store.lookup_now(pushed_key("a").key_id, AS_ID, NOW)]
        assert record is not None
        assert not await store.claim_first(record)


class TestMemoryDocuments(DocumentContract):
    @pytest.fixture
    def store(self) -> MemoryDocumentStore:
        return MemoryDocumentStore()


class TestMemoryUe(UeContract):
    @pytest.fixture
    def store(self) -> MemoryUeStore:
        return MemoryUeStore()

    async def test_a_first_nonce_is_used_once(self, store: MemoryUeStore) -> None:
        """DESIGN §7."""
        one, other = KeyId("A" * 24 + "@home1.net"), KeyId("B" * 24 + "@home1.net")
        assert [await store.claim_first(key, NOW) for key in (one, other, one)] == [True, True, False]
