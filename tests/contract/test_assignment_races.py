# SPDX-License-Identifier: Apache-2.0
"""Two S-CSCFs say at the same moment that a user came and that he went: the HSS believes both (TS 29.228 §6.1.2)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from contract.wires import an_hss
from keyferry.ports import ServerAssignment
from keyferry.stores.database import Database
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from roles.home import subscriber
from roles.test_hss import ALICE, ALICE_SIP

A, B = "sip:scscf1.home1.net:6060", "sip:scscf2.home1.net:6060"


async def test_the_end_at_one_s_cscf_leaves_a_registration_at_another(tmp_path: Path) -> None:
    """Both read before either writes, as the store commits in groups."""
    with open_state(tmp_path / "state", random=SystemRandom()) as state, Database(state.path("hss.db")) as database:
        store = SqliteSubscriberStore(database, state.keyring)
        await store.add(subscriber("alice"))
        hss = an_hss(store)
        await hss.multimedia_auth(ALICE, ALICE_SIP, A)
        await hss.server_assignment(ALICE, ALICE_SIP, A, ServerAssignment.REGISTRATION)
        await asyncio.gather(
            hss.server_assignment(ALICE, ALICE_SIP, B, ServerAssignment.REGISTRATION),
            hss.server_assignment(ALICE, ALICE_SIP, A, ServerAssignment.TIMEOUT_DEREGISTRATION),
        )
        assert await store.server_name(ALICE) == B
        await hss.aclose()
