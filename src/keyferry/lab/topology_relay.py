# SPDX-License-Identifier: Apache-2.0
"""Links with delay and loss where the kernel has no netem: a process that carries packets between tunnel devices (Linux's TUN)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from keyferry.errors import TransportError
from keyferry.lab.topology import QUEUE
from keyferry.transports.clock import SystemRandom

TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
LARGEST: Final = 65_535
_OF_LOT: Final = 1 << 32


class RelayedLink(NamedTuple):
    """Two devices, and what happens to packets between them."""

    near: str
    far: str
    delay: float  # milliseconds
    loss: float  # per cent


@dataclass(slots=True)
class Direction:
    """One way of a link: takes packets, loses some, hands the others on when it is time, in their order."""

    delay: float  # seconds
    loss: float  # 0 to 1
    later: Callable[[float, Callable[[], None]], object]
    lot: Callable[[], int]  # 32 bits
    deliver: Callable[[bytes], None]
    under_way: int = 0

    def take(self, packet: bytes) -> None:
        """Take a packet."""
        if self.lot() < self.loss * _OF_LOT or self.under_way >= QUEUE:
            return
        self.under_way += 1
        self.later(self.delay, lambda: self._arrive(packet))

    def _arrive(self, packet: bytes) -> None:
        self.under_way -= 1
        self.deliver(packet)


def open_device(name: str) -> int:
    """Make a tunnel device that lives as long as the descriptor. Raises TransportError."""
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode("ascii"), IFF_TUN | IFF_NO_PI))
    except OSError as problem:
        raise TransportError("/dev/net/tun", f"makes no device: {problem.strerror}") from problem
    return descriptor


async def relay(links: Sequence[RelayedLink], ready: Callable[[], None]) -> None:
    """Carry packets until SIGTERM. Raises TransportError."""
    loop, ended, random = asyncio.get_running_loop(), asyncio.Event(), SystemRandom()
    loop.add_signal_handler(signal.SIGTERM, ended.set)

    def lot() -> int:
        return int.from_bytes(random.octets(4), "big")

    for link in links:
        near, far = open_device(link.near), open_device(link.far)
        for source, target in ((near, far), (far, near)):
            way = Direction(link.delay / 1000, link.loss / 100, loop.call_later, lot, _into(target))
            loop.add_reader(source, _read, source, way)
    ready()
    await ended.wait()


def _into(descriptor: int) -> Callable[[bytes], None]:
    def write(packet: bytes) -> None:
        with contextlib.suppress(OSError):  # a device that is down, or full, loses packets
            os.write(descriptor, packet)

    return write


def _read(descriptor: int, way: Direction) -> None:
    with contextlib.suppress(OSError):
        way.take(os.read(descriptor, LARGEST))


def main(links: str, told: str) -> None:
    """Run with the links as JSON, and the file that says that the devices are there."""

    def ready() -> None:
        Path(told).write_text('{"ready": true}\n', "utf-8")

    asyncio.run(relay([RelayedLink(*each) for each in json.loads(links)], ready))


if __name__ == "__main__":
    main(*sys.argv[1:])
