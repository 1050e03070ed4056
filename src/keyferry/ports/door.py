# SPDX-License-Identifier: Apache-2.0
"""What a door for HTTP needs from the outside (DESIGN §7)."""

from __future__ import annotations

from typing import Protocol

from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.protocol.ims.key_record import KeyRecord, Offer


class KeySource(Protocol):
    """Whose key is this identifier? Pushed keys are the first source; GBA and AKMA stand behind the same port."""

    def offer(self, as_id: AsId) -> Offer:
        """Return what a client may prove at this application server."""

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Return the record if the key is valid now. Raises StoreError, SealError."""

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        """Do the same without waiting, for OpenSSL's callbacks: may block some 100 µs, never on a network."""

    def protocol_key(self, record: KeyRecord, ua_id: bytes) -> Secret:
        """Return the key of one Ua security protocol, of 5 octets (TS 33.220 annex H); base64 of it is the password of Digest."""

    async def used(self, record: KeyRecord) -> None:
        """Note that a request proved this key: an older one of the same device ends (DESIGN §6)."""


class UseLedger(Protocol):
    """What must be decided once for all workers of a door: nonces, and how often each was used (DESIGN §7)."""

    def issue(self) -> str:
        """Return a new nonce: 40 characters of base64url."""

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        """Take a count of a nonce, whose response is right; true if the nonce grows old.

        Raises DigestRejected: stale if that count or nonce is no longer there to be used, else the key is no longer valid.
        """

    async def claim_first(self, record: KeyRecord) -> bool:
        """Take the first nonce of a key, which there is once; false if it is used, or if nobody can know that it is not."""
