# SPDX-License-Identifier: Apache-2.0
"""systemd.exec(5) SystemCallFilter, MemoryDenyWriteExecute: the tests' own confinement confines, or the tests in it would show nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deployment import confined
from deployment.units import PACKAGING
from interop.ipseckit import skipped

TRY = """
import ctypes, errno, mmap, os
for name, attempt in (("chroot", lambda: os.chroot("/")), ("chown", lambda: os.chown("/dev/null/x", -1, -1)),
                      ("memory", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC))):
    try:
        attempt()
        print(name, "allowed")
    except OSError as problem:
        print(name, errno.errorcode[problem.errno])
"""


@pytest.mark.parametrize(("unit", "chown"), [("keyferry.service", "EPERM"), ("keyferry-agent.service", "ENOTDIR")])
def test_what_a_unit_forbids_is_forbidden(unit: str, chown: str) -> None:
    """The agent may give its socket to a group, serve may not; neither may leave its root or write code into memory."""
    if confined.able() != (True, True):
        skipped("needs systemd-analyze, the kernel's headers (linux-libc-dev) and Linux 6.3 on x86-64")
    command = [sys.executable, confined.__file__, str(PACKAGING / "systemd" / unit), "-c", TRY]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["chroot EPERM", f"chown {chown}", "memory EACCES"]
