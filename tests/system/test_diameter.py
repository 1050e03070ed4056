# SPDX-License-Identifier: Apache-2.0
"""The HSS in a process of its own, or two, and everybody else asks it over Diameter (TS 29.228 §6; RFC 6733)."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from keyferry.config import load_config
from keyferry.ports import ServerAssignment
from keyferry.protocol.aka import algorithm_of, split_sqn
from keyferry.protocol.diameter.base import DiameterIdentity
from keyferry.protocol.identity import Impi, Impu
from keyferry.roles.cx_client import DiameterCx
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.wiring.observability import Metrics, StructLog
from system.serving import Lab, Served, free_port, keyferry, make_lab, serving, ue, until
from system.staying import operate
from system.test_profiles import PROFILES, opens, subscriber

IMPI, IMPU = Impi("user1_private@home1.net"), Impu("sip:user1_public1@home1.net")
DOCUMENT = "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml"
LIMIT = 60.0  # seconds


def over_tcp(*ports: int, timeout: float = 5.0) -> str:
    """Return what the files of the HSS and of those who ask have in common."""
    peers = ", ".join(f'"aaa://127.0.0.1:{port}"' for port in ports)
    return f'\n[hss]\nlisten_diameter = "127.0.0.1:{ports[0]}"\n[cx]\npeers = [{peers}]\ntimeout = {timeout}\n'


def over_tls(port: int) -> str:
    hosts = f'\n[hosts]\n"hss.home1.net" = "127.0.0.1:{port}"\n'
    return f'\n[hss]\nlisten_diameters = "127.0.0.1:{port}"\npeers = ["scscf1.home1.net", "icscf.home1.net"]\n' + (
        '[cx]\npeers = ["aaas://hss.home1.net"]\n' + hosts
    )


@contextmanager
def apart(lab: Lab, hss_state: Path | None = None) -> Iterator[tuple[Served, Served]]:
    """Serve the HSS, and beside it everybody else."""
    with serving(lab.serve, hss_state or lab.state, "--role", "hss") as hss, serving(lab.serve, lab.state) as others:
        yield hss, others


def writes_and_reads(lab: Lab) -> bool:
    """Use the key at the application server."""
    body = lab.serve.with_name("simservs.xml")
    body.write_text('<?xml version="1.0"?>\n<simservs xmlns="http://uri.etsi.org/ngn/params/xml/simservs/xcap"/>\n')
    put = keyferry("ue", "put", DOCUMENT, str(body), "--config", lab.ue, "--state", lab.state, "--json")
    assert put.returncode == 0, put.stdout + put.stderr
    got = keyferry("ue", "get", DOCUMENT, "--config", lab.ue, "--state", lab.state)
    return got.returncode == 0 and "simservs" in got.stdout


def seq_in(state: Path) -> int:
    with closing(sqlite3.connect(f"file:{state / 'hss.db'}?mode=ro", uri=True)) as connection:
        return int(connection.execute("SELECT seq FROM subscriber WHERE impi = ?", (IMPI,)).fetchone()[0])


def assigned_in(state: Path) -> str | None:
    with closing(sqlite3.connect(f"file:{state / 'hss.db'}?mode=ro", uri=True)) as connection:
        found: str | None = connection.execute("SELECT server_name FROM subscriber WHERE impi = ?", (IMPI,)).fetchone()[0]
        return found


def test_a_ue_registers_renews_and_leaves_and_its_key_works(tmp_path: Path) -> None:
    """Two processes, nothing in common but Diameter; the process that asks has no subscribers."""
    lab = make_lab(tmp_path, lambda text: text + over_tcp(free_port()))
    with apart(lab, tmp_path / "hss") as (hss, others):
        assert [one["proto"] for one in hss.listen] == ["diameter"]
        assert {one["role"] for one in others.listen} == {"pcscf", "icscf", "scscf", "as", "admin"}
        assert not (lab.state / "hss.db").exists()
        for _ in range(3):
            assert ue(lab, "register")["keys"]
            assert writes_and_reads(lab)
        assert others.health()["hss"] == {"scscf1.home1.net": ["hss.home1.net"], "icscf.home1.net": ["hss.home1.net"]}
        metrics = others.admin("/metrics")[1]
        assert 'keyferry_cx_requests_total{reason="MAR SUCCESS"} 3.0' in metrics
        assert 'keyferry_cx_requests_total{reason="SAR SUCCESS"} 3.0' in metrics
        assert 'keyferry_cx_seconds_count{command="MAR",outcome="success"} 3.0' in metrics
        ue(lab, "deregister")
        assert others.health()["registrations"] == 0
        assert keyferry("ue", "get", DOCUMENT, "--config", lab.ue, "--state", lab.state).returncode != 0


def test_a_profile_that_changes_and_a_subscription_that_ends_reach_the_s_cscf_over_the_wire(tmp_path: Path) -> None:
    """TS 29.228 §6.1.3, §6.2.2: PPR and RTR, from the HSS over the connection that the S-CSCF has opened."""
    lab = make_lab(tmp_path, lambda text: text + PROFILES + over_tcp(free_port()))
    own = lab.serve.with_name("hss.toml")  # an admin listener of its own
    own.write_text(lab.serve.read_text().replace(f":{lab.ports['8080']}", f":{free_port()}"))
    with serving(own, tmp_path / "hss", "--role", "hss", "--role", "admin") as hss, serving(lab.serve, lab.state) as others:
        at_home = replace(lab, state=tmp_path / "hss")
        assert subscriber(at_home, hss, "profile", IMPI, "basic")["told"] is False
        assert ue(lab, "register")["keys"]
        assert (opens(lab, "xcap"), opens(lab, "notes")) == (True, False)
        told = subscriber(at_home, hss, "profile", IMPI, "default")
        assert (told["told"], told["server"].split(":")[1]) == (True, "scscf1.home1.net")
        assert opens(lab, "notes")  # the key of the AKA run that was: nobody has registered since
        assert subscriber(at_home, hss, "profile", IMPI, "basic")["told"] is True
        assert (opens(lab, "xcap"), opens(lab, "notes")) == (True, False)
        assert subscriber(at_home, hss, "terminate", IMPI)["told"] is True
        assert (opens(lab, "xcap"), opens(lab, "notes")) == (False, False)
        assert others.health()["registrations"] == 0
        metrics = others.admin("/metrics")[1]
        assert 'keyferry_cx_requests_total{reason="PPR SUCCESS"} 2.0' in metrics
        assert 'keyferry_cx_requests_total{reason="RTR SUCCESS"} 1.0' in metrics
        assert ue(lab, "register")["keys"]


def test_over_tls_each_end_shows_its_name_and_role(tmp_path: Path) -> None:
    lab = make_lab(tmp_path, lambda text: text + over_tls(free_port()))
    own = lab.state / "pki" / "hss-hss.home1.net.pem"
    with serving(lab.serve, lab.state, "--role", "hss") as hss:
        assert [one["proto"] for one in hss.listen] == ["diameters"]
        with serving(lab.serve, lab.state):
            assert ue(lab, "register")["keys"]
            assert writes_and_reads(lab)
        own.unlink()
        hss.process.send_signal(signal.SIGHUP)
        until(lambda: "certificates-read-again" in hss.log.read_text(), seconds=LIMIT, what="the HSS has read its certificate again")
        assert own.exists()
        with serving(lab.serve, lab.state):  # whose connections see the new one
            assert ue(lab, "register")["keys"]
    shown = {path.name for path in (lab.state / "pki").glob("*.pem")}
    assert {"hss-hss.home1.net.pem", "scscf-scscf1.home1.net.pem", "icscf-icscf.home1.net.pem"} <= shown


def test_while_the_hss_is_away_nobody_is_forbidden_anything_and_afterwards_all_goes_on(tmp_path: Path) -> None:
    """A REGISTER gets 504, not 403; the S-CSCF's registrations and the keys at the AS stay."""
    lab = make_lab(tmp_path, lambda text: text + over_tcp(free_port(), timeout=1.0))
    with ExitStack() as stack:
        with serving(lab.serve, tmp_path / "hss", "--role", "hss"):
            others = stack.enter_context(serving(lab.serve, lab.state))
            assert ue(lab, "register")["keys"]
        refused = keyferry("ue", "register", "--config", lab.ue, "--state", lab.state, "--json")
        assert refused.returncode != 0
        assert json.loads(refused.stdout)["status"] == 504, refused.stdout
        assert others.health()["registrations"] == 1
        assert others.health()["hss"] == {"scscf1.home1.net": [], "icscf.home1.net": []}
        stack.enter_context(serving(lab.serve, tmp_path / "hss", "--role", "hss"))
        until(lambda: all(others.health()["hss"].values()), seconds=LIMIT, what="both have found the HSS again")
        assert ue(lab, "register")["keys"]
        assert writes_and_reads(lab)


