# SPDX-License-Identifier: Apache-2.0
"""The process that serves; its life as a whole is in tests/system."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from keyferry.wiring.serving import GC_THRESHOLDS, spare_the_collector


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("collector")
def test_the_collector_leaves_alone_what_was_loaded() -> None:
    spare_the_collector()
    assert gc.get_freeze_count() > 1_000
    assert gc.get_threshold()[0] == GC_THRESHOLDS[0]
    assert gc.isenabled()
