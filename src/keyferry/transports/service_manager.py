# SPDX-License-Identifier: Apache-2.0
"""Tell a service manager how we are: the protocol of sd_notify(3), one datagram to a UNIX socket for each state."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class ServiceManager:
    """Tell the manager that started us, if one did; that it does not listen is nothing to us."""

    address: str = ""  # NOTIFY_SOCKET: a path, or an abstract name behind "@"; "" there is no manager
    watchdog: float = 0.0  # seconds after which the manager takes us for dead; 0: it does not

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ServiceManager:
        """Return the manager that an environment names."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return cls()
        meant = environment.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        microseconds = environment.get("WATCHDOG_USEC", "")
        watchdog = int(microseconds) / 1e6 if meant and microseconds.isascii() and microseconds.isdigit() else 0.0
        return cls(address, watchdog)

    def ready(self) -> None:
        """Say that everything listens, or does again."""
        self._tell("READY=1\nSTATUS=serving")

    def reloading(self) -> None:
        """Say that certificates and the configuration are read again; `ready` ends that."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that we end."""
        self._tell("STOPPING=1\nSTATUS=stopping")

    def alive(self) -> None:
        """Say that the event loop turns."""
        self._tell("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        if not self.address:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.setblocking(False)
                sender.sendto(state.encode("ascii"), address)
            except OSError:
                return  # a manager that is gone, or does not read
