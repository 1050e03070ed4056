# SPDX-License-Identifier: Apache-2.0
"""The client of the live trace, against a real listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from keyferry.asgi.admin import AdminApp
from keyferry.asgi.exchange import Receive, Scope, Send, respond
from keyferry.errors import ConfigError, TransportError
from keyferry.lab.follow import follow, line_of
from keyferry.transports.http_server import AsgiApp, HttpServer
from keyferry.wiring.tracing import Follow

STEP = {
    "at": 5.25,
    "source": "UE",
    "target": "P-CSCF",
    "transport": "UDP",
    "what": "REGISTER",
    "octets": 1_400,
    "note": "n",
    "retransmission": True,
}


@asynccontextmanager
async def listening(app: AsgiApp) -> AsyncIterator[str]:
    server = HttpServer(app)
    host, port = await server.listen("127.0.0.1", 0)
    try:
        yield f"{host}:{port}"
    finally:
        await server.aclose()


def admin(trace: Follow | None) -> AdminApp:
    async def health() -> Mapping[str, object]:
        return {"ok": True}

    return AdminApp(registry=CollectorRegistry(), health=health, trace=trace)


def playing(*steps: Mapping[str, object], for_ever: bool = False) -> Follow:
    @asynccontextmanager
    async def trace(_impi: str) -> AsyncIterator[AsyncIterator[Mapping[str, object]]]:
        async def play() -> AsyncIterator[Mapping[str, object]]:
            for step in steps:
                yield step
            if for_ever:
                await asyncio.Event().wait()

        yield play()

    return trace


async def test_steps_come_as_they_happen() -> None:
    """First an empty one: the other side follows."""
    async with listening(admin(playing(STEP))) as address:
        assert [step async for step in follow(address, "a+b@home1.net")] == [{}, STEP]


async def test_it_ends_after_the_seconds_asked_for() -> None:
    """--seconds."""
    async with listening(admin(playing(STEP, for_ever=True))) as address:
        assert [step async for step in follow(address, "a@home1.net", 0.3)] == [{}, STEP]


async def test_an_answer_that_is_no_trace_is_told() -> None:
    """An older process; another service on that port."""
    async with listening(admin(None)) as address:
        with pytest.raises(ConfigError, match="404"):
            await anext(follow(address, "a@home1.net"))

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await receive()
        await respond(send, 200, b"<html>\n" if b"b%40" in scope["query_string"] else b"[1]\n")

    async with listening(other) as address:
        with pytest.raises(TransportError, match="no live trace"):
            await anext(follow(address, "b@home1.net"))
        assert [step async for step in follow(address, "a@home1.net")] == [{}]


async def test_nobody_there_is_told_with_what_to_do() -> None:
    """Connection refused."""
    async with listening(admin(None)) as address:
        pass
    with pytest.raises(TransportError, match="keyferry serve"):
        await anext(follow(address, "a@home1.net"))


async def test_a_process_that_is_killed_ends_the_trace() -> None:
    """The connection breaks in the middle of an answer."""

    async def half(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(half, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        assert [step async for step in follow(f"{host}:{port}", "a@home1.net")] == [{}]


def test_a_step_is_a_line() -> None:
    """Time, ends, size, what."""
    assert line_of(STEP) == "00:00:05.250         UE ─> P-CSCF     UDP  1400 > 1300 REGISTER (again)  n"
    assert line_of({**STEP, "octets": 1_600, "retransmission": False, "note": ""}).endswith("1600 > 1500 REGISTER")
    assert line_of({**STEP, "octets": 900, "retransmission": False}).endswith("900        REGISTER  n")
    assert line_of({"lost": 3}) == "… 3 steps lost: this terminal is too slow"
