# SPDX-License-Identifier: Apache-2.0
"""sipp registers, re-registers and de-registers 1,000 subscribers over each transport, with release markers of 4 to 48 octets."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from interop.crowd import Answer, Member, answers, judge, member, response
from interop.sipp_program import over_tls, sipp
from system.serving import free_port, make_lab, serving

pytestmark = pytest.mark.interop

SCENARIO = Path(__file__).parent / "sipp" / "crowd.xml"
MARKERS = (4, 5, 6, 8, 15, 16, 17, 31, 33, 48)  # octets; base64 pads each of the three ways
CROWD = 100  # subscribers at each length: 1,000 over each transport
TRANSPORTS = {"udp": "UDP", "tcp": "TCP", "tls": "TLS"}  # as Via has them, whatever carries sipp's octets
RATE = 100  # new subscribers a second
LIMIT = 60.0  # seconds


@pytest.mark.parametrize("octets", MARKERS)
def test_a_crowd_registers_and_registers_again_and_leaves(octets: int, tmp_path: Path) -> None:
    """TS 24.229 §5.4.1; RFC 3310 §3.2: server-specific data of any length. Who fails has a zero octet in RES, and sipp cuts it there."""
    place = MARKERS.index(octets)
    crowd = [member(number) for number in range(place * CROWD, (place + 1) * CROWD)]
    port = free_port()
    lab = make_lab(tmp_path, lambda text: _configured(text, octets, crowd, port))
    failed = 0
    with serving(lab.serve, lab.state) as served, over_tls(served) as (tls, door):
        for name, transport, port in (("udp", "u1", served.port("pcscf")), ("tcp", "t1", served.port("pcscf")), ("tls", tls, door)):
            given = answers(_run(port, transport, crowd, tmp_path / name))
            assert set(given) == {who.user for who in crowd}
            failed += sum(judge(who, given[who.user], octets) for who in crowd)
            assert served.health()["registrations"] == 0
        _, metrics = served.admin("/metrics")
        assert f'keyferry_scscf_authenticated_total{{reason="raw"}} {3 * 3 * CROWD}.0' in metrics
        assert _value(metrics, "keyferry_scscf_authentication_failed_total") == failed


# ---- the judge, judged


WHO = member(0)
RANDS = [number.to_bytes(16, "big") for number in range(2000)]
WHOLE = next(rand for rand in RANDS if 0 not in WHO.res(rand))
WITH_ZERO = next(rand for rand in RANDS if 0 in WHO.res(rand))


def test_a_failure_for_a_zero_octet_is_counted_and_the_nonce_after_it_may_be_bare() -> None:
    """The only failure there may be."""
    given = [_answered(WHOLE, 600), _answered(WITH_ZERO, 600, 403), _answered(WHOLE, 600, marker=0), _answered(WHOLE, 0)]
    assert judge(WHO, given, 4) == 1
    assert judge(WHO, [_answered(WHOLE, expires, marker=48) for expires in (600, 600, 0)], 48) == 0


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ({"status": 403}, "403"),
        ({"rand": WITH_ZERO}, "200"),
        ({"rand": WITH_ZERO, "password": WHO.res(WITH_ZERO), "status": 403}, "another RES"),
        ({"password": b"wrong", "status": 403}, "another RES"),
        ({"marker": 5}, "37 octets"),
        ({"marker": 0}, "32 octets"),
        ({"expires": 0}, "ended"),
    ],
    ids=["failed", "succeeded", "not cut", "wrong", "longer", "bare", "ended"],
)
def test_anything_else_is_not_forgiven(spoilt: dict[str, Any], why: str) -> None:
    """A failure without the fault, a success in spite of it, another length of the nonce, a missing step."""
    with pytest.raises(AssertionError, match=why):
        judge(WHO, [_answered(**{"rand": WHOLE, "expires": 600, **spoilt}), _answered(WHOLE, 600), _answered(WHOLE, 0)], 4)


def _answered(rand: bytes, expires: int, status: int = 200, *, marker: int = 4, password: bytes | None = None) -> Answer:
    nonce = base64.b64encode(rand + bytes(16 + marker)).decode()
    cut = WHO.res(rand).partition(b"\0")[0] if password is None else password
    return Answer(nonce, response(WHO.impi, nonce, cut), expires, status)


# ---- running it


def _configured(text: str, octets: int, crowd: Sequence[Member], tls: int) -> str:
    # This is about nonces: on a busy machine nobody is told to come back later, which the scenario does not know.
    for section, setting in (
        ("network", 'overload = "off"'),
        ("scscf", f"marker_octets = {octets}"),
        ("pcscf", f'listen_tls = "127.0.0.1:{tls}"'),
    ):
        text = text.replace(f"\n[{section}]\n", f"\n[{section}]\n{setting}\n")
    return text + "".join(who.provisioned() for who in crowd)


def _run(port: int, transport: str, crowd: Sequence[Member], folder: Path) -> str:
    folder.mkdir()
    users = folder / "users.csv"
    users.write_text("SEQUENTIAL\n" + "".join(who.injected() for who in crowd))
    scenario = folder / SCENARIO.name
    scenario.write_text(SCENARIO.read_text().replace("[transport]", TRANSPORTS[folder.name]))
    log = folder / "messages.log"
    done = sipp(port, transport, scenario, log, "-inf", str(users), "-r", str(RATE), calls=len(crowd), limit=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text(errors="replace")


def _value(metrics: str, name: str) -> float:
    found = re.search(rf"^{name}(?:{{[^}}]*}})? ([0-9.]+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0
