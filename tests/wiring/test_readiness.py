# SPDX-License-Identifier: Apache-2.0
"""What /ready says, and that asking for it often costs nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from keyferry.errors import StoreError, TransportError
from keyferry.ports import PeerCheck, Resolver, SipClient, SipPeer
from keyferry.protocol.sip.message import Request, Response, check_request, make_response
from keyferry.wiring import readiness as module
from keyferry.wiring.readiness import FRESH, Readiness, disk_of, reaches
from roles.network import FakeClock, SeededRandom


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def readiness(clock: FakeClock) -> Readiness:
    return Readiness(clock, started=True)


async def fine() -> object:
    return None


async def broken() -> object:
    raise StoreError("/a/path: disk I/O error")


async def wrong() -> str:
    return "nearly full"


async def test_before_the_start_and_after_the_end_nobody_is_ready(clock: FakeClock) -> None:
    readiness = Readiness(clock)
    readiness.check("store", broken)
    assert await readiness.report() == {"ready": False, "reasons": ["starting"]}
    readiness.started = readiness.ending = True
    assert await readiness.report() == {"ready": False, "reasons": ["stopping"]}


async def test_every_reason_is_told_and_no_detail(readiness: Readiness) -> None:
    """The name of the check, and words of ours."""
    assert await readiness.report() == {"ready": True}
    readiness._until = 0.0
    for name, look in (("store scscf", broken), ("state directory", wrong), ("listener", fine)):
        readiness.check(name, look)
    assert await readiness.report() == {"ready": False, "reasons": ["store scscf: fails", "state directory: nearly full"]}


async def test_a_check_that_hangs_is_a_reason(readiness: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    readiness.check("I-CSCF", asyncio.Event().wait)
    assert await readiness.report() == {"ready": False, "reasons": ["I-CSCF: does not answer"]}


async def test_many_who_ask_cause_one_look(readiness: Readiness, clock: FakeClock) -> None:
    """Whoever can reach the listener must not make us ask the network a thousand times."""
    looks = 0

    async def count() -> None:
        nonlocal looks
        looks += 1
        await asyncio.sleep(0)

    readiness.check("store", count)
    await asyncio.gather(*(readiness.report() for _ in range(50)))
    await readiness.report()
    assert looks == 1
    clock.time += FRESH
    await readiness.report()
    assert looks == 2


async def test_who_asked_and_goes_away_spoils_it_for_nobody(readiness: Readiness) -> None:
    gate = asyncio.Event()
    readiness.check("store", gate.wait)
    first, second = (asyncio.ensure_future(readiness.report()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == {"ready": True}
    await asyncio.gather(first, return_exceptions=True)


async def test_a_disk_that_is_full_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await disk_of(tmp_path)() == ""

    class Full(NamedTuple):
        f_bavail: int = 10
        f_frsize: int = 4096

    monkeypatch.setattr(os, "statvfs", lambda _path: Full())
    assert await disk_of(tmp_path)() == "nearly full"


class FakeSip:
    """Answer OPTIONS, or not."""

    def __init__(self, status: int) -> None:
        self.status, self.sent = status, list[Request]()

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        del hop, check
        self.sent.append(request)
        if not self.status:
            raise TransportError("udp:127.0.0.1:5062", "no answer")
        return make_response(request, self.status)


class Anywhere:
    """Know where everybody is."""

    def resolve(self, uri: object) -> SipPeer:
        del uri
        return SipPeer("UDP", "127.0.0.1", 5062)


@pytest.mark.parametrize(("status", "reasons"), [(405, []), (200, []), (403, ["I-CSCF: does not trust us"]), (0, ["I-CSCF: fails"])])
async def test_a_neighbour_is_asked_and_any_answer_but_a_403_will_do(readiness: Readiness, status: int, reasons: list[str]) -> None:
    """RFC 3261 §11: OPTIONS; what it says goes through our own check of a request."""
    sip = FakeSip(status)
    look = reaches(cast("SipClient", sip), cast("Resolver", Anywhere()), SeededRandom(), "sip:icscf.home1.net:5062", "pcscf1.home1.net")
    readiness.check("I-CSCF", look)
    assert (await readiness.report()).get("reasons", []) == reasons
    request = sip.sent[0]
    assert (request.method, request.uri) == ("OPTIONS", "sip:icscf.home1.net:5062")
    check_request(Request(request.method, request.uri, (("Via", "SIP/2.0/UDP h;branch=z9hG4bK1"), *request.headers), b""))
