# SPDX-License-Identifier: Apache-2.0
"""charon's SAs as a policy sees them: asked for again for every look, and no more of them than may carry its packets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from keyferry.errors import ProtectionUnmet
from keyferry.ports import Clock
from keyferry.protocol.security_association import (
    ChildSa,
    Ends,
    Pass,
    child_sas,
    configured_sas,
    ike_sas,
    is_alone,
    passes,
    touches,
)  # fmt: skip
from keyferry.protocol.vici import Section
from keyferry.transports.vici import NONE, Vici

MAX_AGE: Final = 1.0
"""Seconds after which an answer of charon's is none: our own loop may have stood still."""
MAX_SAS: Final = 1_000
"""CHILD_SAs of one answer that may concern one way."""
MAX_ENDS: Final = 4_096
"""Ways that are followed; of others everything is asked for."""
FEW: Final = 4
"""Questions that may wait beside each other before one for everything takes their place, where everything is not much more."""

Question: TypeAlias = "tuple[str, tuple[str, ...]] | None"
"""The name of a CHILD_SA and those of the IKE_SAs that have had it; None: everything."""


class View(NamedTuple):
    """What charon said that concerns one way, when, and after how many events."""

    ends: Ends
    sas: tuple[ChildSa, ...]
    passes: tuple[Pass, ...]
    at: float  # monotonic seconds
    events: int
    question: Question

    def check(self) -> None:
        """Raise ProtectionUnmet where there is more than was kept."""
        if len(self.sas) > MAX_SAS:
            raise ProtectionUnmet(self.ends.remote, f"over {MAX_SAS} CHILD_SAs are {self.ends.child!r} or cover the address: end some")


class _Answer(NamedTuple):
    sas: dict[Ends, list[ChildSa]]
    passes: tuple[Pass, ...]
    at: float
    events: int


@dataclass(slots=True)
class _Followed:
    """What is known of a way: enough to tell what has to be asked, and never that something may go."""

    event: int  # number of the last one that concerned it
    question: Question = None

    def hear(self, number: int, ends: Ends, ikes: Collection[str], touching: Collection[ChildSa]) -> bool:
        """Take an event about IKE_SAs of these names, and about CHILD_SAs that may carry packets of this way; tell whether it concerns it.

        One that names no IKE_SA is of the connection to charon, or may be of all.
        """
        if ikes and not touching and (self.question is None or set(ikes).isdisjoint(self.question[1])):
            return False
        self.event = number
        if not ikes or any(sa.name != ends.child for sa in touching):
            self.question = None
        elif self.question is not None:
            self.ask_of({*self.question[1], *(sa.ike for sa in touching)}, ends)
        return True

    def ask_of(self, ikes: Collection[str], ends: Ends) -> None:
        """Ask of the IKE_SAs of these names alone from now on."""
        self.question = (ends.child, tuple(sorted(ikes))) if 0 < len(ikes) <= FEW else None


