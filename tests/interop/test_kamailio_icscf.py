# SPDX-License-Identifier: Apache-2.0
"""A stock Kamailio is the I-CSCF (TS 24.229 §5.3) that asks our HSS; behind it, and behind ours, are Kamailio's S-CSCF and ours."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from interop.capturing import capturing
from interop.icscf_kit import KAMAILIO, OURS, WHOLE, Network, life, network, registered
from interop.test_cx_tshark import _fields
from keyferry.client.session import ue_session
from keyferry.errors import RegistrationFailed
from keyferry.wiring.observability import StructLog
from system.serving import keyferry, until

pytestmark = pytest.mark.interop
LIMIT = 30.0  # seconds


@pytest.fixture(name="running", scope="module")
def running_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """Start everything once."""
    with network(tmp_path_factory.mktemp("icscf")) as found:
        yield found


@pytest.mark.parametrize("scscf", [KAMAILIO, OURS])
@pytest.mark.parametrize("icscf", ["kamailio", "ours", "all"])
def test_a_ue_registers_renews_and_leaves(running: Network, tmp_path: Path, icscf: str, scscf: str) -> None:
    """The S-CSCF is the HSS's choice; the AS has the UE's key each time, and none at the end; Cx decodes."""
    number = running.users_of(scscf)[{"kamailio": 0, "ours": 1, "all": -2}[icscf]]
    wanted = {"300", "301", "303"} | ({"302"} if icscf != "all" else set())  # LIR: our P-CSCF subscribes
    with capturing(tmp_path / "cx.pcapng", f"tcp port {running.ports['hss']}") as file:
        fingerprints = asyncio.run(life(running, running.ue(number, icscf), tmp_path / "ue", [scscf] * 3))
        assert len(set(fingerprints)) == 3
        until(lambda: running.keys_at_as() == 0, seconds=10, what="the keys are erased at the AS")
        until(lambda: running.serving(number) is None, seconds=10, what="the HSS knows that the user is gone")
        until(lambda: wanted <= _commands(running, file), seconds=LIMIT, what="UAR, SAR, LIR, MAR were captured")
    port = running.ports["hss"]
    assert _fields(port, file, "_ws.malformed || diameter.avp.invalid-data || diameter.avp.invalid-len", "frame.number") == []
    asked = _fields(port, file, "diameter.cmd.code == 300 && diameter.flags.request == 1", "diameter.Origin-Host")
    name = "icscf2.home1.net" if icscf == "ours" else "icscf.home1.net"
    assert {host for (hosts,) in asked for host in hosts.split(",")} == {name}
    assert len(asked) >= 7  # before each REGISTER: what it could know of a Call-ID is not kept


def _commands(running: Network, file: Path) -> set[str]:
    found = _fields(running.ports["hss"], file, "diameter.flags.request == 0", "diameter.cmd.code")
    return {code for (codes,) in found for code in codes.split(",")}


def test_who_is_unknown_is_refused_with_403(running: Network, tmp_path: Path) -> None:
    """TS 29.228 §6.1.1: DIAMETER_ERROR_USER_UNKNOWN."""
    config = running.ue(0, "kamailio", impi="nobody@home1.net", impu="sip:nobody@home1.net")
    with pytest.raises(RegistrationFailed, match="403"):
        asyncio.run(_register(config, tmp_path / "ue"))


@pytest.mark.parametrize("icscf", ["kamailio", "ours"])
def test_the_users_of_a_silent_s_cscf_go_to_the_other_kind(running: Network, tmp_path: Path, icscf: str) -> None:
    """§5.3.1.3: the key of the other S-CSCF works, and the HSS knows where the user is."""
    number = running.users_of(OURS)[2 if icscf == "kamailio" else 3]
    config = running.ue(number, icscf)
    asyncio.run(_register(config, tmp_path / "ue"))
    assert running.serving(number) == running.server_uri(OURS)
    with running.paused(running.scscf):
        fingerprints = asyncio.run(life(running, config, tmp_path / "ue", [KAMAILIO] * 2))
    assert len(set(fingerprints)) == 2


async def _register(config: object, state: Path) -> None:
    async with ue_session(config, state, StructLog("none")) as session:  # type: ignore[arg-type]
        await registered(session)


class Peer:
    """A P-CSCF of hand-made octets before Kamailio's I-CSCF."""

    def __init__(self, running: Network, address: str = "127.0.0.1") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 0))
        self._socket.settimeout(10)
        self._to = ("127.0.0.1", running.ports["kamailio"])
        self._via = f"{address}:{self._socket.getsockname()[1]}"

    def send(self, number: int, *, call_id: str, branch: str, protected: str = "no") -> None:
        """Send a REGISTER without an answer."""
        user = f"crowd{number}@home1.net"
        self._socket.sendto(
            f"REGISTER sip:home1.net SIP/2.0\r\nVia: SIP/2.0/UDP {self._via};branch=z9hG4bK{branch}\r\nMax-Forwards: 70\r\n"
            f"From: <sip:{user}>;tag=1\r\nTo: <sip:{user}>\r\nCall-ID: {call_id}\r\nCSeq: 1 REGISTER\r\n"
            f'Contact: <sip:raw@{self._via}>\r\nExpires: 600\r\nSupported: path\r\nP-Visited-Network-ID: "home1.net"\r\n'
            f'Authorization: Digest username="{user}", realm="home1.net", nonce="", uri="sip:home1.net", response="", '
            f'integrity-protected="{protected}"\r\n'
            "Content-Length: 0\r\n\r\n".encode(),
            self._to,
        )

    def receive(self) -> str:
        """Return the next final response."""
        while True:
            data = self._socket.recv(65535).decode()
            if not data.startswith("SIP/2.0 1"):
                return data

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def test_two_questions_of_one_call_id_are_asked_one_after_the_other(running: Network) -> None:
    """ims_icscf keeps answers by Call-ID, and two users' UEs may choose the same: the second is told to wait, and nobody gets another's."""
    peer = Peer(running)
    users = {"one": running.users_of(KAMAILIO)[-1], "two": running.users_of(OURS)[-1]}
    with running.paused(running.hss):
        for branch, number in users.items():  # ims_icscf compares without regard to case
            peer.send(number, call_id="the-same" if branch == "one" else "The-Same", branch=branch)
        refused = peer.receive()  # whichever another process of Kamailio's read a moment later
        assert refused.startswith("SIP/2.0 500")
        assert "\r\nRetry-After: 1\r\n" in refused
    late = "one" if "branch=z9hG4bKone" in refused else "two"
    challenged = peer.receive()
    assert challenged.startswith("SIP/2.0 401"), challenged
    assert f"branch=z9hG4bK{late}" not in challenged
    peer.send(users[late], call_id="the-same", branch="again")
    assert peer.receive().startswith("SIP/2.0 401")
    peer.close()


