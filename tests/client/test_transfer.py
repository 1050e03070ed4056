# SPDX-License-Identifier: Apache-2.0
"""Bodies of any size, from and to files and pipes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from keyferry.client.http_auth import BODY, ONCE, REWINDABLE
from keyferry.client.transfer import BLOCK, FileBody, PipeBody, body_request, receive, replacing
from keyferry.errors import ConfigError, TransportError


async def test_a_file_is_read_again_each_time_and_its_size_is_said(tmp_path: Path) -> None:
    octets, told = b"x" * BLOCK + b"y", []
    (tmp_path / "large").write_bytes(octets)
    body = FileBody(tmp_path / "large", lambda done, whole: told.append((done, whole)))
    for _ in range(2):
        assert b"".join([block async for block in body]) == octets
    assert told == [(BLOCK, BLOCK + 1), (BLOCK + 1, BLOCK + 1)] * 2
    async with httpx.AsyncClient() as client:
        request = body_request(client, "PUT", "https://a/", body, {"Content-Type": "a/b"})
        assert (request.headers["content-length"], request.extensions[BODY]) == (str(BLOCK + 1), REWINDABLE)
        assert "transfer-encoding" not in request.headers
        assert body_request(client, "DELETE", "https://a/", None, {}).headers.get("content-length") is None


async def test_a_pipe_is_read_as_it_comes_and_its_reader_can_be_stopped() -> None:
    out, into = os.pipe()
    try:
        os.write(into, b"first")
        blocks = aiter(PipeBody(out))
        assert await anext(blocks) == b"first"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(blocks), 0.01)
        body = PipeBody(out)
        os.write(into, b"second")
        os.close(into)
        assert [block async for block in body] == [b"second"]
    finally:
        os.close(out)
    async with httpx.AsyncClient() as client:
        request = body_request(client, "PUT", "https://a/", body, {})
        assert (request.headers["transfer-encoding"], request.extensions[BODY]) == ("chunked", ONCE)


async def test_a_file_as_standard_input_needs_no_waiting(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"note")
    descriptor = os.open(tmp_path / "in", os.O_RDONLY)
    try:
        assert [block async for block in PipeBody(descriptor)] == [b"note"]
    finally:
        os.close(descriptor)


def test_what_cannot_be_sent_is_refused_before_anything_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        FileBody(tmp_path / "absent")
    with pytest.raises(ConfigError, match="no regular file"):
        FileBody(tmp_path)


async def test_an_answer_is_counted_and_one_that_breaks_off_is_an_error() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise httpx.ReadError("gone")

    request = httpx.Request("GET", "https://a.net/")
    kept: list[bytes] = []
    assert await receive(httpx.Response(200, content=b"whole", request=request), kept.append) == 5
    assert kept == [b"whole"]
    with pytest.raises(TransportError, match="broke off after 0 octets"):
        await receive(httpx.Response(200, content=broken(), request=request), kept.append)


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "note"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    with replacing(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["note"]


def test_a_device_is_written_to_and_stays_what_it_is(tmp_path: Path) -> None:
    with replacing(Path("/dev/null")) as file:
        file.write(b"x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(ConfigError, match="cannot be written"), replacing(tmp_path / "no" / "such"):
        pass
