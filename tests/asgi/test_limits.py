# SPDX-License-Identifier: Apache-2.0
"""Failures are counted per source, and against nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry.asgi.limits import UNKNOWN, FailureLimits, Failures, bucket_name
from keyferry.errors import ConfigError

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def test_a_burst_then_a_rate() -> None:
    failures = Failures(FailureLimits(burst=3, per_second=0.5))
    assert [failures.failed(A, 0.0)[0] for _ in range(4)] == [True, True, True, False]
    assert failures.failed(A, 0.5) == (False, 1.5)
    assert [failures.failed(A, 2.0)[0] for _ in range(2)] == [True, False]
    assert [failures.failed(A, 1000.0)[0] for _ in range(4)] == [True, True, True, False]
    assert failures.failed(B, 1000.0) == (True, 0.0)


def test_a_clock_that_stands_still_or_goes_back_gives_no_tokens() -> None:
    failures = Failures(FailureLimits(burst=1))
    assert failures.failed(A, 10.0)[0]
    assert not failures.failed(A, 5.0)[0]


def test_over_the_limit_a_few_at_a_time_are_looked_into() -> None:
    """So a right answer from behind the same NAT is still admitted."""
    failures = Failures(FailureLimits(burst=1, per_second=0.001, at_once=2))
    assert failures.enter(A, 0.0) is not None
    failures.failed(A, 0.0)
    first, second = failures.enter(A, 0.0), failures.enter(A, 0.0)
    assert first is not None
    assert second is not None
    assert failures.enter(A, 0.0) is None
    assert failures.enter(B, 0.0) is not None
    failures.leave(first)
    third = failures.enter(A, 0.0)
    assert third is not None
    failures.leave(second)
    failures.leave(third)
    assert failures.enter(A, 0.0) is not None


def test_under_the_limit_any_number_is() -> None:
    failures = Failures(FailureLimits(burst=2, at_once=1))
    failures.failed(A, 0.0)
    assert all(failures.enter(A, 0.0) for _ in range(10))


def test_the_table_is_bounded_and_forgives_the_oldest() -> None:
    failures = Failures(FailureLimits(burst=1, per_second=0.001, sources=2))
    for source in (A, B, A, C):
        failures.failed(source, 0.0)
    assert not failures.failed(A, 0.0)[0]
    assert failures.failed(B, 0.0)[0]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_a_subscriber_has_one_ipv4_address_or_a_whole_64(address: str, name: str) -> None:
    assert bucket_name(address) == name


@pytest.mark.parametrize("wrong", [{"burst": 0}, {"per_second": 0}, {"per_second": float("inf")}, {"at_once": 0}, {"sources": 0}])
def test_limits_that_let_nobody_in_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FailureLimits"):
        FailureLimits(**wrong)
