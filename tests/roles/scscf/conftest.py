# SPDX-License-Identifier: Apache-2.0
"""Home networks that several files of tests begin with; a file that needs another has its own `home`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from roles.home import XCAP, Home, criterion, open_home


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """Application servers, an S-CSCF, and somebody who writes REGISTERs by hand."""
    async with open_home() as opened:
        opened.network.attach("X", "x.invalid", None)
        yield opened


@pytest.fixture
async def hasty() -> AsyncIterator[Home]:
    """One AS, and an S-CSCF that hardly waits for its answer."""
    async with open_home(criteria=[criterion(XCAP)], push={"push_wait": 0.001}) as opened:
        yield opened
