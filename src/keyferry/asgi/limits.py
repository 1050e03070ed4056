# SPDX-License-Identifier: Apache-2.0
"""Failed logins per source address, in token buckets.

Nothing counts against a user, a key or an application: whoever fails on purpose slows down nobody but the address they come from.
And because many share an address behind a NAT or a proxy, an address without tokens is not shut out either. A right answer
is always admitted; a wrong one gets a bare 429 instead of a challenge; and only a few requests at a time are looked into.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from keyferry.errors import ConfigError

SOURCES = 65_536
"""Addresses remembered, about 300 octets each; one pushed out is forgiven."""
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
    """Requests with credentials, of one address over its limit, that are looked into at the same time."""
    sources: int = SOURCES
    """Addresses remembered."""

    def __post_init__(self) -> None:
        if self.burst < 1 or not 0 < self.per_second <= 1_000_000 or self.at_once < 1 or self.sources < 1:
            raise ConfigError("FailureLimits", "burst, at_once and sources are at least 1, per_second is above 0")


class Failures:
    """Count failures; `source` is an address."""

    def __init__(self, limits: FailureLimits) -> None:
        self._limits = limits
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._nobody = Bucket(0.0, 0.0)  # stands for every address that has not failed

    def enter(self, source: str, now: float) -> Bucket | None:
        """Begin to look into a request with credentials; None if too many of an address over its limit are looked into.

        `now` is monotonic. What is returned goes back to `leave`.
        """
        bucket = self._buckets.get(bucket_name(source)) if self._buckets else None
        if bucket is None:
            return self._nobody
        bucket.refill(now, self._limits)
        if bucket.tokens < 1.0 and bucket.busy >= self._limits.at_once:
            return None
        bucket.busy += 1
        return bucket

    def leave(self, bucket: Bucket) -> None:
        """Note that a request is no longer looked into."""
        bucket.busy -= 1

    def failed(self, source: str, now: float) -> tuple[bool, float]:
        """Take one token: return whether there was one, and else in how many seconds there will be."""
        limits, source = self._limits, bucket_name(source)
        bucket = self._buckets.get(source)
        if bucket is None:
            bucket = self._buckets[source] = Bucket(float(limits.burst), now)
            if len(self._buckets) > limits.sources:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(source)
        bucket.refill(now, limits)
        if bucket.tokens >= 1.0:
            bucket.tokens -= 1.0
            return True, 0.0
        return False, (1.0 - bucket.tokens) / limits.per_second


class Bucket:
    """What is left to one address."""

    __slots__ = ("busy", "tokens", "updated")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.updated = now
        self.busy = 0  # requests that are looked into

    def refill(self, now: float, limits: FailureLimits) -> None:
        """Add what the time since the last call is worth."""
        self.tokens = min(float(limits.burst), self.tokens + max(0.0, now - self.updated) * limits.per_second)
        self.updated = now


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
