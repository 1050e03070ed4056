# SPDX-License-Identifier: Apache-2.0
"""The protection policy `tls` between two processes that share no state: an S-CSCF's machine and an application server's (DESIGN §6)."""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from keyferry.stores.state_dir import open_state
from keyferry.transports.clock import SystemClock, SystemRandom
from keyferry.transports.pki import LEAF_DAYS, Pki
from system.serving import Lab, Served, free_port, make_lab, serving, ue, until

SCSCF, AS, AS_ID = "scscf1.home1.net", "xcap-as.home1.net", "xcap.home1.net"
CORE = ("--role", "pcscf", "--role", "icscf", "--role", "scscf", "--role", "admin")
SERVER = ("--role", "as", "--role", "admin")
LIMIT = 60.0  # seconds; a push that failed is tried again after 0.5, 1, 2, 4, 8 seconds


class PastClock(SystemClock):
    """The clock of who issued a certificate that has ended since."""

    def now(self) -> float:
        return super().now() - (LEAF_DAYS + 2) * 86_400


@dataclass(frozen=True, slots=True)
class Machines:
    """Two state directories, and the configuration file of each machine."""

    lab: Lab  # its file and state are the S-CSCF's machine
    server: Path
    server_state: Path

    @property
    def issuer(self) -> Pki:
        """The CA; its key is on the S-CSCF's machine alone."""
        return Pki(self.lab.state, SystemClock())

    def give(self, issuer: Pki, name: str, role: str, *, shown_as: str = "") -> None:
        """Copy a certificate to the application server's machine, under the file name of its certificate for SIP or for HTTPS."""
        made = issuer.ensure(name, role)
        for file in (made.certificate, made.key):
            shutil.copy(file, self.server_state / "pki" / f"as-{shown_as or name}{file.suffix}")

    @contextmanager
    def core(self) -> Iterator[Served]:
        with serving(self.lab.serve, self.lab.state, *CORE) as running:
            yield running

    @contextmanager
    def appserver(self) -> Iterator[Served]:
        with serving(self.server, self.server_state, *SERVER) as running:
            yield running


def _edited(text: str) -> str:
    """Leave one application server, over TLS."""
    first, second = (found.start() for found in re.finditer(r"\[\[application_servers\]\]", text))
    end = text.index("# K and OPc")
    one = text[first:second].replace('"sip:xcap', '"sips:xcap').replace("listen_sip =", 'protection = "tls"\nlisten_sips =')
    return text[:first] + one + text[end:] + f'\n[hosts]\n"{AS}" = "127.0.0.1:5090"\n'


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    """Set both machines up as an operator would: issue and copy certificates, copy the transport key."""
    lab = make_lab(tmp_path, _edited)
    server, state = tmp_path / "server.toml", tmp_path / "server"
    server.write_text(lab.serve.read_text().replace(f":{lab.ports['8080']}", f":{free_port()}"))
    random = SystemRandom()
    with open_state(lab.state, random=random) as ours, open_state(state, random=random):
        ours.isc_keys(SCSCF, AS_ID)
        shutil.copytree(lab.state / "isc", state / "isc")
    made = Machines(lab, server, state)
    made.issuer.ensure(SCSCF, "scscf")
    (state / "pki").mkdir(mode=0o700)
    shutil.copy(lab.state / "ca.pem", state / "ca.pem")
    made.give(made.issuer, AS_ID, "as")  # the door's
    return made


def keys(served: Served) -> int:
    """Return how many keys the application server holds."""
    return int(served.health()["keys"][AS_ID])


def registered_without_push(machines: Machines, core: Served, server: Served, problem: str) -> None:
    """Register: the UE gets in, no key gets out, and the operator is told."""
    assert ue(machines.lab, "register")["keys"]
    assert core.health()["registrations"] == 1
    until(lambda: problem in core.log.read_text(), seconds=LIMIT, what=f"{problem!r} in the log")
    alarms = [line for line in core.log.read_text().splitlines() if "third-party-register-not-delivered" in line]
    assert alarms
    assert problem in alarms[-1]
    assert keys(server) == 0
    assert 'keyferry_scscf_push_failed_total{reason="unreachable"}' in core.admin("/metrics")[1]


def test_keys_go_over_tls_to_another_machine(machines: Machines) -> None:
    """Sealed as ever, and both ends proved by certificates; the application server has no listener but TLS."""
    machines.give(machines.issuer, AS, "as")
    with machines.appserver() as server, machines.core() as core:
        assert {one["proto"] for one in server.listen if one["role"] == "as"} - {"psk13"} == {
            "tls",
            "https",
        }  # psk13 is a door, without SIP
        assert ue(machines.lab, "register")["keys"]
        until(lambda: keys(server) == 1, seconds=LIMIT, what="the key at the application server")
        answer = ue(machines.lab, "get", "simservs.ngn.etsi.org/users/sip:user1_public1@home1.net/simservs.xml")
        assert answer["status"] == 200
        ue(machines.lab, "deregister")
        until(lambda: keys(server) == 0, seconds=LIMIT, what="the end of the key")
        assert "not-delivered" not in core.log.read_text()
        assert "push-refused" not in server.log.read_text()
        assert "sip-certificate-expiring" not in server.log.read_text()


