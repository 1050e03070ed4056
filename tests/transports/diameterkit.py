# SPDX-License-Identifier: Apache-2.0
"""Diameter nodes for the tests: clients, servers, and peers that do what they are told, octet by octet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from keyferry.protocol.diameter import base, cx
from keyferry.protocol.diameter.base import DiameterIdentity, DisconnectCause
from keyferry.protocol.diameter.message import DiameterMessage, Framer, parse_message, render_message
from keyferry.protocol.diameter.peer import PeerTimers
from keyferry.transports.diameter_client import DiameterClient, DiameterPeer
from keyferry.transports.diameter_context import Admission, DiameterLimits, RemotePeer
from keyferry.transports.diameter_server import DiameterServer
from protocol.diameter.cxkit import HSS, IMPI, IMPU, SCSCF, SERVER, VECTOR
from transports.sipkit import PATIENCE, FakeClock, Numbers, Tallies

HSS2 = DiameterIdentity("hss2.home1.net", "home1.net")
_sessions = itertools.count(1)


def a_mar(impi: str = IMPI) -> DiameterMessage:
    """Return a MAR with a session of its own."""
    route = cx.Route(SCSCF, base.session_id(SCSCF.origin_host, 1, next(_sessions)), "home1.net")
    return cx.build_mar(cx.Mar(type(IMPI)(impi), IMPU, SERVER), route)


def an_rtr() -> DiameterMessage:
    route = cx.Route(HSS, base.session_id(HSS.origin_host, 1, next(_sessions)), "home1.net", SCSCF.origin_host)
    return cx.build_rtr(cx.Rtr(IMPI, (IMPU,), cx.ReasonCode.PERMANENT_TERMINATION, ""), route)


def an_maa(request: DiameterMessage, identity: DiameterIdentity = HSS) -> DiameterMessage:
    """Answer a MAR for the user that it names."""
    mar = cx.parse_mar(request)
    return cx.build_maa(request, cx.Maa(mar.impi, mar.impu, (cx.AuthItem(VECTOR),)), identity)


class Answering:
    """A handler that notes what it was asked; requests wait while the gate is shut."""

    def __init__(self, identity: DiameterIdentity = HSS) -> None:
        self.identity = identity
        self.asked: list[DiameterMessage] = []
        self.peers: list[RemotePeer] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Event()
        self.code = 0

    async def __call__(self, request: DiameterMessage, peer: RemotePeer) -> DiameterMessage:
        self.asked.append(request)
        self.peers.append(peer)
        self.came.set()
        if not self.gate.is_set():
            await self.gate.wait()
        if self.code:
            return base.error_answer(request, self.code, self.identity)
        if request.code == cx.build_rtr.__defaults__ if False else request.code == 304:
            return cx.build_rta(request, cx.Rta(()), self.identity)
        return an_maa(request, self.identity)

    async def until(self, number: int) -> None:
        """Wait until so many requests came."""
        async with asyncio.timeout(PATIENCE):
            while len(self.asked) < number:
                self.came.clear()
                await self.came.wait()
