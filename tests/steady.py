# SPDX-License-Identifier: Apache-2.0
"""Tests of real time: what fails while the machine stands still proves nothing, and is tried again."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

ATTEMPTS = 10
BEAT = 0.005  # seconds
NOISE = 0.01  # what a beat may be late without meaning


class Heart(threading.Thread):
    """Says how many seconds this process got no time: for other processes, the machine's host, or a collection of garbage."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.lost = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(BEAT):
            now = time.monotonic()
            self.lost += max(0.0, now - last - BEAT - NOISE)
            last = now

    def end(self) -> None:
        self._ended.set()
        self.join()


@contextmanager
def beating() -> Iterator[Heart]:
    heart = Heart()
    heart.start()
    try:
        yield heart
    finally:
        heart.end()


@dataclass(slots=True)
class Attempts:
    """How often a test may still be tried."""

    slack: float
    left: int = ATTEMPTS

    @contextmanager
    def one(self) -> Iterator[None]:
        """Let a failure pass, if this process got no time for so long, and if it is not the last attempt's."""
        self.left -= 1
        with beating() as heart:
            try:
                yield
                self.left = 0
            except (Exception, pytest.fail.Exception):
                if heart.lost < self.slack or not self.left:
                    raise


def steady(slack: float) -> Callable[[Callable[..., Any]], Any]:
    """Try a test again that fails after this process got no time for `slack` seconds: as much as the test's own times allow."""

    def decorate(test: Callable[..., Any]) -> Any:
        @functools.wraps(test)
        async def tried_async(*arguments: Any, **named: Any) -> None:
            attempts = Attempts(slack)
            while attempts.left:
                with attempts.one():
                    await test(*arguments, **named)

        @functools.wraps(test)
        def tried(*arguments: Any, **named: Any) -> None:
            attempts = Attempts(slack)
            while attempts.left:
                with attempts.one():
                    test(*arguments, **named)

        return tried_async if inspect.iscoroutinefunction(test) else tried

    return decorate
