# SPDX-License-Identifier: Apache-2.0
"""Connections to a key agent's socket: one for an event loop, and one for callbacks that cannot wait (docs/protocol.md)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

from keyferry.errors import DigestRejected, ParseError, StoreError
from keyferry.transports.agent_wire import MAX_ANSWER, VERSION, Fields, Frames, build_frame

MAX_WAITING: Final = 1_024
"""Requests under way at once; more are refused at once, and the door answers 503."""
REST: Final = 1.0
"""Seconds after an answer that did not come in time, in which nobody waits for the next one; as long as a 503 says in Retry-After."""
_READ: Final = 65_536  # octets


def hello(*, cache: bool) -> Fields:
    """Return the first request of a connection; with `cache` the agent says which of the records it gave away have changed."""
    return {"op": "hello", "versions": [VERSION], "cache": cache}


def checked(path: Path, fields: Fields) -> Fields:
    """Return an answer that is none of failure. Raises DigestRejected, StoreError."""
    error = fields.get("error")
    if error is None:
        return fields
    text = str(fields.get("text", error))
    if error in {"stale", "gone"}:
        raise DigestRejected(text, stale=error == "stale")
    raise StoreError(f"{path}: the key agent: {text}")


def away(path: Path, problem: Exception | None) -> StoreError:
    """Return what to raise where no agent answers."""
    why = getattr(problem, "strerror", None) or type(problem).__name__ if problem is not None else "it ended"
    return StoreError(f"{path}: no key agent answers here ({why}). Start it with `keyferry agent`")


def hangs(path: Path) -> StoreError:
    """Return what to raise without asking, where an answer did not come in time a moment ago."""
    return StoreError(f"{path}: the key agent hangs: it did not answer in time, and is asked again in a moment")


def check_place(path: Path) -> None:
    """Refuse a socket in a folder where everybody may put one: whoever is the agent says who the user is. Raises StoreError."""
    try:
        status = path.parent.stat()
    except OSError as problem:
        raise away(path, problem) from problem
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise StoreError(
            f"{path}: other users may put a socket into its folder. Run: chmod go-w {path.parent}, or put the agent's socket elsewhere"
        )


class Rest:
    """The pause after an answer that did not come in time: an agent that hangs must not hold up one caller after the other."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic, seconds: float = REST) -> None:
        """Take a clock, and how long nobody is to wait for the agent again."""
        self.silent = False  # since it hung, nothing was answered
        self._path = path
        self._monotonic = monotonic
        self._seconds = seconds
        self._until = 0.0

    def begin(self) -> None:
        """Note that an answer did not come in time."""
        self.silent = True
        self._until = self._monotonic() + self._seconds

    def end(self) -> None:
        """Note that the agent answers."""
        self.silent = False

    def check(self) -> None:
        """Raise StoreError as long as nobody is to wait."""
        if self.silent and self._monotonic() < self._until:
            raise hangs(self._path)


