# SPDX-License-Identifier: Apache-2.0
"""Procedures of one user that meet; stores that fail for one user; users with too many devices (DESIGN §5 step 4, §6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from keyferry.errors import SealError
from keyferry.ports import PendingPush, Registration
from keyferry.protocol.identity import Impi, Reg
from keyferry.stores.memory import MemoryRegistrationStore
from roles.home import XCAP, Home, open_home
from roles.network import settle


class SlowStore(MemoryRegistrationStore):
    """A store whose commits wait for a test, as those of a disk do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken: set[Impi] = set()

    async def commit(self, registration: Registration, pushes: Sequence[PendingPush]) -> None:
        await self.gate.wait()
        await super().commit(registration, pushes)

    async def get(self, impi: Impi, reg: Reg) -> Registration | None:
        if impi in self.broken:
            raise SealError("the seal does not open in this row")
        return await super().get(impi, reg)


@pytest.fixture(name="home")
async def home_fixture() -> AsyncIterator[Home]:
    async with open_home(push={"push_wait": 0.05}) as opened:
        opened.registrations = SlowStore()
        opened.start_scscf()
        yield opened


def store(home: Home) -> SlowStore:
    assert isinstance(home.registrations, SlowStore)
    return home.registrations


async def test_the_sweep_does_not_end_what_is_being_renewed(home: Home) -> None:
    """The 200 of a re-registration is on its way while its old row expires: UE, S-CSCF and AS must agree afterwards."""
    alice = home.device()
    await alice.register()
    await home.clock.advance(86_399)
    store(home).gate.clear()
    renewing = asyncio.create_task(alice.register())
    await settle()
    await home.clock.advance(2)
    sweeping = asyncio.create_task(home.scscf.sweep())
    await settle()
    store(home).gate.set()
    await renewing
    await sweeping
    assert await home.registration(alice) is not None
    assert await home.key_of(alice) is not None


async def test_deregistration_of_every_device_waits_for_one_that_registers(home: Home) -> None:
    """Contact: * ends what is there when its turn comes, and tells the HSS last."""
    first, second = home.device(number=1), home.device(number=2)
    await first.register()
    store(home).gate.clear()
    registering = asyncio.create_task(second.register())
    await settle()
    ending = asyncio.create_task(first.deregister())
    await settle()
    store(home).gate.set()
    await registering
    await ending
    assert await home.registration(first) is None
    assert await home.key_of(second) is not None
    assert await home.subscribers.server_name(first.impi) is not None  # the second device is still registered


async def test_a_user_keeps_sixteen_devices_the_newest(home: Home) -> None:
    devices = [home.device(number=number) for number in range(1, 19)]
    for device in devices:
        await device.register()
        await home.clock.advance(1)
    assert await home.registrations.count() == 16
    assert [await home.registration(device) is not None for device in devices] == [False, False, *[True] * 16]
    assert home.counter["scscf_registrations", "displaced"] == 2
    assert await home.keys_at(XCAP) == 16
    assert await home.subscribers.server_name(devices[0].impi) is not None


async def test_one_row_that_does_not_open_stops_no_sweep(home: Home) -> None:
    alice, bob = home.device("alice"), home.device("bobby")
    await alice.register()
    await bob.register()
    await home.clock.advance(86_401)
    store(home).broken.add(alice.impi)
    assert await home.scscf.sweep() == 1
    assert home.log.fields("expiry-failed")["impi"] == alice.impi
    assert await home.registration(bob) is None


async def test_one_row_that_does_not_open_stops_no_other_push(home: Home) -> None:
    """After a restart the pushes owed to the other users go out."""
    alice, bob = home.device("alice"), home.device("bobby")
    home.servers[XCAP].answers += [500] * 2
    await alice.register()
    await bob.register()
    store(home).broken.add(alice.impi)
    await home.restart_scscf()
    await home.scscf.sweep()
    await settle()
    assert await home.key_of(bob) is not None
    assert await home.key_of(alice) is None


async def test_a_registration_does_not_outlive_its_keys(home: Home) -> None:
    """DESIGN §5 step 6: keys end key_max_age after the AKA run; the UE learns from the expiry when to come back."""
    alice = home.device()
    assert (await alice.register()).expires_at == home.clock.now() + 86_400
