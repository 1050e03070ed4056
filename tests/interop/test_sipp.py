# SPDX-License-Identifier: Apache-2.0
"""sipp registers with AKAv1-MD5 (RFC 3310) through the P-CSCF, over UDP, TCP and TLS."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path

import pytest

from interop.sipp_program import over_tls, sipp
from keyferry.protocol.crypto.milenage import Milenage, derive_opc
from keyferry.protocol.crypto.secret import Secret
from system.serving import EXAMPLES, Lab, Served, free_port, make_lab, serving

pytestmark = pytest.mark.interop

SCENARIO = Path(__file__).parent / "sipp" / "register.xml"
K = Secret(bytes.fromhex("0396eb317b6d1c36f19c1c84cd6ffd16"))  # the second subscriber of examples/lab.toml
OP = Secret(bytes.fromhex("ff53bade17df5d4e793073ce9d7579fa"))
IMPI = "user2_private@home1.net"
ATTEMPTS = 5  # sipp's fault below takes one run in 32, five in a row one test in 30 million


@pytest.mark.parametrize("transport", ["u1", "t1"], ids=["udp", "tcp"])
def test_sipp_registers_the_second_subscriber_of_the_example(served: Served, transport: str, tmp_path: Path) -> None:
    """RFC 3310 §3; TS 24.229 §5.4.1."""
    _register(served, transport, tmp_path)
    assert served.health() == {"ok": True, "registrations": 1, "keys": {"xcap.home1.net": 0, "notes.home1.net": 0}}
    assert 'keyferry_scscf_authenticated_total{reason="raw"} 1.0' in served.admin("/metrics")[1]


def test_sipp_registers_over_tls(tmp_path: Path) -> None:
    """RFC 3261 §26.3.1. Debian's sipp is built without OpenSSL: then its stream goes through a TLS client that checks the certificate."""
    port = free_port()
    lab = make_lab(tmp_path, lambda text: text.replace("[pcscf]", f'[pcscf]\nlisten_tls = "127.0.0.1:{port}"'))
    with serving(lab.serve, lab.state) as served:
        with over_tls(served) as (transport, door):
            _register(served, transport, tmp_path, door)
        assert served.health()["registrations"] == 1


@pytest.mark.skipif(sys.version_info < (3, 13), reason="its TLS-PSK listeners need Python 3.13")
def test_the_example_runs_exactly_as_it_is(tmp_path: Path) -> None:
    """examples/lab.toml, with the ports that stand in it."""
    with serving(EXAMPLES / "lab.toml", tmp_path / "state") as served:
        assert served.port("pcscf") == 5060
        _register(served, "u1", tmp_path)
        assert served.health()["registrations"] == 1


def test_a_wrong_key_is_refused(served: Served, tmp_path: Path) -> None:
    """The second sipp run of a pair that differs in K alone: what the other tests prove is proven by the key."""
    other = tmp_path / "register.xml"
    text = SCENARIO.read_text()
    other.write_text(text.replace(K.reveal().hex(), "0396eb317b6d1c36f19c1c84cd6ffd17"))
    assert other.read_text() != text
    done = sipp(served.port("pcscf"), "u1", other, tmp_path / "messages.log")
    assert done.returncode != 0
    assert served.health()["registrations"] == 0


def test_the_fault_of_sipp_is_told_from_every_other(lab: Lab, tmp_path: Path) -> None:
    """The retry below is for RES with 0x00 in it, and for nothing else."""
    del lab
    rand = next(candidate for candidate in _rands() if 0 in _res(candidate))
    whole = next(candidate for candidate in _rands() if 0 not in _res(candidate))
    cut = tmp_path / "cut"
    cut.write_text(_trace(rand, _res(rand).partition(b"\0")[0]))
    right = tmp_path / "right"
    right.write_text(_trace(rand, _res(rand)))
    wrong = tmp_path / "wrong"
    wrong.write_text(_trace(whole, b"wrong"))
    assert _cut_res_at_zero(cut)
    assert not _cut_res_at_zero(right)
    assert not _cut_res_at_zero(wrong)


def _register(served: Served, transport: str, folder: Path, port: int = 0) -> None:
    for attempt in range(ATTEMPTS):
        messages = folder / f"messages-{attempt}.log"
        done = sipp(port or served.port("pcscf"), transport, SCENARIO, messages)
        if done.returncode == 0:
            return
        assert _cut_res_at_zero(messages), f"sipp failed, and not by its known fault: {done.stdout}{done.stderr}"
    pytest.fail(f"RES held 0x00 {ATTEMPTS} times in a row")


def _cut_res_at_zero(messages: Path) -> bool:
    """Tell sipp's known fault: before 3.7 it takes RES for a C string, so a response is over what stands before the first 0x00."""
    text = messages.read_text(errors="replace")
    nonce = re.search(r'^WWW-Authenticate: .*nonce="([^"]+)"', text, re.MULTILINE)
    sent = re.findall(r'^Authorization: .*response="([0-9a-f]{32})"', text, re.MULTILINE)
    if nonce is None or not sent:
        return False
    res = _res(base64.b64decode(nonce[1])[:16])
    return 0 in res and sent[-1] == _response(nonce[1], res.partition(b"\0")[0])


def _res(rand: bytes) -> bytes:
    return Milenage(K, derive_opc(K, OP)).f2345(rand).res.reveal()


def _response(nonce: str, password: bytes) -> str:
    """RFC 2617 §3.2.2.1 without qop: what sipp answers to a Release 5 challenge."""
    ha1 = hashlib.md5(f"{IMPI}:home1.net:".encode() + password).hexdigest()
    ha2 = hashlib.md5(b"REGISTER:sip:home1.net").hexdigest()
    return hashlib.md5(f"{ha1}:{nonce}:{ha2}".encode()).hexdigest()


def _rands() -> list[bytes]:
    return [number.to_bytes(16, "big") for number in range(2000)]


def _trace(rand: bytes, password: bytes) -> str:
    nonce = base64.b64encode(rand + bytes(16)).decode()
    return (
        f'WWW-Authenticate: Digest realm="home1.net",nonce="{nonce}",algorithm=AKAv1-MD5\n'
        f'Authorization: Digest username="{IMPI}",response="{_response(nonce, password)}"\n'
    )
