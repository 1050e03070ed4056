# SPDX-License-Identifier: Apache-2.0
"""The protection policy `ipsec`: charon is asked before every transmission (TS 33.210, Release 17; DESIGN §6)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from keyferry.errors import ProtectionUnmet, TransportError
from keyferry.ports import Clock, SipPeer
from keyferry.protocol.security_association import ChildSa, Pass, Wanted, Way, check_passes, check_way, child_sas, passes, who_is_behind
from keyferry.transports.vici import Vici

_T = TypeVar("_T")
MAX_AGE: Final = 1.0
"""Seconds after which an answer of charon's is none: our own loop may have stood still."""
ATTEMPTS: Final = 10
"""How often charon is asked for one transmission, where something happened to an SA while it answered: whoever is at the other end of one
can make it happen some hundred times a second, and must not keep up what goes through others."""


class View(NamedTuple):
    """What charon said, when, and after how many events."""

    sas: tuple[ChildSa, ...]
    passes: tuple[Pass, ...]
    at: float  # monotonic seconds
    events: int


@dataclass(slots=True)
class SaView:
    """charon's SAs, asked for again for every look; who looks while a question is under way waits for the one after it."""

    vici: Vici
    clock: Clock
    events: int = 0  # of an SA, or of the connection to charon, so far
    _watchers: list[Callable[[], None]] = field(default_factory=list)
    _next: asyncio.Task[View] | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> None:
        """Connect to charon, if it is there."""
        self.vici.heard = self._heard
        await self.vici.start()

    async def aclose(self) -> None:
        """End the connection."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        await self.vici.aclose()

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever something happens to an SA, or to the connection to charon."""
        self._watchers.append(changed)

    async def look(self) -> View:
        """Return what charon said to a question that was put after this call. Raises TransportError."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._ask())
            self._next.add_done_callback(_retrieved)
        return await asyncio.shield(self._next)

    def is_current(self, view: View) -> bool:
        """Tell whether nothing has happened since, and not much time passed."""
        return view.events == self.events and self.clock.monotonic() - view.at <= MAX_AGE

    async def _ask(self) -> View:
        async with self._turn:
            self._next = None  # whoever comes from now on asks after this question was put
            events = self.events
            listed = await self.vici.list_sas()
            past = await self.vici.list_passes()
            return View(
                tuple(sa for each in listed for sa in child_sas(each)), tuple(found for each in past for found in passes(each)),
                self.clock.monotonic(), events,
            )  # fmt: skip

    def _heard(self, _name: str) -> None:
        self.events += 1
        for changed in self._watchers:
            changed()


async def _settled(view: SaView, peer: SipPeer, way: Way, judge: Callable[[Sequence[ChildSa]], _T]) -> _T:
    """Return what `judge` makes of the SAs that charon has, when nothing happened to one meanwhile. Raises ProtectionUnmet."""
    for _ in range(ATTEMPTS):
        try:
            found = await view.look()
        except TransportError as problem:
            raise ProtectionUnmet(str(peer), f"charon cannot be asked at {problem.peer}: {problem.problem}") from problem
        check_passes(found.passes, way)
        judged = judge(found.sas)
        if view.is_current(found):
            return judged
    raise ProtectionUnmet(str(peer), "the SAs change faster than charon can be asked")


@dataclass(frozen=True, slots=True)
class IpsecPolicy:
    """Let a transmission go only through the CHILD_SA that is configured; a check for `SipClient.send`."""

    view: SaView
    wanted: Wanted
    local: str  # numeric: where the S-CSCF sends from
    local_port: int  # over UDP; 0: any

    async def __call__(self, peer: SipPeer) -> None:
        """Raise ProtectionUnmet where nothing may be sent to a numeric address."""
        if peer.transport not in {"UDP", "TCP"}:
            raise ProtectionUnmet(str(peer), "the policy `ipsec` is for UDP and TCP within the SA")
        way = Way(peer.transport, self.local, self.local_port if peer.transport == "UDP" else 0, peer.host, peer.port)
        await _settled(self.view, peer, way, lambda sas: check_way(sas, self.wanted, way))


@dataclass(frozen=True, slots=True)
class IpsecSource:
    """Say who sent what came in, by the security association that covers it; for those who take pushes."""

    view: SaView
    child: str  # name of the CHILD_SA
    local: str  # numeric: where we listen
    local_port: int  # 0: any
    _known: set[str] = field(default_factory=set)  # hosts that were behind one when last looked at

    async def authenticated(self, peer: SipPeer) -> SipPeer:
        """Return a peer with the name that its IKE identity gives it. Raises ProtectionUnmet where no SA covers what it sends.

        That this very packet came through it, and not beside it, is the kernel's to see to: its policies, or the drop rules.
        """
        way = Way(peer.transport, self.local, self.local_port, peer.host, peer.port)
        try:
            name = await _settled(self.view, peer, way, lambda sas: who_is_behind(sas, self.child, way))
        except ProtectionUnmet:
            self._known.discard(peer.host)
            raise
        self._known.add(peer.host)
        return peer._replace(name=name)

    def knows(self, peer: SipPeer) -> bool:
        """Tell whether an SA covered what the same host sent last."""
        return peer.host in self._known


def _retrieved(task: asyncio.Task[View]) -> None:
    """Look at a failure that those who waited may have given up before."""
    if not task.cancelled():
        task.exception()
