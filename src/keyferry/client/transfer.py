# SPDX-License-Identifier: Apache-2.0
"""Bodies that are not held in memory: from files and pipes, to files and pipes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import httpx

from keyferry.client.http_auth import BODY, ONCE, REWINDABLE
from keyferry.errors import ConfigError, TransportError

BLOCK: Final = 65_536
"""Octets read and sent at a time."""

Progress: TypeAlias = Callable[[int, int | None], None]
"""Takes the octets that went so far, and how many there are in all, None if nobody knows."""


def no_progress(done: int, whole: int | None) -> None:
    """Show nothing."""


class FileBody:
    """A request body that is read from a file each time it is sent."""

    kind = REWINDABLE

    def __init__(self, path: Path, progress: Progress = no_progress) -> None:
        """Take a regular file. Raises ConfigError."""
        self._path = path
        self._progress = progress
        try:
            found = path.stat()
        except OSError as problem:
            raise ConfigError(str(path), f"cannot be read: {problem.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(str(path), "is no regular file", "Send it through a pipe: - is standard input")
        self.size = found.st_size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the file from its beginning."""
        done = 0
        with self._path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
                done += len(block)
                self._progress(done, self.size)


class PipeBody:
    """A request body that is there once: standard input."""

    kind = ONCE
    size = None

    def __init__(self, descriptor: int, progress: Progress = no_progress) -> None:
        """Take a file descriptor to read from."""
        self._descriptor = descriptor
        self._progress = progress

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what comes, as it comes, so that a reader who is interrupted is not held by a writer who is silent."""
        done = 0
        while block := await self._read():
            yield block
            done += len(block)
            self._progress(done, None)

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(self._descriptor, _note, ready)
        except PermissionError:  # a file: epoll has no use for it, and it never makes anybody wait
            return os.read(self._descriptor, BLOCK)
        try:
            await ready
        finally:
            loop.remove_reader(self._descriptor)
        return os.read(self._descriptor, BLOCK)


def _note(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def body_request(
    client: httpx.AsyncClient, method: str, url: str, body: FileBody | PipeBody | None, headers: Mapping[str, str]
) -> httpx.Request:
    """Return a request that sends a body piece by piece."""
    if body is None:
        return client.build_request(method, url, headers=headers)
    length = {"Content-Length": str(body.size)} if body.size is not None else {}
    return client.build_request(method, url, content=body, headers={**headers, **length}, extensions={BODY: body.kind})


async def receive(response: httpx.Response, write: Callable[[bytes], Any], progress: Progress = no_progress) -> int:
    """Write the body of a response as it comes; return its octets. Raises TransportError if it ends early."""
    length = response.headers.get("content-length", "")
    whole = int(length) if length.isascii() and length.isdigit() else None
    done = 0
    try:
        async for block in response.aiter_bytes(BLOCK):
            write(block)
            done += len(block)
            progress(done, whole)
    except httpx.HTTPError as problem:
        raise TransportError(response.request.url.host, f"the answer broke off after {done} octets: {type(problem).__name__}") from problem
    return done


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when it is whole; what was there stays until then. Raises ConfigError."""
    try:
        if path.exists() and not path.is_file():  # a device, a pipe: it is written to, never replaced
            with path.open("wb") as file:
                yield file
            return
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as problem:
        raise ConfigError(str(path), f"cannot be written: {problem.strerror}", "Choose another file") from None
    try:
        with open(descriptor, "wb") as file:
            yield file
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
