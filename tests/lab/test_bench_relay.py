# SPDX-License-Identifier: Apache-2.0
"""The long way: nothing is lost, nothing overtakes, and nothing comes too early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from keyferry.lab.bench_relay import DelayRelay

DELAY = 0.01


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[tuple[str, int]]:
    """Send everything back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def relayed(target: tuple[str, int], delay: float) -> AsyncIterator[tuple[str, int]]:
    relay = DelayRelay(target, delay)
    try:
        yield await relay.listen()
    finally:
        await relay.aclose()


@contextlib.asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_a_first_answer_takes_two_round_trips_and_the_next_one() -> None:
    """One for the handshake that the relay ends, one for what is asked."""
    loop = asyncio.get_running_loop()
    async with echo() as target, relayed(target, DELAY) as address:
        began = loop.time()
        async with connected(address) as (reader, writer):
            for trips in (2, 3):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                assert loop.time() - began >= trips * 2 * DELAY


async def test_octets_keep_their_order_and_their_number() -> None:
    """Many writes, also while the connection is not open yet."""
    async with echo() as target, relayed(target, 0.001) as address, connected(address) as (reader, writer):
        sent = b"".join(b"%06d" % number for number in range(2_000))
        for start in range(0, len(sent), 60):
            writer.write(sent[start : start + 60])
            await asyncio.sleep(0)
        assert await reader.readexactly(len(sent)) == sent


async def test_a_server_that_is_not_there_ends_the_connection() -> None:
    """As it does without a relay."""
    async with echo() as target:
        pass
    async with relayed(target, 0.001) as address, connected(address) as (reader, _):
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
