# SPDX-License-Identifier: Apache-2.0
"""Nodes and clients that speak SIP over TLS, for the tests."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Self

import pytest

from keyferry.ports import SipPeer
from keyferry.transports.clock import SystemClock
from keyferry.transports.pki import MutualTls, Pki, mutual_tls
from keyferry.transports.sip_context import Limits
from transports.sipkit import PATIENCE, Lab, TcpPeer

SCSCF, AS = "scscf1.home1.net", "as1.home1.net"


@pytest.fixture(name="pki", scope="module")
def pki_fixture(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("home"), SystemClock())


@pytest.fixture(name="foreign", scope="module")
def foreign_fixture(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Another CA that issues the same names."""
    return Pki(tmp_path_factory.mktemp("foreign"), SystemClock())


def tls_of(pki: Pki, name: str, role: str, **more: Any) -> MutualTls:
    return mutual_tls(pki.ensure(name, role), pki.ca_file, **more)


class TlsLab(Lab):
    """One node that listens with TLS."""

    def __init__(self, tls: MutualTls, handler: Any = None, limits: Limits | None = None) -> None:
        super().__init__(handler, limits)
        self._mine = tls
        self.name = tls.name
        self.tls = SipPeer("TLS", "", 0)

    async def start(self) -> Self:
        self.udp, self.tcp, found = await self.node.listen("127.0.0.1", 0, ("UDP", "TCP", "TLS"), tls=self._mine)
        self.tls = found._replace(name=self.name)
        return self

    async def gone(self) -> None:
        """Wait until no connection is left."""
        async with asyncio.timeout(PATIENCE):
            while self.node.connections:
                await asyncio.sleep(0)


async def client_of(peer: SipPeer, context: ssl.SSLContext | None) -> TcpPeer:
    """Connect as a plain TLS client."""
    reader, writer = await asyncio.open_connection(peer.host, peer.port, ssl=context, server_hostname="x.net" if context else None)
    return TcpPeer(reader, writer)
