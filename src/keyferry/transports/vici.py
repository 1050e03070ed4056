# SPDX-License-Identifier: Apache-2.0
"""charon's control socket: one connection, made again whenever it ends; questions in turn, events as they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator
from pathlib import Path
from typing import Final, cast

from keyferry.errors import ParseError, TransportError
from keyferry.protocol.vici import Kind, Packet, Section, build_packet, packet_steps, split

LIMIT: Final = 1.0
"""Seconds for an answer, the connection included: charon answers within a millisecond, or is not well."""
AGAIN: Final = 0.25
"""Seconds until a connection that ended, or could not be made, is tried again."""
MAX_STREAMED: Final = 10_000
"""Events of one answer that are kept."""
STREAMED: Final = ("list-sa", "list-policy", "list-conn")
EVENTS: Final = ("child-updown", "child-rekey", "ike-updown")
TURN: Final = 16_384
"""Octets of packets that are read before others get their turn: 4 ms."""
STEP_OCTETS: Final = 4_096
"""What a step of reading is counted as."""
NONE: Final = "%none"
"""A name that no CHILD_SA has: swanctl.conf knows no such."""

Heard = Callable[[str, Section], None]
"""Takes the name of an event, or `connected` or `lost`, and what it says; never waits, never raises."""
Take = Callable[[Section], None]
"""Takes what charon streams, one event after the other; never waits, never raises."""


def _dropped(_section: Section) -> None:
    """Take what nobody asked for: the rest of an answer that was given up."""


class ViciLink(asyncio.Protocol):
    """One connection. A packet that cannot be read, or that nobody asked for, ends it."""

    def __init__(self, heard: Heard, lost: Callable[[str], None]) -> None:
        """Take whom to tell of events, and of the end."""
        self._heard = heard
        self._lost = lost
        self._buffer = b""
        self._take: Take = _dropped
        self._waiting: asyncio.Future[Packet] | None = None
        self._transport: asyncio.Transport | None = None
        self._packets: deque[bytes] = deque()
        self._parsing: Generator[None, None, Packet] | None = None
        self._busy = False  # reading goes on in another turn of the loop

    async def exchange(self, kind: Kind, name: str, message: Section | None = None, take: Take | None = None) -> Packet:
        """Send one packet and return the answer; `take` gets what is streamed before. One at a time. Raises TransportError."""
        if self._transport is None or self._waiting is not None:
            raise TransportError("vici", "the connection ended")
        self._waiting = asyncio.get_running_loop().create_future()
        self._take = take or _dropped
        self._transport.write(build_packet(kind, name, message))
        return await self._waiting

    def end(self, problem: str) -> None:
        """Break the connection; who waits for an answer is told."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.abort()
        self._packets.clear()
        self._parsing = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(TransportError("vici", problem))
        self._lost(problem)

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take answers and events."""
        try:
            packets, self._buffer = split(self._buffer + data)
            self._packets.extend(packets)
            if not self._busy:
                self._read()
        except ParseError as problem:
            self.end(f"charon sent what is no vici: {problem}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end."""
        del exc
        self.end("charon ended the connection")

    def _read(self) -> None:
        """Read packets in their order, some milliseconds' worth: whoever else the loop serves gets a turn in between."""
        left = TURN
        while self._transport is not None and (self._packets or self._parsing is not None):
            if left <= 0:
                self._go_on_later(self._transport)
                return
            if self._parsing is None:
                packet = self._packets.popleft()
                left -= min(len(packet), STEP_OCTETS)
                self._parsing = packet_steps(packet)
            else:
                left -= STEP_OCTETS
            try:
                next(self._parsing)
            except StopIteration as end:
                self._parsing = None
                self._received(end.value)

    def _go_on_later(self, transport: asyncio.Transport) -> None:
        self._busy = True
        if not transport.is_closing():
            transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._busy = False
        try:
            self._read()
        except ParseError as problem:
            self.end(f"charon sent what is no vici: {problem}")
        if not self._busy and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _received(self, packet: Packet) -> None:
        if packet.kind is Kind.EVENT and packet.name in STREAMED and self._waiting is not None:
            self._take(packet.message)
        elif packet.kind is Kind.EVENT:
            self._heard(packet.name, packet.message)
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(packet)
            self._waiting = None
        else:
            self.end("charon sent an answer that nobody asked for")


