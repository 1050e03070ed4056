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


def crowd(number: int, name: str = "other", *, ike: str = "", remote: str = "192.0.2.0/24") -> Section:
    """Return one IKE_SA with so many CHILD_SAs, each as long as charon writes it."""
    (settings,) = sa(name=name, identity="other.home1.net", remote=remote, number=0).values()
    (child,) = settings["child-sas"].values()  # type: ignore[index,call-overload,union-attr]
    more = {key: "1234567890" for key in ("uniqueid", "reqid", "bytes-in", "packets-in", "use-in", "bytes-out", "packets-out", "use-out",
            "rekey-time", "life-time", "install-time", "encr-keysize", "dh-group", "encap", "cpu-in")}  # fmt: skip
    return {ike or name: {**settings, "child-sas": {f"{name}-{each}": {**child, **more} for each in range(number)}}}  # type: ignore[dict-item]


def shunt(remote: str = "10.99.0.0/24", local: str = "10.99.0.0/24") -> Section:
    """Return a policy that lets packets past, as list-policies streams it of the plugin bypass-lan."""
    return {"bypass-lan/x": {"child": "x", "ike": "bypass-lan", "mode": "PASS", "local-ts": [local], "remote-ts": [remote]}}


@dataclass
class Charon:
    """Serve vici; `sas` is what list-sas streams."""

    path: Path
    sas: list[Section] = field(default_factory=list)
    passes: list[Section] = field(default_factory=list)  # what list-policies streams
    conns: list[Section] = field(default_factory=list)  # what list-conns streams
    asked: list[str] = field(default_factory=list)
    questions: list[tuple[str, Section]] = field(default_factory=list)  # commands and what they ask for
    streamed: int = 0  # CHILD_SAs
    silent: bool = False
    before_answer: Callable[[], None] = lambda: None  # called when list-sas was asked, before anything is said
    before_passes: Callable[[], None] = lambda: None  # the same of list-policies
    raw: bytes = b""  # sent in place of an answer
    knows: frozenset[str] = frozenset({"list-sas", "list-policies", "list-conns", "version"})
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
        """Send an event to everybody; one without an IKE_SA may be about any."""
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

    @property
    def looks(self) -> int:
        """How many questions were asked whose last part is that of policies."""
        return self.asked.count("list-policies")

    def _answer(self, packet: Packet, writer: asyncio.StreamWriter) -> None:
        self.asked.append(packet.name)
        self.questions.append((packet.name, packet.message))
        if packet.kind is Kind.EVENT_REGISTER:
            writer.write(build_packet(Kind.EVENT_CONFIRM if self.has_events else Kind.EVENT_UNKNOWN))
            return
        if packet.name == "list-sas":
            self.before_answer()
        if packet.name == "list-policies":
            self.before_passes()
        if self.silent:
            return
        if self.raw:
            writer.write(self.raw)
            return
        if packet.name not in self.knows:
            writer.write(build_packet(Kind.CMD_UNKNOWN))
            return
        self._stream(packet, writer)
        writer.write(build_packet(Kind.CMD_RESPONSE, "", {"version": "5.9.8"} if packet.name == "version" else {}))

    def _stream(self, packet: Packet, writer: asyncio.StreamWriter) -> None:
        if packet.name == "list-policies" and packet.message == {"pass": "yes"}:
            for each in self.passes:
                writer.write(build_packet(Kind.EVENT, "list-policy", each))
        if packet.name == "list-conns":
            for each in self.conns:
                if packet.message.get("ike") in {None, *each}:
                    writer.write(build_packet(Kind.EVENT, "list-conn", each))
        if packet.name == "list-sas":
            self._list_sas(packet.message, writer)

    def _list_sas(self, wanted: Section, writer: asyncio.StreamWriter) -> None:
        """Do as charon's vici_query.c and vici_socket.c do: filters are exact, and a packet that is too long is dropped without a word."""
        for each in self.sas:
            found: Section = {}
            for name, ike in each.items():
                assert isinstance(ike, dict)
                children = ike["child-sas"]
                assert isinstance(children, dict)
                if wanted.get("ike") in {None, name}:
                    chosen = {key: child for key, child in children.items() if wanted.get("child") in {None, child["name"]}}  # type: ignore[call-overload,index]
                    found[name] = {**ike, "child-sas": chosen}
                    self.streamed += len(chosen)
            with contextlib.suppress(ValueError):
                if found:
                    writer.write(build_packet(Kind.EVENT, "list-sa", found))


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
