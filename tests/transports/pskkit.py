# SPDX-License-Identifier: Apache-2.0
"""What tests of TLS-PSK need: a source of keys, a listener, and clients that do each part of it wrong."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from asgi.doorkit import FakeCounter, FakeRandom
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg
from keyferry.protocol.ims.key_record import KeyRecord, Offer
from keyferry.protocol.ims.keys import digest_realm, key_id, psk_identity, ua_key
from keyferry.transports.http_server import HttpServer
from keyferry.transports.tls_psk import DEFAULT_SUITE, VERSIONS, PskDoor, PskVersion, psk_context, ua_id_of

AS_ID = AsId("xcap.home1.net")
Message = MutableMapping[str, Any]


def psk_record(name: str = "alice", as_id: AsId = AS_ID, *, superseded: bool = False) -> KeyRecord:
    """Return a key whose octets follow from `name`."""
    k_as = Secret(hashlib.sha256(name.encode()).digest())
    return KeyRecord(
        key_id=key_id(k_as, "home1.net"), as_id=as_id, impi=Impi(f"{name}@home1.net"), reg=Reg("AAAAAAAAAAAA"),
        impus=(Impu(f"sip:{name}@home1.net"),), k_as=k_as, not_before=1_700_000_000.0, not_after=1_900_000_000.0, superseded=superseded,
    )  # fmt: skip


@dataclass
class PskKeys:
    """A KeySource over a dict."""

    records: dict[str, KeyRecord]
    asked: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    problem: Exception | None = None

    def offer(self, as_id: AsId) -> Offer:
        return Offer("ims-as-key", digest_realm(as_id), "IMS-AS-key", handsets=False)

    async def lookup(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        return self.lookup_now(identifier, as_id)

    def lookup_now(self, identifier: str, as_id: AsId) -> KeyRecord | None:
        self.asked.append(identifier)
        if self.problem is not None:
            raise self.problem
        record = self.records.get(identifier)
        return record if record is not None and record.as_id == as_id else None

    def protocol_key(self, record: KeyRecord, ua_id: bytes) -> Secret:
        return ua_key(record.k_as, ua_id)

    async def used(self, record: KeyRecord) -> None:
        self.told.append(record.key_id)


class FakeLog:
    """Remember what was logged."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, **fields: object) -> None:
        self.seen.append((event, fields))

    warning = info


def make_psk_door(*records: KeyRecord, version: PskVersion = "1.3", suite: str = DEFAULT_SUITE, as_id: AsId = AS_ID) -> PskDoor:
    """Return a door that knows these keys."""
    keys = PskKeys({record.key_id: record for record in records})
    return PskDoor(as_id, [keys], FakeRandom("psk"), FakeCounter(), FakeLog(), version, suite)


def client_context(
    version: PskVersion, identity: str, key: bytes, *, suites: str | None = DEFAULT_SUITE, highest: PskVersion | None = None
) -> ssl.SSLContext:
    """Return a client that says `identity` and uses `key`; it trusts no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version, context.maximum_version = VERSIONS[version], VERSIONS[highest or version]
    if suites is not None and version == "1.2":
        context.set_ciphers(suites)
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda _hint: (identity, key))
    return context


def context_of(record: KeyRecord, version: PskVersion, *, key: bytes | None = None, suite: str = DEFAULT_SUITE) -> ssl.SSLContext:
    """Return a client that has the record's key, or says so and uses another."""
    ua_id = ua_id_of(version, suite)
    own = ua_key(record.k_as, ua_id).reveal() if key is None else key
    return client_context(version, psk_identity(ua_id, record.key_id), own, suites=suite)


class Wire:
    """A handshake in memory, step by step."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        self.server_in, other = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(self.server_in, other, server_side=True)
        self.client = client.wrap_bio(other, self.server_in, server_hostname=AS_ID, session=session)
        self.ends = {"client": False, "server": False}

    def step(self, side: str) -> bool:
        """Let one side go on; true if its handshake is over."""
        if not self.ends[side]:
            try:
                (self.client if side == "client" else self.server).do_handshake()
                self.ends[side] = True
            except ssl.SSLWantReadError:
                pass
        return self.ends[side]

    def shake(self) -> Wire:
        """Go on until both are done. Raises ssl.SSLError."""
        for _ in range(10):
            if all([self.step("client"), self.step("server")]):
                return self
        raise AssertionError("the handshake does not end")

    def close(self) -> None:
        """Close as one should, so that the session stays in the caches of both."""
        for _ in range(3):
            for end in (self.client, self.server):
                with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                    end.unwrap()


async def who(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """Answer with whose key the connection proved."""
    if scope["type"] == "lifespan":
        return
    await receive()
    proof = scope.get("keyferry.psk")
    body = proof.record.impi.encode() if proof else b"nobody"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def psk_serving(door: PskDoor, app: Any = who) -> AsyncIterator[int]:
    """Serve over TLS-PSK on a free loopback port."""
    server = HttpServer(app, tls=psk_context(door))
    _, port = await server.listen("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.aclose()


class Connection:
    """One HTTP/1.1 connection over TLS."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, context: ssl.SSLContext, name: str = AS_ID) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))

    async def get(self, *fields: str, host: str = AS_ID, target: str = "/") -> tuple[int, dict[str, str], str]:
        """Send one GET; return status, header fields, body."""
        head = "".join(f"{line}\r\n" for line in (f"GET {target} HTTP/1.1", f"Host: {host}", *fields))
        self.write(head + "\r\n")
        return await self.answer()

    def write(self, text: str) -> None:
        """Send what is not one well-formed request."""
        self._writer.write(text.encode())

    async def answer(self) -> tuple[int, dict[str, str], str]:
        """Read one response."""
        lines = (await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 60)).decode().split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await self._reader.readexactly(int(found.get("content-length", "0")))
        if found.get("transfer-encoding") == "chunked":
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        return int(lines[0].split()[1]), found, body.decode()

    async def ended(self) -> bool:
        """Tell whether the server closes."""
        try:
            return await asyncio.wait_for(self._reader.read(1), 60) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()


async def refused(port: int, context: ssl.SSLContext, name: str = AS_ID, target: str = "/") -> bool:
    """Tell whether a client gets no answer at all; in TLS 1.3 it may learn only after its handshake that the server's failed."""
    try:
        connection = await Connection.open(port, context, name)
    except (ssl.SSLError, ConnectionError):
        return True
    try:
        await connection.get(host=name, target=target)
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return True
    finally:
        await connection.close()
    return False