class Vici:
    """charon, while it is there. After `start` the connection is made, and made again, until `aclose`."""

    def __init__(
        self,
        path: Path,
        *,
        heard: Heard = lambda _name, _message: None,
        limit: float = LIMIT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        believed: Collection[int] | None = None,
    ) -> None:
        """Take the socket's path, whom to tell of events, the seconds that an answer may take, and users who may serve it.

        Default for those: root and our own. Whoever serves it says where keys may go.
        """
        self.path = path
        self.problem = "charon was not asked yet"  # why there is no connection
        self.heard = heard
        self._believed = frozenset({0, os.geteuid()} if believed is None else believed)
        self._limit = limit
        self._sleep = sleep
        self._link: ViciLink | None = None
        self._ended = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Try to connect, once before this returns; that charon is not there is no error."""
        first = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep(first))
        await first.wait()

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._link is not None:
            self._link.end("it was closed")

    async def ask(self, command: str, message: Section | None = None, take: Take | None = None) -> Section:
        """Send a command and return what charon answers; questions wait for each other. Raises TransportError."""
        async with self._turn:
            link = self._link
            if link is None:
                raise TransportError(str(self.path), self.problem)
            try:
                async with asyncio.timeout(self._limit):
                    packet = await link.exchange(Kind.CMD_REQUEST, command, message, take)
            except TimeoutError:
                link.end(f"charon did not answer within {self._limit:g} s")
                raise TransportError(str(self.path), self.problem) from None
            except BaseException as problem:  # given up: the answer to this question must not be taken for that to the next
                link.end("a question was given up")
                if isinstance(problem, TransportError):
                    raise TransportError(str(self.path), problem.problem) from problem
                raise
        if packet.kind is not Kind.CMD_RESPONSE:
            raise TransportError(str(self.path), f"charon does not know the command {command}")
        return packet.message

    async def listed(self, command: str, message: Section | None = None) -> list[Section]:
        """Return what charon streams to a command. Raises TransportError, also where that is more than can be kept."""
        found: list[Section] = []

        def take(section: Section) -> None:
            if len(found) <= MAX_STREAMED:
                found.append(section)

        await self.ask(command, message, take)
        if len(found) > MAX_STREAMED:
            raise TransportError(str(self.path), f"charon streams over {MAX_STREAMED} events to {command}")
        return found

    # ---- inside

    async def _keep(self, first: asyncio.Event) -> None:
        while True:
            self._ended.clear()
            try:
                async with asyncio.timeout(self._limit):
                    self._link = await self._connected()
            except TimeoutError:
                self.problem = f"charon did not answer within {self._limit:g} s"
            except TransportError as problem:
                self.problem = problem.problem
            except PermissionError:
                self.problem = "this user may not ask charon. Give the socket to a group of its (`keyferry ipsec write --group`)"
            except OSError as problem:
                self.problem = f"charon is not there ({problem.strerror or problem}). Start it, or correct ipsec.vici"
            else:
                self.heard("connected", {})
                first.set()
                await self._ended.wait()
            self._link = None
            first.set()
            await self._sleep(AGAIN)

    async def _connected(self) -> ViciLink:
        """Connect and subscribe to events. Raises OSError, TimeoutError, TransportError."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link = ViciLink(lambda name, message: self.heard(name, message), self._lost)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, os.fspath(self.path))
            self._check_owner(sock)
            await loop.create_unix_connection(lambda: link, sock=sock)
            for name in (*STREAMED, *EVENTS):
                packet = await link.exchange(Kind.EVENT_REGISTER, name)
                if packet.kind is not Kind.EVENT_CONFIRM:
                    raise TransportError(str(self.path), f"charon has no event {name}: it is too old")
        except BaseException:
            with contextlib.suppress(OSError):
                sock.close()
            link.end("it was not understood")
            raise
        return link

    def _lost(self, problem: str) -> None:
        if self._link is not None:
            self._link = None
            self.problem = problem
            self.heard("lost", {})
        self._ended.set()

    def _check_owner(self, sock: socket.socket) -> None:
        """Raise TransportError where a stranger serves the socket."""
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if uid not in self._believed:
            raise TransportError(str(self.path), f"it is served by the user {uid}, who is neither root nor ours")
