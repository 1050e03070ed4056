# SPDX-License-Identifier: Apache-2.0
"""The text of a nonce of the HTTP door (RFC 7616 §3.3, §5.4; DESIGN §7): several processes issue it, one place decides about its use."""

from __future__ import annotations

import base64
import hmac
from typing import TYPE_CHECKING

from keyferry.errors import DigestRejected

if TYPE_CHECKING:
    from keyferry.protocol.crypto.secret import Secret

CHANCE = 7
"""Random octets of a nonce: they tell apart those of one microsecond."""

_STAMP = 7  # octets: microseconds of a monotonic clock
_MAC = 16  # octets of HMAC-SHA-256
_SIGNED = _STAMP + CHANCE
_TEXT = 4 * (_SIGNED + _MAC) // 3  # 40 characters of base64url, no padding: some phones split the header at "="


def build_nonce(key: Secret, scope: bytes, now: float, chance: bytes) -> str:
    """Return base64url(time, random, HMAC(key, time, random, scope)); `now` in monotonic seconds, `chance` 7 random octets."""
    signed = int(now * 1e6).to_bytes(_STAMP, "big") + chance
    return base64.urlsafe_b64encode(signed + _mac(key, scope, signed)).decode("ascii")


def parse_nonce(key: Secret, scope: bytes, nonce: str) -> int:
    """Return when a nonce was issued, in microseconds, if it was under this key and for this scope; reverse of `build_nonce`.

    Raises DigestRejected, stale.
    """
    if len(nonce) == _TEXT and nonce.isascii():
        try:
            octets = base64.urlsafe_b64decode(nonce)
        except ValueError:
            octets = b""
        signed = octets[:_SIGNED]
        # Encoded again: the decoder skips and folds characters, and one nonce must have one text.
        if hmac.compare_digest(base64.urlsafe_b64encode(signed + _mac(key, scope, signed)), nonce.encode("ascii")):
            return int.from_bytes(signed[:_STAMP], "big")
    raise DigestRejected("the nonce is not one of this door", stale=True)


def _mac(key: Secret, scope: bytes, signed: bytes) -> bytes:
    return hmac.digest(key.reveal(), signed + scope, "sha256")[:_MAC]
