# SPDX-License-Identifier: Apache-2.0
"""Whether a process can do its work now: what /ready says, and why not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from keyferry.errors import KeyferryError
from keyferry.ports import Clock, RandomSource, Resolver, SipClient
from keyferry.protocol.sip.message import Request
from keyferry.protocol.sip.uri import parse_sip_uri

PATIENCE: Final = 1.0
"""Seconds that one look may take."""
FRESH: Final = 1.0
"""Seconds that a report is given again: asking for it often costs nothing."""
MIN_FREE: Final = 16 * 1024 * 1024
"""Octets on the disk of the state directory, under which the next write may be the one that fails."""


class Check(NamedTuple):
    """One thing that must be so."""

    name: str
    look: Callable[[], Awaitable[object]]  # returns what is wrong, in words without paths and identities, or raises KeyferryError


@dataclass(slots=True)
class Readiness:
    """Gather what the functions of a process want looked at."""

    clock: Clock
    started: bool = False
    ending: bool = False
    checks: list[Check] = field(default_factory=list)
    _report: dict[str, object] | None = None
    _until: float = 0.0  # monotonic seconds
    _looking: asyncio.Task[dict[str, object]] | None = None

    def check(self, name: str, look: Callable[[], Awaitable[object]]) -> None:
        """Look at this, too."""
        self.checks.append(Check(name, look))

    def phase(self) -> str:
        """Return "starting", "stopping" or ""."""
        return "stopping" if self.ending else "" if self.started else "starting"

    async def report(self) -> dict[str, object]:
        """Return {"ready": true} or {"ready": false, "reasons": […]}."""
        if phase := self.phase():
            return {"ready": False, "reasons": [phase]}
        if self._report is not None and self.clock.monotonic() < self._until:
            return self._report
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> dict[str, object]:
        found = await asyncio.gather(*(_problem(check) for check in self.checks))
        reasons = [reason for reason in found if reason]
        self._report = {"ready": False, "reasons": reasons} if reasons else {"ready": True}
        self._until = self.clock.monotonic() + FRESH
        return self._report


async def _problem(check: Check) -> str:
    try:
        async with asyncio.timeout(PATIENCE):
            found = await check.look()
    except TimeoutError:
        return f"{check.name}: does not answer"
    except (KeyferryError, OSError):  # its text may name a path or a peer
        return f"{check.name}: fails"
    return f"{check.name}: {found}" if isinstance(found, str) and found else ""


def disk_of(path: Path) -> Callable[[], Awaitable[str]]:
    """Return a look at whether the state can still be written."""

    async def look() -> str:
        found = await asyncio.to_thread(os.statvfs, path)
        return "nearly full" if found.f_bavail * found.f_frsize < MIN_FREE else ""

    return look


def reaches(sip: SipClient, resolver: Resolver, random: RandomSource, uri: str, own: str) -> Callable[[], Awaitable[str]]:
    """Return a look at whether another function answers SIP and lets us in (OPTIONS: RFC 3261 §11; any answer but 403 will do)."""

    async def look() -> str:
        headers = (
            ("Max-Forwards", "1"), ("From", f"<sip:{own}>;tag={random.octets(6).hex()}"), ("To", f"<{uri}>"),
            ("Call-ID", f"{random.octets(12).hex()}@{own}"), ("CSeq", "1 OPTIONS"),
        )  # fmt: skip
        response = await sip.send(Request("OPTIONS", uri, headers, b""), resolver.resolve(parse_sip_uri(uri)))
        return "does not trust us" if response.status == 403 else ""

    return look
