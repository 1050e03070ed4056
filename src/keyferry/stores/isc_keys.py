# SPDX-License-Identifier: Apache-2.0
"""Transport keys of the ISC seal that change while everything runs: two kids live, the newer seals, the older goes (DESIGN §6)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from keyferry.errors import StateError
from keyferry.ports import Clock, Log
from keyferry.protocol.crypto.secret import Secret
from keyferry.stores.isc_export import Exported, write_export
from keyferry.stores.state_dir import TRANSPORT_KEY_OCTETS, StateDir

LOOK: Final = 1.0
"""Seconds between two looks whether the file has changed; a look costs 2 µs."""
RETIRE_AFTER: Final = 60.0
"""Seconds that both keys live at least: a push is retransmitted for 32 s under the key it was sealed with, and LOOK."""
_KID: Final = "t"


class IscPair(NamedTuple):
    """An S-CSCF, an AS, and the kids of their transport keys, the one that seals last."""

    scscf: str
    as_id: str
    kids: tuple[str, ...]


def pairs(state: StateDir, scscf: str | None = None, as_id: str | None = None) -> list[IscPair]:
    """Return every S-CSCF and AS that share transport keys here, or those of the names given. Raises StateError if there are none."""
    found = [
        IscPair(one, other, tuple(state.isc_keys(one, other)))
        for one, other in state.isc_pairs()
        if scscf in (None, one) and as_id in (None, other)
    ]
    if not found:
        raise StateError(
            str(state.root / "isc"), "holds no such transport key", "It is made when `keyferry serve` starts for the first time"
        )
    return found


def rotate_isc(state: StateDir, scscf: str | None = None, as_id: str | None = None) -> list[IscPair]:
    """Add a new key to each pair; it seals from now on, and the older one still opens. Raises StateError: two keys live already."""
    with _alone(state):
        chosen = pairs(state, scscf, as_id)
        for pair in chosen:
            if len(pair.kids) > 1:
                remedy = "Retire the older one first: keyferry keys rotate-isc --retire"
                raise StateError(f"{pair.scscf} and {pair.as_id}", "have two transport keys already", remedy)
        for pair in chosen:
            keys = state.isc_keys(pair.scscf, pair.as_id)
            keys[_next(pair.kids)] = Secret(state.random.octets(TRANSPORT_KEY_OCTETS))
            state.write_isc_keys(pair.scscf, pair.as_id, keys)
        return pairs(state, scscf, as_id)


def retire_isc(state: StateDir, now: float, scscf: str | None = None, as_id: str | None = None) -> list[IscPair]:
    """Drop all but the newest key of each pair. Raises StateError while pushes under an older one may be on their way."""
    with _alone(state):
        chosen = pairs(state, scscf, as_id)
        for pair in chosen:
            age = now - state.isc_file(pair.scscf, pair.as_id).stat().st_mtime
            if len(pair.kids) > 1 and age < RETIRE_AFTER:
                problem = f"share a new transport key for {max(age, 0):.0f} s; a push under the older one may be on its way"
                raise StateError(f"{pair.scscf} and {pair.as_id}", problem, f"Wait {RETIRE_AFTER - max(age, 0):.0f} s")
        for pair in chosen:
            if len(pair.kids) > 1:
                keys = state.isc_keys(pair.scscf, pair.as_id)
                state.write_isc_keys(pair.scscf, pair.as_id, {pair.kids[-1]: keys[pair.kids[-1]]})
        return pairs(state, scscf, as_id)


def export_isc(state: StateDir, file: Path, scscf: str | None = None, as_id: str | None = None) -> list[IscPair]:
    """Write the keys of each pair, or of the names given, to a new file of mode 0600, in clear; a pair that is named whole is made.

    Raises StateError.
    """
    with _alone(state):
        if scscf is not None and as_id is not None:
            state.isc_keys(scscf, as_id)
        chosen = pairs(state, scscf, as_id)
        write_export(file, {(pair.scscf, pair.as_id): state.isc_keys(pair.scscf, pair.as_id) for pair in chosen})
    return chosen


def import_isc(state: StateDir, found: Exported) -> list[IscPair]:
    """Replace the keys of each pair that an exported file names; whoever runs over this state sees it within LOOK. Raises StateError."""
    with _alone(state):
        for (scscf, as_id), keys in found.items():
            state.write_isc_keys(scscf, as_id, keys)
    return [IscPair(scscf, as_id, tuple(keys)) for (scscf, as_id), keys in found.items()]


@dataclass(slots=True)
class LiveIscKeys:
    """The transport keys of one pair as they are now; what cannot be read any more is kept as it was."""

    state: StateDir
    scscf: str
    as_id: str
    clock: Clock
    log: Log
    _keys: dict[str, Secret] = field(init=False)
    _stamp: tuple[int, ...] = field(init=False)  # of the file as it was read last
    _spoilt: tuple[int, ...] | None = None  # of the file as it was when the log was told that it cannot be read
    _looked_at: float = field(init=False)

    def __post_init__(self) -> None:
        """Read them, or make the first. Raises StateError."""
        self._keys = self.state.isc_keys(self.scscf, self.as_id)
        self._stamp = self._stamp_now()
        self._looked_at = self.clock.monotonic()

    def current(self, *, at_once: bool = False) -> dict[str, Secret]:
        """Return them by kid, the one that seals last; read again at most once in LOOK seconds, or `at_once` if the file has changed."""
        now = self.clock.monotonic()
        if at_once or now - self._looked_at >= LOOK:
            self._looked_at = now
            self._look()
        return self._keys

    def _look(self) -> None:
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        try:
            if not stamp:
                raise StateError(str(self.state.isc_file(self.scscf, self.as_id)), "is gone", "Restore it from its backup")
            self._keys = self.state.isc_keys(self.scscf, self.as_id)
        except StateError as problem:
            # Tried again at each look: another owner or mode mends it, and changes nothing of the stamp.
            if stamp != self._spoilt:
                self.log.warning("isc-keys-unusable", scscf=self.scscf, as_id=self.as_id, problem=str(problem))
            self._spoilt = stamp
        else:
            self._stamp, self._spoilt = stamp, None
            self.log.info("isc-keys-read", scscf=self.scscf, as_id=self.as_id, kids=list(self._keys))

    def _stamp_now(self) -> tuple[int, ...]:
        try:
            status = self.state.isc_file(self.scscf, self.as_id).stat()
        except OSError:
            return ()
        return status.st_ino, status.st_mtime_ns, status.st_size


def _next(kids: tuple[str, ...]) -> str:
    numbers = [int(kid[1:]) for kid in kids if kid[:1] == _KID and kid[1:].isascii() and kid[1:].isdigit()]
    return f"{_KID}{max(numbers, default=0) + 1}"


@contextlib.contextmanager
def _alone(state: StateDir) -> Iterator[None]:
    """Keep another rotation away; whoever only reads is not disturbed, since a file changes as a whole."""
    folder = state.root / "isc"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as problem:
        raise StateError(str(folder), f"cannot be used: {problem.strerror}", "Check its owner and its mode") from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
