# SPDX-License-Identifier: Apache-2.0
"""TS 29.228 §6.1.3, §6.2.2: HSS, S-CSCF and AS together."""

from __future__ import annotations

from keyferry.ports import DeregistrationReason
from keyferry.roles.scscf.profile_update import ScscfServing
from roles.home import NOTES, SCSCF, XCAP, criterion, open_home
from roles.network import settle
from roles.test_hss_requests import ALICE, Network


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
