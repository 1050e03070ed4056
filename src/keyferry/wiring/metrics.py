# SPDX-License-Identifier: Apache-2.0
"""What Prometheus scrapes: counters, histograms and gauges with fixed names and label sets, of which no value is an identity or a key."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

Labels: TypeAlias = tuple[str, ...]

ANSWERS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 4.0, 32.0)
"""Seconds: 0.25 is `push_wait`, 0.5 T1, after which UDP sends again, 4 T2, 32 Timer F, after which SIP gives up."""
CHECKS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.025, 0.1, 0.5, 2.0)
"""Seconds: a check takes 50 µs where the key is in memory, and 2 s are what a key agent may take."""
REQUESTS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds."""


class Described(NamedTuple):
    """A metric's help text and labels; a histogram has buckets, a counter with labels of its own has none and is no gauge."""

    help: str
    labels: Labels
    buckets: tuple[float, ...] = ()


HISTOGRAMS: Final[Mapping[str, Described]] = {
    "sip_register_seconds": Described("time to the answer of a REGISTER at a function", ("function", "outcome"), ANSWERS),
    "cx_seconds": Described("time to the answer of the HSS", ("command", "outcome"), ANSWERS),
    "isc_push_seconds": Described("time to the AS's answer to one attempt at a third-party REGISTER", ("server", "outcome"), ANSWERS),
    "door_check_seconds": Described("time that a door took to admit an HTTP request", ("as_id",), CHECKS),
    "http_request_seconds": Described("time to the first octet of an answer at a door", ("as_id", "class"), REQUESTS),
}
COUNTERS: Final[Mapping[str, Described]] = {
    "http_responses": Described("answers at a door by the mechanism that proved the key", ("as_id", "mechanism", "class")),
}
GAUGES: Final[Mapping[str, Described]] = {
    "build_info": Described("1; the version of keyferry", ("version",)),
    "ready": Described("1 while /ready says 200", ()),
    "registrations": Described("devices registered at an S-CSCF", ("scscf",)),
    "isc_pushes_pending": Described("third-party REGISTERs that an AS has not answered yet", ("server",)),
    "isc_pushes_refused": Described("third-party REGISTERs that are owed still and were refused for good", ("server",)),
    "isc_server_up": Described("1 while an AS answers third-party REGISTERs", ("server",)),
    "as_keys": Described("keys that are valid at an AS", ("as_id",)),
    "as_oldest_key_seconds": Described("seconds since the AKA run of the oldest valid key", ("as_id",)),
    "as_youngest_key_seconds": Described("seconds since the AKA run of the youngest valid key", ("as_id",)),
    "ipsec_rules_loaded": Described("1 while the kernel has the drop rules of a side with the policy ipsec, 0 while it has not", ("name",)),
    "sip_requests_in_progress": Described("SIP requests that wait for their answer at a function", ("function",)),
    "sip_connections": Described("TCP and TLS connections of a function", ("function",)),
    "sip_shedding": Described("1 while a function refuses first REGISTERs because of its load", ("function",)),
    "certificate_not_after_seconds": Described("end of a certificate, seconds since the epoch", ("name", "role")),
}

ALARMED: Final[Mapping[str, tuple[str, ...]]] = {
    "agent_failed": ("store", "internal-error"),
    "as_pushes_refused": (
        "pusher", "peer", "as", "kid", "seal", "plain", "expires", "impu", "realm", "key-id", "rebound", "lifetime",
        "unprotected", "unreadable",
    ),
    "diameter_peer": ("suspect", "timeout", "unreachable", "watchdog"),
    "door": ("store",),
    "hss_auts_rejected": ("",),
    "scscf_capability_lost": ("",),
    "scscf_push_failed": ("unprotected",),
    "sip_untrusted": ("",),
}  # fmt: skip
"""Counters of which one alone is an alarm, with their reasons: shown at zero from the start, as Prometheus sees no increase in a series
that begins with 1."""


