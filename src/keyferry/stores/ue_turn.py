# SPDX-License-Identifier: Apache-2.0
"""One procedure of a UE at a time, over all processes that share its state: a lock on a file beside it."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from keyferry.errors import StateError
from keyferry.protocol.identity import Impi

WAIT: Final = 40.0
"""Seconds to wait for whoever is at it: a REGISTER that nobody answers takes 32 (timer F, RFC 3261 §17.1.2.2)."""
POLL: Final = 0.05
"""Seconds between two looks: asking the kernel to wait would hold the event loop up, and Ctrl-C with it."""
_PID: Final = re.compile(rb"[0-9]{1,10}\n")


def turn_file(database: Path, impi: Impi) -> Path:
    """Return the lock's file; its name tells nothing of the IMPI, which may hold what no file name can."""
    return database.with_name(f"ue-{hashlib.sha256(impi.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.lock")


@asynccontextmanager
async def ue_turn(
    file: Path, impi: Impi, *, wait: float = WAIT, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> AsyncIterator[None]:
    """Hold the lock; it ends with the process, however that ends, and the file stays.

    Raises StateError that names the process which holds it for longer than `wait` seconds, or says why the file cannot be used.
    """
    descriptor = _opened(file)
    try:
        waited = 0.0
        while not _taken(file, descriptor):
            if waited >= wait:
                raise StateError(
                    str(file), f"{_holder(descriptor)} has been registering or de-registering {impi} for more than {wait:g} s",
                    "Let it end, or end it: the lock goes with the process",
                )  # fmt: skip
            await sleep(POLL)
            waited += POLL
        _sign(file, descriptor)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to a child that was forked meanwhile
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as problem:
        raise _unusable(file, problem) from problem


def _taken(file: Path, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        raise _unusable(file, problem) from problem
    return True


def _sign(file: Path, descriptor: int) -> None:
    """Write who holds it, for those who wait in vain."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    except OSError as problem:
        raise _unusable(file, problem) from problem


def _holder(descriptor: int) -> str:
    text = os.pread(descriptor, 16, 0)
    if not _PID.fullmatch(text):
        return "another process"
    pid = int(text)
    return "another Ue of this process" if pid == os.getpid() else f"process {pid}"


def _unusable(file: Path, problem: OSError) -> StateError:
    return StateError(str(file), f"cannot be used: {problem.strerror}", "Check its owner, its mode and the disk")
