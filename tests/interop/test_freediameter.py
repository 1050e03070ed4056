# SPDX-License-Identifier: Apache-2.0
"""freeDiameter as an agent between our client and our server, over TCP and mutual TLS (GnuTLS): we did not write it (RFC 6733 §6.1)."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from interop.peers import program
from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import result_of
from keyferry.protocol.identity import Impi
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import Admission
from keyferry.transports.diameter_server import DiameterServer
from keyferry.transports.pki import MutualTls, Pki
from protocol.diameter.cxkit import HSS, SCSCF, VECTOR
from system.serving import free_port
from transports.diameterkit import Answering, a_mar, an_rtr
from transports.sipkit import Tallies
from transports.tlskit import tls_of

pytestmark = pytest.mark.interop

AGENT = "agent.home1.net"
LIMIT = 30.0  # seconds
WHITELIST = Path("/usr/lib/freeDiameter/acl_wl.fdx")


@asynccontextmanager
async def agent(folder: Path, pki: Pki, hss_port: int, *, tls: bool) -> AsyncIterator[int]:
    """Run freeDiameter as a relay to our HSS; give the port that our client has to call."""
    daemon = program("freeDiameterd")
    if not WHITELIST.exists():
        pytest.skip("freeDiameter's extensions are not installed; on Debian: apt install freediameter-extensions")
    own = pki.ensure(AGENT, "agent")
    plain, secure = free_port(), free_port()
    allowed = folder / "allowed.conf"
    allowed.write_text(f"{'ALLOW_OLD_TLS' if tls else 'ALLOW_IPSEC'} {SCSCF.origin_host}\n")
    config = folder / "agent.conf"
    config.write_text(f"""
Identity = "{AGENT}";
Realm = "agents.net";
Port = {plain};
SecPort = {secure};
No_SCTP;
No_IPv6;
ListenOn = "127.0.0.1";
TLS_Cred = "{own.certificate}", "{own.key}";
TLS_CA = "{pki.ca_file}";
LoadExtension = "{WHITELIST}" : "{allowed}";
ConnectPeer = "{HSS.origin_host}" {{ {"" if tls else "No_TLS;"} No_SCTP; No_IPv6; Port = {hss_port}; ConnectTo = "127.0.0.1"; }};
""")
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen([daemon, "-c", str(config)], stdout=log, stderr=subprocess.STDOUT)
    try:
        yield secure if tls else plain
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, LIMIT)


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
async def test_requests_of_both_sides_pass_an_agent(tmp_path: Path, tls: bool) -> None:
    pki, said = Pki(tmp_path, SystemClock()), Tallies()
    mine: MutualTls | None = tls_of(pki, SCSCF.origin_host, "scscf") if tls else None
    theirs: MutualTls | None = tls_of(pki, HSS.origin_host, "hss") if tls else None
    asked, serving = Answering(HSS), Answering(SCSCF)
    allowed = Admission.of([AGENT], ["agent"])
    server = DiameterServer(HSS, asked, allowed=allowed, clock=SystemClock(), random=SystemRandom(), log=said, counter=said)
    _, port = await server.listen("127.0.0.1", 0, tls=theirs)
    async with agent(tmp_path, pki, port, tls=tls) as agent_port:
        peer = DiameterPeer("127.0.0.1", agent_port, AGENT, mine, role="agent" if tls else "")
        client = DiameterClient([peer], SCSCF, clock=SystemClock(), random=SystemRandom(), log=said, counter=said, handler=serving)
        await client.start()
        try:
            async with asyncio.timeout(LIMIT):
                await client.ready()
                while not server.connected():
                    await asyncio.sleep(0.05)
                users = [Impi(f"user{number}@home1.net") for number in range(50)]
                answers = await asyncio.gather(*[client.send(a_mar(user), timeout=10.0) for user in users])
                assert [cx.parse_maa(answer).impi for answer in answers] == users
                assert all(cx.parse_maa(answer).items[0].vector == VECTOR for answer in answers)
                assert asked.peers[0].origin_host == AGENT and base.identity_of(asked.asked[0], base.ORIGIN_HOST) == SCSCF.origin_host
                assert result_of(await server.send_to(AGENT, an_rtr(), timeout=10.0)).success
                assert serving.peers[0].product == "freeDiameter"
        finally:
            await client.aclose()
            await server.aclose()
    assert said.counts["diameter_peer", "disconnected"] == 2  # both by DPR, as freeDiameter understood
