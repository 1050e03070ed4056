# SPDX-License-Identifier: Apache-2.0
"""What a link of ours does to packets, under a clock of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from keyferry.errors import TransportError
from keyferry.lab.topology import QUEUE
from keyferry.lab.topology_relay import Direction, open_device


@dataclass
class Clock:
    """Keep what is to happen, and let it."""

    waiting: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        self.waiting.append((seconds, work))

    def run(self) -> None:
        for _, work in self.waiting:
            work()
        self.waiting.clear()


def test_a_packet_arrives_after_the_delay_and_in_order() -> None:
    clock, got = Clock(), list[bytes]()
    way = Direction(0.025, 0.0, clock.later, lambda: 0, got.append)
    for packet in (b"1", b"2", b"3"):
        way.take(packet)
    assert got == []
    assert [seconds for seconds, _ in clock.waiting] == [0.025] * 3
    clock.run()
    assert got == [b"1", b"2", b"3"]
    assert way.under_way == 0


@pytest.mark.parametrize(("loss", "lost"), [(0.0, 0), (0.01, 10), (0.5, 500)])
def test_so_many_packets_are_lost(loss: float, lost: int) -> None:
    """Of a thousand lots that are spread evenly."""
    clock, got = Clock(), list[bytes]()
    lots = iter(range(0, 1 << 32, (1 << 32) // 1000 + 1))
    way = Direction(0.0, loss, clock.later, lambda: next(lots), got.append)
    for _ in range(1000):
        way.take(b"x")
    clock.run()
    assert len(got) == 1000 - lost


def test_a_link_holds_so_many_packets_and_goes_on_when_they_have_arrived() -> None:
    clock, got = Clock(), list[bytes]()
    way = Direction(1.0, 0.0, clock.later, lambda: 0, got.append)
    for _ in range(QUEUE + 5):
        way.take(b"x")
    clock.run()
    assert len(got) == QUEUE
    way.take(b"y")
    clock.run()
    assert got[-1] == b"y"


def test_a_device_that_cannot_be_made_is_said() -> None:
    """A name of 16 octets is none, whoever asks; and who is not root may make none."""
    with pytest.raises((TransportError, UnicodeEncodeError)):
        open_device("not/a/device/name")
