# SPDX-License-Identifier: Apache-2.0
"""One procedure of one user at a time (*ours*; RFC 3261 §10.3 wants a REGISTER to be processed whole before the next)."""

from __future__ import annotations

import asyncio
from collections import deque

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

    def turn(self, impi: Impi) -> _Turn:
        """Hold the user's turn for as long as the block lasts."""
        return _Turn(self, impi)

    async def take(self, impi: Impi) -> None:
        """Wait for the user's turn; whoever has it passes it on."""
        waiting = self._waiting.get(impi)
        if waiting is None:
            self._waiting[impi] = deque()
        else:
            await self._wait(impi, waiting)

    async def _wait(self, impi: Impi, waiting: deque[asyncio.Future[None]]) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.pass_on(impi)  # the turn had come already
            raise

    def pass_on(self, impi: Impi) -> None:
        """Give the turn to who waits longest."""
        waiting = self._waiting[impi]
        while waiting:
            place = waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        del self._waiting[impi]


class _Turn:
    """The block that holds a turn; `asynccontextmanager` would take twice the time of all else here."""

    __slots__ = ("_impi", "_turns")

    def __init__(self, turns: Turns, impi: Impi) -> None:
        self._turns, self._impi = turns, impi

    async def __aenter__(self) -> None:
        await self._turns.take(self._impi)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._turns.pass_on(self._impi)
