# SPDX-License-Identifier: Apache-2.0
"""One procedure of one user at a time (*ours*; RFC 3261 §10.3 wants a REGISTER to be processed whole before the next)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from keyferry.protocol.identity import Impi


class Turns:
    """Let procedures of one IMPI wait for each other, in the order they came; those of different users do not meet."""

    def __init__(self) -> None:
        self._waiting: dict[Impi, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def is_taken(self, impi: Impi) -> bool:
        """Tell whether a procedure of this user is under way."""
        return impi in self._waiting

    @asynccontextmanager
    async def turn(self, impi: Impi) -> AsyncIterator[None]:
        """Hold the user's turn."""
        waiting = self._waiting.get(impi)
        if waiting is None:
            self._waiting[impi] = deque()
        else:
            await self._wait(impi, waiting)
        try:
            yield
        finally:
            self._pass_on(impi)

    async def _wait(self, impi: Impi, waiting: deque[asyncio.Future[None]]) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._pass_on(impi)  # the turn had come already
            raise

    def _pass_on(self, impi: Impi) -> None:
        waiting = self._waiting[impi]
        while waiting:
            place = waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        del self._waiting[impi]
