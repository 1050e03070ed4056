# SPDX-License-Identifier: Apache-2.0
"""What the tests of the stores share: chance that repeats, a keyring, a database in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from keyferry.protocol.crypto.secret import Secret
from keyferry.stores.database import Database
from keyferry.stores.sealing import Keyring
from stores.made import CountedRandom


@pytest.fixture
def random() -> CountedRandom:
    return CountedRandom()


@pytest.fixture
def keyring(random: CountedRandom) -> Keyring:
    return Keyring({b"kek1": Secret(random.octets(64))}, b"kek1", random=random)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "test.db") as database:
        yield database
