# SPDX-License-Identifier: Apache-2.0
"""Temporary folders for state directories and SIMs: what a process that was killed left there goes at the next start."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def scratch(purpose: str, within: Path | None = None) -> Iterator[Path]:
    """Make a folder of this process's own, and remove it at the end; first remove those whose processes are gone.

    A process holds a lock on its folder for as long as it lives: the kernel takes that away even after kill -9.
    """
    prefix = f"keyferry-{purpose}-"
    place = within or Path(tempfile.gettempdir())
    for left in place.glob(f"{prefix}*"):
        with suppress(OSError):
            _remove_unused(left)
    folder, descriptor = _made(prefix, place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _made(prefix: str, place: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        with suppress(OSError):  # another one that starts may take it for left behind until it is locked
            descriptor = _opened(folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)


def _remove_unused(folder: Path) -> None:
    """Remove a folder that is ours, and that no process holds. Raises OSError."""
    descriptor = _opened(folder)
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
