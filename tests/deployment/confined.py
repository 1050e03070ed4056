# SPDX-License-Identifier: Apache-2.0
"""Run `keyferry …` as confined as its unit says: systemd's own lists of system calls, and no memory that is writable and executable.

    python confined.py UNIT COMMAND…

What cannot be confined here (no systemd-analyze, no list of system call numbers, another kernel) is left open: `able` says so.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

NUMBERS: Final = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, PR_GET_MDWE = 22, 38, 65, 66
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # BPF
ALLOW, EPERM = 0x7FFF0000, 0x00050001


def able() -> tuple[bool, bool]:
    """Tell whether system calls, and memory, can be confined on this machine."""
    if sys.platform != "linux":
        return False, False
    calls = NUMBERS.is_file() and shutil.which("systemd-analyze") is not None and os.uname().machine == "x86_64"
    return calls, ctypes.CDLL(None).prctl(PR_GET_MDWE, 0, 0, 0, 0) >= 0


def filters_of(unit: Path) -> list[str]:
    """Return the SystemCallFilter= lines of a unit."""
    return re.findall(r"^SystemCallFilter=(.*)$", unit.read_text("utf-8"), re.MULTILINE)


def allowed(lines: Sequence[str]) -> set[str]:
    """Return the names of the system calls that such lines allow (systemd.exec(5)): the first list allows, `~` takes away, in order."""
    found = _expanded("@default")
    for line in lines:
        for name in line.removeprefix("~").split():
            calls = _expanded(name)
            found = found - calls if line.startswith("~") else found | calls
    return found


def _expanded(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True, timeout=60
    )
    words = [line.strip() for line in shown.stdout.splitlines()[1:]]
    return {call for word in words if word and not word.startswith("#") for call in _expanded(word)}


def confine_calls(calls: set[str]) -> None:
    """Let this process, and what it becomes, make these system calls alone; others fail with EPERM."""
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", NUMBERS.read_text("ascii")))
    program = [(LOAD, 0, 0, 0)]
    for number in sorted(int(numbers[name]) for name in calls if name in numbers):
        program += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    program.append((RETURN, 0, 0, EPERM))
    octets = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(octets)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(described)), 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """Confine this process and become the command."""
    calls, memory = able()
    if calls:
        confine_calls(allowed(filters_of(Path(sys.argv[1]))))
    if memory:
        ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