def test_the_time_that_the_hss_takes_is_taken_from_the_s_cscf_s(running: Network) -> None:
    """RFC 4321 §1.1: a P-CSCF waits 30 s, whoever of those behind it is slow; this I-CSCF is given 6 s instead of 28."""
    peer, hss_took = Peer(running), 3.0
    with running.paused(running.scscf):
        began = time.monotonic()
        with running.paused(running.hss):
            peer.send(running.users_of(OURS)[-3], call_id="slow", branch="slow", protected="yes")
            until(lambda: time.monotonic() >= began + hss_took, seconds=2 * hss_took, what="the HSS has been silent for a while")
        answer = peer.receive()
    took = time.monotonic() - began
    peer.close()
    assert answer.startswith("SIP/2.0 504"), answer[:11]
    assert hss_took + 1 < took < WHOLE + hss_took / 2, "the S-CSCF has what the HSS left"


def test_the_check_looks_at_every_role(running: Network) -> None:
    roles = ("scscf", "icscf", "pcscf")
    words = [word for role in roles for word in ("--role", role)]
    words += ["--config", str(running.folder / "pcscf.toml"), "--check", "--json"]
    command = ("kamailio", str(running.folder / "kamailio"), *words)
    done = keyferry(*command)
    assert done.returncode == 0, done.stdout
    found = [each["what"] for each in msgspec.json.decode(done.stdout)["checks"]]
    assert {what.partition(": ")[0] for what in found} == set(roles)
    assert {f"{role}: kamailio -c" for role in roles} <= set(found)
    table = running.folder / "kamailio/icscf/s_cscf"
    table.rename(table.with_name("away"))
    try:
        done = keyferry(*command)
    finally:
        table.with_name("away").rename(table)
    assert done.returncode == 1
    bad = [each["what"] for each in msgspec.json.decode(done.stdout)["checks"] if not each["ok"]]
    assert bad == ["icscf: files"]


def test_strangers_are_refused(running: Network) -> None:
    """A 401 carries keys for a P-CSCF: an address that is not on the list gets none."""
    stranger = Peer(running, "127.0.0.2")
    stranger.send(0, call_id="stranger", branch="one")
    assert stranger.receive().startswith("SIP/2.0 403")
    stranger.close()


def test_an_hss_that_is_silent_costs_a_504_and_not_a_hanging_request(running: Network, tmp_path: Path) -> None:
    """Cdp waits for 5 s; and a request that it has nobody to send to it forgets, so the transaction's own time has to end it."""
    with running.paused(running.hss), pytest.raises(RegistrationFailed, match="504"):
        asyncio.run(_register(running.ue(0, "kamailio"), tmp_path / "ue"))
