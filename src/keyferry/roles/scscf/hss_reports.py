# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: what the HSS is told when it has time: ends of registrations, challenges without a right answer (TS 29.228 §6.1.2.1, Release 17).

Nobody waits for that, so an HSS that is away keeps neither a sweep nor a UE waiting. Ends that are owed are in the store, too: after a
restart the registrar owes them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from keyferry.errors import CxError, KeyferryError, StoreError
from keyferry.ports import Clock, Counter, Log, ServerAssignment
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.cx_status import is_unreached

Tell: TypeAlias = Callable[[Impi, Impu, ServerAssignment], Awaitable[None]]

AT_ONCE: Final = 32
"""Reports under way: a network whose registrations all end in one second is no attack on its HSS."""
RETRY_FIRST: Final = 1.0
"""Seconds after which an HSS that was not reached is tried with one report; doubled up to RETRY_MOST."""
RETRY_MOST: Final = 30.0
MAX_OWED: Final = 100_000
"""Users, 300 octets each; the oldest goes. Of them the HSS learns with their next REGISTER."""
FAILURES: Final = frozenset({ServerAssignment.AUTHENTICATION_FAILURE, ServerAssignment.AUTHENTICATION_TIMEOUT})
"""What is no end of a registration."""
ENDS: Final = frozenset(
    {ServerAssignment.TIMEOUT_DEREGISTRATION, ServerAssignment.USER_DEREGISTRATION, ServerAssignment.ADMINISTRATIVE_DEREGISTRATION}
)


@dataclass(slots=True)
class HssReports:
    """Owe the HSS one report a user, the last; who tells finds out whether it still holds."""

    tell: Tell  # raises KeyferryError
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    log: Log
    counter: Counter
    max_owed: int = MAX_OWED
    _owed: dict[Impi, tuple[Impu, ServerAssignment]] = field(default_factory=dict)
    _being_told: dict[Impi, tuple[Impu, ServerAssignment]] = field(default_factory=dict)
    _workers: set[asyncio.Task[None]] = field(default_factory=set)
    _pause: float = 0.0  # seconds; 0: the HSS answers
    _closed: bool = False

    def __len__(self) -> int:
        return len(self._owed)

    def owe(self, impi: Impi, impu: Impu, assignment: ServerAssignment) -> None:
        """Tell the HSS as soon as it can be; the end of a registration is not replaced by what came later and is none."""
        held = self._owed.get(impi)
        if held is None or _weight(held[1]) <= _weight(assignment):
            self._owed[impi] = impu, assignment
        if len(self._owed) > self.max_owed:
            del self._owed[next(iter(self._owed))]
            self.counter.count("scscf_hss_reports", "dropped")
        self._hire()

    def end_of(self, impi: Impi) -> tuple[Impu, ServerAssignment] | None:
        """Return the end that the HSS is still to be told, or is being told."""
        held = [each[impi] for each in (self._owed, self._being_told) if impi in each]
        return next((each for each in held if each[1] in ENDS), None)

    def owe_no_end(self, impi: Impi) -> None:
        """Leave an end unsaid that was said otherwise: it would keep from being said what comes now, of a user who is back."""
        if impi in self._owed and self._owed[impi][1] in ENDS:
            del self._owed[impi]

    async def aclose(self) -> None:
        """Stop; what is still owed stays unsaid."""
        self._closed = True
        for worker in tuple(self._workers):
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _hire(self) -> None:
        if self._owed and not self._closed and len(self._workers) < (1 if self._pause else AT_ONCE):
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        try:
            while self._owed:
                impi = next(iter(self._owed))
                impu, assignment = self._being_told[impi] = self._owed.pop(impi)
                told = await self._is_told(impi, impu, assignment)
                self._being_told.pop(impi, None)
                if told:
                    self._pause = 0.0
                    self._hire()
                    continue
                newer = self._owed.get(impi)
                if newer is None or _weight(newer[1]) < _weight(assignment):
                    self._owed[impi] = impu, assignment
                if len(self._workers) > 1:
                    return  # one is enough to find out when the HSS is back
                self._pause = min(max(RETRY_FIRST, 2 * self._pause), RETRY_MOST)
                await self.sleep(self._pause)
        finally:
            self._workers = {worker for worker in self._workers if worker is not asyncio.current_task()}

    async def _is_told(self, impi: Impi, impu: Impu, assignment: ServerAssignment) -> bool:
        """Tell the HSS; false if it has to be told later."""
        try:
            await self.tell(impi, impu, assignment)
        except CxError as problem:
            if is_unreached(problem):
                return self._waits(impi, assignment, problem.name)
            self._refused(impi, assignment, problem.name)
        except StoreError as problem:  # ours, or that of an HSS in this process: full, or locked
            return self._waits(impi, assignment, str(problem))
        except KeyferryError as problem:  # a row that does not open: others may
            self._refused(impi, assignment, str(problem))
        except Exception as problem:  # a bug of ours costs one report; its words may quote what it stumbled over
            self._refused(impi, assignment, type(problem).__name__)
        else:
            self.counter.count("scscf_hss_reports", "told")
        return True

    def _waits(self, impi: Impi, assignment: ServerAssignment, problem: str) -> bool:
        if not self._pause:
            self.log.warning("hss-report-waits", impi=impi, assignment=assignment.name, cx=problem)
        self.counter.count("scscf_hss_reports", "waits")
        return False

    def _refused(self, impi: Impi, assignment: ServerAssignment, problem: str) -> None:
        self.counter.count("scscf_hss_reports", "refused")  # the user may be gone from the HSS
        self.log.warning("hss-report-refused", impi=impi, assignment=assignment.name, problem=problem)


def _weight(assignment: ServerAssignment) -> int:
    return 2 if assignment in ENDS else 0 if assignment in FAILURES else 1
