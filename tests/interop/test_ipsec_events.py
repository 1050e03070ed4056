# SPDX-License-Identifier: Apache-2.0
"""What happens to security associations while pushes go through them: rekeyed, deleted, charon hanging, the other side gone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from interop.ipseckit import LIMIT, A, S, World, captured, in_clear, world
from keyferry.ports import SipPeer
from keyferry.protocol.security_association import Wanted
from keyferry.transports.clock import SystemClock
from keyferry.transports.ipsec import IpsecPolicy, IpsecSource
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from system.serving import until

pytestmark = pytest.mark.interop
WANTED = Wanted("isc-xcap-as-home1-net", "xcap-as.home1.net")


@pytest.fixture(name="place")
def place_fixture() -> Iterator[Path]:
    """Return a folder whose name is short enough for a socket's."""
    with TemporaryDirectory(prefix="kfi-") as folder:
        yield Path(folder)


def delivered(here: World, pushes: int) -> None:
    """Nothing lost, and nothing twice in effect: as many stored as were owed."""
    until(lambda: here.scscf.metric("scscf_third_party_registers", "delivered") == pushes, seconds=LIMIT, what="the S-CSCF owes nothing")
    assert here.server.metric("as_pushes", "stored") == pushes


async def test_rekeying_has_no_gap_and_refuses_nobody(place: Path) -> None:
    """RFC 7296 §2.8: the new one is there before the old one goes; of the CHILD_SA and of the IKE_SA, each side asking all the time."""
    with world(place) as here:
        here.up()
        home, far = SaView(Vici(here.home.socket), SystemClock()), SaView(Vici(here.far.socket), SystemClock())
        policy, source = IpsecPolicy(home, WANTED, S, 6060), IpsecSource(far, WANTED.child, A, 5090)
        for view in (home, far):
            await view.start()

        async def rekey() -> None:
            for charon in (here.home, here.far, here.home):
                await asyncio.to_thread(charon.rekey)
                await asyncio.sleep(0.2)  # the other side deletes the old one a moment later
            await asyncio.to_thread(here.home.rekey_ike)
            await asyncio.sleep(1.0)

        before, asked = here.home.sas(), 0
        changing = asyncio.create_task(rekey())
        while not changing.done():
            await policy(SipPeer("UDP", A, 5090))
            assert (await source.authenticated(SipPeer("TCP", S, 40_000))).name == "scscf1.home1.net"
            asked += 1
        await changing
        for view in (home, far):
            await view.aclose()
        assert asked > 50
        assert before != here.home.sas()
        here.ue("register")
        delivered(here, 1)
        assert here.scscf.metric("scscf_push_failed", "unprotected") == 0


def test_a_child_sa_that_is_deleted_stops_pushes_until_there_is_another(place: Path) -> None:
    with world(place) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.ue("register")
        delivered(here, 1)
        here.far.kill()  # so that nothing can be set up again
        here.home.terminate()
        until(lambda: "there is no CHILD_SA" in here.check().stdout, seconds=LIMIT, what="it is gone")
        assert here.ue("register")["keys"]
        until(lambda: here.scscf.metric("scscf_push_failed", "unprotected") > 0, seconds=LIMIT, what="the policy has stopped the push")
        assert here.server.metric("as_pushes", "stored") == 1
        here.home.kill()
        here.up()
        delivered(here, 2)
    assert in_clear(wire) == ""


PAST = """connections {
  past {
    remote_addrs = 127.0.0.1
    children {
      past {
        mode = pass
        local_ts = 10.99.0.0/24
        remote_ts = 10.99.0.0/24[/5090]
        start_action = trap
      }
    }
  }
"""


def test_a_policy_that_lets_packets_past_the_sa_stops_pushes(place: Path) -> None:
    """What the plugin bypass-lan does for every local network, an administrator may do by hand, also for ports of any protocol, which
    charon lists as `[0/5090]`; the SA is there all the time.
    """
    with world(place) as here:
        here.up()
        file = here.home.folder / "swanctl.conf"
        honest = file.read_text()
        file.write_text(honest.replace("connections {\n", PAST, 1))
        here.home.load()
        assert "lets it past every CHILD_SA" in here.check().stdout
        assert here.ue("register")["keys"]
        until(lambda: here.scscf.metric("scscf_push_failed", "unprotected") > 0, seconds=LIMIT, what="the policy has stopped the push")
        assert here.server.keys() == 0
        file.write_text(honest)
        here.home.load()
        here.met()
        delivered(here, 1)


def test_a_charon_that_hangs_lets_nothing_through_and_keeps_no_registration_up(place: Path) -> None:
    """SIGSTOP: its socket takes the question and never answers; the TUN device is there and takes packets."""
    with world(place) as here, captured(here.home.namespace, place / "wire.pcap") as wire:
        here.up()
        here.ue("register")
        delivered(here, 1)
        here.home.stop(signal.SIGSTOP)
        began = time.monotonic()
        assert here.ue("register")["keys"]
        assert time.monotonic() - began < 10
        until(lambda: here.scscf.metric("scscf_push_failed", "unprotected") > 0, seconds=LIMIT, what="the policy has stopped the push")
        assert "did not answer within 1 s" in here.scscf.log.read_text()
        assert here.server.metric("as_pushes", "stored") == 1
        here.home.stop(signal.SIGCONT)
        here.met()
        delivered(here, 2)
    assert in_clear(wire) == ""


def test_each_side_finds_out_that_the_other_is_gone(place: Path) -> None:
    """RFC 7296 §2.4: asked after 2 s of silence, and given up 7 s later; what the dead had proven counts for nothing then."""
    with world(place) as here:
        here.up()
        here.home.kill()
        until(lambda: "scscf1.home1.net" not in here.far.sas(), seconds=15, what="the application server's side gave its SAs up")
        here.home.start()
        here.met()
        here.far.kill()
        until(lambda: here.check().returncode == 1, seconds=15, what="the S-CSCF's side gave its SAs up")
        here.far.start()
        here.met()
        here.ue("register")
        delivered(here, 1)
