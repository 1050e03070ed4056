# SPDX-License-Identifier: Apache-2.0
"""A Diameter request of ours until its answer, and who has the connections that it goes over (RFC 6733 §5.5.4)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from keyferry.errors import TransportError
from keyferry.protocol.diameter.message import DiameterMessage
from keyferry.transports.deadlines import Deadline

if TYPE_CHECKING:
    from keyferry.transports.diameter_connection import DiameterConnection


class Exchange:
    """A request of ours until its answer, its time, or the end of all ways to send it."""

    __slots__ = ("again", "asked_at", "attempts", "deadline", "ends_at", "future", "places", "refused", "request", "timeout", "wait")

    def __init__(self, request: DiameterMessage, now: float = 0.0, timeout: float = 0.0) -> None:
        """Take a request that has its end-to-end identifier, which it keeps (RFC 6733 §5.5.4)."""
        self.request = request
        self.asked_at = now  # seconds of the monotonic clock: when it was sent last
        self.timeout = timeout  # seconds
        self.ends_at = now + timeout
        self.wait = timeout / 2  # seconds without an answer after which another peer is asked, too
        self.deadline: Deadline | None = None
        self.future: asyncio.Future[DiameterMessage] = asyncio.get_running_loop().create_future()
        self.places: dict[DiameterConnection, int] = {}  # where it waits for an answer, and its hop-by-hop identifier there
        self.refused: set[object] = set()  # who said that somebody else should be asked
        self.attempts = 0
        self.again = False  # a peer may have got it already: the T flag

    @property
    def asked_last(self) -> DiameterConnection | None:
        """Where it went last, and waits: an answer from elsewhere came too late to be waited for."""
        return next(reversed(self.places), None)

    def fail(self, peer: str, problem: str) -> None:
        """Raise TransportError for who waits."""
        if not self.future.done():
            self.future.set_exception(TransportError(peer, problem))

    def succeed(self, answer: DiameterMessage) -> None:
        """Give who waits the answer; of two, the first."""
        if not self.future.done():
            self.future.set_result(answer)

    def forget(self) -> None:
        """Wait nowhere any more, and for no time; what still comes is late."""
        if self.deadline is not None:
            self.deadline.cancel()
        for connection, number in self.places.items():
            connection.waiting.pop(number, None)
        self.places.clear()


class Owner(Protocol):
    """Who has the connection; no method raises."""

    def admitted(self, connection: DiameterConnection) -> bool:
        """Take in a new connection, or not, and then say why by its `abort`."""

    def opened(self, connection: DiameterConnection) -> None:
        """Note that the peer is known, `connection.peer`, and whether it is usable."""

    def suspended(self, connection: DiameterConnection) -> None:
        """Send nothing new there."""

    def resumed(self, connection: DiameterConnection) -> None:
        """Use it again."""

    def ended(self, connection: DiameterConnection) -> None:
        """Note that no answer comes any more, `connection.end` says why."""

    def requested(self, connection: DiameterConnection, request: DiameterMessage) -> None:
        """Answer a request of the peer."""

    def answered(self, connection: DiameterConnection, exchange: Exchange, answer: DiameterMessage) -> None:
        """Take the answer to a request of ours."""

    def late(self, answer: DiameterMessage) -> None:
        """Note an answer that nobody waits for: the peer has carried out what it was asked, after others may have been."""
