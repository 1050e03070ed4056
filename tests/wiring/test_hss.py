# SPDX-License-Identifier: Apache-2.0
"""The subscribers of a file, in the HSS's store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from keyferry.config import Config, Subscriber
from keyferry.errors import StoreError
from keyferry.ports import DeregistrationReason, ServerAssignment
from keyferry.ports import Subscriber as PortSubscriber
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import Impi
from keyferry.roles.hss import OWED_AGAIN
from keyferry.roles.scscf.profile_update import ScscfServing
from keyferry.stores.memory import MemorySubscriberStore
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemRandom
from keyferry.wiring.hss import Servings, gone_from_file, provision, report_gone, start_hss, subscriber_of
from keyferry.wiring.metrics import Metrics
from keyferry.wiring.observability import StructLog
from keyferry.wiring.services import Services
from roles.home import SCSCF, open_home
from roles.network import FakeClock, RecordingLog, settle
from roles.test_hss import ALICE_SIP, OTHER
from roles.test_hss_requests import ALICE, Asked

IMPI = Impi("a@home1.net")


def settings(profile: str | None = None, amf: str = "8000") -> Subscriber:
    return Subscriber(impi=IMPI, impus=["sip:a@home1.net"], k=Secret(bytes(16)), opc=Secret(bytes(16)), amf=amf, profile=profile)


class Counting(MemorySubscriberStore):
    """A store that notes how many writes wait for the disk together."""

    waiting = most = 0

    async def replace(self, subscriber: PortSubscriber) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        await super().replace(subscriber)


async def test_the_subscribers_of_a_file_are_stored_together() -> None:
    """A transaction for each of thousands would keep a start waiting for a minute."""
    one, store = settings(), Counting()
    many = [msgspec.structs.replace(one, impi=f"user{number}@home1.net", impus=[f"sip:user{number}@home1.net"]) for number in range(1_100)]
    await provision(store, many)
    assert (len(await store.all()), store.most) == (1_100, 500)
    store.most = 0
    await provision(store, many)
    assert store.most == 0  # they are there


async def test_a_profile_given_by_command_outlives_a_start_with_a_file_that_names_none() -> None:
    """And other fields of the file count all the same."""
    store = MemorySubscriberStore()
    await provision(store, [settings()])
    stored = await store.get(IMPI)
    assert stored is not None
    assert stored.profile == "default"
    await store.replace(stored._replace(profile="basic"))
    await provision(store, [settings(amf="9000")])
    assert await store.get(IMPI) == stored._replace(profile="basic", amf=b"\x90\x00")


async def test_who_has_gone_from_the_file_is_reported_and_nobody_who_was_added_by_hand() -> None:
    store, log = MemorySubscriberStore(), RecordingLog()
    many = [settings_of(f"user{number:02}@home1.net", f"sip:user{number:02}@home1.net") for number in range(14)]
    by_hand, further = settings_of("hand@home1.net", "sip:hand@home1.net"), many[0]
    await store.add(subscriber_of(by_hand))
    await provision(store, many)
    await report_gone(store, many, log)
    assert log.events == []
    await report_gone(store, [by_hand, further], log)
    ((level, event, fields),) = log.events
    assert (level, event, fields["number"]) == ("warning", "subscribers-not-in-file", 13)
    assert fields["impis"] == ", ".join(f"user{number:02}@home1.net" for number in range(1, 11)) + ", …"
    await provision(store, [by_hand])  # the file has him now
    assert await gone_from_file(store, many) == ["hand@home1.net"]


async def test_a_start_reports_who_has_gone_although_another_has_his_public_identity(tmp_path: Path) -> None:
    """Such a file is refused: the report before says whom to remove."""
    log = RecordingLog()
    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        for impi, expected in (("old@home1.net", nullcontext()), ("new@home1.net", pytest.raises(StoreError, match="there already"))):
            config = Config(subscribers=[settings_of(impi, "sip:a@home1.net")])
            services = Process(config, state, FakeClock(), SystemRandom(), log, Metrics())
            async with services.exit:
                with expected:
                    await start_hss(services)
    assert log.fields("subscribers-not-in-file")["impis"] == "old@home1.net"


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


@dataclass(slots=True)
class Process(Services):
    """What a process of a state directory has; its periodic work is done when a test says so."""

    works: list[Callable[[], Awaitable[object]]] = field(default_factory=list)

    def every(self, seconds: float, work: Callable[[], Awaitable[object]], *, first: float | None = None) -> None:
        assert (seconds, first) == (OWED_AGAIN, None)
        self.works.append(work)


async def test_an_s_cscf_of_another_process_is_told_by_that_process(tmp_path: Path) -> None:
    """TS 29.228 §8.1.1: each has an HSS of its own, over one store, and reaches the S-CSCF that it plays itself."""
    clock = FakeClock()
    config = Config(subscribers=[settings_of(ALICE, ALICE_SIP)])
    with open_state(tmp_path / "state", random=SystemRandom()) as state:
        async with AsyncExitStack() as stack:
            former, later = [Process(config, state, clock, SystemRandom(), StructLog("none"), Metrics()) for _ in range(2)]
            for each in (former, later):
                stack.push_async_exit(each.exit)
            asked, parts = Asked(), await start_hss(former)
            parts.servings.by_name[SCSCF] = asked
            await parts.hss.server_assignment(ALICE, ALICE_SIP, SCSCF, ServerAssignment.REGISTRATION)
            hss = (await start_hss(later)).hss
            await hss.multimedia_auth(ALICE, ALICE_SIP, OTHER)
            await hss.server_assignment(ALICE, ALICE_SIP, OTHER, ServerAssignment.REGISTRATION)
            await settle()
            clock.time += OWED_AGAIN + 1
            for each in (later, former):
                await each.works[0]()
            assert asked.terminations == [((ALICE_SIP,), DeregistrationReason.NEW_SERVER_ASSIGNED, "")]
            assert await hss.subscribers.owing() == {}


def settings_of(impi: str, impu: str) -> Subscriber:
    return Subscriber(impi=impi, impus=[impu], k=Secret(bytes(16)), opc=Secret(bytes(16)))
