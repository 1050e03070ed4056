# SPDX-License-Identifier: Apache-2.0
"""1,000 REGISTERs a second in a victim's name, between the victim's two: the victim registers, at the first attempt."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from keyferry.config import load_ue_config
from keyferry.protocol.aka import Usim, algorithm_of
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.digest import Credentials, build_credentials, hash_a1, parse_aka_nonce, parse_challenge, respond
from keyferry.protocol.sip.message import Response, parse_message
from system.serving import Lab, Served, make_lab, serving, shedding, until

STRANGERS = Path(__file__).parent / "strangers.py"
RATE, AT_LEAST, SECONDS = 1_200, 1_000, 2.5  # REGISTERs a second: asked for, and really sent; and for how long
ATTEMPTS = 10
TIMER_F = 32.0  # seconds, RFC 3261 §17.1.2.2: a UE gives up then
REALM = "home1.net"
MADE_UP = "A" * 44  # as long as a nonce of AKA


class Flood(NamedTuple):
    """Where the strangers send, from how many addresses, and which nonce they claim to answer."""

    role: str
    sources: int
    nonce: str


class Victim:
    """A UE by hand, over UDP with the retransmissions of RFC 3261 §17.1.2.2, that states Release 6."""

    def __init__(self, lab: Lab, served: Served, sock: socket.socket) -> None:
        self.settings = load_ue_config(lab.ue).ue
        self.served, self.sock, self.cseq = served, sock, 0
        self.port = served.port("pcscf", proto="udp")
        self.usim = Usim(algorithm_of("milenage", self.settings.k, self.settings.opc or Secret(b"")))

    def challenged(self) -> Response | None:
        response = self._register(Credentials(self.settings.impi, REALM, "", f"sip:{REALM}", ""))
        return response if response.status == 401 else None

    def second(self, challenged: Response) -> Response:
        challenge = parse_challenge(challenged.get("WWW-Authenticate") or "")
        nonce = parse_aka_nonce(challenge.nonce)
        ha1 = hash_a1("AKAv1-MD5", self.settings.impi, REALM, self.usim.authenticate(nonce.rand, nonce.autn).res)
        uri, cnonce, nc = f"sip:{REALM}", "c" * 32, "00000001"
        response = respond("AKAv1-MD5", ha1, method="REGISTER", uri=uri, nonce=challenge.nonce, qop="auth", nc=nc, cnonce=cnonce)
        return self._register(
            Credentials(self.settings.impi, REALM, challenge.nonce, uri, response, "AKAv1-MD5", cnonce, qop="auth", nc=nc)
        )

    def _register(self, credentials: Credentials) -> Response:
        self.cseq += 1
        host, port = self.sock.getsockname()
        data = (
            f"REGISTER sip:{REALM} SIP/2.0\r\nVia: SIP/2.0/UDP {host}:{port};branch=z9hG4bKvictim{self.cseq};rport\r\nMax-Forwards: 70\r\n"
            f"From: <{self.settings.impu}>;tag=1\r\nTo: <{self.settings.impu}>\r\nCall-ID: victim\r\nCSeq: {self.cseq} REGISTER\r\n"
            f'Contact: <sip:victim@{host}:{port}>;+g.keyferry.release="6"\r\nExpires: 600\r\nSupported: path\r\n'
            f"Authorization: {build_credentials(credentials)}\r\nContent-Length: 0\r\n\r\n"
        ).encode()
        begun, wait = time.monotonic(), 0.5
        while time.monotonic() - begun < TIMER_F:
            self.sock.sendto(data, ("127.0.0.1", self.port))
            self.sock.settimeout(wait)
            wait = min(2 * wait, 4.0)
            try:
                while True:
                    message = parse_message(self.sock.recv(65_536))
                    if isinstance(message, Response) and message.get("CSeq") == f"{self.cseq} REGISTER":
                        return message
            except TimeoutError:
                continue
        raise AssertionError(f"no answer within {TIMER_F:g} s")


@pytest.fixture(name="victim", scope="module")
def victim_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Return the UE of examples/, at a process that serves."""
    lab = make_lab(tmp_path_factory.mktemp("strangers"), shedding)
    with serving(lab.serve, lab.state) as served, closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        yield Victim(lab, served, sock)


@pytest.mark.parametrize(
    "flood",
    [Flood("pcscf", 1, ""), Flood("pcscf", 250, ""), Flood("pcscf", 250, MADE_UP), Flood("scscf", 250, "")],
    ids=["one-address", "many-addresses", "made-up-nonce", "at-the-s-cscf"],
)
def test_the_victim_of_a_thousand_strangers_a_second_registers_at_the_first_attempt(victim: Victim, flood: Flood) -> None:
    """DESIGN §5 step 1: challenges are kept by nonce, two for an address; TS 24.229 §5.4.1.2.1."""
    for _ in range(ATTEMPTS):
        if _registers(victim, flood) >= AT_LEAST:
            return
    pytest.fail(f"{ATTEMPTS} times this machine was too busy to send {AT_LEAST} REGISTERs a second")


def _registers(victim: Victim, flood: Flood) -> float:
    """Register the victim in a flood; return how many REGISTERs a second that had."""
    challenged = until(victim.challenged, seconds=TIMER_F, what="a challenge, after what the flood before has left")
    assert challenged is not None
    port = victim.served.port(flood.role, proto="udp")
    words = [str(port), victim.settings.impi, victim.settings.impu, str(RATE), str(SECONDS), str(flood.sources), flood.nonce]
    with subprocess.Popen([sys.executable, str(STRANGERS), *words], stdout=subprocess.PIPE, text=True) as strangers:
        assert strangers.stdout is not None
        assert json.loads(strangers.stdout.readline())["sent"] >= RATE * SECONDS * 2 // 3
        registered = victim.second(challenged)
        sent = json.loads(strangers.stdout.readline())
    assert (registered.status, "rspauth=" in (registered.get("Authentication-Info") or "")) == (200, True)
    assert sent["sent"] == RATE * SECONDS
    assert victim.served.health()["registrations"] == 1
    return float(sent["sent"] / sent["seconds"])
