# SPDX-License-Identifier: Apache-2.0
"""S-CSCF and AS in processes of their own, killed and started again: every user's key is there 5 s after both are up (DESIGN §6)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from keyferry.errors import KeyferryError
from keyferry.stores.memory import MemoryUeStore
from system.phones import UES, Phone, check_acknowledged, open_phones, with_subscribers
from system.serving import Lab, Served, make_lab, serving, until

NETWORK = ("pcscf", "icscf", "scscf", "admin")
KILLS = (("as", 3), ("network", 5), ("both", 2), ("as", 7), ("network", 1), ("as", 1))
"""Who is killed, and after how many acknowledged registrations."""
WORK_LIMIT = 30.0  # seconds in which a round must reach its number


def make_parted(folder: Path) -> Lab:
    """Write the files of a network whose S-CSCF finds the AS by the hosts table."""
    hosts = '\n[hosts]\n"xcap-as.home1.net" = "127.0.0.1:5090"\n"notes-as.home1.net" = "127.0.0.1:5091"\n'
    return make_lab(folder, lambda text: with_subscribers(text) + hosts)


@contextmanager
def serving_roles(lab: Lab, *roles: str) -> Iterator[Served]:
    """Serve some functions."""
    with serving(lab.serve, lab.state, *(word for role in roles for word in ("--role", role))) as served:
        yield served


async def test_an_as_that_lost_its_keys_has_them_again_though_nobody_registers(tmp_path: Path) -> None:
    """Its database is gone while it is stopped; the users notice nothing but the pause."""
    lab = make_parted(tmp_path)
    stores = [MemoryUeStore() for _ in range(UES)]
    with serving_roles(lab, *NETWORK) as network:
        with serving_roles(lab, "as") as server:
            async with open_phones(lab, server, stores, []) as phones:
                for phone in phones:
                    await phone.register()
                await check_acknowledged(phones)
        before = network.health()
        for file in lab.state.glob("as-xcap.home1.net.db*"):
            file.unlink()
        for phone in phones:
            phone.stored = None  # the documents went with the keys
        with serving_roles(lab, "as") as server:
            async with open_phones(lab, server, stores, phones) as again:
                await check_acknowledged(again)
        assert network.health()["registrations"] == before["registrations"] == UES
        counts = network.admin("/metrics")[1]
        assert 'keyferry_scscf_registrations_total{reason="initial"} 4.0' in counts
        assert 'keyferry_scscf_registrations_total{reason="re"}' not in counts
        assert 'keyferry_scscf_repush_total{reason="pushed"} 4.0' in counts
        assert "repush-ended" in network.log.read_text()


async def test_the_scscf_is_killed_while_it_pushes_again(tmp_path: Path) -> None:
    """The next one goes on: how far it came is in its store."""
    lab = make_parted(tmp_path)
    slow = lab.serve.read_text().replace("[scscf]\n", "[scscf]\nrepush_rate = 1\n", 1)  # a page of four lasts four seconds
    lab.serve.write_text(slow)
    stores = [MemoryUeStore() for _ in range(UES)]
    with serving_roles(lab, *NETWORK) as network, serving_roles(lab, "as") as server:
        async with open_phones(lab, server, stores, []) as phones:
            for phone in phones:
                await phone.register()
            server.kill()
            for file in lab.state.glob("as-xcap.home1.net.db*"):
                file.unlink()
            with serving_roles(lab, "as") as server:
                until(lambda: "scscf_repush_total{" in network.admin("/metrics")[1], seconds=5, what="the round has begun")
                network.kill()
                with serving_roles(lab, *NETWORK):
                    async with open_phones(lab, server, stores, phones) as again:
                        await check_acknowledged(again)


async def test_whoever_is_killed_no_acknowledged_registration_is_without_its_key_when_both_are_up(tmp_path: Path) -> None:
    """Kill -9 while UEs register; they go on while an AS is away, and their 200 does not wait for it."""
    lab = make_parted(tmp_path)
    stores = [MemoryUeStore() for _ in range(UES)]
    phones: list[Phone] = []
    with ExitStack() as stack:
        network = stack.enter_context(serving_roles(lab, *NETWORK))
        server = stack.enter_context(serving_roles(lab, "as"))
        for who, wanted in KILLS:
            async with open_phones(lab, server, stores, phones) as phones:
                await _register_until(phones, wanted)
                if who in {"as", "both"}:
                    server.kill()
                if who in {"network", "both"}:
                    network.kill()
                else:
                    await _register_until(phones, UES)  # with a dead AS
                if who in {"network", "both"}:
                    network = stack.enter_context(serving_roles(lab, *NETWORK))
                if who in {"as", "both"}:
                    server = stack.enter_context(serving_roles(lab, "as"))
            async with open_phones(lab, server, stores, phones) as phones:
                await check_acknowledged(phones)
        assert "Traceback" not in network.log.read_text()


async def _register_until(phones: list[Phone], wanted: int) -> None:
    """Let every UE register again and again, until so many registrations are acknowledged."""
    done = asyncio.Semaphore(0)

    async def work(phone: Phone) -> None:
        while True:
            with contextlib.suppress(KeyferryError):
                await phone.register()
                done.release()

    async def enough() -> None:
        for _ in range(wanted):
            await done.acquire()

    tasks = [asyncio.ensure_future(work(phone)) for phone in phones]
    try:
        await asyncio.wait_for(enough(), WORK_LIMIT)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [each for each in ended if not isinstance(each, (asyncio.CancelledError, httpx.HTTPError))] == []
