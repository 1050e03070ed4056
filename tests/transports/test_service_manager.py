# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3), sd_watchdog_enabled(3): what is sent, where, and that nobody need listen."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyferry.transports.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's socket and its address as NOTIFY_SOCKET has it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@keyferry-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        receiver.setblocking(False)
        yield address, receiver


def test_every_state_is_one_datagram(manager: tuple[str, socket.socket]) -> None:
    address, receiver = manager
    told = ServiceManager.of({"NOTIFY_SOCKET": address})
    for tell, word in ((told.ready, b"READY=1\n"), (told.alive, b"WATCHDOG=1"), (told.reloading, b"RELOADING=1\nMONOTONIC_USEC=")):
        tell()
        assert receiver.recv(200).startswith(word)
    told.stopping()
    assert receiver.recv(200).split(b"\n")[0] == b"STOPPING=1"


def test_without_a_manager_nothing_is_told() -> None:
    """Started from a shell, or by something else that has a variable of that name."""
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        told = ServiceManager.of(environment)
        assert (told.address, told.watchdog) == ("", 0.0)
        told.ready()


def test_a_manager_that_is_gone_ends_nobody(tmp_path: Path) -> None:
    ServiceManager.of({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready()


def test_the_watchdog_is_for_the_process_that_it_names() -> None:
    """WATCHDOG_PID may name the process that started us."""
    base = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"}
    assert ServiceManager.of(base).watchdog == 30.0
    assert ServiceManager.of({**base, "WATCHDOG_PID": str(os.getpid())}).watchdog == 30.0
    assert ServiceManager.of({**base, "WATCHDOG_PID": "1"}).watchdog == 0.0
    assert ServiceManager.of({**base, "WATCHDOG_USEC": "soon"}).watchdog == 0.0
