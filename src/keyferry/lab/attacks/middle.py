# SPDX-License-Identifier: Apache-2.0
"""Hostile P-CSCF and a middleman on ISC: real SIP nodes that do their work, and change what an attack says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from keyferry.ports import PeerCheck, SipClient, SipPeer
from keyferry.protocol.sip.message import Message, Request, Response, make_response
from keyferry.protocol.sip.proxy import forwarded
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.pcscf.proxy import Pcscf

Upward = Callable[[Request], Awaitable[Request]]
Downward = Callable[[Request, Response], Awaitable[Response]]

NOWHERE = SipPeer("UDP", "127.0.0.1", 0)
"""Where a P-CSCF listens that was not started."""


async def _same_request(request: Request) -> Request:
    return request


async def _same_response(request: Request, response: Response) -> Response:
    del request
    return response


@dataclass(slots=True)
class HostilePcscf:
    """A P-CSCF between UE and I-CSCF that reads everything in clear; three hooks change what passes."""

    sip: SipClient | None = None
    address: SipPeer = NOWHERE
    seen: list[Message] = field(default_factory=list)  # its whole view: Gm and Mw in clear
    requests: int = 0
    from_ue: Upward = _same_request  # a REGISTER as the UE sent it, before the P-CSCF works on it
    from_home: Downward = _same_response  # what came over Mw, ck and ik included
    to_ue: Downward = _same_response  # what goes over Gm
    pcscf: Pcscf | None = None

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Play the P-CSCF for one request."""
        self.requests += 1
        self.seen.append(request)
        request = await self.from_ue(request)
        if self.pcscf is None:
            return make_response(request, 503)
        response = await self.to_ue(request, await self.pcscf.handle(request, peer))
        self.seen.append(response)
        return response

    async def send(self, request: Request, hop: SipPeer, *, check: PeerCheck | None = None) -> Response:
        """Carry the P-CSCF's own requests to the home network (the SipClient port)."""
        self.seen.append(request)
        if self.sip is None:
            return make_response(request, 503)
        response = await self.sip.send(request, hop, check=check)
        self.seen.append(response)
        return await self.from_home(request, response)


@dataclass(slots=True)
class IscMiddleman:
    """Stand between S-CSCF and one AS, sealed blocks being all it reads; it may keep a push back and answer in the AS's place."""

    target: SipPeer
    sip: SipClient | None = None
    hold: bool = False
    held: list[Request] = field(default_factory=list)
    passed: list[Request] = field(default_factory=list)

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Forward, or keep back and pretend."""
        del peer
        if self.hold:
            self.held.append(request)
            return make_response(request, 200, to_tag="held")
        self.passed.append(request)
        return await self.deliver(request)

    async def deliver(self, request: Request) -> Response:
        """Send a REGISTER, of now or of long ago, on to the AS."""
        if self.sip is None:
            return make_response(request, 503)
        return await self.sip.send(forwarded(request), self.target)


def host_of(uri: str) -> str:
    """Return the host of a SIP URI."""
    return parse_sip_uri(uri).host
