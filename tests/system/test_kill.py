# SPDX-License-Identifier: Apache-2.0
"""kill -9 of a whole network at work: what was answered 2xx is there afterwards (DESIGN §5 step 4, §6, §8)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from keyferry.errors import KeyferryError
from keyferry.stores.memory import MemoryUeStore
from system.phones import UES, Phone, check_acknowledged, open_phones, with_subscribers
from system.serving import Served, make_lab, serving

ROUNDS = (3, 8, 15)  # acknowledgements after which the process is killed: early, in the middle, later
WORK_LIMIT = 120.0  # seconds in which a round must reach its number


@dataclass(slots=True)
class Work:
    """The acknowledgements of one round."""

    wanted: int
    done: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)

    def acknowledged(self) -> None:
        """Count one."""
        self.done += 1
        if self.done >= self.wanted:
            self.enough.set()


async def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    """Every registration answered 200 has its key at the AS, and every PUT answered 2xx is there with its content."""
    lab = make_lab(tmp_path, with_subscribers)
    stores = [MemoryUeStore() for _ in range(UES)]
    before: list[Phone] = []
    for wanted in ROUNDS:
        with serving(lab.serve, lab.state) as served:
            async with open_phones(lab, served, stores, before) as phones:
                await check_acknowledged(phones)
                await _work_until_killed(phones, served, wanted)
                before = phones
        assert sum(phone.registered is not None for phone in before) >= 1
    with serving(lab.serve, lab.state) as served:
        async with open_phones(lab, served, stores, before) as phones:
            await check_acknowledged(phones)
            assert any(phone.stored for phone in phones)
            # and the network goes on: every UE registers, and the new key works
            for phone in phones:
                await phone.register()
                assert (await phone.request("GET")).status_code == 200
            registrations = served.health()["registrations"]
        assert registrations == UES


async def test_an_acknowledged_push_that_never_left_is_delivered_after_the_restart(tmp_path: Path) -> None:
    """DESIGN §6: at least once. The AS is away when the UE registers and the S-CSCF is killed; the push is owed in the store."""
    lab = make_lab(tmp_path)
    network = ("--role", "pcscf", "--role", "icscf", "--role", "scscf", "--role", "admin")
    with serving(lab.serve, lab.state, *network) as served:
        async with open_phones(lab, served, [MemoryUeStore()], []) as phones:
            await phones[0].register()
            served.kill()
    with serving(lab.serve, lab.state) as served:
        async with open_phones(lab, served, [MemoryUeStore()], phones) as again:
            await check_acknowledged(again)


async def _work_until_killed(phones: list[Phone], served: Served, wanted: int) -> None:
    work = Work(wanted)
    tasks = [asyncio.create_task(_work(phone, work)) for phone in phones]
    try:
        await asyncio.wait_for(work.enough.wait(), WORK_LIMIT)
        served.kill()  # blocks this loop: what the tasks hear afterwards was sent before
    finally:
        # An answer that the kernel still holds counts: let the tasks read it, then end those that wait for more.
        await asyncio.wait(tasks, timeout=0.2)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    unexpected = [problem for problem in ended if not isinstance(problem, (httpx.HTTPError, KeyferryError, asyncio.CancelledError))]
    assert unexpected == []


async def _work(phone: Phone, work: Work) -> None:
    """Register and store, again and again, until the network is gone."""
    while True:
        await phone.register()
        work.acknowledged()
        for _ in range(2):
            await phone.put()
            assert phone.asked is None, "a PUT with an acknowledged key is answered 2xx"
            work.acknowledged()
