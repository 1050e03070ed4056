# SPDX-License-Identifier: Apache-2.0
"""The last failures of registrations, bounded in number and size, and how often one may be analysed (*ours*)."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from keyferry.protocol.identity import Impi, Reg
from keyferry.protocol.ims.verdicts import Analysis, Reason

MAX_FAILURES: Final = 1_000
"""Of all users together; some 700 octets each. The oldest go first."""
MAX_PER_USER: Final = 20
"""A phone that fails every few seconds does not push the others out."""
MAX_STRANGERS: Final = 100
"""Of users whom the HSS does not know."""
MAX_USERS: Final = 10_000
"""Whose earlier challenges are remembered: some 5 MB."""
TRIALS_A_SECOND: Final = 5
"""A trial takes some milliseconds: a few percent of a core at the most, however many logins fail."""
TRIAL_EVERY: Final = 1.0
"""Seconds between two trials for one user."""
MAX_PROBLEM: Final = 200
"""Characters of what a peer or a library said."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that failed, for people; no key, no response, no nonce."""

    at: float  # seconds since the epoch, the last time
    function: str  # "S-CSCF", "I-CSCF"
    impi: Impi
    analysis: Analysis
    reg: Reg | None = None
    source: str = ""  # address that the P-CSCF saw
    status: int = 0  # SIP status that the UE was answered; 0 where it is not the UE that was refused
    server: str = ""  # of a push: ServerName
    problem: str = ""  # what was said besides
    count: int = 1  # how often in a row, the same


class _Ring:
    """A bounded number of failures; the same one again only counts up."""

    def __init__(self, most: int, per_user: int) -> None:
        self._entries: OrderedDict[int, Failure] = OrderedDict()
        self._of_user: dict[Impi, deque[int]] = {}
        self._most, self._per_user = most, per_user
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, failure: Failure) -> None:
        """Remember one."""
        mine = self._of_user.setdefault(failure.impi, deque())
        again = next((number for number in mine if _same(self._entries[number], failure)), None)
        if again is not None:
            failure = replace(failure, count=self._entries[again].count + 1)
            self._drop(again)
        elif len(mine) >= self._per_user:
            self._drop(mine[0])
        if len(self._entries) >= self._most:
            self._drop(next(iter(self._entries)))
        self._entries[self._next] = failure
        self._of_user.setdefault(failure.impi, deque()).append(self._next)
        self._next += 1

    def last(self, limit: int) -> Sequence[Failure]:
        """Return the last failures, the newest first."""
        return [failure for _, failure in zip(range(limit), reversed(self._entries.values()), strict=False)]

    def of_impi(self, impi: Impi) -> Sequence[Failure]:
        """Return one user's, the newest first."""
        return [self._entries[number] for number in reversed(self._of_user.get(impi, ()))]

    def forget(self, impi: Impi, which: Callable[[Failure], bool]) -> None:
        """Drop some of a user's failures."""
        for number in tuple(self._of_user.get(impi, ())):
            if which(self._entries[number]):
                self._drop(number)

    def _drop(self, number: int) -> None:
        impi = self._entries.pop(number).impi
        mine = self._of_user[impi]
        mine.remove(number)
        if not mine:
            del self._of_user[impi]


class FailureBook:
    """Remember failures. Users whom the HSS does not know have a small part of their own: anybody can make up their names."""

    def __init__(self, *, most: int = MAX_FAILURES, per_user: int = MAX_PER_USER, strangers: int = MAX_STRANGERS) -> None:
        self._known, self._strangers = _Ring(most, per_user), _Ring(strangers, per_user)

    def __len__(self) -> int:
        return len(self._known) + len(self._strangers)

    def note(self, failure: Failure) -> None:
        """Remember one."""
        ring = self._strangers if Reason.USER_UNKNOWN in failure.analysis.reasons else self._known
        ring.note(replace(failure, problem=failure.problem[:MAX_PROBLEM]))

    def last(self, limit: int = MAX_FAILURES) -> Sequence[Failure]:
        """Return the last failures, the newest first."""
        return sorted([*self._known.last(limit), *self._strangers.last(limit)], key=lambda failure: -failure.at)[:limit]

    def of_impi(self, impi: Impi) -> Sequence[Failure]:
        """Return one user's, the newest first."""
        return sorted([*self._known.of_impi(impi), *self._strangers.of_impi(impi)], key=lambda failure: -failure.at)

    def forget(self, impi: Impi, which: Callable[[Failure], bool]) -> None:
        """Drop a user's failures that are over, such as a push that was delivered after all."""
        self._known.forget(impi, which)


def _same(one: Failure, other: Failure) -> bool:
    return _what(one) == _what(other)


def _what(failure: Failure) -> tuple[object, ...]:
    return failure.function, failure.analysis, failure.reg, failure.source, failure.status, failure.server  # of `problem` the last is kept


class EarlierNonces:
    """Remember the last nonces of users, which are no secret: a UE may answer an old one, or compute with it."""

    def __init__(self, *, users: int = MAX_USERS, each: int) -> None:
        self._of_user: OrderedDict[Impi, tuple[str, ...]] = OrderedDict()
        self._users, self._each = users, each

    def __len__(self) -> int:
        return len(self._of_user)

    def put(self, impi: Impi, nonce: str) -> None:
        """Remember the nonce of a new challenge."""
        self._of_user[impi] = (nonce, *self._of_user.get(impi, ()))[: self._each]
        self._of_user.move_to_end(impi)
        if len(self._of_user) > self._users:
            self._of_user.popitem(last=False)

    def of_impi(self, impi: Impi, but: str = "") -> tuple[str, ...]:
        """Return a user's, the newest first, without the one that is being answered."""
        return tuple(nonce for nonce in self._of_user.get(impi, ()) if nonce != but)


class TrialBudget:
    """Say whether a failure may be analysed now: strangers cause failures, and must not be able to buy CPU time with them."""

    def __init__(self, *, a_second: int = TRIALS_A_SECOND, every: float = TRIAL_EVERY, users: int = MAX_USERS) -> None:
        self._a_second, self._every, self._users = a_second, every, users
        self._second, self._used = 0.0, 0
        self._last: OrderedDict[Impi, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def take(self, impi: Impi, now: float) -> bool:
        """Take one trial for a user if there is one; `now` is monotonic, in seconds."""
        if not 0 <= now - self._second < 1.0:
            self._second, self._used = now, 0
        if self._used >= self._a_second or now - self._last.get(impi, now - self._every) < self._every:
            return False
        self._used += 1
        self._last[impi] = now
        self._last.move_to_end(impi)
        if len(self._last) > self._users:
            self._last.popitem(last=False)
        return True
