# SPDX-License-Identifier: Apache-2.0
"""The key agent's socket: gives the workers of this machine's applications keys, and decides about nonces for them (docs/protocol.md)."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections import Counter as Counts
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from keyferry.errors import DigestRejected, KeyferryError, ParseError
from keyferry.ports import Clock, Counter, KeyRecord, KeySource, Log, UseLedger
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId
from keyferry.transports.agent_wire import MAX_IDENTIFIER, MAX_REQUEST, VERSION, Fields, Frames, build_frame, build_record, whose
from keyferry.transports.unix_socket import Admission, bind_unix, drop_name, peer_of, take_name

MAX_CLIENTS: Final = 512
"""Connections; a worker has two."""
MAX_CLIENTS_PER_USER: Final = 256
"""Of one user, who must not keep the others out."""
MAX_UNDER_WAY: Final = 1_024
"""Requests of one connection at once, as many as our client sends."""
MAX_UNREAD: Final = 4_194_304
"""Octets of answers that a client has not read; then its connection ends."""
MAX_TRACKED: Final = 20_000
"""Keys of which one connection is told when they change: twice what our client keeps."""
HELLO_LIMIT: Final = 5.0
"""Seconds until a connection must have said hello."""
MAX_COUNT: Final = 2**32 - 1


class Served(NamedTuple):
    """What the workers of one AS_ID get."""

    keys: KeySource
    ledger: UseLedger
    nonce_key: Secret
    scope: str
    user_id_key: Secret | None = None


class _Unanswerable(Exception):
    """Answer an error of the protocol; `word` is of a fixed set."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(word, text)
        self.word = word
        self.text = text


class _Tracked:
    """A key of which a connection is told when it changes. After a change the next question begins a new one."""

    __slots__ = ("asked", "given")

    def __init__(self) -> None:
        self.asked = 0  # questions under way
        self.given = False  # a record went out, and may be kept there


