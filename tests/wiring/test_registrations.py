# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.5, §5.4.1.6: the operator's view of a real registrar."""

from __future__ import annotations

import json

from keyferry.wiring.registrations import RegistrarOperations
from roles.home import open_home


async def test_what_is_shown_names_devices_and_no_key() -> None:
    async with open_home() as home:
        alice = home.device()
        await alice.register()
        operations = RegistrarOperations(home.scscf)
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
        operations = RegistrarOperations(home.scscf)
        assert await operations.reauthenticate(alice.impi, alice.reg, 60) == 1
        assert await operations.deregister(alice.impi, None, "deactivated", None) == 1
        assert await operations.list(alice.impi) == []
