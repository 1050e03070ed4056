# SPDX-License-Identifier: Apache-2.0
"""I-CSCF: find the S-CSCF of a user (TS 24.229 §5.3.1, §5.3.2, Release 17)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from keyferry.errors import CxError, TransportError
from keyferry.ports import CxClient, Log, Resolver, SipClient, SipPeer
from keyferry.protocol.digest import is_digest, parse_credentials
from keyferry.protocol.identity import Impi, parse_impi, parse_impu
from keyferry.protocol.ims.registration import impi_of
from keyferry.protocol.sip.headers import parse_name_addr
from keyferry.protocol.sip.message import Request, Response, check_request, make_response
from keyferry.protocol.sip.proxy import forwarded, own_route, routed
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.cx_status import status_of

NOT_SERVED = {5001: 404, 5003: 480}
"""USER_UNKNOWN, IDENTITY_NOT_REGISTERED, of a user whom somebody asks for (TS 24.229 §5.3.2.1)."""


@dataclass(frozen=True, slots=True)
class Icscf:
    """Route a REGISTER to the S-CSCF that the HSS has assigned, or to the configured one for a new user; a SUBSCRIBE to a user's."""

    cx: CxClient
    sip: SipClient
    resolver: Resolver
    default_scscf: str  # SIP URI
    log: Log
    name: str = ""  # our host name: what Route may name us by
    refused: Callable[[Impi, CxError, int], None] | None = None  # takes whom the HSS does not let in, and the status: the book of failures

    async def handle(self, request: Request, peer: SipPeer) -> Response:
        """Answer with what the S-CSCF answers; methods that would need terminating services are not carried."""
        del peer
        check_request(request)
        if request.method == "REGISTER":
            return await self._register(request)
        if request.method == "SUBSCRIBE":
            return await self._subscribe(request)
        return make_response(request, 405, headers=(("Allow", "REGISTER, SUBSCRIBE"),))

    async def _register(self, request: Request) -> Response:
        """§5.3.1.2."""
        impu = parse_impu(parse_name_addr(request.get("To") or "").uri)
        authorization = next((text for text in request.all("Authorization") if is_digest(text)), None)
        impi: Impi = parse_impi(parse_credentials(authorization).username) if authorization else impi_of(impu)
        try:
            server_name = await self.cx.user_authorization(impi, impu, request.get("P-Visited-Network-ID") or "")
        except CxError as problem:
            if self.refused is not None:
                self.refused(impi, problem, status_of(problem))
            else:
                self.log.warning("register-refused", impi=impi, impu=impu, cx=problem.name)
            return make_response(request, status_of(problem))
        target = server_name or self.default_scscf
        onward = forwarded(request, uri=target)
        try:
            return await self.sip.send(onward, self.resolver.resolve(parse_sip_uri(target)))
        except TransportError as problem:
            self.log.warning("s-cscf-unreachable", impi=impi, server=target, problem=problem.problem)
            return make_response(request, 504)

    async def _subscribe(self, request: Request) -> Response:
        """§5.3.2.1: a request for a user goes to the user's S-CSCF; we are no part of the dialog."""
        onward, _ = own_route(forwarded(request), {self.name})
        impu = parse_impu(onward.uri)
        try:
            target = await self.cx.location_info(impu)
        except CxError as problem:
            self.log.warning("subscribe-refused", impu=impu, cx=problem.name)
            return make_response(request, NOT_SERVED.get(problem.code) or status_of(problem))
        onward = routed(onward, (f"<{target};lr>",))
        try:
            return await self.sip.send(onward, self.resolver.resolve(parse_sip_uri(target)))
        except TransportError as problem:
            self.log.warning("s-cscf-unreachable", impu=impu, server=target, problem=problem.problem)
            return make_response(request, 504)
