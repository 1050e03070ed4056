# SPDX-License-Identifier: Apache-2.0
"""What the SIP transport tests share: a clock that stands still, raw peers, a node."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import Counter as Tally
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

from keyferry.ports import SipEvent, SipPeer
from keyferry.protocol.sip.message import Message, Request, Response, make_response, parse_message
from keyferry.transports.sip_context import Limits
from keyferry.transports.sip_node import SipNode

T = TypeVar("T")
PATIENCE = 60.0  # seconds: what takes so long hangs
"""Real seconds until a test that waits for the loopback gives up."""


class FakeClock:
    """A clock that moves only by hand."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return 1_700_000_000.0 + self.time

    def monotonic(self) -> float:
        return self.time


class Numbers:
    """Octets that are never the same twice."""

    def __init__(self) -> None:
        self._next = itertools.count(1)

    def octets(self, count: int) -> bytes:
        return next(self._next).to_bytes(count)


class Tallies:
    """Count and log into lists."""

    def __init__(self) -> None:
        self.counts: Tally[tuple[str, str]] = Tally()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.changed = asyncio.Event()

    def count(self, name: str, reason: str = "") -> None:
        self.counts[name, reason] += 1
        self.changed.set()

    def info(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    async def until(self, name: str, reason: str, times: int = 1) -> None:
        """Wait until something was counted `times`."""
        async with asyncio.timeout(PATIENCE):
            while self.counts[name, reason] < times:
                self.changed.clear()
                await self.changed.wait()


class Lab:
    """One node under a fake clock, with everything it says."""

    def __init__(
        self,
        handler: Callable[[Request, SipPeer], Awaitable[Response]] | None = None,
        limits: Limits | None = None,
        trusts: Callable[[str], bool] = lambda _host: False,
    ) -> None:
        self.clock = FakeClock()
        self.tallies = Tallies()
        self.seen: list[SipEvent] = []
        self.node = SipNode(
            name="node",
            clock=self.clock,
            random=Numbers(),
            log=self.tallies,
            handler=handler,
            observer=self.seen.append,
            counter=self.tallies,
            limits=limits,
            trusts=trusts,
        )
        self.udp = self.tcp = SipPeer("UDP", "", 0)

    async def start(self) -> Self:
        """Listen on loopback."""
        self.udp, self.tcp = await self.node.listen("127.0.0.1", 0)
        return self

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.node.aclose()

    def move(self, seconds: float) -> int:
        """Let time pass and the timers fire."""
        self.clock.time += seconds
        return self.node.tick()


class UdpPeer:
    """A plain UDP socket on loopback."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.hop = SipPeer("UDP", "127.0.0.1", self.socket.getsockname()[1])
        self.source = ("", 0)

    def __enter__(self) -> UdpPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes, to: SipPeer) -> None:
        self.socket.sendto(data, (to.host, to.port))

    async def octets(self) -> bytes:
        data, self.source = await patiently(asyncio.get_running_loop().sock_recvfrom(self.socket, 65_536))
        return data

    async def message(self) -> Message:
        return parse_message(await self.octets())

    async def response(self) -> Response:
        message = await self.message()
        assert isinstance(message, Response)
        return message

    async def request(self) -> Request:
        message = await self.message()
        assert isinstance(message, Request)
        return message

    def nothing(self) -> bool:
        """Tell whether no datagram waits; loopback delivers before sendto returns."""
        try:
            self.socket.recv(65_536)
        except BlockingIOError:
            return True
        return False


class TcpPeer:
    """A plain TCP client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.port = writer.get_extra_info("sockname")[1]

    @classmethod
    async def to(cls, peer: SipPeer) -> TcpPeer:
        return cls(*await asyncio.open_connection(peer.host, peer.port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def octets(self) -> bytes:
        head = await patiently(self.reader.readuntil(b"\r\n\r\n"))
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return head + await patiently(self.reader.readexactly(length))

    async def response(self) -> Response:
        message = parse_message(await self.octets())
        assert isinstance(message, Response)
        return message

    async def request(self) -> Request:
        message = parse_message(await self.octets())
        assert isinstance(message, Request)
        return message

    async def ended(self) -> bool:
        try:
            return await patiently(self.reader.read()) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


class Listener:
    """A plain TCP server that collects its connections."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[TcpPeer] = asyncio.Queue()
        self.hop = SipPeer("TCP", "", 0)

    async def __aenter__(self) -> Listener:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.accepted.put(TcpPeer(reader, writer))

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.hop = SipPeer("TCP", *self.server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        while not self.accepted.empty():
            await self.accepted.get_nowait().close()

    async def connection(self) -> TcpPeer:
        return await patiently(self.accepted.get())


async def patiently(work: Awaitable[T]) -> T:
    """Wait for the loopback, not for ever."""
    async with asyncio.timeout(PATIENCE):
        return await work


async def turns(count: int = 5) -> None:
    """Let arrive what was sent, as a datagram that is sent behind it has arrived, and let the loop go round."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.setblocking(False)
        own.bind(("127.0.0.1", 0))
        own.sendto(b"x", own.getsockname())
        await patiently(asyncio.get_running_loop().sock_recv(own, 1))
    for _ in range(count):
        await asyncio.sleep(0)


def register(
    port: int, *, branch: str = "z9hG4bK1", rport: bool = True, host: str = "127.0.0.1", transport: str = "UDP", method: str = "REGISTER"
) -> bytes:
    """Return a request as a peer on `port` sends it."""
    return (
        f"{method} sip:home1.net SIP/2.0\r\nVia: SIP/2.0/{transport} {host}:{port};branch={branch}{';rport' if rport else ''}\r\n"
        "Max-Forwards: 70\r\nFrom: <sip:a@home1.net>;tag=1\r\nTo: <sip:a@home1.net>\r\nCall-ID: c1\r\n"
        f"CSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def request(padding: int = 0) -> Request:
    """Return a request without Via, as a role makes it."""
    return Request(
        "REGISTER",
        "sip:as1.home1.net",
        (
            ("Max-Forwards", "70"),
            ("From", "<sip:scscf1.home1.net>;tag=1"),
            ("To", "<sip:a@home1.net>"),
            ("Call-ID", "c2"),
            ("CSeq", "7 REGISTER"),
        ),
        b"x" * padding,
    )


async def ok(request: Request, peer: SipPeer) -> Response:
    """Answer 200 with the source in a header field."""
    return make_response(request, 200, headers=(("X-Source", str(peer)),))