def test_an_as_that_lost_its_keys_is_asked_and_gets_them_again_over_tls_alone(machines: Machines) -> None:
    """DESIGN §6: an AS that restarted empty gets everything again; the question goes where keys may go."""
    machines.give(machines.issuer, AS, "as")
    with machines.core() as core:
        with machines.appserver() as server:
            assert ue(machines.lab, "register")["keys"]
            until(lambda: keys(server) == 1, seconds=LIMIT, what="the key at the application server")
        for file in machines.server_state.glob(f"as-{AS_ID}.db*"):
            file.unlink()
        with machines.appserver() as server:
            until(lambda: keys(server) == 1, seconds=LIMIT, what="the key again")
        pushed = 'keyferry_scscf_repush_total{reason="pushed"} 1.0'
        until(lambda: pushed in core.admin("/metrics")[1], seconds=LIMIT, what="the answer to that push")
        assert 'keyferry_scscf_registrations_total{reason="initial"} 1.0' in core.admin("/metrics")[1]


@pytest.mark.parametrize("why", ["role", "expired"])
def test_a_certificate_that_will_not_do_gets_nothing_until_it_is_replaced(machines: Machines, why: str) -> None:
    """Copied again and read again with SIGHUP: the push that is owed arrives."""
    if why == "role":
        machines.give(machines.issuer, AS, "pcscf", shown_as=AS)
        problem = "to a certificate of xcap-as.home1.net in the role as"
    else:
        _expired(machines)
        problem = "certificate has expired"
    with machines.appserver() as server, machines.core() as core:
        registered_without_push(machines, core, server, problem)
        if why == "expired":
            assert "sip-certificate-expiring" in server.log.read_text()
            assert 'keyferry_sip_certificate_total{reason="expired"} 1.0' in server.admin("/metrics")[1]
        machines.give(machines.issuer, AS, "as")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: keys(server) == 1, seconds=LIMIT, what="the push that was owed")


def _expired(machines: Machines) -> None:
    """Give the application server a certificate that has ended, of a CA that has not."""
    shutil.rmtree(machines.lab.state / "pki")
    (machines.lab.state / "ca.pem").unlink()
    past = Pki(machines.lab.state, PastClock())
    machines.give(past, AS, "as")
    machines.give(past, AS_ID, "as")
    shutil.copy(machines.lab.state / "ca.pem", machines.server_state / "ca.pem")
    machines.issuer.ensure(SCSCF, "scscf")


@pytest.mark.parametrize("why", ["name", "ca"])
def test_another_host_and_another_ca_get_nothing_until_it_is_the_right_one(machines: Machines, why: str) -> None:
    """RFC 5922 §7.3: whoever answers at the address. After a restart the push that is owed arrives."""
    good = machines.server.read_text()
    if why == "name":
        machines.server.write_text(good.replace(f"sips:{AS}", "sips:old-as.home1.net"))
        machines.give(machines.issuer, "old-as.home1.net", "as")
        problem = f"does not name {AS}"
    else:
        foreign_state = machines.server_state.with_name("foreign")
        foreign_state.mkdir(mode=0o700)
        foreign = Pki(foreign_state, SystemClock())
        machines.give(foreign, AS, "as")
        machines.give(foreign, AS_ID, "as")
        shutil.copy(foreign.ca_file, machines.server_state / "ca.pem")
        problem = "the peer's certificate: "
    with machines.core() as core:
        with machines.appserver() as server:
            registered_without_push(machines, core, server, problem)
        machines.server.write_text(good)
        shutil.copy(machines.lab.state / "ca.pem", machines.server_state / "ca.pem")
        machines.give(machines.issuer, AS, "as")
        machines.give(machines.issuer, AS_ID, "as")
        with machines.appserver() as server:
            until(lambda: keys(server) == 1, seconds=LIMIT, what="the push that was owed")


def test_who_listens_at_the_address_without_tls_reads_nothing(machines: Machines) -> None:
    """Nothing but TLS is tried: no REGISTER in clear, no other transport."""
    machines.give(machines.issuer, AS, "as")
    address = ("127.0.0.1", machines.lab.ports["5090"])
    with machines.core() as core:
        with socket.create_server(address) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(address)
            udp.setblocking(False)
            tcp.settimeout(LIMIT)
            assert ue(machines.lab, "register")["keys"]
            for _ in range(2):  # the first attempt, and one more
                connection, _ = tcp.accept()
                with connection:
                    connection.settimeout(LIMIT)
                    heard = connection.recv(65_536)
                    connection.sendall(b"SIP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n")
                assert heard[:2] == b"\x16\x03"  # a ClientHello
                assert b"REGISTER" not in heard
            with pytest.raises(BlockingIOError):
                udp.recv(65_536)
        assert core.health()["registrations"] == 1
        with machines.appserver() as server:
            until(lambda: keys(server) == 1, seconds=LIMIT, what="the push that was owed")


def test_who_pushes_must_show_that_it_is_a_listed_s_cscf(machines: Machines) -> None:
    """A right seal from a certificate of another role: 403, an alarm on both sides."""
    machines.give(machines.issuer, AS, "as")
    other = machines.issuer.ensure(SCSCF, "icscf")
    for file in (other.certificate, other.key):
        shutil.copy(file, machines.lab.state / "pki" / f"scscf-{SCSCF}{file.suffix}")
    with machines.appserver() as server, machines.core() as core:
        assert ue(machines.lab, "register")["keys"]
        until(lambda: "the AS answered 403" in core.log.read_text(), seconds=LIMIT, what="the refusal in the log")
        assert 'keyferry_as_pushes_refused_total{reason="peer"} 1.0' in server.admin("/metrics")[1]
        assert keys(server) == 0
