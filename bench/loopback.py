# SPDX-License-Identifier: Apache-2.0
"""Ports of the loopback, for tests and benchmarks that must name one before a server takes it."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket

# Under Linux's ephemeral ports: no port 0 of anybody takes one between the look and the use.
FIRST, LAST = 20_000, 32_000
_ports = itertools.cycle(range(FIRST, LAST))
for _ in range(os.getpid() * 101 % (LAST - FIRST)):  # who begins elsewhere seldom meets another
    next(_ports)
_claims: list[int] = []


def free_port() -> int:
    """Return a port that is free for UDP and TCP, and that no other process of this user has got here and may take any time."""
    for port in itertools.islice(_ports, LAST - FIRST):
        if _claimed(port) and _free(port):
            return port
    raise AssertionError("no port is free")


def _claimed(port: int) -> bool:
    """Lock an octet of a file until this process ends, whatever TMPDIR says."""
    if not _claims:
        name = f"/tmp/keyferry-ports-{os.getuid()}"  # noqa: S108 - opened as a file of our own, or not at all
        _claims.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        fcntl.lockf(_claims[0], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            udp.bind(("127.0.0.1", port))
            tcp.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
