# SPDX-License-Identifier: Apache-2.0
"""HTTP and HTTPS listeners: uvicorn inside our own event loop (RFC 9110; TLS profile of TS 33.310 annex E)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

import uvicorn

from keyferry.errors import StateError, TransportError
from keyferry.transports.http_bounds import BoundedHttp
from keyferry.transports.sip_udp import listen_remedy
from keyferry.transports.unix_socket import check_folder

AsgiApp: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[MutableMapping[str, Any]]], Callable[[MutableMapping[str, Any]], Awaitable[None]]],
    Awaitable[None],
]

MAX_CONNECTIONS = 10_000  # one door's open connections and tasks; above, 503
BACKLOG = 2048
FLUSH = 0.3  # seconds for last answers to leave


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server context: TLS 1.2 with forward secrecy, or 1.3. Raises StateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(certificate, key)
    except OSError as problem:
        raise StateError(str(certificate), "does not go with its key", "Move both away; they are made again at the next start") from problem
    return context


class HttpServer:
    """Serve one ASGI application on one address.

    `protocol` makes the connections; without `date` the application writes that field itself. With `lifespan` it is told of the
    beginning and the end, if it listens to that.
    """

    def __init__(
        self, app: AsgiApp, *, tls: ssl.SSLContext | None = None, lifespan: bool = False, protocol: type[BoundedHttp] = BoundedHttp,
        date: bool = True,
    ) -> None:  # fmt: skip
        options: dict[str, Any] = {"ssl_context_factory": lambda _config, _default: tls} if tls else {}
        # No access log: a request path carries identities, and with some phones a password (docs/protocol.md).
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, proxy_headers=False, lifespan="auto" if lifespan else "off",
            ws="none", http=protocol, date_header=date, timeout_keep_alive=75, timeout_graceful_shutdown=3,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=BACKLOG, **options,
        )  # fmt: skip
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self._path: Path | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Bind, start, and return the address. Raises TransportError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, else asyncio does not set TCP_NODELAY
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as problem:
            sock.close()
            raise TransportError(f"http:{host}:{port}", f"cannot listen: {listen_remedy(problem)}") from None
        await self._start(sock, f"http:{host}:{port}")
        address: tuple[str, int] = sock.getsockname()[:2]
        return address

    async def listen_unix(self, path: Path, mode: int = 0o660) -> None:
        """Bind a UNIX socket that its owner and group may use; one that nobody listens on any more is replaced.

        Raises TransportError; StateError where another user could put a socket in its place.
        """
        check_folder(path, "this server")
        sock = _unix_listener(path, mode)
        self._path = path
        await self._start(sock, f"unix:{path}")

    async def _start(self, sock: socket.socket, shown: str) -> None:
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[sock]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise TransportError(shown, "the HTTP server ended as it started")
            await asyncio.sleep(0)

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._task is not None and not self._task.done()

    async def aclose(self) -> None:
        """Finish the requests under way, at most three seconds, and close."""
        if self._task is None:
            return
        self._server.should_exit = True
        await asyncio.wait({self._task}, timeout=FLUSH)
        while not self._task.done():
            if not self._server.server_state.tasks:
                # What is left is idle: TLS clients that keep their connection and would not answer our close for 30 s.
                for connection in tuple(self._server.server_state.connections):
                    connection.transport.abort()
            await asyncio.wait({self._task}, timeout=0.05)
        self._task = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _unix_listener(path: Path, mode: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as problem:
        sock.close()
        raise TransportError(f"unix:{path}", f"cannot listen: {problem.strerror}; choose another path, or end what uses it") from None
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
