# SPDX-License-Identifier: Apache-2.0
"""bench/loopback.py gives a port to one process only, however long that one takes to use it."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys

import pytest

import loopback
from bench.benchrun import BENCH
from loopback import FIRST, LAST, free_port

ASK = "import itertools, loopback\nloopback._ports = itertools.cycle(range({first}, {last}))\nprint(loopback.free_port())\n"


def elsewhere(first: int, last: int) -> int:
    """Let another process look for a port from there on."""
    done = subprocess.run([sys.executable, "-c", ASK.format(first=first, last=last)], cwd=BENCH, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_port_that_one_process_has_got_no_other_gets() -> None:
    """Two of pytest-xdist's workers took the same one: free for both when they looked."""
    port = free_port()
    assert port != elsewhere(port, LAST)


def test_no_port_is_given_that_somebody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        port = free_port()
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", port))
            monkeypatch.setattr(loopback, "_ports", itertools.cycle(range(port, LAST)))
            assert free_port() > port


def test_it_begins_anew_at_the_end_and_never_leaves_its_range() -> None:
    """A worker whose process id was high went on among the ephemeral ports, where any port 0 may be met."""
    assert LAST <= 32_768
    found = {free_port() for _ in range(50)}
    assert len(found) == 50
    assert all(FIRST <= port < LAST for port in found)
    first = free_port()
    loopback_ports = itertools.islice(loopback._ports, LAST - FIRST)
    assert set(loopback_ports) == set(range(FIRST, LAST))
    assert free_port() > first
