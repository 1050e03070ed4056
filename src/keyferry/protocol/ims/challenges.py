# SPDX-License-Identifier: Apache-2.0
"""The challenges that wait for an answer, keyed by nonce and bounded (DESIGN §5 step 1; *ours*)."""

from __future__ import annotations

from collections import OrderedDict

from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.registration import PendingChallenge

MAX_PER_IMPI = 8  # devices of one user that register at once, with room; a flood for one IMPI stays here
MAX_PER_SOURCE = 2  # the one being answered and one begun again
MAX_ALL = 200_000  # about 100 MB; a city registering after a power cut is shed before this (DESIGN §11)


class PendingChallenges:
    """Hold challenges by nonce. A nonce is taken at most once."""

    def __init__(self, *, per_impi: int = MAX_PER_IMPI, per_source: int = MAX_PER_SOURCE, in_all: int = MAX_ALL) -> None:
        self._by_nonce: OrderedDict[str, PendingChallenge] = OrderedDict()
        self._by_impi: dict[Impi, list[PendingChallenge]] = {}
        self._per_impi = per_impi
        self._per_source = per_source
        self._in_all = in_all

    def __len__(self) -> int:
        return len(self._by_nonce)

    def put(self, challenge: PendingChallenge) -> None:
        """Remember a challenge; the oldest of the same source goes first, then the oldest of the IMPI."""
        siblings = self._by_impi.get(challenge.impi, [])
        of_source = [sibling for sibling in siblings if sibling.source == challenge.source]
        if len(of_source) >= self._per_source:
            self._drop(of_source[0])
        elif len(siblings) >= self._per_impi:
            self._drop(siblings[0])
        if len(self._by_nonce) >= self._in_all:
            self._drop(next(iter(self._by_nonce.values())))
        self._by_nonce[challenge.nonce] = challenge
        self._by_impi.setdefault(challenge.impi, []).append(challenge)

    def take(self, nonce: str, now: float) -> PendingChallenge | None:
        """Return the challenge of this nonce and forget it; None if there is none or its time is over."""
        challenge = self._by_nonce.get(nonce)
        if challenge is None:
            return None
        self._drop(challenge)
        return challenge if now <= challenge.expires_at else None

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
        del self._by_nonce[challenge.nonce]
        siblings = self._by_impi[challenge.impi]
        siblings.remove(challenge)
        if not siblings:
            del self._by_impi[challenge.impi]
