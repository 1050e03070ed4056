# SPDX-License-Identifier: Apache-2.0
"""The challenges that wait for an answer, keyed by nonce and bounded (DESIGN §5 step 1; *ours*)."""

from __future__ import annotations

from keyferry.protocol.bounded_groups import Bound, BoundedGroups
from keyferry.protocol.identity import Impi, Reg
from keyferry.protocol.ims.registration import PendingChallenge

# A challenge is answered within some seconds. Each bound but the first is more than can be asked for in that time, at 1,000 REGISTERs a
# second: who asks in a user's name, from his address or from many, does not push out the user's own.
MAX_PER_CALL = 16  # of one IMPI from one address; who begins again and again with one Call-ID
MAX_PER_PLACE = 4_096  # of one IMPI from one address: a neighbour behind the same NAT
MAX_PER_IMPI = 8_192  # a stranger with many addresses
MAX_PER_SOURCE = 50_000  # of one address, which a border element may write for all its users
MAX_ALL = 200_000  # a city registering after a power cut is shed before this (DESIGN §11)

_OF_IMPI = 2  # the bound of this place


class PendingChallenges:
    """Hold challenges by nonce. A nonce is taken at most once; to put and to take one costs the same however many there are."""

    def __init__(
        self, *, per_call: int = MAX_PER_CALL, per_place: int = MAX_PER_PLACE, per_impi: int = MAX_PER_IMPI,
        per_source: int = MAX_PER_SOURCE, in_all: int = MAX_ALL,
    ) -> None:  # fmt: skip
        self._held = BoundedGroups[str, PendingChallenge](
            (
                Bound(lambda each: (each.impi, each.source, each.call_id), per_call),
                Bound(lambda each: (each.impi, each.source), per_place),
                Bound(lambda each: each.impi, per_impi),
                Bound(lambda each: each.source, per_source),
                Bound(lambda _each: None, in_all),
            )
        )

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, nonce: str) -> bool:
        return nonce in self._held

    def of_impi(self, impi: Impi) -> int:
        """Return how many challenges of a user wait."""
        return self._held.size(_OF_IMPI, impi)

    def put(self, challenge: PendingChallenge) -> None:
        """Remember a challenge; where there is no room, the oldest of the group that is full goes."""
        self._held.add(challenge.nonce, challenge)

    def take(self, nonce: str, now: float) -> PendingChallenge | None:
        """Return the challenge of this nonce and forget it; None if there is none or its time is over."""
        challenge = self._held.pop(nonce)
        return challenge if challenge is not None and now <= challenge.expires_at else None

    def supersede(self, answered: PendingChallenge, reg: Reg | None) -> None:
        """Drop what a device was sent before the challenge that it answered; without `reg`, every device of the IMPI.

        An answer that was held back on its way would otherwise replace the newer keys by older ones.
        """
        for sibling in self._held.group(_OF_IMPI, answered.impi):
            if sibling.expires_at <= answered.expires_at and reg in {None, sibling.reg}:
                self._held.pop(sibling.nonce)

    def forget(self, impi: Impi) -> None:
        """Drop every challenge of a user."""
        for challenge in self._held.group(_OF_IMPI, impi):
            self._held.pop(challenge.nonce)

    def sweep(self, now: float) -> list[PendingChallenge]:
        """Drop and return the challenges whose time is over."""
        over = []
        for challenge in self._held:  # in order of issue, so of expiry
            if challenge.expires_at >= now:
                break
            over.append(challenge)
        for challenge in over:
            self._held.pop(challenge.nonce)
        return over
