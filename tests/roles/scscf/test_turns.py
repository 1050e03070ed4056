# SPDX-License-Identifier: Apache-2.0
"""One procedure of one user at a time (RFC 3261 §10.3)."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.protocol.identity import Impi
from keyferry.roles.scscf.turns import Turns

ALICE, BOB = Impi("alice@home1.net"), Impi("bob@home1.net")


class Stage:
    """Procedures that a test lets go on one by one."""

    def __init__(self) -> None:
        self.turns, self.log = Turns(), list[str]()
        self.gates: dict[str, asyncio.Event] = {}

    def begin(self, name: str, impi: Impi = ALICE) -> asyncio.Task[None]:
        self.gates[name] = asyncio.Event()

        async def procedure() -> None:
            async with self.turns.turn(impi):
                self.log.append(f"{name} begins")
                await self.gates[name].wait()
                self.log.append(f"{name} ends")

        return asyncio.create_task(procedure())

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_procedures_of_one_user_follow_each_other_in_order() -> None:
    stage = Stage()
    tasks = [stage.begin(name) for name in ("one", "two", "three")]
    await stage.settle()
    for gate in reversed(stage.gates.values()):
        gate.set()
        await stage.settle()
    await asyncio.gather(*tasks)
    assert stage.log == ["one begins", "one ends", "two begins", "two ends", "three begins", "three ends"]
    assert len(stage.turns) == 0


async def test_different_users_do_not_meet() -> None:
    stage = Stage()
    tasks = [stage.begin("alice", ALICE), stage.begin("bob", BOB)]
    await stage.settle()
    assert stage.log == ["alice begins", "bob begins"]
    for gate in stage.gates.values():
        gate.set()
    await asyncio.gather(*tasks)


async def test_one_that_is_cancelled_while_it_waits_is_passed_over() -> None:
    stage = Stage()
    first, second, third = (stage.begin(name) for name in ("one", "two", "three"))
    await stage.settle()
    second.cancel()
    for gate in stage.gates.values():
        gate.set()
    await asyncio.gather(first, third)
    assert "two begins" not in stage.log
    assert stage.log[-1] == "three ends"
    assert len(stage.turns) == 0


async def test_one_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    stage = Stage()
    first, second, third = (stage.begin(name) for name in ("one", "two", "three"))
    await stage.settle()
    for gate in stage.gates.values():
        gate.set()
    while not first.done():
        await asyncio.sleep(0)
    second.cancel()  # its place may be granted, and it has not run yet
    await asyncio.gather(third)
    with pytest.raises(asyncio.CancelledError):
        await second
    assert len(stage.turns) == 0


async def test_a_procedure_that_fails_gives_its_turn_back() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="broken"):
        async with turns.turn(ALICE):
            raise ValueError("broken")
    assert len(turns) == 0
