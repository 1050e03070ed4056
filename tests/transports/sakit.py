# SPDX-License-Identifier: Apache-2.0
"""A policy, what it sees of a charon of our own, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from keyferry.errors import ProtectionUnmet
from keyferry.ports import SipPeer
from keyferry.protocol.security_association import Wanted
from keyferry.protocol.vici import Section
from keyferry.transports.ipsec import IpsecPolicy
from keyferry.transports.sa_view import SaView
from keyferry.transports.vici import Vici
from transports.sipkit import FakeClock, patiently
from transports.vicikit import CHILD, IDENTITY, Charon, charon

UDP = SipPeer("UDP", "10.99.0.2", 5090)


class World:
    """A policy, charon, and what was told."""

    def __init__(self, served: Charon, clock: FakeClock, *, local: str = "10.99.0.1") -> None:
        self.charon = served
        self.clock = clock
        self.view = SaView(Vici(served.path, limit=5.0, sleep=lambda _seconds: asyncio.sleep(0.001)), clock)
        self.policy = IpsecPolicy(self.view, Wanted(CHILD, IDENTITY), local, 6060)
        self.changes = asyncio.Queue[None]()
        self.view.watch(lambda _children: self.changes.put_nowait(None))

    def forget(self) -> None:
        while not self.changes.empty():
            self.changes.get_nowait()

    async def says(self, event: str, message: Section) -> None:
        """Have charon say something, and wait until it was heard."""
        self.forget()
        self.charon.say(event, message)
        await patiently(self.changes.get())

    async def refused(self, peer: SipPeer = UDP) -> str:
        with pytest.raises(ProtectionUnmet) as raised:
            await self.policy(peer)
        return str(raised.value)


@asynccontextmanager
async def world(*sas: Section, local: str = "10.99.0.1", clock: FakeClock | None = None) -> AsyncIterator[World]:
    async with charon(*sas) as served:
        made = World(served, clock or FakeClock(), local=local)
        await made.view.start()
        try:
            yield made
        finally:
            await made.view.aclose()
