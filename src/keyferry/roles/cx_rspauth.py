# SPDX-License-Identifier: Apache-2.0
"""rspauth for S-CSCFs that lose their own (DESIGN §10): the HSS remembers XRES of the vectors it gave them, and proves that it does.

Whoever asks must bring the whole answer of the UE, which is checked here; each nonce is good for one rspauth.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyferry.errors import DigestRejected, ParseError
from keyferry.ports import Clock
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import aka_nonce, check_response, hash_a1, parse_credentials, rspauth_of
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.registration import AKA_ALGORITHM

LIFE: Final = 300.0
"""Seconds: reg-await-auth is 240 (TS 24.229 §5.4.1.2.1)."""
MAX_NONCES: Final = 100_000
"""30 MB; the oldest goes."""


class _Given(NamedTuple):
    impi: Impi
    xres: Secret
    until: float  # monotonic


@dataclass(slots=True)
class RspauthBook:
    """XRES of vectors that were given away, until their answer was proven or their time is over."""

    clock: Clock
    maximum: int = MAX_NONCES
    _given: OrderedDict[str, _Given] = field(default_factory=OrderedDict)

    def remember(self, impi: Impi, vector: AuthVector, server_data: bytes) -> None:
        """Note a vector that an S-CSCF is about to get."""
        now = self.clock.monotonic()
        while self._given and (len(self._given) >= self.maximum or next(iter(self._given.values())).until <= now):
            self._given.popitem(last=False)
        self._given[aka_nonce(vector.rand, vector.autn, server_data)] = _Given(impi, vector.xres, now + LIFE)

    def prove(self, authorization: str) -> str:
        """Return rspauth for the Authorization of a REGISTER, once. Raises DigestRejected: wrong, unknown, too late, or proven before."""
        try:
            credentials = parse_credentials(authorization)
        except ParseError as problem:
            raise DigestRejected(str(problem)) from None
        given = self._given.get(credentials.nonce)
        if given is None or given.until <= self.clock.monotonic() or credentials.username != given.impi or credentials.qop is None:
            raise DigestRejected("no such nonce waits for its answer")
        ha1 = hash_a1(AKA_ALGORITHM, credentials.username, credentials.realm, given.xres)
        check_response(ha1, credentials, algorithm=AKA_ALGORITHM, method="REGISTER")
        del self._given[credentials.nonce]
        return rspauth_of(ha1, credentials, algorithm=AKA_ALGORITHM)

    def __len__(self) -> int:
        return len(self._given)
