# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.1.5, §5.4.1.6: the operator's view of a real registrar."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from keyferry.errors import SealError
from keyferry.ports import Registration
from keyferry.protocol.identity import Impi, Reg
from keyferry.stores.memory import MemoryRegistrationStore
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


class PartlyUnreadable(MemoryRegistrationStore):
    """A store with one row that was tampered with."""

    async def of_impi(self, impi: Impi) -> list[Registration]:
        if impi.startswith("broken"):
            raise SealError("registration.k_m: does not open")
        return list(await super().of_impi(impi))


async def pages(operations: RegistrarOperations, limit: int) -> list[list[str]]:
    """Return the IMPIs of page after page, to the end."""
    found: list[list[str]] = []
    after: Any = ""
    while after is not None:
        page = cast("dict[str, Any]", await operations.page(after, limit))
        found.append([one["impi"] for one in page["registrations"]])
        after = page["next"]
    return found


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [["a@b.net"] * 2, ["c@b.net"], ["d@b.net"] * 2, ["e@b.net"]]),  # one user's devices are not parted
        (2, [["a@b.net"] * 2, ["c@b.net"], ["d@b.net"] * 2, ["e@b.net"]]),
        (3, [["a@b.net", "a@b.net", "c@b.net"], ["d@b.net", "d@b.net", "e@b.net"]]),
        (1000, [["a@b.net", "a@b.net", "c@b.net", "d@b.net", "d@b.net", "e@b.net"]]),
    ],
)
async def test_pages_go_over_every_s_cscf_and_name_everybody_once(limit: int, expected: list[list[str]]) -> None:
    """`d` is registered at one S-CSCF and still known to the other, which it was moved from."""
    async with open_home() as one, open_home() as other:
        homes = {"a": [one], "c": [other], "d": [one, other], "e": [other]}
        alice = one.device()
        await alice.register()
        (like,) = await one.registrations.of_impi(alice.impi)
        await one.registrations.remove(alice.impi, alice.reg, [])
        for name, at in homes.items():
            for home in at:
                await home.registrations.commit(like._replace(impi=Impi(f"{name}@b.net")), [])
        await one.registrations.commit(like._replace(impi=Impi("a@b.net"), reg=Reg("second")), [])
        assert await pages(RegistrarOperations([one.scscf, other.scscf]), limit) == expected


async def test_nobody_is_one_empty_page() -> None:
    async with open_home() as home:
        page = await RegistrarOperations([home.scscf]).page("", 10)
        assert page == {"registrations": [], "next": None, "unreadable": []}


async def test_a_row_that_was_tampered_with_is_named_and_hides_nobody() -> None:
    async with open_home() as home:
        alice = home.device()
        await alice.register()
        (like,) = await home.registrations.of_impi(alice.impi)
        store = PartlyUnreadable()
        for number in range(50):
            for name in ("broken", "user"):
                await store.commit(like._replace(impi=Impi(f"{name}{number:02}@b.net")), [])
        operations = RegistrarOperations([replace(home.scscf, registrations=store)])
        page = cast("dict[str, Any]", await operations.page("broken48@b.net", 2))
        assert ([one["impi"] for one in page["registrations"]], page["unreadable"]) == (["user00@b.net"], ["broken49@b.net"])
        assert page["next"] == "user00@b.net"
        assert sum(len(page) for page in await pages(operations, 30)) == 50
