# SPDX-License-Identifier: Apache-2.0
"""P-CSCF: the icid-values of REGISTERs, those of one registration known by the nonce of its challenge (TS 24.229 §5.2.2.1, Release 17)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyferry.ports import Clock, RandomSource
from keyferry.protocol.ims.charging import ID_OCTETS, Icid, first_icid
from keyferry.protocol.ims.gm_association import REG_AWAIT_AUTH
from keyferry.roles.pcscf.bindings import Device

MAX_AWAITED: Final = 20_000
"""Challenges remembered, 8 MB. What is forgotten gets another id: its two halves are two registrations in the logs, and nothing else."""


class _Awaited(NamedTuple):
    icid: Icid
    until: float  # monotonic seconds


@dataclass(slots=True)
class Icids:
    """Give every REGISTER an icid-value, and the answer to a challenge that of its registration."""

    clock: Clock
    random: RandomSource
    limit: int = MAX_AWAITED
    _awaited: OrderedDict[tuple[Device | None, str], _Awaited] = field(default_factory=OrderedDict)

    def of(self, device: Device | None, nonces: Iterable[str]) -> Icid:
        """Return the icid-value of a REGISTER that answers these nonces."""
        now = self.clock.monotonic()
        for nonce in nonces:
            awaited = self._awaited.pop((device, nonce), None)
            if awaited is not None and awaited.until > now:
                return awaited.icid.following()
        return first_icid(self.random.octets(ID_OCTETS))

    def challenged(self, device: Device | None, nonces: Iterable[str], icid: Icid) -> None:
        """Remember which registration a 401 belongs to."""
        now = self.clock.monotonic()
        for nonce in nonces:
            self._awaited[device, nonce] = _Awaited(icid, now + REG_AWAIT_AUTH)
            self._awaited.move_to_end((device, nonce))
        while self._awaited and (len(self._awaited) > self.limit or next(iter(self._awaited.values())).until <= now):
            self._awaited.popitem(last=False)