def test_an_end_that_the_hss_was_not_told_of_outlives_kill_9_of_the_s_cscf(tmp_path: Path) -> None:
    """TS 29.228 §6.1.2.1: else the HSS would name an S-CSCF that knows nothing of the user until he registers again."""
    lab = make_lab(tmp_path, lambda text: text + over_tcp(free_port(), timeout=0.5))
    with apart(lab, tmp_path / "hss") as (hss, others):
        assert ue(lab, "register")["keys"]
        hss.kill()
        assert operate(others, IMPI, "deregister", event="deactivated") == 1
        others.kill()
    assert assigned_in(tmp_path / "hss") is not None
    with apart(lab, tmp_path / "hss"):
        until(lambda: assigned_in(tmp_path / "hss") is None, seconds=LIMIT, what="the HSS knows")
    with closing(sqlite3.connect(f"file:{lab.state / 'scscf.db'}?mode=ro", uri=True)) as connection:
        assert connection.execute("SELECT count(*) FROM owed_end").fetchone() == (0,)


def test_where_one_of_two_hss_processes_freezes_or_dies_the_other_goes_on_and_no_seq_comes_twice(tmp_path: Path) -> None:
    """TS 33.102 annex C.1: the card accepts every vector, whoever gives it. Who freezes keeps its sockets, and says nothing."""
    first, second = free_port(), free_port()
    lab = make_lab(tmp_path, lambda text: text + over_tcp(first, second, timeout=2.0))
    other, state = other_hss(lab, first, second), tmp_path / "hss"
    with ExitStack() as stack:
        one = stack.enter_context(serving(lab.serve, state, "--role", "hss"))
        stack.enter_context(serving(other, state, "--role", "hss"))
        others = stack.enter_context(serving(lab.serve, lab.state))
        until(lambda: all(len(found) == 2 for found in others.health()["hss"].values()), seconds=LIMIT, what="both HSSs are found")
        for _ in range(2):
            assert ue(lab, "register")["keys"]
        before = seq_in(state)
        one.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            assert ue(lab, "register")["keys"]
            metrics = others.admin("/metrics")[1]
            # The first UAR of the I-CSCF and the first MAR of the S-CSCF cost half of the time; what follows is asked of the other.
            assert 'keyferry_diameter_sent_total{reason="again"} 2.0' in metrics
            assert 'keyferry_diameter_sent_total{reason="timeout"}' not in metrics
        one.kill()
        assert ue(lab, "register")["keys"]
        assert seq_in(state) > before
        assert "resynchronised" not in one.log.read_text()
        stack.enter_context(serving(lab.serve, state, "--role", "hss"))
        until(lambda: all(len(found) == 2 for found in others.health()["hss"].values()), seconds=LIMIT, what="the first is found again")
        assert ue(lab, "register")["keys"]
        assert "resynchronised" not in one.log.read_text()


