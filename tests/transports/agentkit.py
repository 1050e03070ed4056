# SPDX-License-Identifier: Apache-2.0
"""A key agent's socket over fakes, and records for it."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from keyferry.errors import DigestRejected, StoreError
from keyferry.ports import KeyRecord, Offer
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims import keys as ims_keys
from keyferry.transports.agent_server import AgentServer, Served
from keyferry.transports.agent_socket import AgentKeys
from keyferry.transports.agent_wire import MAX_REQUEST, Fields, Frames, build_frame, build_record
from keyferry.transports.clock import SystemClock
from keyferry.transports.unix_socket import Admission

WIKI, MAIL = AsId("wiki.home1.net"), AsId("mail.home1.net")
NONCE_KEY = Secret(b"n" * 32)


def record(name: str = "alice", as_id: AsId = WIKI, *impus: str) -> KeyRecord:
    """Return a key whose octets follow from `name`."""
    k_as = Secret(hashlib.sha256(f"{name}{as_id}".encode()).digest())
    names = tuple(map(Impu, impus or (f"sip:{name}@home1.net", "tel:+15551234")))
    return KeyRecord(
        ims_keys.key_id(k_as, "home1.net"), as_id, Impi(f"{name}@home1.net"), Reg("AAAAAAAAAAAA"), names, k_as, 1.7e9, 9e9, superseded=False
    )


class Quiet:
    """A log and a counter that remember."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.counts: list[str] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(event)

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(event)

    def count(self, name: str, reason: str = "") -> None:
        self.counts.append(f"{name} {reason}")


@dataclass
class FakeSource:
    """A KeySource and a UseLedger over dicts."""

    records: dict[str, KeyRecord] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    used_keys: list[str] = field(default_factory=list)
    claimed: set[tuple[str, int]] = field(default_factory=set)
    first: set[str] = field(default_factory=set)
    old: bool = False
    problem: Exception | None = None

    def add(self, *records: KeyRecord) -> None:
        self.records.update({one.key_id: one for one in records})

    def offer(self, as_id: AsId) -> Offer:
        raise NotImplementedError

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        self.asked.append(identifier)
        if self.problem is not None:
            raise self.problem
        found = self.records.get(identifier)
        return found if found is not None and found.as_id == as_id else None

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        raise NotImplementedError

    def protocol_key(self, record: KeyRecord, ua_id: bytes) -> Secret:
        raise NotImplementedError

    async def used(self, record: KeyRecord) -> None:
        self.used_keys.append(record.key_id)

    def issue(self) -> str:
        raise NotImplementedError

    async def claim(self, nonce: str, record: KeyRecord, count: int) -> bool:
        if (nonce, count) in self.claimed:
            raise DigestRejected("this count of the nonce was used before", stale=True)
        self.claimed.add((nonce, count))
        return self.old

    async def claim_first(self, record: KeyRecord) -> bool:
        if record.key_id in self.first:
            return False
        self.first.add(record.key_id)
        return True


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder with a short name: the path of a UNIX socket has 107 octets at most."""
    with tempfile.TemporaryDirectory(prefix="kf") as folder:
        yield Path(folder)


@dataclass
class Running:
    """A socket that listens."""

    path: Path
    server: AgentServer
    source: FakeSource
    quiet: Quiet


def make_server(source: FakeSource, admission: Admission | None = None, hello_limit: float = 5.0) -> tuple[AgentServer, Quiet]:
    """Return a server of two AS_IDs that listens nowhere yet."""
    quiet = Quiet()
    served = {
        as_id: Served(source, source, Secret(NONCE_KEY.reveal() + as_id.encode()), as_id, Secret(as_id.encode() * 3))
        for as_id in (WIKI, MAIL)
    }
    server = AgentServer(
        served, admission=admission or Admission(), clock=SystemClock(), log=quiet, counter=quiet, hello_limit=hello_limit
    )  # fmt: skip
    return server, quiet


@asynccontextmanager
async def listening(
    source: FakeSource | None = None, admission: Admission | None = None, hello_limit: float = 5.0
) -> AsyncIterator[Running]:
    """Listen."""
    source = source or FakeSource()
    server, quiet = make_server(source, admission, hello_limit)
    with short_folder() as folder:
        path = folder / "agent.sock"
        await server.listen(path)
        try:
            yield Running(path, server, source, quiet)
        finally:
            await server.aclose()


@asynccontextmanager
async def connected(running: Running, **settings: float) -> AsyncIterator[AgentKeys]:
    """Yield what a worker has; an agent that answers here may take its time."""
    keys = AgentKeys(running.path, **{"limit": 60.0, "limit_now": 60.0, **settings})  # type: ignore[arg-type]
    try:
        yield keys
    finally:
        await keys.aclose()


Reply = Callable[[Fields], "bytes | None"]


@asynccontextmanager
async def scripted(reply: Reply) -> AsyncIterator[Path]:
    """Listen as an agent that writes what `reply` says, in one go for each question; None ends the connection after what was written."""
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        frames, goes_on = Frames(MAX_REQUEST), True
        while goes_on and (data := await reader.read(4096)):
            for fields in frames.feed(data):
                answer = build_frame({"id": fields["id"], "version": 1, "as": [WIKI]}) if fields["op"] == "hello" else reply(fields)
                goes_on = answer is not None
                writer.write(answer or b"")
        writer.close()

    with short_folder() as folder:
        server = await asyncio.start_unix_server(serve, folder / "agent.sock")
        try:
            yield folder / "agent.sock"
        finally:
            server.close()
            for writer in connections:
                writer.close()
            await asyncio.sleep(0)


def answered(fields: Fields, held: KeyRecord | None, *, keep: bool = True) -> bytes:
    """Return the answer to a question for a key; to another one that there is nothing."""
    if fields["op"] != "lookup":
        return build_frame({"id": fields["id"]})
    told = build_record(held) if held is not None else None
    return build_frame({"id": fields["id"], "record": told, "keep": keep and held is not None})


BROKEN = StoreError("broken")
