# SPDX-License-Identifier: Apache-2.0
"""HTTP Digest clients that we did not write, each behind one function; and a site behind the door that counts what it answers."""

from __future__ import annotations

import asyncio
import ctypes
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import aiohttp
import httpx
import requests
from requests.auth import HTTPDigestAuth

from asgi.doorkit import Certificate, Client, Door, Echo, Pki, make_door, record, serving
from keyferry.asgi.exchange import Message, Receive, Scope, Send, read_body, respond
from keyferry.protocol.identity import AsId

HOST = AsId("localhost")  # a name that every client resolves by itself
LIMIT = 65_536


class Call(NamedTuple):
    """One request."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """Return the fields that the caller sets."""
        return {"Content-Type": self.content_type} if self.content_type else {}


class Got(NamedTuple):
    """What the client's user saw of the answer."""

    status: int
    body: bytes


class Entry(NamedTuple):
    """An answer as it left the server."""

    method: str
    status: int
    connection: tuple[str, int]
    algorithm: str  # of the credentials, "" without any
    qop: str


class Notes(Echo):
    """Keep what is PUT, give it back on GET."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["method"] == "PUT":
            self.notes[scope["path"]] = await read_body(receive, LIMIT)
            await respond(send, 201, b"kept")
        elif scope["path"] in self.notes:
            await respond(send, 200, self.notes[scope["path"]])
        else:
            await respond(send, 404, b"")


class Place(Protocol):
    """What a client must be told."""

    @property
    def url(self) -> str:
        """https://HOST:PORT."""

    @property
    def ca(self) -> Path:
        """The CA's certificate."""

    @property
    def user(self) -> str:
        """The key id."""

    @property
    def password(self) -> str:
        """The key."""


@dataclass(frozen=True)
class Site:
    """A door that is served: a Place, and what happens there."""

    url: str
    ca: Path
    certificate: Certificate
    user: str
    password: str = field(repr=False)
    door: Door
    log: list[Entry]

    @property
    def statuses(self) -> list[int]:
        """Return every status in order."""
        return [entry.status for entry in self.log]


@asynccontextmanager
async def site(folder: Path, host: AsId = HOST, *, app: Echo | None = None, step: float = 0.0, **settings: Any) -> AsyncIterator[Site]:
    """Serve an application behind a door over TLS on the loopback address; after each answer the door's clock goes on by `step`."""
    pki, held = Pki(folder), record(as_id=host)
    door = make_door(held, app=app or Notes(), as_id=host, **settings)
    log: list[Entry] = []

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                text = dict(scope["headers"]).get(b"authorization", b"").decode()  # the last one, but no client sends two
                log.append(Entry(scope["method"], message["status"], scope["client"], _named(text, "algorithm"), _named(text, "qop")))
            await send(message)

        await door.door(scope, receive, note)
        door.clock.time += step

    certificate = pki.issue(host, "server")
    async with serving(counted, certificate) as port:
        password = Client(held).password.reveal().decode()
        yield Site(f"https://{host}:{port}", pki.path, certificate, held.key_id, password, door, log)


def _named(text: str, name: str) -> str:
    """Return a parameter of credentials, quoted or not."""
    found = [part.partition("=")[2].strip('"') for part in text.partition(" ")[2].split(", ") if part.startswith(f"{name}=")]
    return found[0] if found else ""


Drive: TypeAlias = Callable[[Place, Sequence[Call]], Awaitable[list[Got]]]
"""Make the calls one after the other with one client, and return what it got."""
Burst: TypeAlias = Callable[[Place, Sequence[str]], Awaitable[list[int]]]


async def with_httpx(at: Place, calls: Sequence[Call]) -> list[Got]:
    """httpx.DigestAuth with the client for threads."""

    def run() -> list[Got]:
        tls = ssl.create_default_context(cafile=str(at.ca))
        with httpx.Client(verify=tls, auth=httpx.DigestAuth(at.user, at.password), trust_env=False) as client:
            answers = (client.request(one.method, at.url + one.path, content=one.body, headers=one.headers) for one in calls)
            return [Got(answer.status_code, answer.content) for answer in answers]

    return await asyncio.to_thread(run)


async def with_async_httpx(at: Place, calls: Sequence[Call]) -> list[Got]:
    """httpx.DigestAuth with the client for tasks."""
    tls = ssl.create_default_context(cafile=str(at.ca))
    async with httpx.AsyncClient(verify=tls, auth=httpx.DigestAuth(at.user, at.password), trust_env=False) as client:
        answers = [await client.request(one.method, at.url + one.path, content=one.body, headers=one.headers) for one in calls]
    return [Got(answer.status_code, answer.content) for answer in answers]


async def with_requests(at: Place, calls: Sequence[Call]) -> list[Got]:
    """HTTPDigestAuth of requests; it counts per thread, so this is one."""

    def run() -> list[Got]:
        with requests.Session() as session:
            session.trust_env, session.verify = False, str(at.ca)
            session.auth = HTTPDigestAuth(at.user, at.password)
            answers = (session.request(one.method, at.url + one.path, data=one.body, headers=one.headers, timeout=30) for one in calls)
            return [Got(answer.status_code, answer.content) for answer in answers]

    return await asyncio.to_thread(run)


