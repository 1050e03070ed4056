# SPDX-License-Identifier: Apache-2.0
"""A charon of our own on a real UNIX socket: it says what the test wants, when it wants."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keyferry.protocol.vici import Kind, Packet, Section, build_packet, parse_packet, split

CHILD, IDENTITY = "isc-xcap-as-home1-net", "xcap-as.home1.net"


def sa(
    identity: str = IDENTITY, *, name: str = CHILD, remote: str = "10.99.0.2/32", local: str = "10.99.0.1/32", state: str = "INSTALLED",
    encryption: str = "AES_GCM_16", number: int = 1,
) -> Section:  # fmt: skip
    """Return one IKE_SA with one CHILD_SA, as list-sas streams it."""
    child: Section = {
        "name": name, "state": state, "mode": "TUNNEL", "protocol": "ESP", "spi-in": "b9a6066e", "spi-out": "54447b9e",
        "encr-alg": encryption, "local-ts": [local], "remote-ts": [remote],
    }  # fmt: skip
    ike: Section = {"version": "2", "state": "ESTABLISHED", "remote-id": identity, "child-sas": {f"{name}-{number}": child}}
    return {f"isc-{number}": ike}


def shunt(remote: str = "10.99.0.0/24", local: str = "10.99.0.0/24") -> Section:
    """Return a policy that lets packets past, as list-policies streams it of the plugin bypass-lan."""
    return {"bypass-lan/x": {"child": "x", "ike": "bypass-lan", "mode": "PASS", "local-ts": [local], "remote-ts": [remote]}}


@dataclass
class Charon:
    """Serve vici; `sas` is what list-sas streams."""

    path: Path
    sas: list[Section] = field(default_factory=list)
    passes: list[Section] = field(default_factory=list)  # what list-policies streams
    asked: list[str] = field(default_factory=list)
    silent: bool = False
    before_answer: Callable[[], None] = lambda: None  # called when list-sas was asked, before anything is said
    raw: bytes = b""  # sent in place of an answer
    knows: frozenset[str] = frozenset({"list-sas", "list-policies", "version"})
    has_events: bool = True
    connections: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def kill(self) -> None:
        """End as SIGKILL does; the path is left behind."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0)

    async def again(self) -> None:
        """Start again."""
        self.path.unlink(missing_ok=True)
        await self.start()

    def say(self, event: str, message: Section | None = None) -> None:
        """Send an event to everybody."""
        for writer in self._writers:
            writer.write(build_packet(Kind.EVENT, event, message or {}))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        rest = b""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                packets, rest = split(rest + data)
                for packet in packets:
                    self._answer(parse_packet(packet), writer)
        with contextlib.suppress(ValueError):
            self._writers.remove(writer)
        writer.close()

    def _answer(self, packet: Packet, writer: asyncio.StreamWriter) -> None:
        self.asked.append(packet.name)
        if packet.kind is Kind.EVENT_REGISTER:
            writer.write(build_packet(Kind.EVENT_CONFIRM if self.has_events else Kind.EVENT_UNKNOWN))
            return
        if packet.name == "list-policies" and packet.message == {"pass": "yes"} and not self.silent:
            for each in self.passes:
                writer.write(build_packet(Kind.EVENT, "list-policy", each))
            writer.write(build_packet(Kind.CMD_RESPONSE))
            return
        self.before_answer()
        if self.silent:
            return
        if self.raw:
            writer.write(self.raw)
            return
        if packet.name not in self.knows:
            writer.write(build_packet(Kind.CMD_UNKNOWN))
            return
        for each in self.sas:
            writer.write(build_packet(Kind.EVENT, "list-sa", each))
        writer.write(build_packet(Kind.CMD_RESPONSE, "", {"version": "5.9.8"} if packet.name == "version" else {}))


@asynccontextmanager
async def charon(*sas: Section) -> AsyncIterator[Charon]:
    """Serve on a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="kf-vici-") as folder:
        served = Charon(Path(folder) / "charon.vici", list(sas))
        await served.start()
        try:
            yield served
        finally:
            await served.kill()
