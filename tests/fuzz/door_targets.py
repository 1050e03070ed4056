# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets of the door: octets in, an assertion out; for hypothesis (test_door_targets.py) and atheris (tools/fuzz_door.py)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import h11
import uvicorn
from uvicorn.server import ServerState

from asgi.doorkit import AS_ID, Answer, Client, Door, FakeClock, call, make_door, record
from keyferry.asgi.exchange import App, Receive, Scope, Send, respond
from keyferry.asgi.proxy.fields import Route, asserted_field, request_fields
from keyferry.asgi.proxy.front import Front
from keyferry.errors import KeyferryError, ParseError
from keyferry.protocol import digest
from keyferry.transports.http_bounds import BoundedHttp
from keyferry.transports.http_upgrade import UpgradingHttp

ALICE = record()
TARGET = "/notes"
REFUSED = frozenset({400, 401, 403, 429, 431})
"""What a request that proves nothing may be answered."""
MAX_PIPELINED = 40
"""Requests in one input of `head`: more find nothing new."""

T = TypeVar("T")

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


def authorization(data: bytes) -> None:
    """Any octets as Authorization: read as they were written or refused, and nobody gets in."""
    try:
        read = digest.parse_credentials(data.decode("utf-8", "surrogateescape"))
    except ParseError:
        pass
    else:
        assert digest.parse_credentials(digest.build_credentials(read)) == read, "what was read is not what is written"
    door = make_door(ALICE)
    answer = at_once(_sent(door, data))
    assert answer.status in REFUSED, f"a stranger is answered {answer.status}"
    assert not door.app.scopes, "a stranger reached the application"


def holder(data: bytes) -> None:
    """Requests of somebody who has the key and says with it whatever the octets choose: each one is admitted for what it is, once."""
    door, client = make_door(ALICE), Client(ALICE)
    issued = [at_once(door.challenge()) for _ in range(2)]
    taken: set[tuple[str, int]] = set()
    reader = Choices(data)
    for _ in range(4):
        challenge = reader.of(issued)
        nonce = reader.of((challenge.nonce, challenge.nonce[:-1], challenge.nonce + "A", reader.text(40)))
        uri = reader.of(
            (TARGET, TARGET, TARGET + "?", "/%6eotes", f"https://{AS_ID}{TARGET}", f"https://evil.example{TARGET}", reader.text(12))
        )
        nc = reader.of(("00000001", "00000002", "00000041", "0000000A", "0000000a", "1", "ffffffff", "00000000", reader.text(8)))
        qop = reader.of(("auth", "auth", "auth-int", "AUTH", reader.text(4)))
        algorithm = reader.of(("SHA-256", "SHA-256", "sha-256", "MD5", "SHA-256-sess"))
        cnonce = reader.of(("c" * 16, "cb1.AAAA.AAAA", reader.text(8)))
        try:
            hashed = "auth-int" if qop == "auth-int" else "auth"
            response = digest.respond("SHA-256", client.ha1, method="GET", uri=uri, nonce=nonce, qop=hashed, nc=nc, cnonce=cnonce)
            said = digest.Credentials(ALICE.key_id, client.realm, nonce, uri, response, algorithm, cnonce=cnonce, qop=qop, nc=nc)
            value = digest.build_credentials(said).encode("utf-8", "surrogateescape")
        except (KeyferryError, UnicodeError):  # what no client can hash or send
            continue
        before = len(door.app.scopes)
        answer = at_once(_sent(door, value))
        if len(door.app.scopes) == before:
            assert answer.status in REFUSED, f"refused with {answer.status}"
            continue
        count = int(nc, 16)
        assert answer.status == 200
        assert uri in (TARGET, TARGET + "?", f"https://{AS_ID}{TARGET}"), f"admitted to {TARGET} with a proof for {uri!r}"
        assert nonce in {one.nonce for one in issued}, "admitted with a nonce that was never issued"
        assert (nonce, count) not in taken, "admitted twice"
        assert (qop, algorithm.lower()) == ("auth", "sha-256"), "admitted with what was not offered"
        assert not cnonce.startswith("cb1."), "admitted with another certificate"
        taken.add((nonce, count))


def head(data: bytes) -> None:
    """Any octets on a connection: answered with refusals or ended, whatever they are cut into; nobody reaches the application."""
    door = make_door(ALICE)
    statuses = _answers(door.door, data, BoundedHttp)
    assert statuses <= REFUSED | {404, 413, 421, 501}, f"a stranger is answered {sorted(statuses)}"
    assert not door.app.scopes, "a stranger reached the application"


def proxied(data: bytes) -> None:
    """Any octets at the proxy, once logged in: what goes on is one request to another reader of HTTP, too, with our identity alone."""
    judge = Judge()
    statuses = _answers(Front({AS_ID: judge}, clock=FakeClock()), data, UpgradingHttp)
    assert judge.problem is None, judge.problem
    assert statuses <= {200, 400, 403, 404, 405, 413, 417, 421, 431, 501, 505}, f"answered {sorted(statuses)}"


