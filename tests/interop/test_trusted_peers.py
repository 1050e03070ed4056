# SPDX-License-Identifier: Apache-2.0
"""`trusted_peers` between two machines, as two network namespaces with a wire between them: who is served at Mw and at ISC."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from interop.ipseckit import A6, LIMIT, S6, SERVE, UE, A, Namespace, Process, S, _serve, namespaces, needed, run, short
from interop.ipsecpush import CLEAR, sealed_push
from system.serving import environment, until

pytestmark = pytest.mark.interop
ELSEWHERE, ELSEWHERE6 = "10.99.0.130", "2001:db8:99:0:1::1"
"""Addresses of the application server's machine that no prefix holds."""
PREFIXES = '["10.99.0.0/25", "2001:db8:99::/80"]'


@dataclass
class Machines:
    """The S-CSCF's machine and that of the application server, both of which serve."""

    folder: Path
    home: Namespace
    far: Namespace
    scscf: Process
    server: Process

    def asks(self, file: Path, own: str, peer: str, port: int, *, of: Namespace | None = None) -> str:
        """Send what is in a file from an address; return the status of the answer."""
        script = CLEAR.replace("AF_INET", "AF_INET6") if ":" in own else CLEAR
        namespace = of or self.far
        return namespace.run(sys.executable, "-c", script.replace("1.0", "10.0"), own, peer, str(port), str(file)).stdout.strip()

    def request(self, method: str, *more: str) -> Path:
        """Write a request of the user's."""
        file = self.folder / f"{os.urandom(4).hex()}.sip"
        head = (
            f"{method} sip:h SIP/2.0", f"Via: SIP/2.0/UDP {A}:5060;rport;branch=z9hG4bK{os.urandom(8).hex()}", "Max-Forwards: 70",
            f"From: <sip:u@h>;tag={os.urandom(4).hex()}", "To: <sip:u@h>", f"Call-ID: {os.urandom(8).hex()}", f"CSeq: 1 {method}", *more,
            "Content-Length: 0", "", "",
        )  # fmt: skip
        file.write_text("\r\n".join(head))
        return file

    def register(self) -> Path:
        return self.request(
            "REGISTER",
            "Contact: <sip:u@10.99.0.2>;expires=600",
            'Authorization: Digest username="u@h", realm="h", nonce="", uri="sip:h", response=""',
        )

    def ue(self, word: str) -> None:
        place = ["--config", str(self.folder / "ue.toml"), "--state", str(self.folder / "ue-state"), "--json"]
        run(*self.home.inside(sys.executable, "-m", "keyferry", "ue", word, *place), env=environment())


def start(folder: Path, stack: ExitStack, *, mw: str, isc: str) -> Machines:
    """Start both with these lists of trusted peers."""
    home, far = stack.enter_context(namespaces())
    for address in (f"{ELSEWHERE}/24", f"{ELSEWHERE6}/64"):
        run(needed("ip"), "-n", far.name, "addr", "add", address, "dev", far.device, *(["nodad"] if ":" in address else []))
    text = SERVE.replace('protection = "ipsec"', f'protection = "loopback"\ntrusted_peers = {isc}')
    text = short(text.replace(f'trusted_peers = ["{S}"]', f"trusted_peers = {mw}"))
    for name in ("serve.toml", "serve-as.toml"):
        (folder / name).write_text(text)
    (folder / "ue.toml").write_text(short(UE))
    server = _serve(stack, far, folder, "server", ["as", "admin"])
    scscf = _serve(stack, home, folder, "scscf", ["pcscf", "icscf", "scscf", "admin"])
    return Machines(folder, home, far, scscf, server)


