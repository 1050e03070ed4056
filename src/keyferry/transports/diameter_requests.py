# SPDX-License-Identifier: Apache-2.0
"""Requests of Diameter peers: each carried out once, also if it comes again (RFC 6733 §5.5.4), within bounds of number and time."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from typing import Final, TypeAlias

from keyferry.protocol.diameter.base import (
    DESTINATION_HOST,
    MAX_REPEATED,
    ORIGIN_HOST,
    PROXY_INFO,
    ROUTE_RECORD,
    ResultCode,
    error_answer,
    octets_repeated,
)
from keyferry.protocol.diameter.message import AvpFault, DiameterMessage, parse_message, render_message
from keyferry.transports.deadlines import Deadline
from keyferry.transports.diameter_connection import DiameterConnection
from keyferry.transports.diameter_context import DiameterContext, DiameterHandler, command_of

_Key: TypeAlias = tuple[str, bytes, int]
_Subject: TypeAlias = tuple[int, int, int]
_OF_THE_WAY: Final = frozenset({DESTINATION_HOST, ROUTE_RECORD, PROXY_INFO})
"""AVPs that differ where a request comes again another way."""
_HOP_BY_HOP: Final = slice(12, 16)


class _Remembered:
    """A request that was taken, and how it was answered. Its octets may hold keys and print nowhere."""

    __slots__ = ("answer", "at", "kept", "octets", "subject", "waiting")

    def __init__(self, subject: _Subject, at: float) -> None:
        self.subject = subject
        self.at = at
        self.answer: bytes | None = None
        self.kept = True
        self.octets = 0
        self.waiting: list[tuple[DiameterConnection, DiameterMessage]] = []  # the same request, come again meanwhile


class DiameterRequests:
    """Carry out requests of all connections of a node."""

    def __init__(self, context: DiameterContext, handler: DiameterHandler) -> None:
        self._context = context
        self._handler = handler
        self._remembered: OrderedDict[_Key, _Remembered] = OrderedDict()
        self._octets = 0
        self._sweeping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def take(self, connection: DiameterConnection, request: DiameterMessage) -> None:
        """Carry out a request and answer it over its connection; one that comes again is answered as it was.

        One whose Session-Id and Proxy-Info are too long to be repeated is refused before it does anything: no proxy could place the answer.
        """
        if octets_repeated(request) > MAX_REPEATED:
            self._context.count("diameter_requests", "oversized")
            message = f"Session-Id and Proxy-Info are over {MAX_REPEATED} octets"
            connection.send(error_answer(request, ResultCode.UNABLE_TO_COMPLY, self._context.identity, message=message))
            return
        key, subject = _key(connection, request), _subject(request)
        known = self._remembered.get(key)  # with the T flag or without: the copy may have overtaken the original
        if known is not None and known.subject == subject:
            self._again(known, connection, request)
            return
        entry = self._remember(key, subject)
        connection.begun()
        loop = asyncio.get_running_loop()
        # Begun now where Python can (3.12): an answer that waits for nothing goes out with those of the same read.
        if sys.version_info >= (3, 12):
            task = asyncio.Task(self._carry_out(connection, request, entry), loop=loop, eager_start=True)
        else:
            task = loop.create_task(self._carry_out(connection, request, entry))
        if not task.done():
            self._tasks.add(task)
            deadline = self._context.deadlines.after(self._context.limits.handling, task.cancel)
            task.add_done_callback(lambda done: self._finished(done, deadline))

    async def aclose(self) -> None:
        """End what is in progress."""
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._remembered.clear()

    def _finished(self, task: asyncio.Task[None], deadline: Deadline) -> None:
        deadline.cancel()
        self._tasks.discard(task)

    async def _carry_out(self, connection: DiameterConnection, request: DiameterMessage, entry: _Remembered) -> None:
        try:
            data = await self._answer(connection, request)
            self._keep(entry, data)
            connection.send_octets(data)
            for other, duplicate in entry.waiting:
                other.send_octets(_answer_again(data, duplicate))
        finally:
            entry.waiting.clear()
            connection.done()

    async def _answer(self, connection: DiameterConnection, request: DiameterMessage) -> bytes:
        """Return the answer's octets; a handler that fails is answered for."""
        code, failed = ResultCode.UNABLE_TO_COMPLY.value, None
        try:
            answer = await self._handler(request, connection.peer)
            self._context.count("diameter_requests", command_of(request))
            return render_message(answer.with_ids(request.hop_by_hop, request.end_to_end))
        except AvpFault as fault:
            self._context.count("diameter_requests", "unreadable")
            code, failed = fault.code, fault.failed
        except asyncio.CancelledError:
            if self._closed:
                raise
            self._failed(connection, request, "took too long")
        except Exception as problem:  # the shell's last line: a bug of ours costs one request
            self._failed(connection, request, type(problem).__name__)
        return render_message(error_answer(request, code, self._context.identity, failed=failed))

    def _failed(self, connection: DiameterConnection, request: DiameterMessage, problem: str) -> None:
        self._context.count("diameter_requests", "failed")
        self._context.log.warning(
            "diameter-request-failed", node=self._context.identity.origin_host, peer=connection.peer.origin_host,
            command=command_of(request), end_to_end=request.end_to_end, problem=problem,
        )  # fmt: skip

    # ---- memory

    def _again(self, known: _Remembered, connection: DiameterConnection, request: DiameterMessage) -> None:
        self._context.count("diameter_requests", "duplicate")
        if known.answer is not None:
            connection.send_octets(_answer_again(known.answer, request))
        elif len(known.waiting) < self._context.limits.per_peer:
            known.waiting.append((connection, request))

    def _remember(self, key: _Key, subject: _Subject) -> _Remembered:
        now = self._context.clock.monotonic()
        self._forget(now, room=1)
        if key in self._remembered:
            self._drop(key)
        if not self._sweeping:
            self._sweep_later()
        entry = self._remembered[key] = _Remembered(subject, now)
        return entry

    def _keep(self, entry: _Remembered, data: bytes) -> None:
        """Keep an answer, unless its entry had to go meanwhile."""
        entry.answer = data
        if entry.kept:
            entry.octets = len(data)
            self._octets += entry.octets
            self._forget(entry.at)

    def _drop(self, key: _Key) -> None:
        entry = self._remembered.pop(key)
        entry.kept = False
        self._octets -= entry.octets

    def _forget(self, now: float, *, room: int = 0) -> None:
        """Drop what is too old or too much, the oldest first, so that there is room for so many more."""
        limits = self._context.limits
        while self._remembered:
            key, oldest = next(iter(self._remembered.items()))
            too_much = len(self._remembered) + room > limits.remembered or self._octets > limits.remembered_octets
            if not too_much and now - oldest.at < limits.remember:
                return
            self._drop(key)

    def _sweep_later(self) -> None:
        """Forget in time also if no other request comes: answers hold keys."""
        self._sweeping = True
        self._context.deadlines.after(self._context.limits.remember, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        self._forget(self._context.clock.monotonic())
        if self._remembered:
            self._sweep_later()


def _key(connection: DiameterConnection, request: DiameterMessage) -> _Key:
    """Say which requests may be the same (RFC 6733 §3); one peer cannot ask in another's name for an answer that was made for that."""
    origin = request.first(ORIGIN_HOST)
    return connection.peer.origin_host, origin.data if origin is not None else b"", request.end_to_end


def _subject(request: DiameterMessage) -> _Subject:
    """Say what has to agree, too: a careless peer uses identifiers again, and would get another user's keys."""
    content = tuple([(avp.code, avp.data) for avp in request.avps if avp.code not in _OF_THE_WAY])
    return request.code, request.application, hash(content)  # under a key that this process drew


def _answer_again(data: bytes, request: DiameterMessage) -> bytes:
    """Return an answer under the identifiers of the request that came again, and with its Proxy-Info (RFC 6733 §6.2)."""
    if request.first(PROXY_INFO) is None:
        again = bytearray(data)
        again[_HOP_BY_HOP] = request.hop_by_hop.to_bytes(4, "big")
        return bytes(again)
    answer = parse_message(data)
    avps = *(avp for avp in answer.avps if avp.code != PROXY_INFO or avp.vendor), *request.all(PROXY_INFO)
    return render_message(
        DiameterMessage(
            answer.code, answer.application, False, avps, answer.proxiable, answer.error, False, request.hop_by_hop, request.end_to_end
        )
    )
