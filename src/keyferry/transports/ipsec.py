# SPDX-License-Identifier: Apache-2.0
"""The protection policy `ipsec`: charon is asked before every transmission (TS 33.210, Release 17; DESIGN §6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from keyferry.errors import ProtectionUnmet, TransportError
from keyferry.ports import SipPeer
from keyferry.protocol.security_association import ChildSa, Ends, Wanted, Way, check_passes, check_way, is_single, touches, who_is_behind
from keyferry.transports.sa_view import MAX_SAS, SaView, View

_T = TypeVar("_T")
ATTEMPTS: Final = 10
"""How often charon is asked for one transmission, where something happened to its SA while it answered: whoever is at the other end of it
can make it happen some hundred times a second."""
STRANGERS: Final = 0.5
"""Seconds between questions for hosts of whom charon has told nothing: word of a new SA may be slower than what comes through it."""


async def _look(view: SaView, ends: Ends) -> View:
    """Ask charon. Raises ProtectionUnmet."""
    try:
        return await view.look(ends)
    except TransportError as problem:
        raise ProtectionUnmet(ends.remote, f"charon cannot be asked at {problem.peer}: {problem.problem}") from problem


async def settled(view: SaView, child: str, way: Way, judge: Callable[[Sequence[ChildSa]], _T]) -> _T:
    """Return what `judge` makes of the SAs that charon has, when nothing happened to those of a way meanwhile. Raises ProtectionUnmet."""
    ends = Ends(child, way.local, way.remote)
    for _ in range(ATTEMPTS):
        found = await _look(view, ends)
        try:
            found.check()
            check_passes(found.passes, way)
            judged = judge(found.sas)
        except ProtectionUnmet:
            if view.is_current(found):
                raise
            continue  # what charon said is past: as little a reason to refuse as to let through
        if view.is_current(found):
            return judged
    raise ProtectionUnmet(way.remote, "the SAs change faster than charon can be asked")


@dataclass(frozen=True, slots=True)
class IpsecPolicy:
    """Let a transmission go only through the CHILD_SA that is configured; a check for `SipClient.send`."""

    view: SaView
    wanted: Wanted
    local: str  # numeric: where the S-CSCF sends from
    local_port: int  # over UDP; 0: any

    async def __call__(self, peer: SipPeer) -> None:
        """Raise ProtectionUnmet where nothing may be sent to a numeric address."""
        way = outgoing(peer, self.local, self.local_port)
        await settled(self.view, self.wanted.child, way, lambda sas: check_way(sas, self.wanted, way))


def outgoing(peer: SipPeer, local: str, local_port: int) -> Way:
    """Return the way to a peer, where an SA can be for it. Raises ProtectionUnmet."""
    if peer.transport not in {"UDP", "TCP"}:
        raise ProtectionUnmet(str(peer), "the policy `ipsec` is for UDP and TCP within the SA")
    return Way(peer.transport, local, local_port if peer.transport == "UDP" else 0, peer.host, peer.port)


@dataclass(slots=True)
class IpsecSource:
    """Say who sent what came in, by the security association that covers it; for those who take pushes."""

    view: SaView
    child: str  # name of the CHILD_SA
    local: str  # numeric: where we listen
    local_port: int  # 0: any
    _known: set[str] = field(default_factory=set)  # hosts that were behind one when last looked at
    _named: View | None = None  # the CHILD_SAs of that name, as charon told when it was last asked
    _strangers: float = 0.0  # monotonic seconds from which on one may cause a question

    async def authenticated(self, peer: SipPeer) -> SipPeer:
        """Return a peer with the name that its IKE identity gives it. Raises ProtectionUnmet where no SA covers what it sends.

        That this very packet came through it, and not beside it, is the kernel's to see to: its policies, or the drop rules.
        """
        way = Way(peer.transport, self.local, self.local_port, peer.host, peer.port)
        try:
            name = await self._name_behind(way)
        except ProtectionUnmet:
            self._known.discard(peer.host)
            raise
        self._known.add(peer.host)
        return peer._replace(name=name)

    async def may_ask(self, peer: SipPeer, names: Collection[str]) -> None:
        """Let a request of ours go only to whom an SA proves to be one of these; a check for `SipClient.send`. Raises ProtectionUnmet."""
        way = outgoing(peer, self.local, self.local_port)
        if await self._name_behind(way) not in names:
            raise ProtectionUnmet(str(peer), f"the CHILD_SA {self.child!r} there is with somebody else")

    async def named(self) -> Sequence[ChildSa]:
        """Return the CHILD_SAs of the name as charon told of them last, which lets nothing through. Raises ProtectionUnmet."""
        if self._named is None or not self.view.holds(self._named):
            self._named = await _look(self.view, Ends(self.child, self.local, ""))
        return self._named.sas

    def hosts(self) -> list[str]:
        """Return the addresses at the other end of those CHILD_SAs, where they are single ones."""
        found = {text.partition("/")[0] for view in (self._named,) if view for sa in view.sas for text in sa.remote if is_single(text)}
        return sorted(found)

    def knows(self, peer: SipPeer) -> bool:
        """Tell whether an SA covered what the same host sent last."""
        return peer.host in self._known

    async def _name_behind(self, way: Way) -> str:
        ends = Ends(self.child, self.local, way.remote)
        named = await self.named()
        is_named = len(named) > MAX_SAS or any(touches(sa, ends) for sa in named)
        if not is_named and not self._may_cause_a_question():
            raise ProtectionUnmet(way.remote, f"no CHILD_SA {self.child!r} is with that address")
        try:
            return await settled(self.view, self.child, way, lambda sas: who_is_behind(sas, self.child, way))
        finally:
            if not is_named:
                self.view.forget(ends)  # strangers are as many as they like

    def _may_cause_a_question(self) -> bool:
        """Tell whether charon may be asked about a stranger now."""
        now = self.view.clock.monotonic()
        if now < self._strangers:
            return False
        self._strangers = now + STRANGERS
        return True
