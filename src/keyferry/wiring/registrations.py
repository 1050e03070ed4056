# SPDX-License-Identifier: Apache-2.0
"""What the operator's listener shows and does of registrations (TS 24.229 §5.4.1.5, §5.4.1.6, Release 17)."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from keyferry.asgi.failures import shown
from keyferry.asgi.registrations import EndEvent
from keyferry.errors import KeyferryError
from keyferry.ports import Registration
from keyferry.protocol.identity import Impi, Reg
from keyferry.protocol.ims.user_profile import identities_of
from keyferry.roles.scscf.registrar import Registrar

FEW: Final = 5  # failures beside the registrations; /failures has them all
SLICE: Final = 20
"""Users whose registrations are opened and read before other tasks get their turn: 3 ms."""


@dataclass(frozen=True, slots=True)
class RegistrarOperations:
    """Implement asgi.registrations.Operations."""

    registrars: Sequence[Registrar]  # of the S-CSCFs of this process

    async def list(self, impi: Impi) -> Sequence[Mapping[str, object]]:
        """Return a user's registrations without keys."""
        return [
            {**_shown(each), "server": registrar.authenticator.policy.server_name}
            for registrar in self.registrars
            for each in await registrar.registrations.of_impi(impi)
        ]

    async def page(self, after: str, limit: int) -> Mapping[str, object]:
        """Return the registrations of the users above `after`, sorted; `next` is None at the end."""
        found: dict[str, Sequence[Mapping[str, object]]] = {}
        unreadable: set[str] = set()
        some = heapq.merge(*[await registrar.registrations.impis(after, limit + 1) for registrar in self.registrars])
        count, more = 0, False
        for place, impi in enumerate(dict.fromkeys(some)):
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            try:
                devices = await self.list(impi)
            except KeyferryError:  # a row that was tampered with hides nobody else
                devices = []
                unreadable.add(impi)
            more = len(found) == limit or (count > 0 and count + len(devices) > limit)
            if more:
                break
            found[impi], count = devices, count + len(devices)
        return {
            "registrations": [each for devices in found.values() for each in devices],
            "next": next(reversed(found)) if more else None,
            "unreadable": [impi for impi in found if impi in unreadable],
        }

    async def pending(self, impi: Impi) -> Mapping[str, object]:
        """Return the challenges that wait, the pushes that are owed and the last failures."""
        owed = [push for registrar in self.registrars for push in registrar.notifier.owed_to(impi)]
        return {
            "challenges": sum(registrar.authenticator.challenges.of_impi(impi) for registrar in self.registrars),
            "owed": [{"as_id": as_id, "server": server, "reg": reg} for _, as_id, server, reg in owed],
            # S-CSCFs of one process keep one book
            "failures": [shown(failure) for failure in self.registrars[0].authenticator.diagnosis.book.of_impi(impi)[:FEW]],
        }

    async def deregister(self, impi: Impi, reg: Reg | None, event: EndEvent, retry_after: int | None) -> int:
        """End registrations; return how many."""
        return sum([await registrar.network_deregister(impi, reg, event, retry_after) for registrar in self.registrars])

    async def reauthenticate(self, impi: Impi, reg: Reg | None, seconds: int) -> int:
        """Ask for a new authentication; return of how many devices."""
        return sum([await registrar.shorten(impi, reg, seconds) for registrar in self.registrars])


def _shown(registration: Registration) -> dict[str, object]:
    return {
        "impi": registration.impi,
        "impu": registration.impu,
        "identities": list(identities_of(registration.user_data)),
        "reg": registration.reg,
        "contact": registration.contact.encode("utf-8", "replace").decode("utf-8"),
        "release": registration.release,
        "keys": registration.k_m is not None,
        "authenticated": datetime.fromtimestamp(registration.aka_time, UTC).isoformat(timespec="seconds"),
        "expires": datetime.fromtimestamp(registration.expires_at, UTC).isoformat(timespec="seconds"),
    }
