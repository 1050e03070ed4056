# SPDX-License-Identifier: Apache-2.0
"""Handshakes of each kind against the doors, and against nobody."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from keyferry.lab.bench_handshake import HandshakeOrder, Kind, load_handshakes
from keyferry.lab.bench_http import Doors, HttpSetup, serve_documents, why_no_psk
from keyferry.lab.bench_register_load import Burst
from keyferry.lab.bench_worker import Usage
from lab.benchkit import part


async def test_each_kind_of_handshake_succeeds(tmp_path: Path) -> None:
    """With the certificate, and with the key in both versions."""
    kinds: list[Kind] = [kind for kind in get_args(Kind) if kind == "certificate" or why_no_psk() is None]
    async with part(serve_documents, HttpSetup(tmp_path / "state", 3, psk=True)) as server, part(load_handshakes) as load:
        await load.ask(await server.answer())
        for kind in kinds:
            burst: Burst = await load.ask(HandshakeOrder(kind, 0.05, 3))
            assert (burst.errors, burst.problems) == (0, ())
            assert burst.done >= 3
        assert isinstance(await server.ask("usage"), Usage)


async def test_a_handshake_that_fails_is_an_error(tmp_path: Path) -> None:
    """Nobody listens; or the key is unknown."""
    async with part(serve_documents, HttpSetup(tmp_path / "state", 1, psk=True)) as server, part(load_handshakes) as load:
        doors: Doors = await server.answer()
        await load.ask(doors._replace(login=("127.0.0.1", 1)))
        burst: Burst = await load.ask(HandshakeOrder("certificate", 0.05, 1))
        assert burst.done == 0
        assert burst.problems[0] == "ConnectionRefusedError"
        if why_no_psk() is None:
            burst = await load.ask(HandshakeOrder("psk13", 0.05, 2))  # the second user is not there
            assert burst.done > 0
            assert burst.errors > 0
