# SPDX-License-Identifier: Apache-2.0
"""dumpcap on the loopback interface while a test does something."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from interop.peers import program

LIMIT = 30.0  # seconds


@contextmanager
def capturing(file: Path, which: str) -> Iterator[Path]:
    """Capture packets of the loopback interface that a filter of pcap selects, or skip without the right to."""
    program("tshark")
    command = [program("dumpcap"), "-i", "lo", "-f", which, "-q", "-w", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = _until_file(process)
        try:
            if "File:" not in said:
                process.wait(LIMIT)
                pytest.skip(f"no right to capture on lo; be root, or: dpkg-reconfigure wireshark-common ({said.strip()[:200]})")
            yield file
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(LIMIT)


def _until_file(process: subprocess.Popen[bytes]) -> str:
    """Return what dumpcap says until it captures, or ends."""
    assert process.stderr is not None
    said, deadline = b"", time.monotonic() + LIMIT
    while b"File:" not in said and time.monotonic() < deadline:
        readable, _, _ = select.select([process.stderr], [], [], 0.5)
        if readable:
            data = os.read(process.stderr.fileno(), 4096)
            if not data:
                break
            said += data
    return said.decode("utf-8", "replace")