@pytest.fixture(name="stack")
def stack_fixture() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_peers_from_a_listed_prefix_are_served_and_others_refused(tmp_path: Path, stack: ExitStack) -> None:
    """Mw: a 401. ISC: pushes arrive over the wire, one from another address is refused however right its seal."""
    here = start(tmp_path, stack, mw=PREFIXES, isc=PREFIXES)
    assert here.asks(here.register(), A, S, 6060) == "401"
    assert here.asks(here.register(), ELSEWHERE, S, 6060) == "403"
    here.ue("register")
    until(lambda: here.server.keys() == 1, seconds=LIMIT, what="the push has come")
    sealed_push(tmp_path, tmp_path / "push.sip")
    assert here.asks(tmp_path / "push.sip", ELSEWHERE, A, 5090, of=here.far) == "403"
    assert here.server.keys() == 1
    assert here.asks(tmp_path / "push.sip", S, A, 5090, of=here.home) == "200"
    assert here.server.keys() == 2
    here.ue("deregister")
    until(lambda: here.server.keys() == 1, seconds=LIMIT, what="the end has come")


def test_over_ipv6_an_address_is_no_text(tmp_path: Path, stack: ExitStack) -> None:
    """The list has the address in another way of writing it."""
    here = start(tmp_path, stack, mw=f'["{S}", "2001:DB8:0099:0:0:0:0:0002"]', isc=PREFIXES)
    text = (tmp_path / "serve.toml").read_text().replace(f'listen = "{S}:6060"', f'listen = "[{S6}]:6061"').replace("8080", "8081")
    text = text.replace("127.0.0.1:506", "127.0.0.1:507").replace("14500", "14501")
    (tmp_path / "six").mkdir()
    (tmp_path / "six" / "serve.toml").write_text(text)
    _serve(stack, here.home, tmp_path / "six", "scscf", ["scscf"])
    assert here.asks(here.register(), A6, S6, 6061) == "401"
    assert here.asks(here.register(), ELSEWHERE6, S6, 6061) == "403"


def test_what_isc_trusts_may_ask_who_is_registered_and_gets_no_challenge(tmp_path: Path, stack: ExitStack) -> None:
    """A 401 has CK' and IK' for the P-CSCF: an application server is none. And a machine that Mw alone trusts may not push."""
    here = start(tmp_path, stack, mw=f'["{S}"]', isc=f'["{A}"]')
    subscribe = here.request(
        "SUBSCRIBE", "Event: reg", "Expires: 600", "Contact: <sip:10.99.0.2:5060>", "P-Asserted-Identity: <sip:y.h:5090>"
    )
    assert here.asks(here.register(), A, S, 6060) == "403"
    assert here.asks(subscribe, A, S, 6060) not in {"403", "nothing"}
    assert here.asks(subscribe, ELSEWHERE, S, 6060) == "403"
    sealed_push(tmp_path, tmp_path / "push.sip")
    assert here.asks(tmp_path / "push.sip", S, A, 5090, of=here.home) == "403"


def test_to_an_application_server_that_nobody_lists_nothing_is_pushed(tmp_path: Path, stack: ExitStack) -> None:
    """The registration goes on all the same."""
    here = start(tmp_path, stack, mw=f'["{S}"]', isc="[]")
    here.ue("register")
    until(lambda: "the policy `loopback`" in here.scscf.log.read_text(), seconds=LIMIT, what="the policy has stopped the push")
    assert here.server.keys() == 0


def test_at_a_loopback_listener_every_address_is_of_this_machine(tmp_path: Path, stack: ExitStack) -> None:
    """An S-CSCF whose own address is another one, such as Kamailio's, pushes to the application server beside it."""
    home, _ = stack.enter_context(namespaces())
    text = short(SERVE.replace('protection = "ipsec"', 'protection = "loopback"').replace(f"{A}:5090", "127.0.0.1:5090"))
    (tmp_path / "serve-as.toml").write_text(text.replace(f"{A}:8443", "127.0.0.1:8443"))
    server = _serve(stack, home, tmp_path, "server", ["as", "admin"])
    sealed_push(tmp_path, tmp_path / "push.sip")
    said = home.run(sys.executable, "-c", CLEAR.replace("1.0", "10.0"), S, "127.0.0.1", "5090", str(tmp_path / "push.sip"))
    assert said.stdout.strip() == "200"
    assert server.keys() == 1
