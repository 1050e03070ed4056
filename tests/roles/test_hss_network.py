# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2: HSS, S-CSCF and AS together; and an HSS whose disk takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from keyferry.ports import Assignment, DeregistrationReason, ServerAssignment
from keyferry.protocol.identity import Impi
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.stores.memory import MemorySubscriberStore
from roles.home import NOTES, SCSCF, XCAP, criterion, open_home, subscriber
from roles.network import settle
from roles.test_hss_requests import ALICE, ALICE_SIP, OTHER, Network


async def test_a_whole_network_changes_a_profile_and_ends_a_user() -> None:
    """§6.1.3, §6.2.2: HSS, S-CSCF and AS together; the S-CSCF tells the HSS nothing of its own."""
    async with open_home(criteria=[criterion(XCAP)]) as home:
        network = Network()
        home.hss.servings = network
        network.scscfs[SCSCF] = ScscfServing(home.scscf, home.reg_event.forget)
        alice = home.device()
        await alice.register()
        home.profiles["default"] = [criterion(XCAP), criterion(NOTES)]
        assert await home.hss.update_profile(ALICE) == SCSCF
        await settle()
        assert await home.key_of(alice, NOTES) is not None
        assert await home.hss.terminate(ALICE, DeregistrationReason.SERVER_CHANGE) == SCSCF
        await settle()
        assert (await home.keys_at(XCAP), await home.keys_at(NOTES), await home.subscribers.server_name(ALICE)) == (0, 0, None)
        await alice.register()
        assert await home.key_of(alice, NOTES) is not None


class Disk(MemorySubscriberStore):
    """A store that reads what is written, and writes one after the other when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.spins = asyncio.Lock()

    async def reassign(self, impi: Impi, change: Callable[[Assignment], Assignment]) -> tuple[Assignment, Assignment]:
        async with self.spins:
            await asyncio.sleep(0)
            return await super().reassign(impi, change)


async def test_a_mar_takes_effect_after_the_failure_before_it_that_is_still_being_written() -> None:
    network = Network(Disk())
    await network.store.add(subscriber("alice"))
    hss = network.hss
    for server in (SCSCF, OTHER):
        await hss.multimedia_auth(ALICE, ALICE_SIP, server)
        if server == SCSCF:
            await hss.server_assignment(ALICE, ALICE_SIP, server, ServerAssignment.REGISTRATION)
    failed = hss.server_assignment(ALICE, ALICE_SIP, OTHER, ServerAssignment.AUTHENTICATION_FAILURE)
    await asyncio.gather(failed, hss.multimedia_auth(ALICE, ALICE_SIP, OTHER))
    assert await hss.server_assignment(ALICE, ALICE_SIP, OTHER, ServerAssignment.REGISTRATION)
    await hss.aclose()
