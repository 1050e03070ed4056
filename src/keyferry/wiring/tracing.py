# SPDX-License-Identifier: Apache-2.0
"""Follow one subscriber through every function of this process, live: steps of a ladder, no bodies, no keys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeAlias

from keyferry.errors import KeyferryError, RemoteProtocolError
from keyferry.ports import SipEvent, SipObserver, SipPeer, SubscriberStore
from keyferry.protocol.identity import Impi
from keyferry.protocol.ims.attribution import Attribution
from keyferry.protocol.ims.notes import note_of
from keyferry.protocol.sip.headers import top_via
from keyferry.protocol.sip.message import Message, Request

MAX_FOLLOWERS: Final = 8
"""Operators who look on at the same time."""
MAX_WAITING: Final = 1_000
"""Steps that wait for a follower who reads slowly; later ones are lost, and it is told how many."""
MAX_NAMES: Final = 4_096
"""Addresses of our own nodes: listening ones, and where TCP connections come from."""

Step: TypeAlias = Mapping[str, object]
Steps: TypeAlias = AsyncIterator[Step]
Follow: TypeAlias = Callable[[str], AbstractAsyncContextManager[Steps]]

# who stands before and behind a function on the way of a REGISTER
_BEFORE = {"P-CSCF": "UE", "I-CSCF": "P-CSCF", "S-CSCF": "I-CSCF", "AS": "S-CSCF"}
_BEHIND = {"UE": "P-CSCF", "P-CSCF": "I-CSCF", "I-CSCF": "S-CSCF", "S-CSCF": "AS"}


class _Follower:
    """One who looks on; reads at its own pace."""

    def __init__(self, impi: str) -> None:
        self.impi = impi
        self._steps: asyncio.Queue[Step | None] = asyncio.Queue(MAX_WAITING + 2)
        self._lost = 0

    def take(self, step: Step) -> None:
        """Take a step, or count it as lost."""
        if self._steps.qsize() >= MAX_WAITING:
            self._lost += 1
            return
        if self._lost:
            self._steps.put_nowait({"lost": self._lost})
            self._lost = 0
        self._steps.put_nowait(step)

    def end(self) -> None:
        """Let the reader come to an end."""
        if not self._steps.full():
            self._steps.put_nowait(None)

    async def steps(self) -> Steps:
        """Yield steps until the end."""
        while (step := await self._steps.get()) is not None:
            yield step


class Tracer:
    """Show messages to those who follow their subscriber; as a SipObserver it returns at once when nobody does."""

    def __init__(self) -> None:
        self.names: dict[tuple[str, int], str] = {}
        self._followers: list[_Follower] = []
        self._attribution = Attribution()
        self._calls: set[str] = set()  # Call-IDs of those who are followed
        self._closed = False

    @property
    def following(self) -> int:
        """How many look on."""
        return len(self._followers)

    def serve(self, peer: SipPeer, role: str, name: str) -> None:
        """Note where one of our functions listens; `name` is the AS_ID of an application server."""
        known = {"pcscf": "P-CSCF", "icscf": "I-CSCF", "scscf": "S-CSCF"}.get(role)
        self.names[peer.host, peer.port] = known or short_name(f"AS {name}")

    def observe(self, event: SipEvent) -> None:
        """Take one event of a SIP node."""
        if self._followers:
            self._show(event)

    def follower_of(self, subscribers: SubscriberStore | None) -> Follow:
        """Return what the administrator's listener calls with an IMPI; its public identities are known if the HSS is here."""

        @asynccontextmanager
        async def follow(impi: str) -> AsyncIterator[Steps]:
            subscriber = await subscribers.get(Impi(impi)) if subscribers is not None else None
            async with self.follow(impi, [one.impu for one in subscriber.impus] if subscriber else ()) as steps:
                yield steps

        return follow

    @asynccontextmanager
    async def follow(self, impi: str, impus: Iterable[str] = ()) -> AsyncIterator[Steps]:
        """Follow one IMPI while the context is open.

        Raises RemoteProtocolError (503) above MAX_FOLLOWERS.
        """
        if len(self._followers) >= MAX_FOLLOWERS or self._closed:
            raise RemoteProtocolError(f"{MAX_FOLLOWERS} follow already, or this process ends", 503)
        follower = _Follower(impi)
        self._attribution.learn(impi, impus)
        self._followers.append(follower)
        try:
            yield follower.steps()
        finally:
            self._followers.remove(follower)
            if not self._followers:  # nothing is remembered of anybody while nobody looks on
                self._attribution, self._calls = Attribution(), set()

    def close(self) -> None:
        """End every follower: the process stops."""
        self._closed = True
        for follower in self._followers:
            follower.end()

    # ---- one event

    def _show(self, event: SipEvent) -> None:
        local = (event.local.host, event.local.port)
        if local not in self.names and len(self.names) < MAX_NAMES:
            self.names[local] = short_name(event.node)
        if not event.outgoing and self._is_ours(event):
            return  # it was shown where it was sent
        if not self._may_be_followed(event.message):
            return
        owner = self._attribution.of(event.message)
        mine = [follower for follower in self._followers if follower.impi == owner]
        if not mine:
            return
        if len(self._calls) < MAX_NAMES:
            self._calls.add(event.message.get("Call-ID") or "")
        step = self._step(event)
        for follower in mine:
            follower.take(step)

    def _is_ours(self, event: SipEvent) -> bool:
        peer = (event.peer.host, event.peer.port)
        return peer in self.names or (isinstance(event.message, Request) and _sent_by(event.message) in self.names)

    def _may_be_followed(self, message: Message) -> bool:
        """Tell quickly of most messages that they are of somebody else: thousands a second may pass while one is followed."""
        if (message.get("Call-ID") or "") in self._calls:
            return True
        if not isinstance(message, Request):
            return False
        credentials = message.get("Authorization")
        return credentials is None or any(follower.impi in credentials for follower in self._followers)

    def _step(self, event: SipEvent) -> Step:
        message = event.message
        here = short_name(event.node)
        there = self.names.get((event.peer.host, event.peer.port)) or self._guess(event) or str(event.peer)
        source, target = (here, there) if event.outgoing else (there, here)
        return {
            "at": event.at,
            "source": source,
            "target": target,
            "transport": event.peer.transport,
            "what": printable(message.method if isinstance(message, Request) else f"{message.status} {message.reason}"),
            "octets": event.octets,
            "note": printable(note_of(message)),
            "retransmission": event.retransmission,
        }

    def _guess(self, event: SipEvent) -> str:
        """Name a peer that is no node of this process by its place: what a request goes to stands behind, what it came from before."""
        if isinstance(event.message, Request):
            sent_by = self.names.get(_sent_by(event.message))
            if sent_by and not event.outgoing:
                return sent_by
        onward = isinstance(event.message, Request) == event.outgoing
        role = next((name for name in (*_BEFORE, "UE") if event.node.startswith(name)), "")
        return (_BEHIND if onward else _BEFORE).get(role, "")


def short_name(node: str) -> str:
    """Shorten `AS xcap.home1.net` to its first label: lifelines are narrow."""
    return node.partition(".")[0]


def printable(text: str) -> str:
    """Return at most 200 characters without control characters or octets that are no text: a peer may have sent anything."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def both(one: SipObserver, other: SipObserver | None) -> SipObserver:
    """Return an observer that shows an event to two; to one, at no cost, if there is no other."""
    if other is None:
        return one

    def observe(event: SipEvent) -> None:
        one(event)
        other(event)

    return observe


def _sent_by(request: Request) -> tuple[str, int]:
    try:
        via, _ = top_via((request.all("Via") or [""])[0])
    except KeyferryError:
        return "", 0
    return via.host.strip("[]"), via.port or 5060
