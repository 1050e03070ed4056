# SPDX-License-Identifier: Apache-2.0
"""Registrations that this HSS has ended at an S-CSCF whose script must learn it from somebody else than Cx (docs/kamailio.md).

Stock Kamailio ends the registration that an RTR names, and tells no script of it, so the keys at the application servers would stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from keyferry.errors import ParseError
from keyferry.ports import Clock, CxServing, CxServings, DeregistrationReason
from keyferry.ports.scripts import End, ScriptStore
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.sip.uri import parse_sip_uri


@dataclass(frozen=True, slots=True)
class EndedBook:
    """What was ended lately, by whichever process of the HSS."""

    clock: Clock
    store: ScriptStore

    async def note(self, host: str, impi: Impi, when: float) -> None:
        """Note that the registrations of a user at an S-CSCF that began before `when` are over. Raises StoreError."""
        await self.store.end(host, impi, int(when * 1000), int(self.clock.now() * 1000))

    def since(self, host: str, place: int) -> Sequence[End]:
        """Return what was ended at an S-CSCF behind a place, the oldest first. Raises StoreError."""
        return self.store.ends(host, place)


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
        """End the registrations there. Raises CxError, StoreError."""
        book = self.servings.book
        begun = book.clock.now()
        try:
            await self.inner.registration_termination(impi, impus, reason, info)
        except BaseException:
            # Kamailio does not answer for a user who is not registered: his keys shall go all the same, and not those of who came meanwhile
            await book.note(self.host, impi, begun)
            raise
        await book.note(self.host, impi, book.clock.now())

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        """Pass it on. Raises CxError."""
        await self.inner.push_profile(impi, user_data)
