# SPDX-License-Identifier: Apache-2.0
"""I-CSCF: find the S-CSCF of a user (TS 24.229 §5.3.1, Release 17)."""

from __future__ import annotations

from dataclasses import dataclass

from keyferry.errors import CxError, TransportError
from keyferry.ports import CxClient, Log, Resolver, SipClient, SipPeer
from keyferry.protocol.digest import parse_credentials
from keyferry.protocol.identity import Impi, parse_impi, parse_impu
from keyferry.protocol.ims.registration import impi_of
from keyferry.protocol.sip.headers import parse_name_addr
from keyferry.protocol.sip.message import Request, Response, check_request, make_response
from keyferry.protocol.sip.proxy import forwarded
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.cx_status import status_of


@dataclass(frozen=True, slots=True)
class Icscf:
    """Route a REGISTER to the S-CSCF that the HSS has assigned, or to the configured one for a new user."""

    cx: CxClient
    sip: SipClient
    resolver: Resolver
    default_scscf: str  # SIP URI
    log: Log

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer a REGISTER with what the S-CSCF answers (§5.3.1.2); other methods come with terminating services."""
        del peer
        check_request(request)
        if request.method != "REGISTER":
            return make_response(request, 405, headers=(("Allow", "REGISTER"),))
        impu = parse_impu(parse_name_addr(request.get("To") or "").uri)
        authorization = request.get("Authorization")
        impi: Impi = parse_impi(parse_credentials(authorization).username) if authorization else impi_of(impu)
        try:
            server_name = await self.cx.user_authorization(impi, impu, request.get("P-Visited-Network-ID") or "")
        except CxError as problem:
            self.log.warning("register-refused", impi=impi, impu=impu, cx=problem.name)
            return make_response(request, status_of(problem))
        target = server_name or self.default_scscf
        onward = forwarded(request, uri=target)
        try:
            return await self.sip.send(onward, self.resolver.resolve(parse_sip_uri(target)))
        except TransportError as problem:
            self.log.warning("s-cscf-unreachable", impi=impi, server=target, problem=problem.problem)
            return make_response(request, 504)
