# SPDX-License-Identifier: Apache-2.0
"""The challenges that wait for an answer, keyed by nonce and bounded (DESIGN §5 step 1; *ours*)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TypeVar

from keyferry.protocol.identity import Impi, Reg
from keyferry.protocol.ims.registration import PendingChallenge

MAX_PER_SOURCE = 64  # of one IMPI from one address: a neighbour behind the same NAT may ask in a user's name, too
MAX_PER_IMPI = 8_192  # a stranger with many addresses, 1,000 REGISTERs a second, does not push out the user's own for 8 s
MAX_ALL = 200_000  # about 1.1 GB with all that belongs to them; a city registering after a power cut is shed before this (DESIGN §11)

_Group = TypeVar("_Group", bound=Hashable)
_Held = TypeVar("_Held")


class PendingChallenges:
    """Hold challenges by nonce. A nonce is taken at most once; to put and to take one costs the same however many there are."""

    def __init__(self, *, per_impi: int = MAX_PER_IMPI, per_source: int = MAX_PER_SOURCE, in_all: int = MAX_ALL) -> None:
        self._by_nonce: OrderedDict[str, PendingChallenge] = OrderedDict()
        self._by_impi: dict[Impi, dict[str, PendingChallenge]] = {}  # in order of issue
        self._by_source: dict[str, dict[str, PendingChallenge]] = {}  # of every IMPI, in order of issue
        self._by_user_there: dict[tuple[Impi, str], dict[str, str]] = {}  # Call-IDs by nonce, in order of issue
        self._per_impi = per_impi
        self._per_source = per_source
        self._in_all = in_all

    def __len__(self) -> int:
        return len(self._by_nonce)

    def __contains__(self, nonce: str) -> bool:
        return nonce in self._by_nonce

    def of_impi(self, impi: Impi) -> int:
        """Return how many challenges of a user wait."""
        return len(self._by_impi.get(impi, {}))

    def put(self, challenge: PendingChallenge) -> None:
        """Remember a challenge; where there is no room, one of the same source goes before one of another."""
        source, place = challenge.source, (challenge.impi, challenge.source)
        there = self._by_user_there.get(place, {})
        of_impi = self._by_impi.get(challenge.impi, {})
        if len(there) >= self._per_source:
            self._drop(self._by_nonce[_oldest_of_call(there, challenge.call_id)])
        elif len(of_impi) >= self._per_impi:
            self._drop(next(iter(of_impi.values())))
        if len(self._by_nonce) >= self._in_all:
            own = self._by_source.get(source, {})
            is_flood = len(own) * len(self._by_source) >= self._in_all  # it has its share
            self._drop(next(iter((own if is_flood else self._by_nonce).values())))
        self._by_nonce[challenge.nonce] = challenge
        self._by_impi.setdefault(challenge.impi, {})[challenge.nonce] = challenge
        self._by_source.setdefault(source, {})[challenge.nonce] = challenge
        self._by_user_there.setdefault(place, {})[challenge.nonce] = challenge.call_id

    def take(self, nonce: str, now: float) -> PendingChallenge | None:
        """Return the challenge of this nonce and forget it; None if there is none or its time is over."""
        challenge = self._by_nonce.get(nonce)
        if challenge is None:
            return None
        self._drop(challenge)
        return challenge if now <= challenge.expires_at else None

    def supersede(self, answered: PendingChallenge, reg: Reg | None) -> None:
        """Drop what a device was sent before the challenge that it answered; without `reg`, every device of the IMPI.

        An answer that was held back on its way would otherwise replace the newer keys by older ones.
        """
        for sibling in tuple(self._by_impi.get(answered.impi, {}).values()):
            if sibling.expires_at <= answered.expires_at and reg in {None, sibling.reg}:
                self._drop(sibling)

    def forget(self, impi: Impi) -> None:
        """Drop every challenge of a user."""
        for challenge in tuple(self._by_impi.get(impi, {}).values()):
            self._drop(challenge)

    def sweep(self, now: float) -> list[PendingChallenge]:
        """Drop and return the challenges whose time is over."""
        over = []
        for challenge in self._by_nonce.values():  # in order of issue, so of expiry
            if challenge.expires_at >= now:
                break
            over.append(challenge)
        for challenge in over:
            self._drop(challenge)
        return over

    def _drop(self, challenge: PendingChallenge) -> None:
        nonce, impi, source = challenge.nonce, challenge.impi, challenge.source
        del self._by_nonce[nonce]
        _take_out(self._by_impi, impi, nonce)
        _take_out(self._by_source, source, nonce)
        _take_out(self._by_user_there, (impi, source), nonce)


def _oldest_of_call(call_ids: Mapping[str, str], call_id: str) -> str:
    """Return the oldest nonce of a Call-ID, else the oldest of all: who begins again gives up his own challenge first."""
    return next((nonce for nonce, other in call_ids.items() if other == call_id), next(iter(call_ids)))


def _take_out(groups: dict[_Group, dict[str, _Held]], name: _Group, nonce: str) -> None:
    group = groups[name]
    del group[nonce]
    if not group:
        del groups[name]
