# SPDX-License-Identifier: Apache-2.0
"""The proxy's benchmark: the load against the proxy, which asks the server behind; and that server alone, which knows nobody."""

from __future__ import annotations

from pathlib import Path

import httpx

from keyferry.lab.bench_http_load import HttpLoad, HttpOrder, load_documents
from keyferry.lab.bench_proxy import ProxySetup, serve_behind, serve_proxied
from keyferry.lab.bench_register_load import Burst
from lab.benchkit import part


async def test_every_user_reads_the_document_with_and_without_the_proxy(tmp_path: Path) -> None:
    """TS 33.222 §6.5: the server behind answers only because the proxy says who asks."""
    async with part(serve_behind) as behind:
        upstream = await behind.answer()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{upstream[0]}:{upstream[1]}/")).status_code == 403
        setup = ProxySetup(tmp_path / "state", 4, upstream)
        async with part(serve_proxied, setup) as server, part(load_documents, HttpLoad(4, 2)) as load:
            await load.ask(await server.answer())
            for beside in (True, False):
                for seconds in (None, 0.05):
                    await load.ask(HttpOrder(True, seconds, beside))
                    burst: Burst = await load.ask("go")
                    assert (burst.errors, burst.problems) == (0, ())
                    assert burst.done == 4 if seconds is None else burst.done > 0