class Judge:
    """Stand behind the proxy's front instead of its server: write each request as the proxy would, and read it again with h11."""

    def __init__(self) -> None:
        self.problem: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request."""
        identity = asserted_field(ALICE.impus)
        fields = request_fields(dict(scope), Route(AS_ID), ALICE.impus)
        request = [b"%b %b HTTP/1.1" % (scope["method"].encode(), scope["keyferry.target"]), *(b"%b: %b" % field for field in fields)]
        chunked = (b"transfer-encoding", b"chunked") in fields
        reader = h11.Connection(h11.SERVER)
        body, wire = b"", b"\r\n".join([*request, b"", b""])
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            part, more = message.get("body", b""), message.get("more_body", False)
            body += part
            wire += b"%x\r\n%b\r\n" % (len(part), part) if chunked and part else part
        reader.receive_data(wire + (b"0\r\n\r\n" if chunked else b""))
        self._compare(reader, scope, body, identity)
        await respond(send, 200)

    def _compare(self, reader: h11.Connection, scope: Scope, body: bytes, identity: tuple[bytes, bytes]) -> None:
        try:
            event, read = reader.next_event(), b""
            assert isinstance(event, h11.Request), "no request"
            assert (event.method, event.target) == (scope["method"].encode(), scope["keyferry.target"]), "another request"
            while isinstance(part := reader.next_event(), h11.Data):
                read += part.data
            assert isinstance(part, h11.EndOfMessage), "a request without an end"
            assert (read, reader.trailing_data[0]) == (body, b""), "the body has another end"
            said = [value for name, value in event.headers if name.lower().replace(b"_", b"-") == identity[0]]
            assert said == [identity[1]], "another identity"
            assert not any(name.lower() == b"authorization" for name, _ in event.headers), "credentials go on"
        except (AssertionError, h11.ProtocolError) as problem:
            self.problem = self.problem or f"{problem}: {scope}"


TARGETS: dict[str, Callable[[bytes], None]] = {"authorization": authorization, "holder": holder, "head": head, "proxied": proxied}

_SAID = f'Digest username="{ALICE.key_id}", realm="{Client(ALICE).realm}", nonce="{"A" * 40}", uri="{TARGET}", response="0"'.encode()
_HOST = b" HTTP/1.1\r\nHost: " + AS_ID.encode() + b"\r\n"
SEEDS: dict[str, tuple[bytes, ...]] = {
    "authorization": (
        _SAID + b', algorithm=SHA-256, cnonce="c", qop=auth, nc=00000001',
        _SAID.replace(b"Digest", b"dIGEST ,,") + b',opaque="\\0\\"", userhash=true,charset=UTF-8',
    ),
    "holder": (bytes(48), bytes(range(64))),
    "head": (
        b"\0GET /notes" + _HOST + b"Authorization: " + _SAID + b"\r\n\r\n",
        b"\5PUT /notes" + _HOST + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\nx\r\n0\r\nA: b\r\n\r\nGET /" + _HOST + b"\r\n",
        b"\0POST /" + _HOST + b"Content-Length: 3\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nabcGET /" + _HOST + b"\r\n",
    ),
    "proxied": (
        b"\7PUT /a?b"
        + _HOST
        + b"Content-Length: 3\r\nX_3GPP_Asserted_Identity: eve\r\nConnection: keep-alive, te\r\n\r\nabcGET /"
        + _HOST
        + b"\r\n",
        b"\0POST /"
        + _HOST
        + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n3;a\r\nabc\r\n0\r\nA: b\r\n\r\nGET /"
        + _HOST
        + b"\r\n",
        b"\0GET /" + _HOST + b"Upgrade: websocket\r\nConnection: upgrade\r\nX-3gpp-asserted-identity: eve\r\n\r\n\1\2",
    ),
}
"""What a fuzzer may begin with: requests that come far."""


class Choices:
    """Take decisions from octets."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def octet(self) -> int:
        """Return the next octet, 0 when there are no more."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def of(self, several: Any) -> Any:
        """Return one of several."""
        return several[self.octet() % len(several)]

    def text(self, longest: int) -> str:
        """Return a text of up to 255 characters, the octets of UTF-8 among them or not."""
        return bytes(self.octet() for _ in range(self.octet() % (longest + 1))).decode("utf-8", "surrogateescape")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run what never waits without an event loop: thirty times as fast."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


async def _sent(door: Door, value: bytes) -> Answer:
    return await call(door.door, "GET", TARGET, headers=[("Authorization", value.decode("utf-8", "surrogateescape"))])


class _Transport(asyncio.Transport):
    """Keep what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 443), "sslcontext": True})
        self.written = bytearray()
        self.ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def _answers(app: App, data: bytes, protocol: type[BoundedHttp]) -> set[int]:
    """Return the statuses of all that is answered on one connection; the first octet says into what the others are cut."""
    cut, octets = (data[0], data[1:]) if data else (0, b"")
    answered = asyncio.run(_over_a_connection(app, octets, cut or 1_000_000, protocol))
    return {int(status) for status in _STATUS.findall(answered) if status != b"100"}


async def _over_a_connection(app: App, octets: bytes, cut: int, protocol: type[BoundedHttp]) -> bytes:
    config = uvicorn.Config(app, log_config=None, access_log=False, http=protocol, ws="none", lifespan="off", proxy_headers=False)
    config.load()
    state, transport = ServerState(), _Transport()
    connection = protocol(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
    connection.connection_made(transport)
    for start in range(0, min(len(octets), 64 * cut), cut):
        if transport.ended or transport.written.count(b"HTTP/1.1 ") > MAX_PIPELINED:
            break
        connection.data_received(octets[start : start + cut])
        for _ in range(3):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    while state.tasks:
        await asyncio.sleep(0)
    return bytes(transport.written)