class AgentServer:
    """Listen on a UNIX socket."""

    def __init__(
        self,
        served: Mapping[AsId, Served],
        *,
        admission: Admission,
        clock: Clock,
        log: Log,
        counter: Counter,
        hello_limit: float = HELLO_LIMIT,
    ) -> None:
        """Take what is served, by AS_ID."""
        self.served = served
        self.admission = admission
        self.clock = clock
        self.log = log
        self.counter = counter
        self.hello_limit = hello_limit
        self.clients: set[_Client] = set()
        self.of_user: Counts[int] = Counts()
        self.tasks: set[asyncio.Task[None]] = set()
        self._path: Path | None = None
        self._inode = 0
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path, mode: int = 0o600) -> None:
        """Listen at `path`, for the owner alone or, with mode 0660, for the admission's group. Raises StateError."""
        sock = bind_unix(path, mode, self.admission.group)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Client(self), sock=sock)
        self._inode = take_name(path)
        self._path = path

    def changed(self, key_ids: Sequence[str]) -> None:
        """Tell those who have records of these keys that they must ask again; before whoever changed them is answered."""
        for client in self.clients:
            client.changed(key_ids)

    async def aclose(self) -> None:
        """Stop listening, end connections and what they have under way, remove the socket if it is still ours."""
        if self._server is not None:
            self._server.close()
        for client in tuple(self.clients):
            client.end()
        for task in tuple(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes sockets in its next turn
        if self._path is not None:
            drop_name(self._path, self._inode)


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: AgentServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._frames = Frames(MAX_REQUEST)
        self._as_ids: frozenset[AsId] = frozenset()
        self._uid = -1
        self._greeted = False
        self._cache = False
        self._tracked: OrderedDict[str, _Tracked] = OrderedDict()
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None

    # ---- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look who it is, and end it at once if that one may not."""
        self._transport = cast("asyncio.Transport", transport)  # of a stream; uvloop's is of no class of asyncio's
        server = self._server
        self._uid, groups = peer_of(self._transport)
        self._as_ids = server.admission.allowed(self._uid, groups, server.served)
        full = len(server.clients) >= MAX_CLIENTS or server.of_user[self._uid] >= MAX_CLIENTS_PER_USER
        if full or not self._as_ids:
            server.counter.count("agent_refused", "full" if full else "user")
            server.log.warning("agent-client-refused", uid=self._uid, reason="too many connections" if full else "may not connect")
            self._transport.abort()
            return
        server.clients.add(self)
        server.of_user[self._uid] += 1
        self._timer = asyncio.get_running_loop().call_later(server.hello_limit, self._late)

    def data_received(self, data: bytes) -> None:
        """Take requests; after what is none, nothing can be made of what follows."""
        try:
            for fields in self._frames.feed(data):
                self._received(fields)
        except ParseError as problem:
            self._server.counter.count("agent_refused", "malformed")
            self._send({"error": "malformed", "text": str(problem)})
            self.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end."""
        del exc
        if self._timer is not None:
            self._timer.cancel()
        if self in self._server.clients:
            self._server.clients.discard(self)
            self._server.of_user[self._uid] -= 1
            if not self._server.of_user[self._uid]:
                del self._server.of_user[self._uid]

    def end(self) -> None:
        """End the connection, what is written goes out."""
        if self._transport is not None:
            self._transport.close()

    def changed(self, key_ids: Sequence[str]) -> None:
        """Say which of the records that went out here have changed."""
        known = [key_id for key_id in key_ids if key_id in self._tracked]
        for key_id in known:
            del self._tracked[key_id]
        if known:
            self._send({"changed": known})

    # ---- inside

    def _late(self) -> None:
        if not self._greeted and self._transport is not None:
            self._server.counter.count("agent_refused", "silent")
            self._transport.abort()

    def _received(self, fields: Fields) -> None:
        number = fields.get("id")
        if not isinstance(number, int) or not 0 <= number <= 2**63:
            raise ParseError("request", "has no number")
        if self._under_way >= MAX_UNDER_WAY:
            self._send({"id": number, "error": "busy", "text": f"{MAX_UNDER_WAY} requests are under way"})
            return
        self._under_way += 1
        loop = asyncio.get_running_loop()
        # Begun now where Python can (3.12): nearly all end without having waited for anything.
        if sys.version_info >= (3, 12):
            task = asyncio.Task(self._answer(number, fields), loop=loop, eager_start=True)
        else:
            task = loop.create_task(self._answer(number, fields))
        if not task.done():
            self._server.tasks.add(task)
            task.add_done_callback(self._server.tasks.discard)

    async def _answer(self, number: int, fields: Fields) -> None:
        try:
            answer = await self._done(fields)
        except _Unanswerable as refusal:
            answer = {"error": refusal.word, "text": refusal.text}
        except DigestRejected as problem:
            answer = {"error": "stale" if problem.stale else "gone", "text": str(problem)}
        except KeyferryError as problem:
            self._server.counter.count("agent_failed", "store")
            self._server.log.warning("agent-store-failed", problem=str(problem))
            answer = {"error": "store", "text": "the key store does not answer"}
        except Exception as problem:  # the shell's last line: a bug of ours costs one request
            self._server.counter.count("agent_failed", "internal-error")
            self._server.log.warning("agent-internal-error", problem=type(problem).__name__)
            answer = {"error": "internal", "text": "an error of the agent's own"}
        finally:
            self._under_way -= 1
        self._send({"id": number, **answer})

    def _send(self, fields: Fields) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(build_frame(fields))
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            self._server.counter.count("agent_refused", "unread")
            self._transport.abort()

    async def _done(self, fields: Fields) -> dict[str, Any]:
        name = fields.get("op")
        if name == "hello":
            return self._hello(fields)
        if not self._greeted:
            raise _Unanswerable("hello", "say hello first")
        operation = _OPERATIONS.get(name) if isinstance(name, str) else None
        if operation is None:
            raise _Unanswerable("unknown", "no such operation in this version")
        as_id = fields.get("as")
        if not isinstance(as_id, str) or as_id not in self._as_ids:
            self._server.counter.count("agent_refused", "as")
            raise _Unanswerable("as", "no such AS_ID is served, or none that your user may see")
        return await operation(self, self._server.served[AsId(as_id)], AsId(as_id), fields)

    def _hello(self, fields: Fields) -> dict[str, Any]:
        versions = fields.get("versions")
        if not isinstance(versions, list) or VERSION not in versions:
            raise _Unanswerable("version", f"this agent speaks version {VERSION}: upgrade the older of both keyferry installations")
        self._greeted = True
        self._cache = fields.get("cache") is True
        return {"version": VERSION, "as": sorted(self._as_ids)}

    async def _nonces(self, served: Served, as_id: AsId, fields: Fields) -> dict[str, Any]:
        del as_id, fields
        key = base64.b64encode(served.nonce_key.reveal()).decode("ascii")
        return {"nonce_key": key, "scope": served.scope, "now": float(self._server.clock.monotonic())}

    async def _user_ids(self, served: Served, as_id: AsId, fields: Fields) -> dict[str, Any]:
        del as_id, fields
        key = served.user_id_key
        return {"user_id_key": base64.b64encode(key.reveal()).decode("ascii") if key is not None else None}

    async def _lookup(self, served: Served, as_id: AsId, fields: Fields) -> dict[str, Any]:
        identifier = _text(fields, "key", MAX_IDENTIFIER)
        if not self._cache:
            record = await served.keys.lookup(identifier, as_id)
            return {"record": build_record(record) if record is not None else None, "keep": False}
        tracked = self._tracked.setdefault(identifier, _Tracked())  # first, so that a change meanwhile is noticed
        self._tracked.move_to_end(identifier)
        tracked.asked += 1
        try:
            record = await served.keys.lookup(identifier, as_id)
            tracked.given = tracked.given or record is not None
        finally:
            tracked.asked -= 1
            if not tracked.asked and not tracked.given and self._tracked.get(identifier) is tracked:
                del self._tracked[identifier]
        if record is None:
            return {"record": None, "keep": False}
        if len(self._tracked) > MAX_TRACKED:
            self.changed([next(iter(self._tracked))])
        return {"record": build_record(record), "keep": self._tracked.get(identifier) is tracked}

    async def _claim(self, served: Served, as_id: AsId, fields: Fields) -> dict[str, Any]:
        nonce, count = _text(fields, "nonce", 64), fields.get("count")
        if not isinstance(count, int) or not 0 <= count <= MAX_COUNT:
            raise _Unanswerable("malformed", "count is no number of 32 bits")
        record = await _valid(served, as_id, fields)
        return {"old": await served.ledger.claim(nonce, record, count)}

    async def _first(self, served: Served, as_id: AsId, fields: Fields) -> dict[str, Any]:
        return {"taken": await served.ledger.claim_first(await _valid(served, as_id, fields))}

    async def _used(self, served: Served, as_id: AsId, fields: Fields) -> dict[str, Any]:
        record = await served.keys.lookup(_text(fields, "key", MAX_IDENTIFIER), as_id)
        if record is not None:
            await served.keys.used(record)
        return {}


_Operation = Callable[[_Client, Served, AsId, Fields], Awaitable[dict[str, Any]]]
_OPERATIONS: Final[dict[str, _Operation]] = {
    "nonces": _Client._nonces,
    "user-ids": _Client._user_ids,
    "lookup": _Client._lookup,
    "claim": _Client._claim,
    "first": _Client._first,
    "used": _Client._used,
}


async def _valid(served: Served, as_id: AsId, fields: Fields) -> KeyRecord:
    """Return the record as it is now; the worker's may be older."""
    record = await served.keys.lookup(_text(fields, "key", MAX_IDENTIFIER), as_id)
    if record is None:
        raise DigestRejected("the key is no longer valid")
    if whose(record) != fields.get("whose"):
        raise DigestRejected("the key's owner has other identities now", stale=True)
    return record


def _text(fields: Fields, name: str, most: int) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise _Unanswerable("malformed", f"{name} is no text of {most} characters at most")
    return value
