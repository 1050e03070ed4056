# SPDX-License-Identifier: Apache-2.0
"""Prometheus text: names, labels, buckets; and what an observation costs."""

from __future__ import annotations

import re
import timeit

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from keyferry.wiring.metrics import COUNTERS, GAUGES, HISTOGRAMS, Metrics

NAME = re.compile(r"[a-z]+(_[a-z]+)*")


def shown(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_a_histogram_counts_what_is_at_most_its_bound() -> None:
    """Prometheus: `le` is inclusive, buckets are cumulative, the last is +Inf."""
    metrics = Metrics()
    histogram = metrics.histogram("sip_register_seconds", "S-CSCF", "accepted")
    for seconds in (0.0005, 0.001, 0.3, 100.0):
        histogram.observe(seconds)
    families = {family.name: family for family in text_string_to_metric_families(shown(metrics))}
    samples = families["keyferry_sip_register_seconds"].samples
    buckets = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert {le: buckets[le] for le in ("0.001", "0.25", "0.5", "32.0", "+Inf")} == {"0.001": 2, "0.25": 2, "0.5": 3, "32.0": 3, "+Inf": 4}
    assert [sample.value for sample in samples if sample.name.endswith("_sum")] == [100.3015]
    assert histogram.count == 4


def test_the_same_labels_are_the_same_histogram_and_others_another() -> None:
    metrics = Metrics()
    assert metrics.histogram("cx_seconds", "MAR", "success") is metrics.histogram("cx_seconds", "MAR", "success")
    assert metrics.histogram("cx_seconds", "MAR", "success") is not metrics.histogram("cx_seconds", "SAR", "success")
    with pytest.raises(KeyError):
        metrics.histogram("not_declared")
    with pytest.raises(KeyError):
        metrics.set("not_declared", 1)


async def test_gauges_are_refreshed_when_they_are_asked_for() -> None:
    metrics = Metrics()
    number = 0

    async def refresh() -> None:
        nonlocal number
        number += 1
        metrics.set("registrations", number, "scscf1.home1.net")

    metrics.source(refresh)
    await metrics.refresh()
    await metrics.refresh()
    assert 'keyferry_registrations{scscf="scscf1.home1.net"} 2.0' in shown(metrics)
    metrics.clear("registrations")
    assert metrics.gauge("registrations", "scscf1.home1.net") is None


def test_everything_is_declared_once_and_readable() -> None:
    """A parser of Prometheus's own reads it, names and labels are words, and histograms end in their unit."""
    metrics = Metrics()
    for name, described in HISTOGRAMS.items():
        metrics.histogram(name, *("x" for _ in described.labels)).observe(0.1)
        assert name.endswith("_seconds")
        assert list(described.buckets) == sorted(set(described.buckets))
    for name, described in COUNTERS.items():
        metrics.counter(name, *("x" for _ in described.labels)).value += 1
    for name, described in GAUGES.items():
        metrics.set(name, 1, *("x" for _ in described.labels))
    metrics.count("door", "granted")
    families = {family.name: family for family in text_string_to_metric_families(shown(metrics))}
    for name, described in {**HISTOGRAMS, **COUNTERS, **GAUGES}.items():
        assert NAME.fullmatch(name)
        assert all(NAME.fullmatch(label) for label in described.labels)
        samples = families[f"keyferry_{name}"].samples
        assert samples
        assert {label for sample in samples for label in sample.labels} - {"le"} == set(described.labels)


def test_the_process_shows_its_own_use_of_the_machine() -> None:
    """prometheus-client's names, which every dashboard knows."""
    metrics = Metrics()
    metrics.of_process()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"):
        assert f"\n{name} " in shown(metrics)


def test_an_observation_costs_little() -> None:
    """It stands on the path of every request: 0.2 µs on an idle machine, and this bound leaves room for a busy one."""
    histogram = Metrics().histogram("door_check_seconds", "xcap.home1.net")
    best = min(timeit.repeat(lambda: histogram.observe(0.0001), number=1_000, repeat=20)) / 1_000
    assert best < 5e-6
