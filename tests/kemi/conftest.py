# SPDX-License-Identifier: Apache-2.0
"""Every store that a test opened is closed behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kemi import kemikit


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close them."""
    yield
    while kemikit.OPENED:
        kemikit.OPENED.pop().close()
