# SPDX-License-Identifier: Apache-2.0
"""Registrations that the HSS has ended: Kamailio takes the RTR and tells no script, so this asks the HSS, and erases at the ASs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from keyferry.errors import KeyferryError
from keyferry.kemi.push import Owner, erase_body
from keyferry.kemi.scscf import KemiPolicy
from keyferry.kemi.store import Held, KemiStore
from keyferry.protocol.identity import AsId, Impi


class EndSource(Protocol):
    """Our HSS."""

    def ended(self, scscf: str, since: int) -> Sequence[tuple[int, Impi]]:
        """Return who was ended at this S-CSCF after `since`, and when, in milliseconds since the epoch. Raises TransportError."""


class Erasing(NamedTuple):
    """A third-party REGISTER with Expires: 0 that Kamailio shall send."""

    uri: str
    from_uri: str
    to_uri: str
    body: bytes


@dataclass(slots=True)
class KemiEnded:
    """What one process of Kamailio, that of the timer, does with them."""

    policy: KemiPolicy
    scscf: str  # host name
    store: KemiStore
    source: EndSource
    _since: int = 0
    _left: list[Held] = field(default_factory=list)

    def look(self) -> bool:
        """Ask who was ended since; tell whether there is something to erase. Raises TransportError, StoreError."""
        if not self._left:
            for at, impi in self.source.ended(self.scscf, self._since):
                self._left += self.store.end(impi, at)
                self._since = at
        return bool(self._left)

    def next(self) -> Erasing | None:
        """Return the next request; None after the last. Raises StoreError."""
        while self._left:
            held = self._left.pop(0)
            server = self._server_of(held.as_id)
            if server is None:
                continue  # no longer configured
            seal = self.policy.seal_of(held.as_id)
            owner = Owner(held.impi, held.reg, (held.impu,), self.policy.realm, 0, 0)
            try:
                body = erase_body(owner, held.as_id, self.store.next_seq(held.impi, held.as_id, held.reg), seal)
            except KeyferryError:
                self._left.insert(0, held)
                raise
            return Erasing(server, f"sip:{self.scscf}", held.impu, body)
        return None

    def _server_of(self, as_id: AsId) -> str | None:
        return next((server for server, as_ids in self.policy.servers.items() if as_id in as_ids), None)
