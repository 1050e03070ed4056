# SPDX-License-Identifier: Apache-2.0
"""Failed logins per source address, in token buckets.

Nothing counts against a user, a key or an application: whoever fails on purpose slows down nobody but the address they come from.
And because many share an address behind a NAT or a proxy, an address without tokens is not shut out either. Only a few of its requests
are looked into at a time, the others wait their turn, and a right answer is always admitted. A neighbour whose key or session has
ended gets what a client needs to begin anew: the end of the cookie, and a challenge, a few times for each name that it claims. Then,
and for what no honest client sends, there is a bare 429.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyferry.errors import ConfigError

SOURCES = 65_536
"""Addresses remembered, about 300 octets each; one pushed out is forgiven."""
CHALLENGES = 4
"""Challenges at once to one name of an address over its limit: our client asks three times more for a key that may be on its way."""
NAMES = 8_192
"""Names of such addresses remembered, about 300 octets each; one pushed out is forgiven."""
UNKNOWN = "unknown"
"""Of whoever has no address: all of them share one bucket."""


@dataclass(frozen=True, slots=True)
class FailureLimits:
    """Settings: SimLogin(limits=FailureLimits(per_second=2))."""

    burst: int = 60
    """Failures at once: a phone with an old key fails a few times, a page of a browser with fifty pictures fifty times."""
    per_second: float = 1.0
    """Failures that an address may have for ever."""
    at_once: int = 4
    """Requests with credentials, of one address over its limit, that are looked into at the same time; the others wait."""
    sources: int = SOURCES
    """Addresses remembered."""

    def __post_init__(self) -> None:
        if self.burst < 1 or not 0 < self.per_second <= 1_000_000 or self.at_once < 1 or self.sources < 1:
            raise ConfigError("FailureLimits", "burst, at_once and sources are at least 1, per_second is above 0")


class Failures:
    """Count failures; `source` is an address."""

    def __init__(self, limits: FailureLimits) -> None:
        self._at_once = limits.at_once
        self._sources: _Buckets[str] = _Buckets(limits.burst, limits.per_second, limits.sources)
        self._names: _Buckets[tuple[str, int]] = _Buckets(CHALLENGES, limits.per_second, NAMES)

    def lane(self, source: str, now: float) -> Lane | None:
        """Return where requests of an address over its limit wait their turn, None if it is not over; `now` is monotonic."""
        if not self._sources.held:
            return None
        bucket = self._sources.held.get(bucket_name(source))
        if bucket is None or self._sources.refill(bucket, now) >= 1.0:
            return None
        if bucket.lane is None or not bucket.lane.used:
            bucket.lane = Lane(self._at_once)
        return bucket.lane

    def failed(self, source: str, now: float) -> tuple[bool, float]:
        """Take one token: return whether there was one, and else in how many seconds there will be."""
        return self._sources.take(bucket_name(source), now)

    def may_be_challenged(self, source: str, name: bytes, now: float) -> bool:
        """Tell whether a client that claims this name gets a challenge still though its address is over the limit.

        Whoever claims ever new names gets ever new challenges; that buys nothing, for they are free to who sends no credentials.
        """
        return self._names.take((bucket_name(source), hash(name)), now)[0]


class Lane:
    """The way in for requests of one address over its limit: a few at a time, in the order they came."""

    __slots__ = ("_turns", "used")

    def __init__(self, at_once: int) -> None:
        self._turns = asyncio.Semaphore(at_once)  # belongs to the event loop in which somebody first had to wait
        self.used = 0  # by requests that are looked into, or wait

    async def __aenter__(self) -> None:
        """Wait for a turn."""
        self.used += 1
        try:
            await self._turns.acquire()
        except BaseException:
            self.used -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        """End a turn."""
        self.used -= 1
        self._turns.release()


class _Bucket:
    """What is left to one address or name."""

    __slots__ = ("lane", "tokens", "updated")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.updated = now
        self.lane: Lane | None = None


_K = TypeVar("_K")


class _Buckets(Generic[_K]):
    """Token buckets, of which the one used longest ago goes first."""

    def __init__(self, burst: int, per_second: float, size: int) -> None:
        self._burst = float(burst)
        self._per_second = per_second
        self._size = size
        self.held: OrderedDict[_K, _Bucket] = OrderedDict()

    def take(self, key: _K, now: float) -> tuple[bool, float]:
        """Take one token: return whether there was one, and else in how many seconds there will be."""
        bucket = self.held.get(key)
        if bucket is None:
            bucket = self.held[key] = _Bucket(self._burst, now)
            if len(self.held) > self._size:
                self.held.popitem(last=False)
        self.held.move_to_end(key)
        if self.refill(bucket, now) >= 1.0:
            bucket.tokens -= 1.0
            return True, 0.0
        return False, (1.0 - bucket.tokens) / self._per_second

    def refill(self, bucket: _Bucket, now: float) -> float:
        """Add what the time since the last call is worth; return what there is."""
        bucket.tokens = min(self._burst, bucket.tokens + max(0.0, now - bucket.updated) * self._per_second)
        bucket.updated = now
        return bucket.tokens


def bucket_name(address: str) -> str:
    """Return whose failures count together: an IPv4 address, or the /64 of an IPv6 address, which one subscriber has whole."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return UNKNOWN
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
