# SPDX-License-Identifier: Apache-2.0
"""Registrations that this HSS has ended at an S-CSCF whose script must learn it from somebody else than Cx (docs/kamailio.md).

Stock Kamailio ends the registration that an RTR names, and tells no script of it, so the keys at the application servers would stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyferry.errors import ParseError
from keyferry.ports import Clock, CxServing, CxServings, DeregistrationReason
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.sip.uri import parse_sip_uri

LIFE: Final = 3600.0
"""Seconds that an end is told of: an S-CSCF that was away asks when it is back."""
MAX_ENDS: Final = 10_000
"""1 MB; the oldest goes, and its key lives to its own end."""
MAX_TOLD: Final = 50
"""Ends in one answer, which has 16,384 octets (kemi/rspauth): an IMPI has 255 at most."""


class _End(NamedTuple):
    at: int  # milliseconds since the epoch, rising
    host: str  # of the S-CSCF
    impi: Impi


@dataclass(slots=True)
class EndedBook:
    """What was ended lately."""

    clock: Clock
    _ends: OrderedDict[int, _End] = field(default_factory=OrderedDict)

    def note(self, host: str, impi: Impi, when: float) -> None:
        """Note that the registrations of a user at an S-CSCF that began before `when` are over."""
        now = int(self.clock.now() * 1000)
        while self._ends and (len(self._ends) >= MAX_ENDS or next(iter(self._ends)) < now - LIFE * 1000):
            self._ends.popitem(last=False)
        at = max(int(when * 1000), next(reversed(self._ends), 0) + 1)
        self._ends[at] = _End(at, host, impi)

    def since(self, host: str, at: int) -> list[tuple[int, Impi]]:
        """Return what was ended at an S-CSCF after `at`, the oldest first."""
        return [(end.at, end.impi) for end in self._ends.values() if end.at > at and end.host == host][:MAX_TOLD]


@dataclass(frozen=True, slots=True)
class NotingServings:
    """Implement ports.CxServings: note what is ended at stock Kamailios."""

    inner: CxServings
    book: EndedBook
    hosts: Collection[str]  # of S-CSCFs that are stock Kamailios

    def at(self, server_name: str) -> CxServing | None:
        """Return the S-CSCF of this Server-Name, None if it is not connected."""
        found = self.inner.at(server_name)
        try:
            host = parse_sip_uri(server_name).host.lower().rstrip(".")
        except ParseError:
            return found
        return found if found is None or host not in self.hosts else _NotingServing(found, self, host)


@dataclass(frozen=True, slots=True)
class _NotingServing:
    inner: CxServing
    servings: NotingServings
    host: str

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        """End the registrations there. Raises CxError."""
        book = self.servings.book
        begun = book.clock.now()
        try:
            await self.inner.registration_termination(impi, impus, reason, info)
        except BaseException:
            # Kamailio does not answer for a user who is not registered: his keys shall go all the same, and not those of who came meanwhile
            book.note(self.host, impi, begun)
            raise
        book.note(self.host, impi, book.clock.now())

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        """Pass it on. Raises CxError."""
        await self.inner.push_profile(impi, user_data)