class AgentLink(asyncio.Protocol):
    """One connection of an event loop: requests by number, answers in any order, and what the agent says of itself."""

    def __init__(
        self,
        path: Path,
        limit: float,
        changed: Callable[[Sequence[str]], None],
        lost: Callable[[AgentLink], None],
        rest: Rest | None = None,
    ) -> None:
        """Take how long to wait for an answer, in seconds, whom to tell of keys that changed, and whom of the end, at once."""
        self.loop = asyncio.get_running_loop()
        self.is_open = False
        self._path = path
        self._limit = limit
        self._changed = changed
        self._lost = lost
        self._rest = rest or Rest(path)
        self._frames = Frames(MAX_ANSWER)
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[Fields], float]] = {}  # with when it began, the oldest first
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(
        cls,
        path: Path,
        limit: float,
        changed: Callable[[Sequence[str]], None],
        lost: Callable[[AgentLink], None],
        rest: Rest | None = None,
    ) -> AgentLink:
        """Connect, and agree on the version. Raises StoreError."""
        check_place(path)
        rest = rest or Rest(path)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limit):
                _, link = await loop.create_unix_connection(lambda: cls(path, limit, changed, lost, rest), os.fspath(path))
        except (OSError, TimeoutError) as problem:
            if isinstance(problem, TimeoutError):
                rest.begin()
            raise away(path, problem) from problem
        try:
            checked(path, await link.ask(hello(cache=True)))
        except BaseException:
            link.end("was not understood")
            raise
        return link

    async def ask(self, fields: Fields) -> Fields:
        """Send a request and return the answer, of whatever kind. Raises StoreError."""
        if not self.is_open or self._transport is None:
            raise away(self._path, None)
        if len(self._waiting) >= MAX_WAITING:
            raise StoreError(f"{self._path}: {MAX_WAITING} requests to the key agent are under way already")
        number = next(self._numbers)
        answer: asyncio.Future[Fields] = self.loop.create_future()
        self._waiting[number] = answer, self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self._limit, self._look)
        self._transport.write(build_frame({"id": number, **fields}))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    def end(self, problem: str) -> None:
        """Break the connection; whoever waits is told, and first of all who keeps what came over it."""
        was_open, self.is_open = self.is_open, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        for answer, _ in self._waiting.values():
            if not answer.done():
                answer.set_exception(StoreError(f"{self._path}: the key agent {problem}"))
        self._waiting.clear()
        if was_open:
            self._lost(self)

    def _look(self) -> None:
        """End a connection whose oldest request has waited for too long."""
        self._timer = None
        if not self._waiting:
            return
        _, began = next(iter(self._waiting.values()))
        left = began + self._limit - self.loop.time()
        if left <= 0:
            self._rest.begin()
            self.end(f"did not answer within {self._limit:g} s")
        else:
            self._timer = self.loop.call_later(left, self._look)

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # of a stream; uvloop's is of no class of asyncio's
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        """Take answers, and word of keys that changed."""
        try:
            for fields in self._frames.feed(data):
                self._received(fields)
        except ParseError as problem:
            self.end(f"sent what is no answer: {problem}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end: what this agent said means nothing from now on."""
        del exc
        self.end("is away")

    def _received(self, fields: Fields) -> None:
        number = fields.get("id")
        if number is None:
            changed = fields.get("changed")
            self._changed([key_id for key_id in changed if isinstance(key_id, str)] if isinstance(changed, list) else [])
            return
        waiting = self._waiting.pop(number, None) if isinstance(number, int) else None
        if waiting is not None:
            self._rest.end()
            if not waiting[0].done():
                waiting[0].set_result(fields)


class BlockingLink:
    """One connection for callbacks that cannot wait, such as OpenSSL's; threads take turns, and a process that was forked has its own."""

    def __init__(self, path: Path, limit: float, rest: Rest | None = None) -> None:
        """Take how long a question may take in all, in seconds."""
        self._path = path
        self._limit = limit
        self._rest = rest or Rest(path)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process = 0
        self._number = 0
        self._frames = Frames(MAX_ANSWER)

    def ask(self, fields: Fields) -> Fields:
        """Send a request that may be sent twice, and return the answer, of whatever kind. Raises StoreError."""
        deadline = time.monotonic() + self._limit
        with self._lock:
            self._rest.check()  # another thread may just have waited in vain
            if self._process != os.getpid():
                self._drop()
            try:
                if self._socket is not None:
                    with contextlib.suppress(OSError, StoreError):  # the agent may have ended since
                        return self._answered(fields, deadline)
                    self._drop()
                self._open(deadline)
                return self._answered(fields, deadline)
            except BaseException as problem:  # whatever it is, an answer may still be on its way, which is none to the next question
                self._drop()
                if isinstance(problem, TimeoutError):
                    self._rest.begin()
                if isinstance(problem, OSError):
                    raise away(self._path, problem) from problem
                raise

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self, deadline: float) -> None:
        check_place(self._path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process = os.getpid()
        self._frames = Frames(MAX_ANSWER)
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        self._socket.connect(os.fspath(self._path))
        checked(self._path, self._exchange(hello(cache=False), deadline))

    def _answered(self, fields: Fields, deadline: float) -> Fields:
        answer = self._exchange(fields, deadline)
        self._rest.end()
        return answer

    def _exchange(self, fields: Fields, deadline: float) -> Fields:
        if self._socket is None:
            raise away(self._path, None)
        self._number += 1
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        self._socket.sendall(build_frame({"id": self._number, **fields}))
        while True:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._socket.recv(_READ)
            if not data:
                raise away(self._path, None)
            try:
                for answer in self._frames.feed(data):
                    if answer.get("id") == self._number:
                        return answer
                    raise ParseError("answer", "is to another question")
            except ParseError as problem:
                raise StoreError(f"{self._path}: the key agent sent what is no answer: {problem}") from problem
