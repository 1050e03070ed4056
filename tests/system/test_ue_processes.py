# SPDX-License-Identifier: Apache-2.0
"""Processes of one UE with one state directory: no sequence number goes back, nobody's keys are lost (TS 33.102 annex C.2.2)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from keyferry.client import Ue
from keyferry.ports import UeState
from keyferry.protocol.identity import Impi
from keyferry.stores.database import Database
from keyferry.stores.sqlite.ue import SqliteUeStore
from keyferry.stores.state_dir import open_state
from keyferry.stores.ue_turn import turn_file, ue_turn
from keyferry.transports.clock import SystemRandom
from system.serving import Lab, Served, environment, in_clear, make_lab, served_fixture, ue, until

__all__ = ["served_fixture"]

USER1 = Impi("user1_private@home1.net")
LIMIT = 60.0  # seconds; two cores may be busy with other tests
EACH = 5
PROGRAM = """
import asyncio, sys
from keyferry.client import Ue

async def main():
    async with Ue.open(sys.argv[1], state=sys.argv[2]) as ue:
        print("open", flush=True)
        sys.stdin.readline()
        for _ in range(int(sys.argv[3])):
            print((await ue.register()).keys, flush=True)

asyncio.run(main())
"""


@pytest.fixture(params=["off", "required"])
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Lab:
    """Return a lab; without protection of Gm every REGISTER is challenged, with it the first one of a process."""
    return make_lab(tmp_path, edit_ue=in_clear if request.param == "off" else str)


def kept(lab: Lab) -> UeState:
    async def load() -> UeState:
        with open_state(lab.state, random=SystemRandom()) as state, Database(state.path("ue.db")) as database:
            found = await SqliteUeStore(database, state.keyring).load(USER1)
            assert found is not None
            return found

    return asyncio.run(load())


def accepted(state: UeState) -> list[int]:
    """Return every SEQ that the card knows of; the HSS gives SEQ n under IND n, so none hides another."""
    return sorted(seq for seq in state.seq_ms if seq)


@contextmanager
def program(lab: Lab, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has the UE open, and does its work when a line comes."""
    command = [sys.executable, "-c", PROGRAM, str(lab.ue), str(lab.state), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment()) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "open\n"
            yield running
        finally:
            running.kill()


def test_processes_that_register_at_once_take_turns(lab: Lab, served: Served) -> None:
    """All have the UE open before the first registers, so each has read the SEQ_MS of the beginning."""
    with ExitStack() as stack:
        processes = [stack.enter_context(program(lab, str(EACH))) for _ in range(3)]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            said, problems = process.communicate(timeout=LIMIT)
            assert (process.returncode, said) == (0, "True\n" * EACH), problems
    seqs = accepted(kept(lab))
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) == 3 * EACH or (len(seqs) >= 3 and 'gm = "required"' in lab.ue.read_text("utf-8"))
    assert served.health()["registrations"] == 1
    asyncio.run(_logged_in(lab))


async def _logged_in(lab: Lab) -> None:
    async with Ue.open(lab.ue, state=lab.state) as opened, opened.http(f"https://notes.home1.net:{lab.ports['8444']}/") as http:
        assert (await http.get("/")).status_code == 404  # the notes are empty, and ours


async def test_an_object_that_was_opened_before_takes_over_what_another_did(lab: Lab, served: Served) -> None:
    del served
    async with Ue.open(lab.ue, state=lab.state) as first, Ue.open(lab.ue, state=lab.state) as second:
        for each in (first, second, first):
            assert (await each.register()).keys
    assert accepted(await asyncio.to_thread(kept, lab)) == [1, 2, 3]


async def test_requests_go_on_while_another_process_registers(lab: Lab, served: Served) -> None:
    """Between its challenge and its 2xx there is no key: they wait, and take the new one."""
    del served
    async with Ue.open(lab.ue, state=lab.state) as opened, opened.http(f"https://notes.home1.net:{lab.ports['8444']}/") as http:
        await opened.register()
        with program(lab, str(EACH)) as process:
            working = asyncio.create_task(asyncio.to_thread(process.communicate, "go\n", LIMIT))
            answers = []
            while not working.done():
                answers.append((await http.get("/")).status_code)
            assert (await working)[0] == "True\n" * EACH
        assert set(answers) == {404}


def test_a_device_that_is_registered_by_another_process_keeps_its_keys_when_the_first_leaves(lab: Lab, served: Served) -> None:
    """The network ends the contact of `ue stay`, which must not drop what belongs to the other."""
    command = [sys.executable, "-m", "keyferry", "ue", "stay", "--config", str(lab.ue), "--state", str(lab.state), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as stay:
        try:
            assert stay.stdout is not None
            events = [json.loads(stay.stdout.readline())["event"] for _ in range(2)]
            assert events == ["registered", "subscribed"]
            assert ue(lab, "register")["keys"] is True
            said, _ = stay.communicate(timeout=LIMIT)
            first = json.loads(said.splitlines()[0])
            assert (first["event"], first["reason"]) == ("ended-by-network", "unregistered")
        finally:
            stay.kill()
    assert ue(lab, "status")["keys"] is True
    assert served.health()["registrations"] == 1
    asyncio.run(_logged_in(lab))


async def test_ctrl_c_ends_a_command_that_waits(lab: Lab) -> None:
    """It waits for this process, and says nothing to the network."""
    lab.state.mkdir(mode=0o700)
    file = turn_file(lab.state / "ue.db", USER1)
    command = [sys.executable, "-m", "keyferry", "ue", "register", "--config", str(lab.ue), "--state", str(lab.state)]
    (lab.state / "version").write_text("1\n")
    async with ue_turn(file, USER1):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as waiting:
            try:
                until(lambda: _has_open(waiting.pid, file), seconds=LIMIT, what="the command waits for the lock")
                waiting.send_signal(signal.SIGINT)
                _, said = waiting.communicate(timeout=LIMIT)
                assert waiting.returncode != 0
                assert "Traceback" not in said
            finally:
                waiting.kill()


def _has_open(pid: int, file: Path) -> bool:
    """Tell whether a process has a file open (Linux)."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    return any(link.is_symlink() and os.path.realpath(link) == str(file) for link in links)
