# SPDX-License-Identifier: Apache-2.0
"""What a computation costs, whatever else this machine and this process do meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def costs_under(seconds: float) -> Iterator[None]:
    """Fail if the block takes as much of this thread's time on a processor.

    Other processes take none of that; a collection of garbage does, a tenth of a second among the objects of some thousand tests: it waits.
    """
    collected = gc.isenabled()
    gc.disable()
    began = time.thread_time()
    try:
        yield
        took = time.thread_time() - began
    finally:
        if collected:
            gc.enable()
    assert took < seconds, f"{took:.4f} s on the processor; under {seconds:g} s were allowed"
