# SPDX-License-Identifier: Apache-2.0
"""A TLS client for a program that has none: it listens for TCP on loopback and goes on over TLS, with Python's own ssl."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 65_536  # octets
START_LIMIT = 10.0  # seconds


@contextmanager
def tls_relay(port: int, name: str, ca: Path) -> Iterator[int]:
    """Return the port whose connections go to loopback `port` over TLS, where a certificate for `name` under `ca` must be shown."""
    ready, bound = threading.Event(), list[int]()
    loop = asyncio.new_event_loop()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        context = ssl.create_default_context(cafile=str(ca))
        inner, outer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        await asyncio.gather(_pump(reader, outer), _pump(inner, writer))

    async def run() -> None:
        async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
            bound.append(server.sockets[0].getsockname()[1])
            ready.set()
            await server.serve_forever()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        assert ready.wait(START_LIMIT)
        yield bound[0]
    finally:
        asyncio.run_coroutine_threadsafe(_end(), loop).result(START_LIMIT)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while octets := await reader.read(CHUNK):
            writer.write(octets)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def _end() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
