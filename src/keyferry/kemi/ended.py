# SPDX-License-Identifier: Apache-2.0
"""What Kamailio's timer sends to application servers: the ends that the HSS tells of, and messages of ims_isc that were not answered.

Kamailio takes an RTR and tells no script, so this asks the HSS. ims_isc sends once and looks at no answer, so this sends again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from keyferry.errors import SealError
from keyferry.kemi.push import Owner, erase_body, key_body
from keyferry.kemi.scscf import KemiPolicy
from keyferry.kemi.store import KemiStore, Owed, State
from keyferry.protocol.identity import Impi

REMIND_EVERY: Final = 60.0
"""Seconds between two warnings of the same."""


class EndSource(Protocol):
    """Our HSS."""

    def ended(self, scscf: str, since: int) -> Sequence[tuple[int, int, Impi]]:
        """Return what was ended at this S-CSCF behind a place: place, milliseconds since the epoch, IMPI. Raises TransportError."""


class Outgoing(NamedTuple):
    """A third-party REGISTER that Kamailio shall send."""

    uri: str
    from_uri: str
    to_uri: str
    expires: int  # seconds; 0 ends the registration
    body: bytes
    ticket: str  # what `answered` is given with the response


@dataclass(slots=True)
class KemiEnded:
    """What one process of Kamailio, that of the timer, does with them."""

    policy: KemiPolicy
    scscf: str  # host name
    store: KemiStore
    source: EndSource | None  # None: the HSS is not ours

    def look(self) -> None:
        """Ask who was ended since. Raises TransportError, StoreError."""
        if self.source is None:
            return
        for place, at, impi in self.source.ended(self.scscf, self.store.heard()):
            self.store.end(impi, at, place)

    def next(self) -> Outgoing | None:
        """Return the next request, also while the HSS is away; None after the last. Raises StoreError."""
        servers = {as_id: server for server, as_ids in self.policy.servers.items() for as_id in as_ids}
        while (owed := self.store.take_owed(tuple(servers))) is not None:
            body = self._body(owed)
            if body is not None:
                return Outgoing(servers[owed.as_id], f"sip:{self.scscf}", owed.impu, owed.expires, body, f"{owed.id} {owed.seq}")
            self.store.settle(owed.id, owed.seq)
        return None

    def _body(self, owed: Owed) -> bytes | None:
        """Return what the AS is told; None where the key is no longer the device's."""
        seal = self.policy.seal_of(owed.as_id)
        owner = Owner(owed.impi, owed.reg, (owed.impu,), self.policy.realm, 0, 0)
        if not owed.nonce:
            return erase_body(owner, owed.as_id, owed.seq, seal)
        try:
            known = self.store.challenged(owed.nonce)
        except SealError:
            return None
        if known is None or (known.state, known.impi, known.reg) != (State.AUTHENTICATED, owed.impi, owed.reg):
            return None
        owner = owner._replace(realm=known.realm, aka_time=known.aka_time, expires_at=owed.expires_at)
        return key_body(owner, known.k_m, owed.as_id, owed.seq, owed.service_info, seal, self.policy.key_max_age)

    def answered(self, ticket: str, status: int) -> None:
        """Take what an AS said: whatever is no 2xx, or comes from nobody, is asked again. Raises StoreError, ValueError."""
        if 200 <= status < 300:
            number, seq = map(int, ticket.split())
            self.store.settle(number, seq)


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
