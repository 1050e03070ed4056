# SPDX-License-Identifier: Apache-2.0
"""Transport keys of the ISC seal as the roles want them, up to date while the process runs (DESIGN §6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.roles.scscf.as_notifier import TransportKey
from keyferry.stores.isc_keys import LiveIscKeys


@dataclass(slots=True)
class SealingKeys(Mapping[AsId, TransportKey]):
    """What an S-CSCF seals with: the newest key of each AS_ID."""

    live: Mapping[AsId, LiveIscKeys]
    _made: dict[AsId, tuple[Secret, TransportKey]] = field(default_factory=dict)

    def __getitem__(self, as_id: AsId) -> TransportKey:
        """Return the key that seals now. Raises KeyError."""
        kid, key = next(reversed(self.live[as_id].current().items()))
        made = self._made.get(as_id)
        if made is None or made[0] is not key:
            made = self._made[as_id] = key, TransportKey(kid, Siv(key))
        return made[1]

    def __iter__(self) -> Iterator[AsId]:
        return iter(self.live)

    def __len__(self) -> int:
        return len(self.live)


@dataclass(slots=True)
class OpeningKeys(Mapping[tuple[AsId, str], Secret]):
    """What an application server opens the seals of one S-CSCF with: every key that lives."""

    as_id: AsId
    live: LiveIscKeys

    def __getitem__(self, place: tuple[AsId, str]) -> Secret:
        """Return the key of (AS_ID, kid); for one that is not known look at once whether it has just come. Raises KeyError."""
        as_id, kid = place
        if as_id != self.as_id:
            raise KeyError(place)
        known = self.live.current().get(kid)
        return known if known is not None else self.live.current(at_once=True)[kid]

    def __iter__(self) -> Iterator[tuple[AsId, str]]:
        return ((self.as_id, kid) for kid in self.live.current())

    def __len__(self) -> int:
        return len(self.live.current())


@dataclass(frozen=True, slots=True)
class OpeningKeysOfAll(Mapping[tuple[AsId, str], Secret]):
    """The same for the many AS_IDs of one SIP URI."""

    of: Mapping[AsId, OpeningKeys]

    def __getitem__(self, place: tuple[AsId, str]) -> Secret:
        """Return the key of (AS_ID, kid). Raises KeyError."""
        return self.of[place[0]][place]

    def __iter__(self) -> Iterator[tuple[AsId, str]]:
        return (place for keys in self.of.values() for place in keys)

    def __len__(self) -> int:
        return sum(len(keys) for keys in self.of.values())
