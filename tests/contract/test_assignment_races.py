# SPDX-License-Identifier: Apache-2.0
"""Two S-CSCFs say at the same moment that a user came and that he went: the HSS believes both (TS 29.228 §6.1.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from contract.wires import an_hss
from keyferry.ports import Assignment, DeregistrationReason, ServerAssignment
from keyferry.roles.hss import Hss
from keyferry.stores.database import Database
from keyferry.stores.sqlite.subscribers import SqliteSubscriberStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from roles.home import subscriber
from roles.network import settle
from roles.test_hss import ALICE, ALICE_SIP

A, B = "sip:scscf1.home1.net:6060", "sip:scscf2.home1.net:6060"


@asynccontextmanager
async def two_processes(folder: Path) -> AsyncIterator[tuple[Hss, Hss]]:
    """Two HSSs on one file, as two processes have it."""
    with open_state(folder / "state", random=SystemRandom()) as state, ExitStack() as exit_:
        stores = []
        for _ in range(2):
            database = exit_.enter_context(Database(state.path("hss.db")))
            stores.append(SqliteSubscriberStore(database, state.keyring))
        await stores[0].add(subscriber("alice"))
        one, other = (an_hss(store) for store in stores)
        yield one, other
        await one.aclose()
        await other.aclose()


async def mar(hss: Hss, server: str) -> None:
    await hss.multimedia_auth(ALICE, ALICE_SIP, server)


async def sar(hss: Hss, server: str, assignment: ServerAssignment = ServerAssignment.REGISTRATION) -> None:
    await hss.server_assignment(ALICE, ALICE_SIP, server, assignment)


@pytest.mark.parametrize("place", [0, 1])
async def test_the_end_at_one_s_cscf_leaves_a_registration_at_another(tmp_path: Path, place: int) -> None:
    """Both read before either writes, as the store commits in groups; with two processes either may be the first to write."""
    async with two_processes(tmp_path) as hsss:
        await mar(hsss[0], A)
        await sar(hsss[0], A)
        await mar(hsss[0], B)
        await asyncio.gather(sar(hsss[place], B), sar(hsss[0], A, ServerAssignment.TIMEOUT_DEREGISTRATION))
        assert (await hsss[1].subscribers.assignment(ALICE))[:2] == (B, B)


@pytest.mark.parametrize("kind", [ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION])
async def test_of_an_end_and_a_registration_at_the_same_s_cscf_the_later_one_counts(tmp_path: Path, kind: ServerAssignment) -> None:
    """The S-CSCF waits no longer for the answer to the first."""
    async with two_processes(tmp_path) as (hss, _):
        await mar(hss, A)
        await sar(hss, A)
        await asyncio.gather(sar(hss, A, ServerAssignment.USER_DEREGISTRATION), sar(hss, A, kind))
        assert (await hss.subscribers.assignment(ALICE))[:2] == (A, A)
        await asyncio.gather(sar(hss, A, kind), sar(hss, A, ServerAssignment.USER_DEREGISTRATION))
        assert await hss.subscribers.assignment(ALICE) == Assignment()


async def test_of_two_s_cscfs_that_register_a_user_at_once_the_one_that_challenged_last_has_him(tmp_path: Path) -> None:
    async with two_processes(tmp_path) as (one, other):
        await mar(one, A)
        await mar(other, B)
        outcomes = await asyncio.gather(sar(one, A), sar(other, B), return_exceptions=True)
        assert [getattr(each, "code", None) for each in outcomes] == [5005, None]
        assert (await one.subscribers.assignment(ALICE))[:2] == (B, B)


async def test_where_a_user_is_registered_outlives_the_process(tmp_path: Path) -> None:
    """TS 29.228 §6.1.2.1: a challenge that nobody answers moves nobody, and the former S-CSCF is owed its RTR, also after a restart."""
    async with two_processes(tmp_path) as (one, started_later):
        await mar(one, A)
        await sar(one, A)
        await mar(one, B)
        assert await started_later.location_info(ALICE_SIP) == A
        await sar(started_later, B, ServerAssignment.AUTHENTICATION_TIMEOUT)
        assert (await one.subscribers.assignment(ALICE))[:2] == (A, A)
        await mar(one, B)
        await sar(started_later, B)
        await settle()
        found = await one.subscribers.assignment(ALICE)
        assert [(each.server_name, each.reason) for each in found.owed] == [(A, DeregistrationReason.NEW_SERVER_ASSIGNED)]
