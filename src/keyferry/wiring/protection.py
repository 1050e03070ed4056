# SPDX-License-Identifier: Apache-2.0
"""What keeps keys in the process: no core file, no reading of its memory by others of its user; and the KEK kept elsewhere."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from keyferry.errors import StateError
from keyferry.stores.state_dir import StateDir, open_state
from keyferry.transports.clock import SystemRandom

PR_SET_DUMPABLE: Final = 4
KEK_VARIABLE: Final = "KEYFERRY_KEK_FILE"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
CREDENTIAL: Final = "kek"
"""The name of the service manager's credential (systemd.exec(5), LoadCredential=)."""


def keep_memory_private() -> bool:
    """Let no core file be written and no other process of this user look into our memory; return whether the kernel does both.

    RLIMIT_CORE alone does not stop a kernel that pipes cores to a program (core(5)); a process that is not dumpable has none at all,
    and is closed to ptrace and to /proc/PID/mem except for root.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return False
    try:
        import ctypes  # here: its import wants memory that is writable and executable, which a hardened service may not have

        return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    except (ImportError, MemoryError, OSError, AttributeError):
        return False


def kek_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return where the KEK is kept if not in the state directory: the file that is named, or the service manager's credential.

    Raises StateError where a file is named that is not there: a new KEK in its place would open nothing.
    """
    named = environment.get(KEK_VARIABLE, "")
    if named:
        if not Path(named).is_file():
            raise StateError(named, f"is what {KEK_VARIABLE} names, and is no file", "Correct the variable, or restore the file")
        return Path(named)
    folder = environment.get(CREDENTIALS_VARIABLE, "")
    credential = Path(folder) / CREDENTIAL
    return credential if folder and credential.is_file() else None


def opened_state(path: Path, *, exclusive: bool = False, lock_name: str = "lock") -> StateDir:
    """Open a state directory with the KEK wherever it is kept. Raises StateError."""
    return open_state(path, random=SystemRandom(), exclusive=exclusive, lock_name=lock_name, kek_file=kek_file())


def existing_state(path: Path, *, exclusive: bool = False) -> StateDir:
    """Open a state directory that is there, and make none: a mistyped name must not look like an empty one. Raises StateError."""
    try:
        there = any((path / name).exists() for name in ("version", "ca.pem", "pki"))  # the last two may have been carried here
    except OSError:
        there = True  # and `opened_state` says what is wrong with it
    if not there:
        remedy = "Run `keyferry serve` or `keyferry subscriber add` first, or name the right one with --state"
        raise StateError(str(path), "is no state directory, so nothing is in it", remedy)
    return opened_state(path, exclusive=exclusive)
