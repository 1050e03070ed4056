# SPDX-License-Identifier: Apache-2.0
"""Nonces of the door and the counts used with them (RFC 7616 §3.3, §3.4, §5.4; DESIGN §7)."""

from __future__ import annotations

import base64
from collections import OrderedDict
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from keyferry.errors import DigestRejected
from keyferry.protocol.door_nonce import CHANCE as CHANCE
from keyferry.protocol.door_nonce import build_nonce, parse_nonce

if TYPE_CHECKING:
    from keyferry.protocol.crypto.secret import Secret

WINDOW = 64
"""Counts up to the highest that may still arrive: an HTTP client has fewer requests than that on the way at once."""
KEYS = 65_536
"""Keys whose counts are remembered, about 700 octets each. One pushed out costs its user one 401 with stale=true."""
NONCES_PER_KEY = 1_024
"""Nonces remembered per key: a client that begins with many requests at once has one for each. A user pushes out only their own."""
WINDOWS_PER_KEY = 128
"""Of them, with more than the first count: one for each connection of a client that keeps a nonce a connection."""
ALL_NONCES = 500_000
"""Nonces remembered of all keys: 150 octets for one that was used once, 400 with more counts. The keys not used for longest go first."""
SAVED = 500_000
"""Nonces that `save` keeps, 50 MB; those of the keys that were not used for longest are then refused as stale."""

_BITS = (1 << WINDOW) - 1
_STAMP = 7 + CHANCE  # octets
_STAMP_TEXT = 20  # characters of base64 that hold them


class SavedWindow(NamedTuple):
    """The counts used with one nonce."""

    nonce: str
    issued: int  # microseconds of the monotonic clock
    highest: int
    seen: int  # a bit for each of WINDOW counts up to the highest, that first


class SavedCounts(NamedTuple):
    """The nonces one key used."""

    key_id: str
    floor: int
    windows: tuple[SavedWindow, ...]
    once: tuple[bytes, ...] = ()  # stamps of nonces of which only the first count was used
    spent: tuple[bytes, ...] = ()  # and of those of which no count is taken any more


class SavedNonces(NamedTuple):
    """All that `Nonces` remembers; it goes with the nonce key and the machine's boot, which give the times their meaning."""

    floor: int
    counts: tuple[SavedCounts, ...]  # of the key first that was not used for longest


class Nonces:
    """Issue nonces without remembering them; remember, bounded, the counts of those that a right response used.

    A nonce is base64url(time, random, HMAC(key, time, random, scope)): one of another door, or forged, has no right
    HMAC. A count is taken once: `claim` decides and notes in one step, without an await between.
    What was forgotten to stay within bounds is refused as stale, never taken again.
    """

    def __init__(
        self, *, key: Secret, scope: str, lifetime: float, keys: int = KEYS, per_key: int = NONCES_PER_KEY,
        windows: int = WINDOWS_PER_KEY, all_nonces: int = ALL_NONCES,
    ) -> None:  # fmt: skip
        """Take the door's nonce key, what else the HMAC binds, the life of a nonce in seconds, and the bounds."""
        self._key = key
        self._scope = scope.encode("utf-8")
        self._lifetime = int(lifetime * 1e6)
        self._keys = keys
        self._per_key = per_key
        self._windows = windows
        self._room = all_nonces
        self._used: OrderedDict[str, _Counts] = OrderedDict()
        self._floor = -1  # nothing issued up to this time is taken from a key that has no entry

    def issue(self, now: float, chance: bytes) -> str:
        """Return a new nonce; `now` in monotonic seconds, `chance` 7 random octets."""
        return build_nonce(self._key, self._scope, now, chance)

    def claim(self, nonce: str, key_id: str, count: int, now: float) -> bool:
        """Take `count` of `nonce` for a key whose response is right; true if the nonce is in the second half of its life.

        Any count above the highest is taken, whatever the gap; below, each of WINDOW once.
        Raises DigestRejected, always stale: the client holds the key and may repeat the request with a new nonce.
        """
        counts = self._used.get(key_id)
        window = counts.windows.get(nonce) if counts else None
        issued = window.issued if window else parse_nonce(self._key, self._scope, nonce)
        age = int(now * 1e6) - issued
        if not 0 <= age <= self._lifetime:
            raise DigestRejected("the nonce is too old", stale=True)
        if window is None:
            self._take_first(nonce, issued, key_id, count)
        elif not window.take(count):
            raise DigestRejected("this count of the nonce was used before", stale=True)
        self._used.move_to_end(key_id)
        return 2 * age > self._lifetime

    def _take_first(self, nonce: str, issued: int, key_id: str, count: int) -> None:
        """Take a count of a nonce that has no window; that it was used and forgotten must be excluded. Raises DigestRejected."""
        stamp, counts = stamp_of(nonce), self._used.get(key_id)
        if counts is not None and stamp in counts.once:
            if count == 1:
                raise DigestRejected("this count of the nonce was used before", stale=True)
            counts.once.remove(stamp)
            counts.open(nonce, issued, self._windows).take(1)
            counts.windows[nonce].take(count)
            return
        if issued <= (self._floor if counts is None else counts.floor) or (counts is not None and stamp in counts.spent):
            raise DigestRejected("the nonce may have been used before", stale=True)
        if counts is None:
            counts = self._used[key_id] = _Counts(self._floor)
        before = len(counts)
        if count == 1:
            counts.once.add(stamp)
        else:
            counts.open(nonce, issued, self._windows).take(count)
        if len(counts) > self._per_key:
            counts.forget(self._per_key)
        self._room += before - len(counts)
        self._used.move_to_end(key_id)
        self._make_room()

    def _make_room(self) -> None:
        """Forget the keys that were not used for longest, but not the one that was used now."""
        while len(self._used) > 1 and (self._room < 0 or len(self._used) > self._keys):
            _, forgotten = self._used.popitem(last=False)
            self._room += len(forgotten)
            self._floor = max(self._floor, forgotten.latest())

    def save(self, *, limit: int = SAVED) -> SavedNonces:
        """Return what is remembered, of at most `limit` nonces: another `Nonces` with the same key and scope goes on from it."""
        room = sum(total <= limit for total in accumulate(len(counts) for counts in reversed(self._used.values())))
        left_out = list(self._used.values())[: len(self._used) - room]
        floor = max([self._floor, *(counts.latest() for counts in left_out)])
        kept = list(self._used.items())[len(left_out) :]
        return SavedNonces(floor, tuple([counts.save(key_id) for key_id, counts in kept]))

    def restore(self, saved: SavedNonces) -> None:
        """Go on from what was saved; for one that has taken nothing yet."""
        self._floor = saved.floor
        self._used = OrderedDict((counts.key_id, _Counts.restored(counts)) for counts in saved.counts)
        self._room -= sum(map(len, self._used.values()))
        self._make_room()


