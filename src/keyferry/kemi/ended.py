# SPDX-License-Identifier: Apache-2.0
"""Registrations that the HSS has ended: Kamailio takes the RTR and tells no script, so this asks the HSS, and erases at the ASs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from keyferry.kemi.push import Owner, erase_body
from keyferry.kemi.scscf import KemiPolicy
from keyferry.kemi.store import KemiStore
from keyferry.protocol.identity import AsId, Impi

REMIND_EVERY: Final = 60.0
"""Seconds between two warnings of the same."""


class EndSource(Protocol):
    """Our HSS."""

    def ended(self, scscf: str, since: int) -> Sequence[tuple[int, int, Impi]]:
        """Return what was ended at this S-CSCF behind a place: place, milliseconds since the epoch, IMPI. Raises TransportError."""


class Erasing(NamedTuple):
    """A third-party REGISTER with Expires: 0 that Kamailio shall send."""

    uri: str
    from_uri: str
    to_uri: str
    body: bytes
    ticket: str  # what `answered` is given with the response


@dataclass(slots=True)
class KemiEnded:
    """What one process of Kamailio, that of the timer, does with them."""

    policy: KemiPolicy
    scscf: str  # host name
    store: KemiStore
    source: EndSource

    def look(self) -> None:
        """Ask who was ended since. Raises TransportError, StoreError."""
        for place, at, impi in self.source.ended(self.scscf, self.store.heard()):
            self.store.end(impi, at, place)

    def next(self) -> Erasing | None:
        """Return the next request, also while the HSS is away; None after the last. Raises StoreError."""
        while (owed := self.store.take_owed()) is not None:
            server = self._server_of(owed.as_id)
            if server is None:  # no longer configured
                self.store.settle(owed.id, owed.seq)
                continue
            owner = Owner(owed.impi, owed.reg, (owed.impu,), self.policy.realm, 0, 0)
            body = erase_body(owner, owed.as_id, owed.seq, self.policy.seal_of(owed.as_id))
            return Erasing(server, f"sip:{self.scscf}", owed.impu, body, f"{owed.id} {owed.seq}")
        return None

    def answered(self, ticket: str, status: int) -> None:
        """Take what an AS said: whatever is no 2xx, or comes from nobody, is asked again. Raises StoreError, ValueError."""
        if 200 <= status < 300:
            number, seq = map(int, ticket.split())
            self.store.settle(number, seq)

    def _server_of(self, as_id: AsId) -> str | None:
        return next((server for server, as_ids in self.policy.servers.items() if as_id in as_ids), None)


@dataclass(slots=True)
class Trouble:
    """Tell of what goes wrong every two seconds: when it begins, now and then, and when it is over."""

    monotonic: Callable[[], float]  # seconds
    warn: Callable[[str], None]  # takes words without secrets
    _told_at: float | None = None  # None: there is none

    def here(self, words: str) -> None:
        """Say that it is there, unless that was said lately."""
        if self._told_at is None or self.monotonic() - self._told_at >= REMIND_EVERY:
            self._told_at = self.monotonic()
            self.warn(f"who is ended meanwhile keeps the AS keys: {words}")

    def over(self) -> None:
        """Say that it is over, if it was there."""
        if self._told_at is not None:
            self._told_at = None
            self.warn("who is ended loses the AS keys again")
