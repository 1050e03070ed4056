# SPDX-License-Identifier: Apache-2.0
"""What the operator's listener does with subscribers: PPR and RTR to the S-CSCF that serves one (TS 29.228 §6.1.3, §6.2.2, Release 17)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from keyferry.errors import CxError, RemoteProtocolError
from keyferry.ports import DeregistrationReason, PendingPush, Subscription
from keyferry.protocol.identity import Impi
from keyferry.roles.hss import Hss
from keyferry.roles.scscf.as_notifier import set_key
from keyferry.roles.scscf.profile_update import Served
from keyferry.wiring.criteria import ProfileCriteria
from keyferry.wiring.scscf import ScscfParts

ELSEWHERE: Final = 3002


@dataclass(frozen=True, slots=True)
class HssOperations:
    """Implement asgi.subscribers.SubscriberOperations."""

    hss: Hss
    criteria: Mapping[str, ProfileCriteria]
    scscfs: Sequence[ScscfParts]  # those of this process: of another one nobody hears what it did

    def profiles(self) -> Mapping[str, Sequence[str]]:
        """Return the AS_IDs of every profile, by its name."""
        return {name: each.as_ids for name, each in self.criteria.items()}

    async def push_profile(self, impi: Impi) -> Mapping[str, object]:
        """Bring a subscriber's profile to the S-CSCF.

        Raises RemoteProtocolError with 404 for nobody.
        """
        found = await self._found(impi)
        if found.profile not in self.criteria:
            problem = f"{found.profile} is no profile of this process: there are {', '.join(self.criteria)}"
            return {"profile": found.profile, **_untold(found.server_name, problem, "Give another, or add [[profiles]] and start it again")}
        with self._noting(impi) as noted:
            try:
                server = await self.hss.update_profile(impi)
            except CxError as problem:
                return {"profile": found.profile, **_refused(found.server_name, problem)}
        pushes = [self._shown(push) for served in noted for push in served.pushes]
        return {"profile": found.profile, **_told(server, noted), "pushes": pushes}

    async def terminate(self, impi: Impi, reason: DeregistrationReason, info: str) -> Mapping[str, object]:
        """End a subscriber's registrations.

        Raises RemoteProtocolError with 404 for nobody.
        """
        found = await self._found(impi)
        with self._noting(impi) as noted:
            try:
                server = await self.hss.terminate(impi, reason, info)
            except CxError as problem:
                return _refused(found.server_name, problem)
        return _told(server, noted)

    async def _found(self, impi: Impi) -> Subscription:
        found = await self.hss.subscribers.subscription(impi)
        if found is None:
            raise RemoteProtocolError(f"{impi} is not a subscriber of this process.", 404)
        return found

    @contextmanager
    def _noting(self, impi: Impi) -> Iterator[list[Served]]:
        """Hear what S-CSCFs of this process do to a user meanwhile."""
        noted: list[Served] = []

        def note(served: Served) -> None:
            if served.impi == impi:
                noted.append(served)

        for each in self.scscfs:
            each.serving.watchers.append(note)
        try:
            yield noted
        finally:
            for each in self.scscfs:
                each.serving.watchers.remove(note)

    def _shown(self, push: PendingPush) -> dict[str, object]:
        owed = any(set_key(push) in each.registrar.notifier.owed_to(push.impi) for each in self.scscfs)
        return {"as_id": push.as_id, "server": push.server_name, "reg": push.reg, "erase": push.erase, "delivered": not owed}


def _told(server: str | None, noted: Sequence[Served]) -> dict[str, object]:
    """Say what became of it; of how many devices an S-CSCF of another process does not say: None."""
    devices = max((each.devices for each in noted), default=None if server is not None else 0)
    return {"told": server is not None, "server": server, "devices": devices, "problem": ""}


def _untold(server: str | None, problem: str, remedy: str) -> dict[str, object]:
    return {"told": False, "server": server, "devices": 0, "problem": problem, "remedy": remedy}


def _refused(server: str | None, problem: CxError) -> dict[str, object]:
    server = problem.server_name or server
    if problem.code == ELSEWHERE:
        remedy = "Ask the process that plays this S-CSCF: --admin HOST:PORT, its [admin] listen; or let it ask this HSS over Diameter"
        return _untold(server, f"{server} cannot be reached from here", remedy)
    return _untold(server, f"{server} answered {problem}", "Look at its log for this time")
