# SPDX-License-Identifier: Apache-2.0
"""A long way between client and server, in user space: a TCP relay that holds back what passes, and the handshake's round trip too."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast


class DelayRelay:
    """Relay to one address with a one-way delay.

    A client's TCP handshake ends at the relay, at once; so what it sends first is held for that round trip, too. Octets of one
    direction never overtake each other. No loss, no slow start beyond the loopback's: what is measured is round trips.
    """

    def __init__(self, target: tuple[str, int], delay: float) -> None:
        """Take the server's address and the delay of one direction in seconds."""
        self._target = target
        self._delay = delay
        self._server: asyncio.Server | None = None

    async def listen(self) -> tuple[str, int]:
        """Start, and return the address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Near(self._target, self._delay), "127.0.0.1", 0)
        address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return address

    async def aclose(self) -> None:
        """Listen no more; connections end with their clients."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


class _Late(asyncio.Protocol):
    """One end of a connection: what it receives is written at the other end later."""

    def __init__(self, delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self.transport: asyncio.WriteTransport | None = None
        self.other: _Late | None = None
        self.open_at = 0.0  # nothing is sent before
        self._held: deque[bytes | None] = deque()  # None: the end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where to write."""
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Send it on, later."""
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other end, as late as all else."""
        del exc
        self._hold(None)

    def _hold(self, data: bytes | None) -> None:
        self._held.append(data)  # two timers of one moment may go off in any order
        self._loop.call_at(max(self._loop.time(), self.open_at) + self._delay, self._pass)

    def _pass(self) -> None:
        data = self._held.popleft()
        if self.other is None or self.other.transport is None:
            return
        if data is None:
            self.other.transport.close()
        else:
            self.other.transport.write(data)


class _Near(_Late):
    """The client's end: it opens the other one."""

    def __init__(self, target: tuple[str, int], delay: float) -> None:
        super().__init__(delay)
        self._target = target
        self._opening: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the server's end; its octets wait for the round trip of the handshake that the client did not have to wait for."""
        super().connection_made(transport)
        self.open_at = self._loop.time() + 2 * self._delay
        self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        far = self.other = _Late(self._delay)
        far.other = self
        try:
            await self._loop.create_connection(lambda: far, *self._target)
        except OSError:
            if self.transport is not None:
                self.transport.abort()