async def test_an_hss_that_thaws_does_not_end_what_has_begun_again_at_the_other(tmp_path: Path) -> None:
    """What waited in its socket was asked of the other meanwhile, and the user has registered again since."""
    ports = free_port(), free_port()
    lab = make_lab(tmp_path, lambda text: text + over_tcp(*ports, timeout=1.0))
    other, state, name = other_hss(lab, *ports), tmp_path / "hss", "sip:scscf1.home1.net:6060"
    with serving(lab.serve, state, "--role", "hss") as one, serving(other, state, "--role", "hss"):
        cx, client = await asking(*ports, timeout=1.0)
        await cx.multimedia_auth(IMPI, IMPU, name)
        await cx.server_assignment(IMPI, IMPU, name, ServerAssignment.REGISTRATION)
        one.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            await cx.server_assignment(IMPI, IMPU, name, ServerAssignment.USER_DEREGISTRATION)
        await cx.multimedia_auth(IMPI, IMPU, name)
        await cx.server_assignment(IMPI, IMPU, name, ServerAssignment.REGISTRATION)
        one.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(LIMIT):
            while "stood-still" not in one.log.read_text():
                await asyncio.sleep(0.01)
        again, third = await asking(ports[0])
        assert await again.location_info(IMPU) == name
        for each in (client, third):
            await each.aclose()