@dataclass(slots=True)
class SaView:
    """charon's SAs, asked for again for every look; who looks while a question is under way waits for the one after it.

    Once everything was listed, and nothing but the wanted CHILD_SA may carry packets of a way, charon is asked for that one alone, until an
    event tells of another: charon queues an event before it lets go of the IKE_SA, and lists no IKE_SA before that.
    """

    vici: Vici
    clock: Clock
    events: int = 0  # of an SA, or of the connection to charon, so far
    _followed: dict[Ends, _Followed] = field(default_factory=dict)
    _listed: int = 0  # CHILD_SAs, when everything was asked for
    _watchers: list[Callable[[Collection[str] | None], None]] = field(default_factory=list)
    _next: dict[Question, asyncio.Task[_Answer]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def start(self) -> None:
        """Connect to charon, if it is there."""
        self.vici.heard = self._heard
        await self.vici.start()

    async def aclose(self) -> None:
        """End the connection."""
        for task in (waiting := tuple(self._next.values())):
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self.vici.aclose()

    def watch(self, changed: Callable[[Collection[str] | None], None]) -> None:
        """Call `changed` with the names of the CHILD_SAs whose ways something happens to; None: to the connection to charon, so to all."""
        self._watchers.append(changed)

    async def look(self, ends: Ends) -> View:
        """Return what charon said to a question that was put after this call. Raises TransportError."""
        question = self._follow(ends).question
        if question not in self._next and len(self._next) >= max(FEW, self._listed // FEW):
            question = None
        task = self._next.get(question)
        if task is None:
            task = self._next[question] = asyncio.get_running_loop().create_task(self._ask(question))
            task.add_done_callback(_retrieved)
        answer = await asyncio.shield(task)
        sas = tuple(answer.sas.get(ends, ()))
        if question is not None and not sas:
            self._follow(ends).question = None  # why it is not there, everything tells
            return await self.look(ends)
        return View(ends, sas, answer.passes, answer.at, answer.events, question)

    def is_current(self, view: View) -> bool:
        """Tell whether nothing has happened to its way since, and not much time passed."""
        return self.holds(view) and self.clock.monotonic() - view.at <= MAX_AGE

    def holds(self, view: View) -> bool:
        """Tell whether nothing has happened to its way since, as far as charon has told."""
        followed = self._followed.get(view.ends)
        return followed is not None and followed.event <= view.events and view.question in {None, followed.question}

    def forget(self, ends: Ends) -> None:
        """Follow a way no further."""
        self._followed.pop(ends, None)

    # ---- inside

    def _follow(self, ends: Ends) -> _Followed:
        followed = self._followed.get(ends)
        if followed is None:
            if len(self._followed) >= MAX_ENDS:
                del self._followed[next(iter(self._followed))]
            followed = self._followed[ends] = _Followed(self.events)
        return followed

    async def _ask(self, question: Question) -> _Answer:
        async with self._turn:
            del self._next[question]  # whoever comes from now on asks after this question was put
            events = self.events
            sas: dict[Ends, list[ChildSa]] = {ends: [] for ends in self._followed}
            if question is None:
                await self._list_all(sas)
            else:
                child, ikes = question
                for ike in ikes:
                    await self.vici.ask("list-sas", {"ike": ike, "child": child}, lambda section: _keep(sas, child_sas(section)))
            past = await self.vici.listed("list-policies", {"pass": "yes"})
            answer = _Answer(sas, tuple(found for each in past for found in passes(each)), self.clock.monotonic(), events)
            if question is None:
                self._learn(answer)
            return answer

    async def _list_all(self, sas: dict[Ends, list[ChildSa]]) -> None:
        there: set[tuple[str, str]] = set()  # IKE_SAs by name and number
        listed = 0

        def take(section: Section) -> None:
            nonlocal listed
            found = child_sas(section)
            listed += len(found)
            there.difference_update(_numbers(section))
            _keep(sas, found)

        await self.vici.ask("list-sas", {"child": NONE}, lambda section: there.update(_numbers(section)))  # short: none has a CHILD_SA
        await self.vici.ask("list-sas", None, take)
        for name in {name for name, _ in there}:
            await self._list_too_long(name, there, sas)
        self._listed = listed

    async def _list_too_long(self, name: str, missing: Collection[tuple[str, str]], sas: dict[Ends, list[ChildSa]]) -> None:
        """Take what an IKE_SA may have that charon did not list, and still has: an answer of over 512 KiB it drops, in silence."""
        there = [
            each for each in await self.vici.listed("list-sas", {"ike": name, "child": NONE}) if not _numbers(each).isdisjoint(missing)
        ]
        settings = await self.vici.listed("list-conns", {"ike": name}) if there else []
        for each in there:
            _keep(sas, [sa for conn in settings or [{}] for ike in ike_sas(each).values() for sa in configured_sas(conn, name, ike)])

    def _learn(self, answer: _Answer) -> None:
        """Note for every way whether another CHILD_SA may carry its packets, and which IKE_SAs have the right one."""
        for ends, followed in self._followed.items():
            sas = [sa for sa in answer.sas.get(ends, ()) if touches(sa, ends)]
            if followed.event <= answer.events and len(sas) <= MAX_SAS and is_alone(sas, ends):
                followed.ask_of({sa.ike for sa in sas}, ends)

    def _heard(self, _name: str, message: Section) -> None:
        self.events += 1
        ikes, sas = ike_sas(message), child_sas(message)
        children = {
            ends.child
            for ends, followed in self._followed.items()
            if followed.hear(self.events, ends, ikes, [sa for sa in sas if touches(sa, ends)])
        }
        if children or not ikes:
            for changed in self._watchers:
                changed(children if ikes else None)


def _numbers(section: Section) -> set[tuple[str, str]]:
    return {(name, str(ike.get("uniqueid"))) for name, ike in ike_sas(section).items()}


def _keep(sas: dict[Ends, list[ChildSa]], found: Collection[ChildSa]) -> None:
    """Keep what may carry packets of a way, of too many one too many; and a few of the right name, to say what is wrong with them."""
    for ends, kept in sas.items():
        for sa in found:
            if len(kept) <= MAX_SAS and (touches(sa, ends) or (sa.name == ends.child and len(kept) < FEW)):
                kept.append(sa)


def _retrieved(task: asyncio.Task[_Answer]) -> None:
    """Look at a failure that those who waited may have given up before."""
    if not task.cancelled():
        task.exception()
