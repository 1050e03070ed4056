# SPDX-License-Identifier: Apache-2.0
"""Nonces of the door and the counts used with them (RFC 7616 §3.3, §3.4, §5.4; DESIGN §7)."""

from __future__ import annotations

import base64
import hmac
from collections import OrderedDict
from typing import TYPE_CHECKING

from keyferry.errors import DigestRejected

if TYPE_CHECKING:
    from keyferry.protocol.crypto.secret import Secret

WINDOW = 64
"""Counts up to the highest that may still arrive: an HTTP client has fewer requests than that on the way at once."""
KEYS = 65_536
"""Keys whose counts are remembered, about 700 octets each. One pushed out costs its user one 401 with stale=true."""
NONCES_PER_KEY = 32
"""Nonces remembered per key: a user with many connections, each with a nonce of its own, pushes out only their own."""
CHANCE = 7
"""Random octets of a nonce: they tell apart those of one microsecond."""

_STAMP = 7  # octets: microseconds of a monotonic clock
_MAC = 16  # octets of HMAC-SHA-256
_SIGNED = _STAMP + CHANCE
_TEXT = 4 * (_SIGNED + _MAC) // 3  # 40 characters of base64url, no padding: some phones split the header at "="
_BITS = (1 << WINDOW) - 1


class Nonces:
    """Issue nonces without remembering them; remember, bounded, the counts of those that a right response used.

    A nonce is base64url(time, random, HMAC(key, time, random, scope)): one of another door, or forged, has no right
    HMAC. A count is taken once: `claim` decides and notes in one step, without an await between.
    What was forgotten to stay within bounds is refused as stale, never taken again.
    """

    def __init__(self, *, key: Secret, scope: str, lifetime: float, keys: int = KEYS, per_key: int = NONCES_PER_KEY) -> None:
        """Take the door's nonce key, what else the HMAC binds, and the life of a nonce in seconds."""
        self._key = key
        self._scope = scope.encode("utf-8")
        self._lifetime = int(lifetime * 1e6)
        self._keys = keys
        self._per_key = per_key
        self._used: OrderedDict[str, _Counts] = OrderedDict()
        self._floor = -1  # nothing issued up to this time is taken from a key that has no entry

    def issue(self, now: float, chance: bytes) -> str:
        """Return a new nonce; `now` in monotonic seconds, `chance` 7 random octets."""
        signed = int(now * 1e6).to_bytes(_STAMP, "big") + chance
        return base64.urlsafe_b64encode(signed + self._mac(signed)).decode("ascii")

    def claim(self, nonce: str, key_id: str, count: int, now: float) -> bool:
        """Take `count` of `nonce` for a key whose response is right; true if the nonce is in the second half of its life.

        Any count above the highest is taken, whatever the gap; below, each of WINDOW once.
        Raises DigestRejected, always stale: the client holds the key and may repeat the request with a new nonce.
        """
        counts = self._used.get(key_id)
        window = counts.windows.get(nonce) if counts else None
        issued = window.issued if window else self._open(nonce)
        age = int(now * 1e6) - issued
        if not 0 <= age <= self._lifetime:
            raise DigestRejected("the nonce is too old", stale=True)
        if window is None:
            window = self._remember(nonce, issued, key_id, counts)
        if not window.take(count):
            raise DigestRejected("this count of the nonce was used before", stale=True)
        self._used.move_to_end(key_id)
        return 2 * age > self._lifetime

    def _remember(self, nonce: str, issued: int, key_id: str, counts: _Counts | None) -> _Window:
        """Make room for a nonce that this key has not used; that it was used and forgotten must be excluded."""
        if issued <= (counts.floor if counts else self._floor):
            raise DigestRejected("the nonce may have been used before", stale=True)
        if counts is None:
            counts = self._used[key_id] = _Counts(self._floor)
            if len(self._used) > self._keys:
                _, forgotten = self._used.popitem(last=False)
                self._floor = max(self._floor, forgotten.latest())
        return counts.add(nonce, issued, self._per_key)

    def _open(self, nonce: str) -> int:
        """Return when a nonce was issued, in microseconds, if it was by this door."""
        if len(nonce) == _TEXT and nonce.isascii():
            try:
                octets = base64.urlsafe_b64decode(nonce)
            except ValueError:
                octets = b""
            signed = octets[:_SIGNED]
            # Encoded again: the decoder skips and folds characters, and one nonce must have one text.
            if hmac.compare_digest(base64.urlsafe_b64encode(signed + self._mac(signed)), nonce.encode("ascii")):
                return int.from_bytes(signed[:_STAMP], "big")
        raise DigestRejected("the nonce is not one of this door", stale=True)

    def _mac(self, signed: bytes) -> bytes:
        return hmac.digest(self._key.reveal(), signed + self._scope, "sha256")[:_MAC]


class _Counts:
    """The nonces one key used."""

    __slots__ = ("floor", "windows")

    def __init__(self, floor: int) -> None:
        self.floor = floor  # nothing issued up to this time and not in `windows` is taken
        self.windows: dict[str, _Window] = {}

    def add(self, nonce: str, issued: int, limit: int) -> _Window:
        if len(self.windows) >= limit:
            oldest = min(self.windows, key=lambda text: self.windows[text].issued)
            self.floor = max(self.floor, self.windows.pop(oldest).issued)
        window = self.windows[nonce] = _Window(issued)
        return window

    def latest(self) -> int:
        """Return the time of issue of the youngest nonce this key may have used."""
        return max(self.floor, *(window.issued for window in self.windows.values()))


class _Window:
    """The counts used with one nonce: the highest, and a bit for each of WINDOW below and including it."""

    __slots__ = ("highest", "issued", "seen")

    def __init__(self, issued: int) -> None:
        self.issued = issued
        self.highest = 0
        self.seen = 0

    def take(self, count: int) -> bool:
        """Note a count as used; false if it was, or is below the window."""
        ahead = count - self.highest
        if ahead > 0:
            self.seen = (self.seen << ahead & _BITS if ahead < WINDOW else 0) | 1
            self.highest = count
            return True
        bit = 1 << -ahead if -ahead < WINDOW else 0
        if self.seen & bit or not bit:
            return False
        self.seen |= bit
        return True
