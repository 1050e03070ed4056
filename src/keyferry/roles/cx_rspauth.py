# SPDX-License-Identifier: Apache-2.0
"""rspauth for S-CSCFs that lose their own (DESIGN §10): the HSS remembers XRES of the vectors it gave them, and proves that it does.

Whoever asks must bring the whole answer of the UE, which is checked here; each nonce is good for one rspauth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyferry.errors import DigestRejected, ParseError
from keyferry.ports import Clock
from keyferry.ports.scripts import GivenVector, ScriptStore
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.digest import aka_nonce, check_response, hash_a1, parse_credentials, rspauth_of
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.registration import AKA_ALGORITHM

LIFE: Final = 300.0
"""Seconds: reg-await-auth is 240 (TS 24.229 §5.4.1.2.1)."""


@dataclass(frozen=True, slots=True)
class RspauthBook:
    """XRES of vectors that were given away, by whichever process of the HSS, until their answer was proven or their time is over."""

    clock: Clock
    store: ScriptStore

    async def remember(self, impi: Impi, vector: AuthVector, server_data: bytes) -> None:
        """Note a vector that an S-CSCF is about to get. Raises StoreError."""
        now = self.clock.now()
        await self.store.keep(aka_nonce(vector.rand, vector.autn, server_data), GivenVector(impi, vector.xres, now + LIFE), now)

    async def sweep(self) -> None:
        """Keep no XRES that proves nothing any more. Raises StoreError."""
        await self.store.forget(self.clock.now())

    async def prove(self, authorization: str) -> str:
        """Return rspauth for the Authorization of a REGISTER, once.

        Raises DigestRejected: wrong, unknown, too late, or proven before; StoreError, SealError.
        """
        try:
            credentials = parse_credentials(authorization)
        except ParseError as problem:
            raise DigestRejected(str(problem)) from None
        given = self.store.given(credentials.nonce)
        if given is None or given.until <= self.clock.now() or credentials.username != given.impi or credentials.qop is None:
            raise DigestRejected("no such nonce waits for its answer")
        ha1 = hash_a1(AKA_ALGORITHM, credentials.username, credentials.realm, given.xres)
        check_response(ha1, credentials, algorithm=AKA_ALGORITHM, method="REGISTER")
        if not await self.store.take(credentials.nonce):
            raise DigestRejected("its answer was proven before")
        return rspauth_of(ha1, credentials, algorithm=AKA_ALGORITHM)
