# SPDX-License-Identifier: Apache-2.0
"""One procedure of a UE at a time over all processes: who waits, how long, and what a killed process leaves."""

from __future__ import annotations

import asyncio
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyferry.errors import StateError
from keyferry.protocol.identity import Impi
from keyferry.stores.ue_turn import POLL, WAIT, turn_file, ue_turn
from stores.made import IMPI

LIMIT = 60.0  # seconds; two cores may be busy with other tests
HOLDER = """
import asyncio, sys
from pathlib import Path
from keyferry.stores.ue_turn import ue_turn

async def main():
    print("asks", flush=True)
    async with ue_turn(Path(sys.argv[1]), sys.argv[2]):
        print("holds", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return turn_file(tmp_path / "ue.db", IMPI)


class Sleeps:
    """An asyncio.sleep that takes no time; `then` happens in one of them."""

    def __init__(self, then: int = -1, stop: subprocess.Popen[str] | None = None) -> None:
        self.count = 0
        self._then = then
        self._stop = stop

    async def __call__(self, seconds: float) -> None:
        assert seconds == POLL
        self.count += 1
        if self.count == self._then and self._stop is not None:
            self._stop.kill()
            self._stop.wait(LIMIT)


@contextmanager
def process(file: Path, *, holds: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lock, or waits for it."""
    command = [sys.executable, "-c", HOLDER, str(file), IMPI]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert [running.stdout.readline() for _ in range(2 if holds else 1)] == ["asks\n", "holds\n"][: 2 if holds else 1]
            yield running
        finally:
            running.kill()


def test_the_file_is_private_beside_the_state_and_does_not_name_the_user(file: Path) -> None:
    async def hold() -> None:
        async with ue_turn(file, IMPI):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600

    asyncio.run(hold())
    assert file.parent == turn_file(file, IMPI).parent
    assert IMPI not in file.name
    assert turn_file(file, Impi("../\udcff@x")).parent == file.parent
    assert turn_file(file, Impi("b@ims.example")) != file


async def test_whoever_waits_in_vain_is_told_for_whom(file: Path) -> None:
    with process(file) as holder:
        sleeps = Sleeps()
        with pytest.raises(StateError, match=f"process {holder.pid} .*{IMPI}.* for more than 40 s.*end it") as problem:
            async with ue_turn(file, IMPI, sleep=sleeps):
                raise AssertionError("it is held")
        assert str(file) in str(problem.value)
        assert sleeps.count == pytest.approx(WAIT / POLL, abs=1)


async def test_what_a_killed_process_held_is_free(file: Path) -> None:
    with process(file) as holder:
        sleeps = Sleeps(3, holder)
        async with ue_turn(file, IMPI, sleep=sleeps):
            assert sleeps.count == 3


async def test_ctrl_c_ends_a_process_that_waits(file: Path) -> None:
    async with ue_turn(file, IMPI):
        with process(file, holds=False) as waiting:
            waiting.send_signal(signal.SIGINT)
            assert "KeyboardInterrupt" in waiting.communicate(timeout=LIMIT)[1]


async def test_another_object_of_this_process_waits_too(file: Path) -> None:
    async with ue_turn(file, IMPI):
        with pytest.raises(StateError, match="another Ue of this process"):
            async with ue_turn(file, IMPI, sleep=Sleeps()):
                raise AssertionError("it is held")
        file.write_text("no number")
        with pytest.raises(StateError, match="another process has been"):
            async with ue_turn(file, IMPI, wait=0.0):
                raise AssertionError("it is held")


async def test_one_that_gives_up_waiting_takes_nothing_along(file: Path) -> None:
    async def want() -> None:
        async with ue_turn(file, IMPI):
            raise AssertionError("it is held")

    async with ue_turn(file, IMPI):
        waiting = asyncio.create_task(want())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
    async with ue_turn(file, IMPI, wait=0.0):
        pass


async def test_it_is_given_back_whatever_happens_inside(file: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with ue_turn(file, IMPI):
            raise ZeroDivisionError
    async with ue_turn(file, IMPI, wait=0.0):
        pass


async def test_a_file_that_cannot_be_used_is_said(tmp_path: Path, file: Path) -> None:
    file.symlink_to(tmp_path / "elsewhere")
    for bad in (file, tmp_path / "absent" / "ue.lock"):
        with pytest.raises(StateError, match="cannot be used"):
            async with ue_turn(bad, IMPI):
                raise AssertionError("unusable")
    assert not (tmp_path / "elsewhere").exists()
