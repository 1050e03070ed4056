# SPDX-License-Identifier: Apache-2.0
"""Bodies under qop=auth-int (RFC 7616 §3.4.3, §3.5): hashed as they arrive, held until the hash is checked or sent.

An application must not act on a body that is not verified, and rspauth stands in front of the body it signs. So both are held back
whole: the first octets in memory, the rest in a file without a name, up to a limit each, and to one for all bodies of a door. Requests
and answers have a room each: no request can take from an answer the room to be signed.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from keyferry.asgi.exchange import Message, Receive, Scope, Send, headers_named
from keyferry.errors import RemoteProtocolError

if TYPE_CHECKING:
    from hashlib import _Hash

MEMORY = 65_536
"""Octets of one body in memory; what is beyond lies in a file."""
ALL_BODIES = 268_435_456
"""Octets of all bodies of requests that a door holds at one time, in memory and in files, and as many of bodies of answers."""
SHARES = 4
"""One address, whose users are not proven yet, or one user holds no more than this part of them, but always one body of full length."""
BODY_TIME = 300.0
"""Seconds for a body to arrive: it is not known yet who sends it."""

TOO_LONG, NO_ROOM, TOO_SLOW, GONE = 413, 503, 408, 400


class Room:
    """What all bodies of requests, or of answers, of one door may take together, and each holder of some.

    A body gives way as long as nobody has proved who sends it: where its address has its share, the one of that address that began
    first; where all is full, the first one of the address that has most. So nobody keeps others out by sending slowly, or never to the
    end, be it from their own address.
    """

    __slots__ = ("_arriving", "_held", "_share", "left")

    def __init__(self, octets: int = ALL_BODIES, largest: int = 0) -> None:
        """Take the octets there are, and those of the largest body that anybody may have."""
        self.left = octets
        self._share = max(octets // SHARES, largest)
        self._held: dict[str, int] = {}  # octets of each holder
        self._arriving: dict[str, dict[HeldBody, None]] = {}  # those that give way, in the order in which they began

    def take(self, body: HeldBody, octets: int) -> None:
        """Let a body have more room. Raises RemoteProtocolError: 503."""
        while self._held.get(body.holder, 0) + octets > self._share:
            self._make_way(body.holder, body)
        while octets > self.left:
            self._make_way(max(self._arriving, key=self._held.__getitem__, default=""), body)
        self._count(body.holder, octets)
        self.left -= octets
        if body.gives_way:
            self._arriving.setdefault(body.holder, {})[body] = None

    def give_back(self, body: HeldBody) -> None:
        """Take back what a body has."""
        self._leave(body)
        self.left += body.octets

    def move(self, body: HeldBody, holder: str) -> None:
        """Count a body against another holder, and let it give way no more. Raises RemoteProtocolError: 503."""
        if self._held.get(holder, 0) + body.octets > self._share:
            raise RemoteProtocolError("no room for more bodies of this user", NO_ROOM)
        self._leave(body)
        self._count(holder, body.octets)

    def _make_way(self, holder: str, newcomer: HeldBody) -> None:
        oldest = next((body for body in self._arriving.get(holder, ()) if body is not newcomer), None)
        if oldest is None:
            raise RemoteProtocolError("no room for more bodies", NO_ROOM)
        oldest.give_way()

    def _leave(self, body: HeldBody) -> None:
        self._count(body.holder, -body.octets)
        arriving = self._arriving.get(body.holder)
        if arriving is not None and arriving.pop(body, body) is None and not arriving:
            del self._arriving[body.holder]

    def _count(self, holder: str, octets: int) -> None:
        held = self._held.get(holder, 0) + octets
        if held:
            self._held[holder] = held
        else:
            self._held.pop(holder, None)


class HeldBody:
    """A body as far as it has come; close it."""

    def __init__(self, limit: int, room: Room, hasher: _Hash, holder: str = "", *, gives_way: bool = False) -> None:
        """Take the most octets it may have, the door's room, a hash of the algorithm in use, and against whom it counts."""
        self._limit = limit
        self._room = room
        self._hasher = hasher
        self._file: tempfile.SpooledTemporaryFile[bytes] | None = None
        self._lost = False
        self.wake: Callable[[], None] | None = None  # whoever waits for more of it
        self.octets = 0
        self.holder = holder
        self.gives_way = gives_way

    @property
    def hash(self) -> str:
        """Return the hash of what has come, in hexadecimal: H(entity-body)."""
        return self._hasher.hexdigest()

    def add(self, part: bytes) -> None:
        """Take another part.

        Raises RemoteProtocolError: 413 over the limit, 503 if the door or the disk has no room, or the body gave way to another.
        """
        self.check()
        if self.octets + len(part) > self._limit:
            raise RemoteProtocolError(f"the body is over {self._limit} octets", TOO_LONG)
        if not part:
            return
        self._room.take(self, len(part))
        self.octets += len(part)
        self._hasher.update(part)
        try:
            if self._file is None:
                self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY)  # noqa: SIM115 - until close
            self._file.write(part)
        except OSError as problem:
            raise RemoteProtocolError("no room for more bodies", NO_ROOM) from problem

    def parts(self) -> Iterator[tuple[bytes, bool]]:
        """Yield what was taken, in parts, each with whether more follows; at least one part."""
        if self._file is None:
            yield b"", False
            return
        self._file.seek(0)
        left = self.octets
        while left:
            part = self._file.read(MEMORY)
            left -= len(part)
            yield part, left > 0

    def keep(self, holder: str) -> None:
        """Count the body against a user who is proven to have sent it; it gives way to no other any more.

        Raises RemoteProtocolError: 503 if it has given way, or the user has no room.
        """
        self.check()
        self._room.move(self, holder)
        self.holder = holder
        self.gives_way = False

    def give_way(self) -> None:
        """Give the room back to others: whatever is done with this body from now on fails."""
        self._lost = True
        self.close()
        if self.wake is not None:
            self.wake()

    def check(self) -> None:
        """Raise RemoteProtocolError, 503, if the body has given way."""
        if self._lost:
            raise RemoteProtocolError("the body gave way to others", NO_ROOM)

    def close(self) -> None:
        """Give the room back."""
        self._room.give_back(self)
        self.octets = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()


