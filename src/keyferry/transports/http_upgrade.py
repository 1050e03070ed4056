# SPDX-License-Identifier: Apache-2.0
"""Our HTTP server for the proxy: it tells the request target as it was sent, and gives away a connection after a 101 (RFC 9110 §7.8)."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from keyferry.transports.http_bounds import BoundedHttp

TARGET = "keyferry.target"
"""In the scope: the request target, octet for octet; ASGI has lost "#…", an empty query and an authority."""
EXTENSION = "keyferry.tunnel"
"""In the scope's extensions, of a request that asks for WebSocket: the `ClientTunnel`."""
LEFT = "keyferry.left"
"""In the scope: a future that is done when the connection has ended; uvicorn tells only the last of several requests that wait on one."""


class UpgradingHttp(BoundedHttp):
    """One connection of the proxy.

    An upgrade to anything but WebSocket is no upgrade. After a request for WebSocket that got another answer than 101 the connection
    ends: who knows what its client has already sent behind the request.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._tunnel: ClientTunnel | None = None
        self._over = False  # no further request is read
        self._left: asyncio.Future[None] = self.loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the tunnel too, and tell all requests."""
        if not self._left.done():
            self._left.set_result(None)
        if self._tunnel is not None:
            self._tunnel.end()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Tell the target and when the client left, and offer a tunnel."""
        scope: MutableMapping[str, Any] = cast("MutableMapping[str, Any]", self.scope)
        scope[TARGET], scope[LEFT] = self.url, self._left
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            return
        self.cycle.keep_alive = False
        if _is_websocket(self.parser.get_method(), self.headers):
            self._tunnel = ClientTunnel(self.cycle, self.transport, self.flow)
            scope["extensions"] = {EXTENSION: self._tunnel}

    def on_message_complete(self) -> None:
        """Wait for the next head, unless what follows is a tunnel's or nobody's."""
        super().on_message_complete()
        if self.parser.should_upgrade():
            self._in_head = False

    def _parse(self, data: bytes) -> None:
        if self._over:
            return
        if self._tunnel is not None:
            self._quiet = 0
            self._tunnel.feed(data)
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._over = self._tunnel is None  # the connection ends with the answer; what stands behind the head is not looked at
            if rest := data[upgrade.args[0] :]:
                self._parse(rest)
        except httptools.HttpParserError:
            self.send_400_response("This is no HTTP request.")


class ClientTunnel:
    """What the client sends after its request for WebSocket, and the way back."""

    def __init__(self, cycle: RequestResponseCycle, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._cycle = cycle
        self._transport = transport
        self._flow = flow
        self._arrived = bytearray()
        self._ended = False
        self._news = asyncio.Event()
        self._answer = cycle.send
        cycle.send = self._send  # type: ignore[method-assign]

    def feed(self, octets: bytes) -> None:
        """Take what arrived."""
        self._arrived += octets
        if len(self._arrived) > HIGH_WATER_LIMIT:
            self._flow.pause_reading()
        self._news.set()

    def end(self) -> None:
        """Take the end of the connection."""
        self._ended = True
        self._news.set()

    async def read(self) -> bytes:
        """Return what arrived; empty at the end."""
        while not self._arrived and not self._ended:
            self._flow.resume_reading()
            self._news.clear()
            await self._news.wait()
        octets, self._arrived = bytes(self._arrived), bytearray()
        return octets

    async def write(self, octets: bytes) -> None:
        """Send; returns when the client takes more, or is gone, which `read` tells."""
        if self._ended:
            return
        self._transport.write(octets)
        if self._flow.write_paused and not self._cycle.disconnected:
            await self._flow.drain()

    def close(self) -> None:
        """Close the connection when what was written has gone out."""
        self._cycle.response_complete = True
        self._transport.close()

    async def _send(self, message: Any) -> None:
        if message["type"] != "http.response.start" or message["status"] != 101:
            await self._answer(message)
            return
        self._cycle.response_started = True
        self._cycle.waiting_for_100_continue = False
        head = [b"HTTP/1.1 101 Switching Protocols\r\n", *(b"%b: %b\r\n" % field for field in message["headers"]), b"\r\n"]
        self._transport.write(b"".join(head))


def _is_websocket(method: bytes, headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request asks for WebSocket and nothing else (RFC 6455 §4.1); one with a body does not."""
    names = [name for name, _ in headers]
    asked = [value.strip(b" \t").lower() for name, value in headers if name == b"upgrade"]
    return method == b"GET" and asked == [b"websocket"] and b"content-length" not in names and b"transfer-encoding" not in names
