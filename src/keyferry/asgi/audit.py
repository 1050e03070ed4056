# SPDX-License-Identifier: Apache-2.0
"""The audit log: one JSON object a line for every login and every refused one; never a path, a query, a body or a key.

There is no path in it, because a path names people: XCAP has the user in it, and some phones their call-barring password.
Writing is another thread's work. A request neither waits for the disk nor fails with it: what cannot be written is counted,
and the next line that can says how many are missing. Anybody can be refused, as often as they like: of one address and one reason the
first few of a minute are lines, the others a number in one; and what refusals take of the queue is theirs, so that they push out no login.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import math
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from keyferry.asgi.limits import bucket_name
from keyferry.errors import ConfigError
from keyferry.protocol.repeats import Repeated, Repeats
from keyferry.transports.clock import SystemClock

if TYPE_CHECKING:
    from keyferry.ports import Clock

QUEUED = 10_000
"""Lines about users that may wait for the disk, some 400 octets each."""
REFUSED_SHARE = 4
"""Lines about nobody in particular may be a fourth of that, and come on top."""
SEVERAL = "several"
"""The source of what came from more addresses than are told apart."""
MAX_FIELD = 300
"""Characters of a field: a key id has at most 278."""
MODE = 0o600
BATCH = 256
"""Lines in one write."""


class Event(NamedTuple):
    """One line."""

    time: float  # seconds since the epoch
    as_id: str
    result: str  # "granted", "refused", or "ended" while it was served
    reason: str  # of a fixed set (docs/errors.md), "" if granted
    mechanism: str  # how it was, or would have been, proven; "" if nobody tried
    user: str  # the opaque id, "" if nobody is known
    public_identity: str  # the default one
    key_id: str  # of the key that was proven, or of a known form and claimed
    source: str  # the client's address
    method: str  # of the request, "WEBSOCKET" for an upgrade
    repeated: int = 0  # not 0: stands for so many of one reason and one source, the last of them at `time`
    since: float = 0.0  # and the first of them: seconds since the epoch

    def line(self) -> bytes:
        """Return the JSON object, a line of ASCII."""
        fields: dict[str, str | int] = {"time": _shown(self.time)}
        fields |= {name: value[:MAX_FIELD] for name, value in zip(_FIELDS, self[1:-2], strict=True) if value}
        if self.repeated:
            fields |= {"repeated": self.repeated, "since": _shown(self.since)}
        return json.dumps(fields).encode("ascii") + b"\n"


_FIELDS = ("as", *Event._fields[2:-2])
Audit: TypeAlias = Callable[[Event], object]
"""Takes every event, at once and without raising: what it raises is dropped."""


class AuditLog:
    """Append events to a file, mode 0600; another thread writes.

    For log rotation, rename the file: the next line goes to a new one. No signal is needed. Several workers may share the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, queued: int = QUEUED, repeats: Repeats | None = None, clock: Clock | None = None
    ) -> None:
        """Take where, how many lines about users may wait, and what counts refusals. Raises ConfigError if it cannot be written now."""
        self._path = Path(path)
        self._queued = queued
        self._repeats = repeats or Repeats()
        self._clock: Clock = clock or SystemClock()
        self._waiting: deque[Event] = deque()
        self._strange = 0  # of those, about nobody in particular
        self._lost = 0
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._file = -1
        self._torn = False  # the last line in the file has no end
        try:
            os.close(self._open())
        except OSError as problem:
            remedy = "Choose a file in a folder that this process may write to"
            raise ConfigError("SimLogin audit", f"{self._path} cannot be written: {problem.strerror}", remedy) from problem

    @property
    def lost(self) -> int:
        """Return how many events could not be written and were not yet told of."""
        return self._lost

    def __call__(self, event: Event) -> None:
        """Take one event."""
        kind = () if event.user else (event.as_id, event.result, event.reason, bucket_name(event.source))
        with self._wake:
            before = self._repeats.next_at
            if self._closing:
                self._lost += 1
                return
            if event.user:
                self._put(event, self._queued - (len(self._waiting) - self._strange))
            elif self._repeats.take(kind, (*kind[:3], SEVERAL), event.time, self._clock.monotonic()):
                self._put(event, max(1, self._queued // REFUSED_SHARE) - self._strange)
            elif self._repeats.next_at == before:  # counted, and the thread knows when to ask
                return
            self._wake_up()

    def _put(self, event: Event, room: int) -> None:
        if room > 0:
            self._waiting.append(event)
            self._strange += not event.user
        else:
            self._lost += 1

    def _wake_up(self) -> None:
        if self._thread is None or not self._thread.is_alive():  # not sooner: a server may fork after it has loaded the application
            self._thread = threading.Thread(target=self._run, name="keyferry-audit", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._wake.notify()

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, for some seconds at most; later events are lost."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(timeout)
            atexit.unregister(self.close)

    def _run(self) -> None:
        while batch := self._next():
            self._write(batch, self._lost)
        if self._lost:
            self._write([], self._lost)
        self._close_file()

    def _next(self) -> list[Event]:
        """Wait for something to write; nothing is the end."""
        with self._wake:
            while not self._waiting and not self._closing and (left := self._repeats.next_at - self._clock.monotonic()) > 0:
                self._wake.wait(None if left == math.inf else left)
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._strange -= sum(not event.user for event in batch)
            counted = self._repeats.over(self._clock.monotonic(), final=self._closing)
        return batch + [_event(repeated) for repeated in counted]

    def _write(self, batch: list[Event], lost: int) -> None:
        lines = [event.line() for event in batch]
        if lost:
            lines.insert(0, json.dumps({"lost": lost}).encode("ascii") + b"\n")
        if self._torn:
            lines.insert(0, b"\n")
        try:
            self._reopen_if_renamed()
            self._torn = True
            _write_all(self._file, b"".join(lines))
            self._torn = False
        except OSError:  # a full disk, a folder that went: the next batch tries again
            self._close_file()
            with self._wake:
                self._lost += sum(event.repeated or 1 for event in batch)
            return
        with self._wake:
            self._lost -= lost

    def _reopen_if_renamed(self) -> None:
        if self._file >= 0:
            try:
                there, ours = os.stat(self._path), os.fstat(self._file)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    return
            except FileNotFoundError:
                pass
            self._close_file()
        self._file = self._open()

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        file = os.open(self._path, flags, MODE)
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != MODE:
                os.fchmod(file, MODE)  # it was there, or the umask took something away
        except OSError:
            os.close(file)
            raise
        return file

    def _close_file(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1


def audit_of(audit: str | os.PathLike[str] | Audit | None, clock: Clock | None = None) -> Audit | None:
    """Return what SimLogin(audit=…) means: a file's path, something to call, or nothing. Raises ConfigError."""
    if audit is None or callable(audit):
        return audit
    if isinstance(audit, str | os.PathLike):
        return AuditLog(audit, clock=clock)
    raise ConfigError("SimLogin audit", f"is a {type(audit).__name__}", "Give the path of a file, or something to call with each event")


def _event(repeated: Repeated) -> Event:
    as_id, result, reason, source = repeated.kind
    return Event(repeated.until, as_id, result, reason, "", "", "", "", source, "", repeated.number, repeated.since)


def _shown(time: float) -> str:
    return datetime.datetime.fromtimestamp(time, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _write_all(file: int, octets: bytes) -> None:
    """Write in one go where the system lets us, so that lines of several workers do not mix."""
    left = memoryview(octets)
    while left:
        left = left[os.write(file, left) :]
