# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 as a server speaks it over one connection, for the forward proxy: h11 between two streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeAlias

import h11

from keyferry.errors import RemoteProtocolError

MAX_HEAD: Final = 16_384
"""Octets of a request line and header fields, as our doors take."""
BLOCK: Final = 65_536
IDLE: Final = 75.0
"""Seconds that a connection may be silent before its next request is there."""
HANDSHAKE: Final = 15.0

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


class Wire:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take its streams."""
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    async def request(self) -> h11.Request | None:
        """Return the next request, None if the client has gone. Raises RemoteProtocolError, TimeoutError."""
        async with asyncio.timeout(IDLE):
            event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body of the request. Raises RemoteProtocolError if it ends early."""
        if self._http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise RemoteProtocolError("the client went away in the middle of a body")

    async def send(self, *events: h11.Event) -> None:
        """Send parts of a response, at the pace of the client."""
        for event in events:
            if data := self._http.send(event):
                self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: int, text: str, headers: Headers = ()) -> None:
        """Send a whole response of our own."""
        body = text.encode("utf-8")
        fields = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Content-Length", b"%d" % len(body)), *headers]
        await self.send(h11.Response(status_code=status, headers=fields), h11.Data(data=body), h11.EndOfMessage())

    def answerable(self) -> bool:
        """Tell whether a response may still begin."""
        return self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    def goes_on(self) -> bool:
        """Begin to wait for the next request; false if the connection is at its end."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def tunnel(self, context: ssl.SSLContext) -> Wire:
        """Answer a CONNECT with 200 and end the client's TLS here. Raises RemoteProtocolError, OSError."""
        if not isinstance(await self._event(), h11.EndOfMessage) or self._http.trailing_data[0]:
            raise RemoteProtocolError("something came with the CONNECT")
        self._writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await self._writer.drain()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=BLOCK)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport = await loop.start_tls(
            self._writer.transport, protocol, context, server_side=True, ssl_handshake_timeout=HANDSHAKE
        )  # fmt: skip
        if transport is None:
            raise RemoteProtocolError("the client went away in the middle of a handshake")
        protocol.connection_made(transport)
        return Wire(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def close(self) -> None:
        """End the connection."""
        self._writer.close()

    async def _event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(BLOCK))
        except h11.RemoteProtocolError as problem:
            raise RemoteProtocolError(str(problem), problem.error_status_hint) from problem
        return event