async def take_body(scope: Scope, receive: Receive, body: HeldBody, limit: int, seconds: float = BODY_TIME) -> None:
    """Read the whole body of a request.

    Raises RemoteProtocolError: 413 as soon as it is known to be over the limit, 503 without room, 408 if it is slow, 400 if the client
    goes away.
    """
    announced = headers_named(scope, b"content-length")
    if announced and announced[0].isdigit() and len(announced[0]) < 20 and int(announced[0]) > limit:
        raise RemoteProtocolError(f"the body is over {limit} octets", TOO_LONG)
    try:
        async with asyncio.timeout(seconds) as patience:
            body.wake = lambda: None if patience.expired() else patience.reschedule(0.0)
            try:
                await _take_all(receive, body)
            finally:
                body.wake = None
    except TimeoutError:
        body.check()
        raise RemoteProtocolError(f"the body took more than {seconds:.0f} s", TOO_SLOW) from None


async def _take_all(receive: Receive, body: HeldBody) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RemoteProtocolError("the client went away", GONE)
        body.add(message.get("body", b""))
        more = message.get("more_body", False)


def replayed(body: HeldBody, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then what comes after it."""
    parts = body.parts()

    async def replay() -> Message:
        for part, more in parts:
            return {"type": "http.request", "body": part, "more_body": more}
        return await receive()

    return replay


def signed(send: Send, info: bytes) -> Send:
    """Return a `send` that adds Authentication-Info to the response."""

    async def sign(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"authentication-info", info)]}
        await send(message)

    return sign


class SignedResponse:
    """Hold a response back until its body can be signed.

    One that is over the limit, or finds no room, goes out with an rspauth of qop=auth, which says so (RFC 7616 §3.5): its head is
    proved, its body is as TLS brings it.
    """

    def __init__(self, send: Send, info: Callable[[str | None], bytes], body: HeldBody, *, head: bool) -> None:
        """Take what makes Authentication-Info of the body's hash, or of None for qop=auth, and an empty body."""
        self._send = send
        self._info = info
        self._body = body
        self._head = head  # a response to HEAD, whose body is empty whatever the application sends (RFC 9110 §9.3.2)
        self._start: Message | None = None
        self._sent = False

    async def __call__(self, message: Message) -> None:
        """Take one ASGI message of the application."""
        if message["type"] == "http.response.start" and not self._sent and not self._head:
            self._start = message
        elif message["type"] == "http.response.start" and not self._sent:
            self._sent = True
            await signed(self._send, self._info(self._body.hash))(message)
        elif self._sent or message["type"] != "http.response.body":
            await self._send(message)
        else:
            await self._take(message)

    async def _take(self, message: Message) -> None:
        part, more = message.get("body", b""), message.get("more_body", False)
        try:
            self._body.add(part)
        except RemoteProtocolError:
            await self._release(None, more=True)
            await self._send({"type": "http.response.body", "body": part, "more_body": more})
        else:
            if not more:
                await self._release(self._body.hash, more=False)

    async def _release(self, body_hash: str | None, *, more: bool) -> None:
        """Send what is held, and hold nothing from now on."""
        self._sent = True
        if self._start is not None:
            await signed(self._send, self._info(body_hash))(self._start)
        for part, follows in self._body.parts():
            await self._send({"type": "http.response.body", "body": part, "more_body": follows or more})
        self._body.close()