@dataclass(slots=True)
class Histogram:
    """Observations of one set of label values. Observing is for the loop's thread alone, and costs some 0.2 µs."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


@dataclass(slots=True)
class Count:
    """A counter of one set of label values."""

    value: int = 0


class Metrics:
    """Count by name and reason, observe, and show; names, reasons and label values are words of code or configuration, so they are bounded.

    Counting is for the loop's thread alone, and cheap: Prometheus sees the numbers when it asks.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._counts: dict[tuple[str, str], int] = {}
        for name, reasons in ALARMED.items():
            self.expect(name, reasons)
        self._labelled: dict[str, dict[Labels, Count]] = {name: {} for name in COUNTERS}
        self._histograms: dict[str, dict[Labels, Histogram]] = {name: {} for name in HISTOGRAMS}
        self._gauges: dict[str, dict[Labels, float]] = {name: {} for name in GAUGES}
        self._sources: list[Callable[[], Awaitable[None]]] = []
        self.set("build_info", 1, _version())

    def of_process(self) -> None:
        """Show this process's CPU time, memory, descriptors and start, too, under their usual names."""
        ProcessCollector(registry=self.registry)

    # ---- counters

    def count(self, name: str, reason: str = "") -> None:
        """Add one."""
        self._counts[name, reason] = self._counts.get((name, reason), 0) + 1

    def expect(self, name: str, reasons: Iterable[str]) -> None:
        """Show these at zero from now on."""
        for reason in reasons:
            self._counts.setdefault((name, reason), 0)

    def counter(self, name: str, *labels: str) -> Count:
        """Return the counter of COUNTERS with these label values, which whoever counts keeps."""
        return self._labelled[name].setdefault(labels, Count())

    def value(self, name: str, reason: str = "") -> float:
        """Return a count."""
        return float(self._counts.get((name, reason), 0))

    # ---- histograms

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return the histogram of these label values, which whoever observes keeps."""
        children, described = self._histograms[name], HISTOGRAMS[name]
        if labels not in children:
            children[labels] = Histogram(described.buckets, [0] * (len(described.buckets) + 1))
        return children[labels]

    # ---- gauges

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge of GAUGES."""
        self._gauges[name][labels] = float(value)

    def clear(self, name: str) -> None:
        """Forget what a gauge showed, under whatever labels."""
        self._gauges[name].clear()

    def gauge(self, name: str, *labels: str) -> float | None:
        """Return what a gauge shows."""
        return self._gauges[name].get(labels)

    def source(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Call this before every scrape: it sets gauges."""
        self._sources.append(refresh)

    async def refresh(self) -> None:
        """Bring the gauges up to date."""
        for source in self._sources:
            await source()

    # ---- what the registry asks for

    def collect(self) -> Iterable[Metric]:
        """Yield one family a name."""
        yield from self._counters()
        for name, described in HISTOGRAMS.items():
            family = HistogramMetricFamily(f"keyferry_{name}", described.help, labels=described.labels)
            for labels, histogram in self._histograms[name].items():
                family.add_metric(labels, _cumulative(histogram), histogram.total)
            yield family
        for name, described in GAUGES.items():
            gauges = GaugeMetricFamily(f"keyferry_{name}", described.help, labels=described.labels)
            for labels, value in self._gauges[name].items():
                gauges.add_metric(labels, value)
            yield gauges

    def _counters(self) -> Iterator[CounterMetricFamily]:
        families: dict[str, CounterMetricFamily] = {}
        for (name, reason), count in sorted(self._counts.items()):
            if name not in families:
                families[name] = CounterMetricFamily(f"keyferry_{name}", name.replace("_", " "), labels=["reason"])
            families[name].add_metric([reason], count)
        yield from families.values()
        for name, described in COUNTERS.items():
            family = CounterMetricFamily(f"keyferry_{name}", described.help, labels=described.labels)
            for labels, counter in self._labelled[name].items():
                family.add_metric(labels, counter.value)
            yield family


def _version() -> str:
    try:
        return version("keyferry")
    except PackageNotFoundError:  # a tree that is run where it lies
        return "unknown"


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for bound, count in zip((*map(repr, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets
