# SPDX-License-Identifier: Apache-2.0
"""First requests against the doors, over a shorter way; what took another number of requests is no figure."""

from __future__ import annotations

from pathlib import Path

from keyferry.lab.bench_first import REQUESTS, FirstOrder, Way, load_first_requests
from keyferry.lab.bench_http import HttpSetup, serve_documents, why_no_psk
from keyferry.lab.bench_register_load import Burst
from lab.benchkit import part

DELAY = 0.002


async def test_each_way_to_log_in_takes_the_requests_that_it_should(tmp_path: Path) -> None:
    """DESIGN §7: 401 and answer, or one request; a first nonce once only."""
    ways: list[Way] = [way for way in REQUESTS if not way.startswith("psk") or why_no_psk() is None]
    setup = HttpSetup(tmp_path / "state", 2 * len(ways), psk=True)
    async with part(serve_documents, setup) as server, part(load_first_requests, DELAY) as load:
        await load.ask(await server.answer())
        for place, way in enumerate(ways):
            burst: Burst = await load.ask(FirstOrder(way, (2 * place, 2 * place + 1)))
            assert (burst.done, burst.errors, burst.problems) == (2, 0, ())
            assert burst.p50 >= DELAY * 2 * (2 + REQUESTS[way])  # TCP, TLS, and each request: a round trip at least
        again: Burst = await load.ask(FirstOrder("nonce", (2, 2)))
        assert (again.done, again.errors) == (0, 2)
        assert again.problems[0] == "statuses [401, 200], 2048 octets"
