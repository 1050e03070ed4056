# SPDX-License-Identifier: Apache-2.0
"""S-CSCF and AS in processes of their own, killed and started again: every user's key is there 5 s after both are up (DESIGN §6)."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import mkdtemp

from keyferry.errors import KeyferryError
from keyferry.stores.memory import MemoryUeStore
from steady import steady
from system.phones import UES, Phone, check_acknowledged, open_phones, with_subscribers
from system.serving import EVENT_LIMIT, Lab, Served, make_lab, serving, until

NETWORK = ("pcscf", "icscf", "scscf", "admin")
KILLS = (("as", 3), ("network", 5), ("both", 2), ("as", 7), ("network", 1), ("as", 1))
"""Who is killed, and after how many acknowledged registrations."""
WORK_LIMIT = 120.0  # seconds in which a round must reach its number


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
        until(lambda: "repush-ended" in network.log.read_text(), seconds=EVENT_LIMIT, what="the S-CSCF has heard all answers")
        counts = network.admin("/metrics")[1]
        assert 'keyferry_scscf_registrations_total{reason="initial"} 4.0' in counts
        assert 'keyferry_scscf_registrations_total{reason="re"}' not in counts
        assert 'keyferry_scscf_repush_total{reason="pushed"} 4.0' in counts


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
                until(lambda: "scscf_repush_total{" in network.admin("/metrics")[1], seconds=EVENT_LIMIT, what="the round has begun")
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
                async with _registering(phones) as work:
                    await work.acknowledged(wanted)
                    if who in {"as", "both"}:
                        server.kill()
                    if who in {"network", "both"}:
                        network.kill()
                    else:
                        await work.acknowledged(UES)  # with a dead AS
                        # A UE that stops here has its answer: the AS will never hear of keys that were replaced meanwhile.
                        await work.end()
                if who in {"network", "both"}:
                    network = stack.enter_context(serving_roles(lab, *NETWORK))
                if who in {"as", "both"}:
                    server = stack.enter_context(serving_roles(lab, "as"))
            async with open_phones(lab, server, stores, phones) as phones:
                await check_acknowledged(phones)
        assert "Traceback" not in network.log.read_text()


@steady(0.2)
async def test_a_200_waits_once_for_an_as_that_refuses_connections_and_again_when_it_is_back(tmp_path: Path) -> None:
    """A dead AS does not add to anybody's registration time after the first."""
    lab = make_parted(Path(mkdtemp(dir=tmp_path)))
    stores = [MemoryUeStore() for _ in range(UES)]
    with serving_roles(lab, *NETWORK) as network, serving_roles(lab, "as") as server:
        async with open_phones(lab, server, stores, []) as phones:
            await _register_each(phones)
            assert _key_first(network) == {"first": UES}
            server.kill()
            await _register_each(phones)
            assert _key_first(network) == {"first": UES, "late": 1, "not-waited": UES - 1}
            with serving_roles(lab, "as"):
                await check_acknowledged(phones)
                _is_back(network)
                await _register_each(phones)
                assert _key_first(network) == {"first": 2 * UES, "late": 1, "not-waited": UES - 1}


@steady(0.2)
async def test_a_200_waits_once_for_an_as_that_swallows_pushes_and_again_when_it_answers(tmp_path: Path) -> None:
    """It takes half a minute to know that such an AS is down; nobody waits that long, and nobody but the first waits at all."""
    lab = make_parted(Path(mkdtemp(dir=tmp_path)))
    stores = [MemoryUeStore() for _ in range(UES)]
    with serving_roles(lab, *NETWORK) as network, serving_roles(lab, "as") as server:
        async with open_phones(lab, server, stores, []) as phones:
            await _register_each(phones)
            server.process.send_signal(signal.SIGSTOP)
            try:
                await _register_each(phones)
            finally:
                server.process.send_signal(signal.SIGCONT)
            assert _key_first(network) == {"first": UES, "late": 1, "not-waited": UES - 1}
            await check_acknowledged(phones)
            _is_back(network)
            await _register_each(phones)
            assert _key_first(network) == {"first": 2 * UES, "late": 1, "not-waited": UES - 1}


def _is_back(network: Served) -> None:
    """Wait until the S-CSCF knows that the AS is back: an owed push may be there before its 200 is heard."""
    down = re.compile(r"^keyferry_isc_server_up\{.*\} 0\.0$", re.MULTILINE)
    until(lambda: not down.search(network.admin("/metrics")[1]), seconds=EVENT_LIMIT, what="AS up")


async def _register_each(phones: list[Phone]) -> None:
    for phone in phones:
        await phone.register()


def _key_first(network: Served) -> dict[str, int]:
    """Return what became of the pushes before their 200, by what the S-CSCF counted."""
    found = re.findall(r'keyferry_scscf_key_first_total\{reason="([a-z-]+)"\} (\d+)', network.admin("/metrics")[1])
    return {reason: int(count) for reason, count in found}


class _Work:
    """UEs that register again and again, until the network is gone."""

    def __init__(self, phones: list[Phone]) -> None:
        self._done = asyncio.Semaphore(0)
        self._ended = False
        self.tasks = [asyncio.ensure_future(self._register(phone)) for phone in phones]

    async def _register(self, phone: Phone) -> None:
        while not self._ended:
            await phone.register()
            self._done.release()

    async def acknowledged(self, wanted: int) -> None:
        """Wait until so many more registrations were answered 200."""
        async with asyncio.timeout(WORK_LIMIT):
            for _ in range(wanted):
                await self._done.acquire()

    async def end(self) -> None:
        """Let each UE end what it is at."""
        self._ended = True
        await asyncio.wait_for(asyncio.gather(*self.tasks), WORK_LIMIT)


@asynccontextmanager
async def _registering(phones: list[Phone]) -> AsyncIterator[_Work]:
    work = _Work(phones)
    try:
        yield work
        # An answer that the kernel still holds counts: let the tasks read it, then end those that wait for more.
        await asyncio.wait(work.tasks, timeout=0.2)
    finally:
        for task in work.tasks:
            task.cancel()
        ended = await asyncio.gather(*work.tasks, return_exceptions=True)
    assert [each for each in ended if not isinstance(each, (type(None), asyncio.CancelledError, KeyferryError))] == []
