# SPDX-License-Identifier: Apache-2.0
"""The subscribers of a file, in the HSS's store."""

from __future__ import annotations

from dataclasses import replace

from keyferry.config import Subscriber
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.stores.memory import MemorySubscriberStore
from keyferry.wiring.hss import Servings, provision
from roles.home import SCSCF, open_home

IMPI = Impi("a@home1.net")


def settings(profile: str | None = None, amf: str = "8000") -> Subscriber:
    return Subscriber(impi=IMPI, impus=["sip:a@home1.net"], k=Secret(bytes(16)), opc=Secret(bytes(16)), amf=amf, profile=profile)


async def test_a_profile_given_by_command_outlives_a_start_with_a_file_that_names_none() -> None:
    """And other fields of the file count all the same."""
    store = MemorySubscriberStore()
    await provision(store, [settings()])
    stored = await store.get(IMPI)
    assert stored is not None
    assert stored.profile == "default"
    await store.replace(replace(stored, profile="basic"))
    await provision(store, [settings(amf="9000")])
    assert await store.get(IMPI) == replace(stored, profile="basic", amf=b"\x90\x00")


async def test_a_profile_of_the_file_counts_at_each_start() -> None:
    store = MemorySubscriberStore()
    await provision(store, [settings("basic")])
    await provision(store, [settings("gold")])
    stored = await store.get(IMPI)
    assert stored is not None
    assert stored.profile == "gold"


async def test_s_cscfs_of_the_process_are_found_by_their_server_name() -> None:
    async with open_home() as home:
        serving = ScscfServing(home.scscf, home.reg_event.forget)
        servings = Servings({SCSCF: serving})
        assert servings.at(SCSCF) is serving
        assert servings.at("sip:scscf2.home1.net") is None
