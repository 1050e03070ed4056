# SPDX-License-Identifier: Apache-2.0
"""Drop rules that are missing while a process serves are said, once; and once, that nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from keyferry.config import ApplicationServer, Config, Ipsec, Network, Scscf
from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.ipsec import IpsecSource
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from keyferry.wiring.ipsec_guard import RulesWatch, pairs_of_scscf, pairs_of_server, watch_rules
from keyferry.wiring.ipsec_rules import Pair, Rules, Side, table_of
from keyferry.wiring.observability import Metrics
from keyferry.wiring.services import Services
from transports.sipkit import FakeClock, Tallies
from transports.vicikit import CHILD, IDENTITY, charon, sa

PAIR = Pair(CHILD, "scscf1.home1.net", "10.99.0.1", 6060, IDENTITY, "10.99.0.2", 5090)
CONFIG = Config(
    network=Network(home_domain="home1.net"), scscf=Scscf(name=PAIR.scscf, listen="10.99.0.1:6060"),
    hosts={IDENTITY: "10.99.0.2:5090"},
    application_servers=[
        ApplicationServer(as_id="xcap.home1.net", sip_uri=f"sip:{IDENTITY}:5090", protection="ipsec", listen_sip="10.99.0.2:5090")
    ],
)  # fmt: skip
MISSING = Rules("the table inet x is not loaded")


class Kernel:
    """What nft says, and how often it was asked."""

    def __init__(self, *said: Rules) -> None:
        self.said = list(said)
        self.asked: list[tuple[list[Pair], Side]] = []

    def __call__(self, pairs: Sequence[Pair], side: Side) -> Rules:
        self.asked.append((list(pairs), side))
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def ignored(_value: float) -> None:
    """Take what is shown."""


async def one() -> Sequence[Pair]:
    return [PAIR]


@pytest.mark.parametrize(("found", "event", "reason"), [
    (Rules(""), "ipsec-rules-loaded", "loaded"), (MISSING, "ipsec-rules-missing", "missing"),
    (Rules("be root", read=False), "ipsec-rules-unread", "unread"),
])  # fmt: skip
async def test_what_is_found_is_said_once(found: Rules, event: str, reason: str) -> None:
    tallies = Tallies()
    shown: list[float] = []
    watch = RulesWatch(one, "scscf", tallies, tallies, shown.append, Kernel(found))
    for _ in range(3):
        await watch.look()
    assert shown == {"loaded": [1], "missing": [0], "unread": []}[reason]
    assert [name for name, _ in tallies.events] == [event]
    assert tallies.counts == {("ipsec_rules", reason): 1}


async def test_rules_that_go_and_come_are_said_each_time_and_looked_at_when_an_sa_changes() -> None:
    tallies = Tallies()
    kernel = Kernel(Rules(""), MISSING, Rules(""))
    watch = RulesWatch(one, "scscf", tallies, tallies, ignored, kernel, every=3_600.0, pause=0.0)
    watch.start()
    try:
        await tallies.until("ipsec_rules", "loaded")
        watch.happened([CHILD])
        await tallies.until("ipsec_rules", "missing")
        watch.happened()
        await tallies.until("ipsec_rules", "loaded", 2)
    finally:
        await watch.aclose()
    assert kernel.asked == [([PAIR], "scscf")] * 3
    assert [fields["problem"] for name, fields in tallies.events if name == "ipsec-rules-missing"] == [MISSING.problem]


async def test_they_are_looked_at_also_when_nothing_happens_and_a_failure_of_ours_ends_nothing() -> None:
    tallies = Tallies()

    def fails(_pairs: Sequence[Pair], _side: Side) -> Rules:
        watch.find = Kernel(MISSING)
        raise RuntimeError("a bug")

    watch = RulesWatch(one, "as", tallies, tallies, ignored, fails, every=0.001, pause=0.0)
    watch.start()
    await tallies.until("ipsec_rules", "missing")
    await watch.aclose()
    assert tallies.events[0] == ("ipsec-rules-watch-failed", {"problem": "RuntimeError"})


async def test_however_much_happens_nft_is_not_started_for_each() -> None:
    tallies = Tallies()
    kernel = Kernel(Rules(""))
    watch = RulesWatch(one, "scscf", tallies, tallies, ignored, kernel)
    watch.start()
    await tallies.until("ipsec_rules", "loaded")
    for _ in range(500):
        watch.happened()
        await asyncio.sleep(0)
    await watch.aclose()
    assert len(kernel.asked) == 1


@asynccontextmanager
async def source(path: Path, local: str = "10.99.0.2") -> AsyncIterator[IpsecSource]:
    view = SaView(Vici(path), FakeClock())
    await view.start()
    try:
        yield IpsecSource(view, CHILD, local, 5090)
    finally:
        await view.aclose()


async def test_the_pairs_are_those_of_the_configuration_and_those_that_there_are() -> None:
    """A key agent's configuration does not say who pushes: its charon does."""
    assert await pairs_of_scscf(CONFIG, PAIR.scscf)() == [PAIR]
    assert await pairs_of_scscf(CONFIG, "scscf2.home1.net")() == []
    theirs = sa(PAIR.scscf, local="10.99.0.2/32", remote="10.99.0.1/32[tcp]")
    other = sa("s2.home1.net", local="10.99.0.2/32", remote="2001:db8::7/128", number=2)
    net = sa("s3.home1.net", local="10.99.0.2/32", remote="192.0.2.0/24", number=3)
    async with charon(theirs, other, net) as served, source(served.path) as taken:
        assert await pairs_of_server(CONFIG, taken)() == [PAIR, Pair(CHILD, "", "2001:db8::7", 0, "", "10.99.0.2", 5090)]
        agent = await pairs_of_server(Config(network=Network(home_domain="home1.net")), taken)()
        assert [table_of(pair, "as") for pair in agent] == ["keyferry_isc_10.99.0.2_10.99.0.1", "keyferry_isc_10.99.0.2_2001-db8--7"]


async def test_without_charon_the_configured_pairs_are_looked_at_and_without_a_pair_nothing_is(tmp_path: Path) -> None:
    async with source(tmp_path / "no") as taken:
        assert await pairs_of_server(CONFIG, taken)() == [PAIR]
        tallies, kernel = Tallies(), Kernel(MISSING)
        await RulesWatch(
            pairs_of_server(Config(network=Network(home_domain="h.net")), taken), "as", tallies, tallies, ignored, kernel
        ).look()
        assert (kernel.asked, tallies.events) == ([], [])


async def test_a_process_that_serves_looks_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it fail where it may not, or there is no nft."""
    monkeypatch.setattr("keyferry.wiring.ipsec_rules.nft", lambda: None)
    tallies = Tallies()
    async with charon() as served:
        with open_state(tmp_path / "state", random=SystemRandom()) as state:
            services = Services(Config(ipsec=Ipsec(vici=str(served.path))), state, SystemClock(), SystemRandom(), tallies, Metrics())
            async with services.exit, source(served.path) as taken:
                watch_rules(services, taken.view, one, "as", "xcap.home1.net")
                async with asyncio.timeout(5):
                    while not tallies.events:
                        await asyncio.sleep(0.005)
                assert tallies.events[0][0] == "ipsec-rules-unread"
                assert services.metrics.value("ipsec_rules", "unread") == 1
