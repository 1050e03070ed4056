# SPDX-License-Identifier: Apache-2.0
"""Both sides of a benchmark as tasks of one loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from keyferry.lab.bench_worker import Link, Part


class TaskLink(Link):
    """A Link to a task instead of a process."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []
        self._in: asyncio.Queue[Any] = asyncio.Queue()
        self._out: asyncio.Queue[Any] = asyncio.Queue()

    async def receive(self) -> Any:
        return await self._in.get()

    def send(self, value: object) -> None:
        self._out.put_nowait(value)

    def progress(self, what: str, done: int, total: int) -> None:
        self.told.append((what, done, total))

    async def ask(self, word: object) -> Any:
        self._in.put_nowait(word)
        return await self.answer()

    async def answer(self) -> Any:
        async with asyncio.timeout(60):
            return await self._out.get()

    def stop(self) -> None:
        self._in.put_nowait("stop")


@asynccontextmanager
async def part(run: Part, *arguments: object) -> AsyncIterator[TaskLink]:
    """Run a part as a task; it must end when told."""
    link = TaskLink()
    task = asyncio.ensure_future(run(link, *arguments))
    try:
        yield link
    finally:
        link.stop()
        async with asyncio.timeout(60):
            await task