def stamp_of(nonce: str) -> bytes:
    """Return what tells a nonce of this door from all others: its time, that first, and its random octets."""
    return base64.urlsafe_b64decode(nonce[:_STAMP_TEXT])[:_STAMP]


class _Counts:
    """The nonces one key used."""

    __slots__ = ("floor", "once", "spent", "windows")

    def __init__(self, floor: int) -> None:
        self.floor = floor  # nothing issued up to this time and not in what follows is taken
        self.windows: dict[str, _Window] = {}
        self.once: set[bytes] = set()  # stamps of nonces of which only the first count was used: most of a burst stay so
        self.spent: set[bytes] = set()  # whose windows made room: kept, so that no nonce which is older, and unused, grows stale

    def __len__(self) -> int:
        return len(self.windows) + len(self.once) + len(self.spent)

    def open(self, nonce: str, issued: int, limit: int) -> _Window:
        """Begin to count a nonce; of too many the one that began first is spent."""
        if len(self.windows) >= limit:
            oldest = next(iter(self.windows))
            del self.windows[oldest]
            self.spent.add(stamp_of(oldest))
        window = self.windows[nonce] = _Window(issued)
        return window

    def forget(self, limit: int) -> None:
        """Forget the oldest fourth of `limit`, so that this is seldom; what was issued before the last of them grows stale."""
        oldest = sorted((*self.once, *self.spent))[: max(1, limit // 4)]
        self.once.difference_update(oldest)
        self.spent.difference_update(oldest)
        if oldest:
            self.floor = max(self.floor, _issued(oldest[-1]))

    def latest(self) -> int:
        """Return the time of issue of the youngest nonce this key may have used."""
        stamps = [_issued(max(stamps)) for stamps in (self.once, self.spent) if stamps]
        return max([self.floor, *stamps, *(window.issued for window in self.windows.values())])

    def save(self, key_id: str) -> SavedCounts:
        windows = [SavedWindow(nonce, window.issued, window.highest, window.seen) for nonce, window in self.windows.items()]
        return SavedCounts(key_id, self.floor, tuple(windows), tuple(sorted(self.once)), tuple(sorted(self.spent)))

    @classmethod
    def restored(cls, saved: SavedCounts) -> _Counts:
        counts = cls(saved.floor)
        for nonce, issued, highest, seen in saved.windows:
            window = counts.windows[nonce] = _Window(issued)
            window.highest, window.seen = highest, seen
        counts.once, counts.spent = set(saved.once), set(saved.spent)
        return counts


def _issued(stamp: bytes) -> int:
    return int.from_bytes(stamp[:-CHANCE], "big")


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