async def test_two_hss_processes_asked_at_the_same_time_give_no_seq_twice(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    lab = make_lab(tmp_path, lambda text: text + over_tcp(first, second))
    other = other_hss(lab, first, second)
    own = load_config(lab.serve).subscribers[0]
    assert own.opc is not None
    algorithm = algorithm_of(own.algorithm, own.k, own.opc)
    with serving(lab.serve, tmp_path / "hss", "--role", "hss"), serving(other, tmp_path / "hss", "--role", "hss"):
        seqs: list[int] = []

        async def ask(port: int) -> None:
            async with asyncio.timeout(LIMIT):
                cx, client = await asking(port)
                for _ in range(100):
                    vector = await cx.multimedia_auth(IMPI, IMPU, "sip:scscf1.home1.net:6060")
                    ak = algorithm.f2345(vector.rand).ak
                    seqs.append(split_sqn(int.from_bytes(vector.autn[:6], "big") ^ int.from_bytes(ak, "big"))[0])
                await client.aclose()

        await asyncio.gather(*(ask(port) for port in (first, second) for _ in range(2)))
    assert len(set(seqs)) == len(seqs) == 400


def other_hss(lab: Lab, first: int, second: int) -> Path:
    """Return the file of an HSS that listens at the second port."""
    other = lab.serve.with_name("other.toml")
    other.write_text(lab.serve.read_text().replace(f'listen_diameter = "127.0.0.1:{first}"', f'listen_diameter = "127.0.0.1:{second}"'))
    return other


async def asking(*ports: int, timeout: float = 5.0) -> tuple[DiameterCx, DiameterClient]:
    """Be an S-CSCF."""
    clock, random, log, metrics = SystemClock(), SystemRandom(), StructLog("none"), Metrics()
    identity = DiameterIdentity("scscf1.home1.net", "home1.net")
    client = DiameterClient([DiameterPeer("127.0.0.1", port) for port in ports], identity, clock=clock, random=random, log=log)
    await client.start()
    async with asyncio.timeout(LIMIT):
        while len(client.connected()) < len(ports):
            await asyncio.sleep(0.01)
    return DiameterCx(client, identity, "home1.net", clock, random, log, metrics, timeout), client


def test_an_hss_that_nobody_could_ask_does_not_start(lab: Lab) -> None:
    done = keyferry("serve", "--config", lab.serve, "--state", lab.state, "--role", "hss")
    assert done.returncode == 2, done.stdout + done.stderr
    assert 'Set hss.listen_diameter = "127.0.0.1:3868"' in done.stderr
