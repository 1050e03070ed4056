# SPDX-License-Identifier: Apache-2.0
"""The stores in dictionaries keep the contract."""

from __future__ import annotations

import pytest

from keyferry.stores.memory import MemoryDocumentStore, MemoryKeyStore, MemoryRegistrationStore, MemorySubscriberStore, MemoryUeStore
from stores.contract import DocumentContract, KeyContract, RegistrationContract, SubscriberContract, UeContract


class TestMemorySubscribers(SubscriberContract):
    @pytest.fixture
    def store(self) -> MemorySubscriberStore:
        return MemorySubscriberStore()


class TestMemoryRegistrations(RegistrationContract):
    @pytest.fixture
    def store(self) -> MemoryRegistrationStore:
        return MemoryRegistrationStore()


class TestMemoryKeys(KeyContract):
    @pytest.fixture
    def store(self) -> MemoryKeyStore:
        return MemoryKeyStore()


class TestMemoryDocuments(DocumentContract):
    @pytest.fixture
    def store(self) -> MemoryDocumentStore:
        return MemoryDocumentStore()


class TestMemoryUe(UeContract):
    @pytest.fixture
    def store(self) -> MemoryUeStore:
        return MemoryUeStore()
