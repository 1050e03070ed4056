# SPDX-License-Identifier: Apache-2.0
"""An HSS that carries out the end of a registration late, after another HSS has registered the user again (TS 29.228 §6.1.2)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract.faults import Fate, Faults, faulty
from contract.test_assignment_races import two_processes
from keyferry.errors import CxError
from keyferry.ports import Assignment, CxClient, ServerAssignment
from keyferry.roles.hss import Hss
from keyferry.roles.hss_assignment import LATE
from roles.network import FakeClock
from roles.test_hss import ALICE, ALICE_SIP

A, B = "scscf1.home1.net", "scscf2.home1.net"
END, TIMEOUT = ServerAssignment.USER_DEREGISTRATION, ServerAssignment.TIMEOUT_DEREGISTRATION


@pytest_asyncio.fixture(name="hsss")
async def hsss_fixture(tmp_path: Path) -> AsyncIterator[tuple[Hss, Hss]]:
    async with two_processes(tmp_path) as found:
        yield found


async def register(cx: CxClient, host: str = A) -> None:
    await cx.multimedia_auth(ALICE, ALICE_SIP, f"sip:{host}")
    await sar(cx, ServerAssignment.REGISTRATION, host)


async def sar(cx: CxClient, assignment: ServerAssignment, host: str = A) -> None:
    await cx.server_assignment(ALICE, ALICE_SIP, f"sip:{host}", assignment)


async def assert_free(hss: Hss) -> None:
    """Nobody serves the user, and nobody is owed a termination."""
    found = await hss.subscribers.assignment(ALICE)
    assert found._replace(ended=None) == Assignment()


async def registered_again(hsss: tuple[Hss, Hss], product: str = "keyferry", end: ServerAssignment = END) -> Faults:
    """The user leaves, which the first HSS has not heard of yet, and comes back."""
    cx, faults = faulty(hsss, A, FakeClock(), product)
    await register(cx)
    faults.fates = [Fate.LATE_UNANSWERED]
    await sar(cx, end)
    await assert_free(hsss[1])
    await register(cx)
    return faults


@pytest.mark.parametrize("end", [END, TIMEOUT, ServerAssignment.ADMINISTRATIVE_DEREGISTRATION])
async def test_it_unseats_no_registration_that_the_s_cscf_asked_for_after_it(hsss: tuple[Hss, Hss], end: ServerAssignment) -> None:
    faults = await registered_again(hsss, end=end)
    await faults.arrive()
    assert await hsss[1].location_info(ALICE_SIP) == f"sip:{A}"
    assert (await hsss[1].subscribers.assignment(ALICE))[:2] == (f"sip:{A}",) * 2


async def test_one_that_is_of_now_is_carried_out(hsss: tuple[Hss, Hss]) -> None:
    faults = await registered_again(hsss)
    cx, _ = faulty(hsss, A, FakeClock())
    later = FakeClock()
    later.time += 1  # a process that was started since
    cx, _ = faulty(hsss, A, later)
    await sar(cx, END)
    await assert_free(hsss[0])
    await faults.arrive()
    await assert_free(hsss[0])


@pytest.mark.parametrize("product", ["Kamailio", ""])
async def test_of_an_s_cscf_that_is_not_ours_nobody_knows_the_order(hsss: tuple[Hss, Hss], product: str) -> None:
    """Stock Kamailio's Session-Ids begin with chance: after its restart all would seem older, and no end would end anything."""
    faults = await registered_again(hsss, product)
    await faults.arrive()
    await assert_free(hsss[1])


async def test_a_clock_that_was_put_back_keeps_nobody_registered(hsss: tuple[Hss, Hss]) -> None:
    """An S-CSCF that has started since, and believes to have started before: what comes so late is no late copy."""
    await registered_again(hsss)
    back = FakeClock()
    back.time -= 86_400
    cx, _ = faulty(hsss, A, back)
    with pytest.raises(CxError):
        await sar(cx, END)
    assert (await hsss[0].subscribers.assignment(ALICE)).serving == f"sip:{A}"
    for hss in hsss:
        hss.clock.time += LATE  # type: ignore[attr-defined]
    await sar(cx, END)
    await assert_free(hsss[0])


async def test_one_of_another_s_cscf_is_no_matter_of_order(hsss: tuple[Hss, Hss]) -> None:
    await registered_again(hsss)
    clock = FakeClock()
    clock.time -= 3_600  # started before the other
    cx, _ = faulty(hsss, B, clock)
    await register(cx, B)
    found = await hsss[0].subscribers.assignment(ALICE)
    assert (found.serving, [each.server_name for each in found.owed]) == (f"sip:{B}", [f"sip:{A}"])
    await sar(cx, END, B)
    assert (await hsss[0].subscribers.assignment(ALICE)).serving is None
