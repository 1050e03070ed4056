# SPDX-License-Identifier: Apache-2.0
"""The one type that holds a key."""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn


class Secret:
    """Hold key octets that never print; `.reveal()` is the one word to search for in an audit.

    Python cannot wipe memory: dropping the last reference is best effort.
    """

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def reveal(self) -> bytes:
        """Return the octets, for a computation or for the one place that must carry them."""
        return self._octets

    def fingerprint(self) -> str:
        """Return 16 hex digits of SHA-256, enough to compare two keys of high entropy and no more."""
        return hashlib.sha256(self._octets).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        """Compare in constant time."""
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._octets, other._octets)

    __hash__ = None  # type: ignore[assignment]  # a hash would leave a trace of the key in sets and dicts

    def __repr__(self) -> str:
        return f"Secret({len(self._octets)} octets)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")
