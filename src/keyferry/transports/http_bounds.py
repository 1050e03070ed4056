# SPDX-License-Identifier: Apache-2.0
"""Our HTTP/1.1 connection: bounds on heads that uvicorn's fast parser lacks (RFC 9112 §3, RFC 6585 §5), and who is there by TLS-PSK."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from keyferry.errors import RemoteProtocolError
from keyferry.protocol.ims.key_record import PSK_SCOPE, PskProof
from keyferry.transports.tls_psk import PskObject

MAX_HEAD = 16_384
"""Octets of request line and header fields: Digest credentials and a long XCAP path are under 2 kB; nginx stops at 32 kB."""
HEAD_TIME = 15.0
"""Seconds for one head, from its first octet; and from the connection to the first."""

MAX_PIPELINED = 1_000
"""Requests that wait behind the one being answered. 256 kB that arrive at once hold 5,000 small ones, 3 kB each when parsed."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """One connection whose heads are bounded in octets and in time; the body is the application's business.

    Without these a stranger fills memory with one endless header field, or holds connections with half a request each.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True
        self._heads = 0  # complete ones
        self._head_octets = 0  # of the head that is arriving
        self._quiet = 0  # octets since the last of a body
        self._head_began: float | None = None
        self._look: asyncio.TimerHandle | None = None
        self._psk: PskProof | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if isinstance(tls, PskObject):
            self._psk = tls.proof
            if self._psk is None:  # cannot be: its handshake would have failed
                transport.abort()
        self._head_began = self.loop.time()
        self._look = self.loop.call_later(HEAD_TIME, self._look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._look is not None:
            self._look.cancel()
            self._look = None
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin a request; only here does its scope learn who proved a key in the handshake of this connection."""
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()
            raise RemoteProtocolError("too many requests at once on a connection")  # stops the parser in the midst of its data
        super().on_message_begin()
        if self._psk is not None:
            cast("dict[str, Any]", self.scope)[PSK_SCOPE] = self._psk

    def data_received(self, data: bytes) -> None:
        """Pass on what arrives, as long as a head stays within its bound."""
        while self._in_head and self._head_octets + len(data) > MAX_HEAD:
            room, heads = MAX_HEAD - self._head_octets, self._heads
            part, data = data[:room], data[room:]
            self._feed(part)
            if self._heads == heads:
                self.transport.write(TOO_LARGE)
                self.transport.close()
                return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        if not self._in_head and self._quiet > MAX_HEAD:  # trailers or chunk extensions without end (RFC 9112 §7.1)
            self.transport.abort()
            return
        if self._in_head:
            self._head_octets += len(data)
            if self._head_began is None:
                self._head_began = self.loop.time()
        else:
            self._quiet += len(data)
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; one of the trailers is not taken for such a field (RFC 9110 §6.5.1)."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let the body through."""
        self._in_head, self._head_octets, self._head_began = False, 0, None
        self._heads += 1
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that what arrives is a body."""
        self._quiet = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next head: its time runs from its first octet, until then the keep-alive time does."""
        super().on_message_complete()
        self._in_head, self._quiet = True, 0

    def _look_again(self) -> None:
        """Close if a head takes too long; one timer a connection, not one a request."""
        now = self.loop.time()
        if self._head_began is not None and now - self._head_began >= HEAD_TIME:
            self.transport.abort()
            return
        due = HEAD_TIME if self._head_began is None else HEAD_TIME - (now - self._head_began)
        self._look = self.loop.call_later(due, self._look_again)
