# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin with one fixture; `pytest11` in pyproject.toml names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from keyferry.testing.sims import Sims


@pytest.fixture
def sim() -> Sims:
    """SIMs by name, and the keys that an application knows of them: `sim("alice")` is an httpx.Auth."""
    from keyferry.testing.sims import Sims

    return Sims()
