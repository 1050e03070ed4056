# SPDX-License-Identifier: Apache-2.0
"""Other tunnels of the same charon: what they do stops nothing, unless one may carry the same packets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from interop.ipseckit import LIMIT, A, Charon, S, World, needed, run, world
from keyferry.errors import ProtectionUnmet
from keyferry.ports import SipPeer
from keyferry.protocol.security_association import Wanted
from keyferry.transports.clock import SystemClock
from keyferry.transports.ipsec import IpsecPolicy, IpsecSource
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from system.serving import until

pytestmark = pytest.mark.interop
WANTED = Wanted("isc-xcap-as-home1-net", "xcap-as.home1.net")
THERE, BACK = SipPeer("UDP", A, 5090), SipPeer("TCP", S, 40_000)
OTHERS = """
connections {{
  others {{
    local_addrs = {own}
    remote_addrs = {peer}
    version = 2
    encap = yes
    mobike = no
    local {{
      auth = psk
      id = {own_id}
    }}
    remote {{
      auth = psk
      id = {peer_id}
    }}
    children {{
{children}
    }}
  }}
}}
secrets {{
  ike-others {{
    id-1 = evil.home1.net
    id-2 = us.home1.net
    secret = "not of anybody that we know"
  }}
}}
"""
CHILD = """
      {name} {{
        mode = tunnel
        local_ts = {local}
        remote_ts = {remote}
      }}
"""
ELSEWHERE, SAME = "192.0.2.0/24", A


def add_others(here: World, **children: str) -> None:
    """Let both charons have another connection, whose other side is a stranger, with these CHILD_SAs."""
    here.far.namespace.run(needed("ip"), "addr", "add", "192.0.2.1/24", "dev", "lo")  # charon wants one of its own on its side
    for charon, own, peer, own_id, peer_id in (
        (here.far, A, S, "evil.home1.net", "us.home1.net"), (here.home, S, A, "us.home1.net", "evil.home1.net"),
    ):  # fmt: skip
        text = "".join(
            CHILD.format(name=name, local=S if charon is here.home else net, remote=net if charon is here.home else S)
            for name, net in children.items()
        )
        with (charon.folder / "swanctl.conf").open("a") as file:
            file.write(OTHERS.format(own=own, peer=peer, own_id=own_id, peer_id=peer_id, children=text))
        charon.load()


def end(charon: Charon, child: str) -> None:
    run(needed("swanctl"), "--terminate", "--child", child, "--timeout", "10", "--uri", f"unix://{charon.socket}")


@pytest.fixture(name="place")
def place_fixture() -> Iterator[Path]:
    """Return a folder whose name is short enough for a socket's."""
    with TemporaryDirectory(prefix="kfi-") as folder:
        yield Path(folder)


@asynccontextmanager
async def both(here: World) -> AsyncIterator[tuple[IpsecPolicy, IpsecSource]]:
    """Give the S-CSCF's policy, and what the application server takes a sender for."""
    home, far = SaView(Vici(here.home.socket), SystemClock()), SaView(Vici(here.far.socket), SystemClock())
    for view in (home, far):
        await view.start()
    try:
        yield IpsecPolicy(home, WANTED, S, 6060), IpsecSource(far, WANTED.child, A, 5090)
    finally:
        for view in (home, far):
            await view.aclose()


async def test_what_happens_to_other_tunnels_stops_nothing_and_one_over_the_same_addresses_stops_all(place: Path) -> None:
    """charon tells of an SA before it answers a question that came later: nothing is let go between its coming and the word of it."""
    with world(place) as here:
        here.up()
        add_others(here, elsewhere=ELSEWHERE, same=SAME)
        async with both(here) as (policy, source):

            async def flap() -> None:
                for _ in range(5):
                    assert await asyncio.to_thread(here.home.initiate, "elsewhere") == 0
                    await asyncio.to_thread(end, here.home, "elsewhere")

            asked, flapping = 0, asyncio.create_task(flap())
            while not flapping.done():
                await policy(THERE)
                assert (await source.authenticated(BACK)).name == "scscf1.home1.net"
                asked += 1
            await flapping
            assert asked > 5
            assert policy.view.events >= 10
            for _ in range(3):
                assert await asyncio.to_thread(here.home.initiate, "same") == 0
                with pytest.raises(ProtectionUnmet, match="another identity"):
                    await policy(THERE)
                with pytest.raises(ProtectionUnmet, match="of another"):
                    await source.authenticated(BACK)
                await asyncio.to_thread(end, here.home, "same")
                await policy(THERE)
                assert (await source.authenticated(BACK)).name == "scscf1.home1.net"


def test_a_process_that_serves_says_when_the_drop_rules_are_gone_and_when_they_are_back(place: Path) -> None:
    """On both sides, by itself: somebody has flushed them, and an SA is rekeyed meanwhile."""
    with world(place) as here:
        here.up()
        sides = ((here.scscf, here.home), (here.server, here.far))
        for process, _ in sides:
            until(lambda process=process: "ipsec-rules-loaded" in process.log.read_text(), seconds=LIMIT, what="rules are there")  # type: ignore[misc]
            assert "ipsec-rules-missing" not in process.log.read_text()
        for _, charon in sides:
            charon.without_rules()
        here.home.rekey()
        for process, charon in sides:
            until(lambda process=process: "ipsec-rules-missing" in process.log.read_text(), seconds=LIMIT, what="they are missing")  # type: ignore[misc]
            assert re.search(r'(?m)^keyferry_ipsec_rules_loaded\{name=".+"\} 0\.0$', process.get("/metrics"))
            charon.rules()
        here.home.rekey()
        for process, _ in sides:
            until(lambda process=process: process.log.read_text().count("ipsec-rules-loaded") == 2, seconds=LIMIT, what="they are back")  # type: ignore[misc]
