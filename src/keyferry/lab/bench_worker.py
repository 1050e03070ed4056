# SPDX-License-Identifier: Apache-2.0
"""The processes of a benchmark: each on a core of its own, led over a pipe, gone when the leader is gone."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeAlias

import uvloop

from keyferry.errors import KeyferryError

END_WAIT = 5.0  # seconds that a process gets to end by itself
Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told what goes on, how much of it is done, and how much there is."""


class BenchFailed(KeyferryError):
    """Say why there is no measurement."""


class Usage(NamedTuple):
    """What a process has used so far."""

    cpu_user: float  # seconds, all threads
    cpu_system: float
    max_rss: int  # octets


class Link:
    """The worker's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def receive(self) -> Any:
        """Return the leader's next word. Raises EOFError when the leader is gone."""
        return await asyncio.get_running_loop().run_in_executor(None, self._connection.recv)

    def send(self, value: object) -> None:
        """Answer."""
        self._connection.send(("done", value))

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell how far it is."""
        self._connection.send(("progress", (what, done, total)))


Part: TypeAlias = Callable[..., Awaitable[None]]
"""What a worker runs: a function of a module, called with a Link and picklable arguments; it ends when told "stop"."""


class Worker:
    """One process."""

    def __init__(self, part: Part, core: int | None, *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")  # nothing of the leader's state comes along
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(part, core, theirs, arguments), daemon=True)
        # Ctrl-C goes to every process of the terminal: it is the leader who ends the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def ask(self, word: object, progress: Progress | None = None) -> Any:
        """Say something and return the answer. Raises BenchFailed."""
        try:
            self._connection.send(word)
        except OSError as problem:
            raise BenchFailed("a process of the benchmark is gone") from problem
        return self.answer(progress)

    def answer(self, progress: Progress | None = None) -> Any:
        """Return the next answer. Raises BenchFailed."""
        while True:
            try:
                kind, value = self._connection.recv()
            except (EOFError, OSError) as problem:
                raise BenchFailed("a process of the benchmark is gone") from problem
            if kind == "done":
                return value
            if kind == "failed":
                raise BenchFailed(value)
            if progress is not None:
                progress(*value)

    def stop(self) -> None:
        """Let it end by itself."""
        try:
            self._connection.send("stop")
        except OSError:
            return
        self._process.join(END_WAIT)

    def end(self) -> None:
        """See to it that it is gone."""
        self._connection.close()
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(END_WAIT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@contextmanager
def worker(part: Part, core: int | None, *arguments: object) -> Iterator[Worker]:
    """Run a part in a process of its own for as long as the block lasts."""
    one = Worker(part, core, *arguments)
    try:
        yield one
        one.stop()
    finally:
        one.end()


def usage() -> Usage:
    """Return what this process has used so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime, used.ru_stime, used.ru_maxrss * 1024)


def cores() -> tuple[int | None, int | None]:
    """Return a core to measure on and one for the load; the same if there is only one, None where none can be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[min(1, len(mine) - 1)]


def _run(part: Part, core: int | None, connection: Connection, arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(part(Link(connection), *arguments))  # type: ignore[arg-type]
    except (EOFError, BrokenPipeError):
        return
    except Exception as problem:
        connection.send(("failed", f"{type(problem).__name__}: {problem}"))