async def with_aiohttp(at: Place, calls: Sequence[Call]) -> list[Got]:
    """DigestAuthMiddleware of aiohttp."""
    tls = ssl.create_default_context(cafile=str(at.ca))
    digest = aiohttp.DigestAuthMiddleware(at.user, at.password)
    found = []
    async with aiohttp.ClientSession(middlewares=(digest,), connector=aiohttp.TCPConnector(ssl=tls)) as session:
        for one in calls:
            async with session.request(one.method, at.url + one.path, data=one.body or None, headers=one.headers) as answer:
                found.append(Got(answer.status, await answer.read()))
    return found


async def burst_of_aiohttp(at: Place, paths: Sequence[str]) -> list[int]:
    """Requests at once of a session that has no challenge yet; returns their final statuses."""
    tls = ssl.create_default_context(cafile=str(at.ca))
    digest = aiohttp.DigestAuthMiddleware(at.user, at.password)

    async def one(session: aiohttp.ClientSession, path: str) -> int:
        async with session.get(at.url + path) as answer:
            return answer.status

    async with aiohttp.ClientSession(middlewares=(digest,), connector=aiohttp.TCPConnector(ssl=tls)) as session:
        return await asyncio.gather(*[one(session, path) for path in paths])


async def burst_of_httpx(at: Place, paths: Sequence[str]) -> list[int]:
    """Do the same with httpx."""
    tls = ssl.create_default_context(cafile=str(at.ca))
    auth = httpx.DigestAuth(at.user, at.password)
    async with httpx.AsyncClient(verify=tls, auth=auth, trust_env=False, timeout=60) as client:
        return [answer.status_code for answer in await asyncio.gather(*[client.get(at.url + path) for path in paths])]


class LibCurl:
    """One easy handle of libcurl: what a program that links it has. Numbers of options are part of its ABI (curl/curl.h)."""

    URL, USERPWD, CAINFO, CUSTOMREQUEST, PROXY, WRITEFUNCTION = 10_002, 10_005, 10_065, 10_036, 10_004, 20_011
    HTTPAUTH, POSTFIELDSIZE, HTTPGET, COPYPOSTFIELDS = 107, 60, 80, 10_165
    DIGEST = 2
    RESPONSE_CODE = 0x200_002

    def __init__(self, at: Place) -> None:
        self._curl = ctypes.CDLL("libcurl.so.4")
        self._curl.curl_easy_init.restype = ctypes.c_void_p
        self._handle = ctypes.c_void_p(self._curl.curl_easy_init())
        self._at = at
        self._parts: list[bytes] = []
        writer = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
        self._writer = writer(self._write)
        for option, text in ((self.USERPWD, f"{at.user}:{at.password}"), (self.CAINFO, str(at.ca)), (self.PROXY, "")):
            self._set(option, ctypes.c_char_p(text.encode()))
        self._set(self.HTTPAUTH, ctypes.c_long(self.DIGEST))
        self._set(self.WRITEFUNCTION, self._writer)

    def __call__(self, one: Call) -> Got:
        """Make one call."""
        assert not one.headers, "nobody needed it"
        self._parts.clear()
        self._set(self.URL, ctypes.c_char_p((self._at.url + one.path).encode()))
        if one.method == "GET":
            self._set(self.HTTPGET, ctypes.c_long(1))
        else:
            self._set(self.POSTFIELDSIZE, ctypes.c_long(len(one.body)))
            self._set(self.COPYPOSTFIELDS, ctypes.c_char_p(one.body))
        self._set(self.CUSTOMREQUEST, ctypes.c_char_p(one.method.encode()))
        self._fine(self._curl.curl_easy_perform(self._handle))
        status = ctypes.c_long()
        self._fine(self._curl.curl_easy_getinfo(self._handle, self.RESPONSE_CODE, ctypes.byref(status)))
        return Got(status.value, b"".join(self._parts))

    def close(self) -> None:
        """Close the connection."""
        self._curl.curl_easy_cleanup(self._handle)

    def _write(self, data: int, size: int, count: int, _: object) -> int:
        self._parts.append(ctypes.string_at(data, size * count))
        return size * count

    def _set(self, option: int, value: object) -> None:
        self._fine(self._curl.curl_easy_setopt(self._handle, option, value))

    @staticmethod
    def _fine(code: int) -> None:
        assert code == 0, f"libcurl: error {code}"


async def with_libcurl(at: Place, calls: Sequence[Call]) -> list[Got]:
    """libcurl with one handle, as PHP's, git's and R's HTTP clients use it."""

    def run() -> list[Got]:
        curl = LibCurl(at)
        try:
            return [curl(one) for one in calls]
        finally:
            curl.close()

    return await asyncio.to_thread(run)
