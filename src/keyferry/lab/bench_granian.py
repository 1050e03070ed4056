# SPDX-License-Identifier: Apache-2.0
"""granian as the HTTP server of a benchmark, where it is installed: embedded, so that the measured process holds its threads too."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import socket
from pathlib import Path
from typing import Any

from keyferry.lab.bench_worker import BenchFailed
from keyferry.transports.http_server import AsgiApp

START_TRIES = 500
START_PAUSE = 0.02  # seconds


def granian_is_installed() -> bool:
    """Tell whether this Python has granian; it is in requirements/test.txt alone."""
    return importlib.util.find_spec("granian") is not None


class GranianServer:
    """Serve one ASGI application over TLS on one address of the loopback interface."""

    def __init__(self, app: AsgiApp, *, certificate: Path, key: Path) -> None:
        self._app = app
        self._certificate = certificate
        self._key = key
        self._server: Any = None
        self._task: asyncio.Task[None] | None = None

    async def listen(self, host: str) -> tuple[str, int]:
        """Start, and return the address. Raises BenchFailed."""
        embed, constants = importlib.import_module("granian.server.embed"), importlib.import_module("granian.constants")
        with socket.socket() as probe:  # granian tells no port that it was left to choose
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        self._server = embed.Server(
            self._app, address=host, port=port, interface=constants.Interfaces.ASGINL, http=constants.HTTPModes.http1,
            websockets=False, log_enabled=False, ssl_cert=self._certificate, ssl_key=self._key,
        )  # fmt: skip
        self._task = asyncio.ensure_future(self._server.serve())
        for _ in range(START_TRIES):
            if await self._answers(host, port):
                return host, port
            await asyncio.sleep(START_PAUSE)
        raise BenchFailed("granian does not listen")

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._server.stop()
            await self._task
            self._task = None

    async def _answers(self, host: str, port: int) -> bool:
        if self._task is not None and self._task.done():
            self._task.result()
            raise BenchFailed("granian ended as it started")
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            return False
        writer.close()
        return True
