# SPDX-License-Identifier: Apache-2.0
"""Processes of a benchmark: led, and gone when their leader goes."""

from __future__ import annotations

import asyncio
import os

import pytest

from keyferry.lab.bench_worker import BenchFailed, Link, cores, usage, worker


async def echo(link: Link, word: str) -> None:
    """Say the word, then whatever is said, until "stop"; "raise" raises."""
    link.progress("saying", 1, 2)
    link.send(word)
    while (heard := await link.receive()) != "stop":
        if heard == "raise":
            raise ValueError(heard)
        link.send((heard, os.getpid()))


async def deaf(link: Link) -> None:
    """Never end."""
    link.send(os.getpid())
    await asyncio.Event().wait()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_worker_answers_and_ends_when_told() -> None:
    """A round trip, its progress, and the end."""
    told: list[tuple[str, int, int]] = []
    core, _ = cores()
    with worker(echo, core, "good day") as one:
        assert one.answer(lambda *progress: told.append(progress)) == "good day"
        heard, pid = one.ask("and you?")
        assert (heard, gone(pid)) == ("and you?", False)
        if core is not None:
            assert os.sched_getaffinity(pid) == {core}
    assert told == [("saying", 1, 2)]
    assert gone(pid)


def test_what_a_worker_raises_comes_out_at_the_leader() -> None:
    """A failure has its reason; afterwards there is nobody to ask."""
    with worker(echo, None, "good day") as one:
        one.answer()
        with pytest.raises(BenchFailed, match="ValueError: raise"):
            one.ask("raise")
        with pytest.raises(BenchFailed, match="gone"):
            for _ in range(2):  # the first word may still find a full pipe open
                one.ask("still there?")


def test_an_interrupt_leaves_no_process() -> None:
    """Ctrl-C: the leader ends what does not end by itself."""
    with pytest.raises(KeyboardInterrupt), worker(deaf, None) as one:
        pid = one.answer()
        raise KeyboardInterrupt
    assert gone(pid)


def test_usage_grows() -> None:
    """CPU seconds of all threads, and memory."""
    used = usage()
    assert used.cpu_user > 0
    assert used.max_rss > 1_000_000
