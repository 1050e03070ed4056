# SPDX-License-Identifier: Apache-2.0
"""Asking the administrator's listener."""

from __future__ import annotations

import asyncio

import pytest

from keyferry.client import admin
from keyferry.client.admin import ask, tell
from keyferry.errors import ConfigError, TransportError


async def answered(body: bytes, status: str = "200 OK") -> dict[str, object]:
    """Ask a listener that answers this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        return await ask(f"{host}:{port}", "/failures", {"impi": "a@home1.net"})


async def test_an_object_is_returned() -> None:
    assert await answered(b'{"failures": []}') == {"failures": []}


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"\xff", b"[" * 100_000])
async def test_what_is_no_object_is_no_keyferry(body: bytes) -> None:
    with pytest.raises(TransportError, match="no keyferry"):
        await answered(body)


async def test_a_refusal_is_told_without_control_characters() -> None:
    with pytest.raises(ConfigError) as caught:
        await answered(b"not\x1b[2J you\n", "403 Forbidden")
    assert str(caught.value).endswith("answered 403: not?[2J you")


async def test_a_process_that_plays_another_function_is_not_the_one_to_ask() -> None:
    """In a lab whose S-CSCF is Kamailio, or whose HSS is PyHSS, there is none of ours to ask."""
    with pytest.raises(ConfigError, match=r"has no HSS\. Ask the process that plays it"):
        await answered(b"This process has no HSS.\n", "404 Not Found")


async def test_an_answer_without_an_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_ANSWER", 10)
    with pytest.raises(TransportError, match="without an end"):
        await answered(b" " * 11)


@pytest.mark.parametrize("where", ["127.0.0.1:1", "127.0.0.1:x", "no host"])
async def test_nobody_there_says_what_to_look_at(where: str) -> None:
    with pytest.raises(TransportError, match="is `keyferry serve` running"):
        await ask(where, "/failures", {})


async def test_a_command_goes_as_json_with_its_path_as_it_is() -> None:
    """An IMPI may hold what a path has a meaning for."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        heard.extend([head, await reader.readexactly(length)])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n" + b'{"told": true}')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        assert await tell(f"{host}:{port}", "/subscribers/a%2F%3Fb%40home1.net/terminate", {"info": "x"}) == {"told": True}
    head, body = heard
    assert head.startswith(b"POST /subscribers/a%2F%3Fb%40home1.net/terminate HTTP/1.1\r\n")
    assert b"content-type: application/json\r\n" in head.lower()
    assert body == b'{"info":"x"}'


async def test_a_command_that_nobody_hears_is_said_so() -> None:
    with pytest.raises(TransportError, match="is `keyferry serve` running"):
        await tell("127.0.0.1:1", "/subscribers/a/terminate", {})
