# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.5, §5.4.1.6: the operator's view of a real registrar."""

from __future__ import annotations

import json
from typing import cast

from keyferry.wiring.registrations import RegistrarOperations
from roles.home import SIP_OF, XCAP, open_home
from roles.manual import Manual


async def test_what_is_shown_names_devices_and_no_key() -> None:
    async with open_home() as home:
        alice = home.device()
        await alice.register()
        operations = RegistrarOperations([home.scscf])
        (shown,) = await operations.list(alice.impi)
        assert (shown["impi"], shown["reg"], shown["keys"], shown["release"]) == (alice.impi, alice.reg, True, 6)
        assert shown["identities"] == ["sip:alice@home1.net", "tel:+15550510"]
        registration = await home.registration(alice)
        assert registration is not None
        assert registration.k_m is not None
        assert registration.k_m.reveal().hex() not in json.dumps(shown)


async def test_commands_reach_the_registrar() -> None:
    async with open_home() as home:
        alice = home.device()
        await alice.register()
        operations = RegistrarOperations([home.scscf])
        assert await operations.reauthenticate(alice.impi, alice.reg, 60) == 1
        assert await operations.deregister(alice.impi, None, "deactivated", None) == 1
        assert await operations.list(alice.impi) == []


async def test_what_waits_for_a_user_is_shown_beside() -> None:
    """A challenge, a key that was not delivered, the last failures."""
    async with open_home(push={"push_wait": 0.01}) as home:
        home.network.attach("X", "ue9.visited1.net", None)
        home.servers[XCAP].answers = [500]
        alice = home.device()
        await alice.register()
        await Manual(home).send()
        pending = await RegistrarOperations([home.scscf]).pending(alice.impi)
        assert pending["challenges"] == 1
        assert pending["owed"] == [{"as_id": XCAP, "server": SIP_OF[XCAP], "reg": alice.reg}]
        assert [one["reasons"] for one in cast("list[dict[str, object]]", pending["failures"])] == [["push"]]
