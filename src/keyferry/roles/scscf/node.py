# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: which of its procedures a request is for (TS 24.229 §5.4, Release 17)."""

from __future__ import annotations

from dataclasses import dataclass

from keyferry.ports import SipPeer
from keyferry.protocol.sip.message import Request, Response, refuse_method
from keyferry.roles.scscf.reg_event import RegEventNotifier
from keyferry.roles.scscf.registrar import Registrar


@dataclass(frozen=True, slots=True)
class Scscf:
    """Registrar and notifier of the reg event package behind one address."""

    registrar: Registrar
    reg_event: RegEventNotifier

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer one request that the node has checked."""
        if request.method == "REGISTER":
            return await self.registrar.handle(request, peer)
        if request.method == "SUBSCRIBE":
            return await self.reg_event.handle_subscribe(request, peer)
        return refuse_method(request, "REGISTER", "SUBSCRIBE")

    async def sweep(self) -> int:
        """End what is over, registrations first, so that who watches them is told; return how many ended."""
        return await self.registrar.sweep() + await self.reg_event.sweep()
