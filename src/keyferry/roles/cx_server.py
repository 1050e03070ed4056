# SPDX-License-Identifier: Apache-2.0
"""Our HSS as a Cx server over Diameter: who may ask, what a request means to the HSS, and what its answers look like on the wire.

TS 29.228 §6, TS 29.229 §6, Release 17; the marker for S-CSCFs that are not ours: DESIGN §4, §10 (*ours*).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

from keyferry.errors import CxError, KeyferryError, ParseError, StoreError
from keyferry.ports import Counter, CxDirectory, DeregistrationReason, Log, OrderedCx, Resync, ServerAssignment
from keyferry.ports.correlation import correlate
from keyferry.ports.diameter import DiameterAsker, DiameterRemote
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import DiameterIdentity, Result, ResultCode
from keyferry.protocol.diameter.cx_fields import PUBLIC_IDENTITY, SERVER_NAME
from keyferry.protocol.diameter.message import VENDOR_3GPP, AvpFault, DiameterMessage, make_avp
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.marker import FIRST_RELEASE, Marker, build_marker
from keyferry.protocol.ims.registration import MIN_MASKED_RES
from keyferry.protocol.ims.selection import AuthorizationType
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.cx_exchange import (
    NAMES,
    SUCCEEDED,
    Sessions,
    correlation_of,
    count_request,
    exchanged,
    order_of,
    outcome_of,
)

MAX_ITEMS: Final = 5
"""Vectors of one MAA: the HSS may give fewer than are wanted (TS 29.228 §6.3), and what is not used skips SEQ values only."""
MAX_SERVERS: Final = 1_024
"""Server-Names whose Diameter node is remembered."""
_STORED = Result(cx.CxResult.SUCCESS_SERVER_NAME_NOT_STORED, experimental=True)

_Type = cx.ServerAssignmentType
_ASSIGNMENTS: Final[Mapping[_Type, ServerAssignment]] = {
    **{_Type(one): one for one in ServerAssignment},
    _Type.TIMEOUT_DEREGISTRATION_STORE_SERVER_NAME: ServerAssignment.TIMEOUT_DEREGISTRATION,
    _Type.USER_DEREGISTRATION_STORE_SERVER_NAME: ServerAssignment.USER_DEREGISTRATION,
    _Type.DEREGISTRATION_TOO_MUCH_DATA: ServerAssignment.ADMINISTRATIVE_DEREGISTRATION,
}
"""What our HSS does with each type; the others are for services that it does not have."""
_NOT_STORED: Final = (_Type.TIMEOUT_DEREGISTRATION_STORE_SERVER_NAME, _Type.USER_DEREGISTRATION_STORE_SERVER_NAME)
_OF_ONE: Final = (ServerAssignment.NO_ASSIGNMENT, ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION)
"""Types with which a SAR names one public identity (TS 29.228 §6.1.2)."""


@dataclass(frozen=True, slots=True)
class CxPolicy:
    """What a Cx server lets its peers do."""

    own_names: bool = True  # the host of the Server-Name in MAR and SAR must be the peer's Origin-Host
    marker_for: frozenset[str] = frozenset()  # Origin-Hosts, lower case, of S-CSCFs that put SIP-Authenticate as it is into the nonce
    rspauth: bool = True  # these S-CSCFs' 200s carry rspauth


@dataclass(slots=True)
class CxServer:
    """Answer UAR, LIR, MAR and SAR from the HSS."""

    hss: OrderedCx
    directory: CxDirectory
    identity: DiameterIdentity
    log: Log
    counter: Counter
    policy: CxPolicy = field(default_factory=CxPolicy)
    gave: Callable[[Impi, AuthVector, bytes], Awaitable[None]] | None = None  # told of each vector with a marker: for rspauth
    stood_still: Callable[[], bool] = lambda: False  # what is read may be old: its sender has asked another HSS, and gone on from there
    _servers: OrderedDict[str, str] = field(default_factory=OrderedDict)  # Server-Name → Origin-Host that uses it

    async def handle(self, request: DiameterMessage, peer: DiameterRemote) -> DiameterMessage:
        """Answer one request (transports' handler)."""
        correlate(correlation_of(request))
        carry_out, command = _COMMANDS.get(request.code), NAMES.get(request.code, "other")
        try:
            if carry_out is None:
                raise cx.error_for(ResultCode.COMMAND_UNSUPPORTED)
            answer, outcome = await carry_out(self, request, peer), SUCCEEDED
        except (CxError, AvpFault) as problem:
            answer, outcome = cx.build_error(request, problem, self.identity), outcome_of(problem)
        except KeyferryError as problem:  # a store that fails is no user's fault
            self.log.warning("cx-request-failed", command=command, peer=peer.origin_host, problem=str(problem))
            failed = cx.error_for(ResultCode.UNABLE_TO_COMPLY)
            answer, outcome = cx.build_error(request, failed, self.identity), outcome_of(failed)
        count_request(self.counter, command, outcome)
        return answer

    def origin_of(self, server_name: str) -> str:
        """Return the Origin-Host of the S-CSCF that has a Server-Name: who used it last, else the host in it. Raises ParseError."""
        known = self._servers.get(server_name)
        return known if known is not None else _host_of(server_name)

    async def _user_authorization(self, request: DiameterMessage, peer: DiameterRemote) -> DiameterMessage:
        """TS 29.228 §6.1.1."""
        del peer
        uar = cx.parse_uar(request)
        kind = AuthorizationType(uar.kind)
        found = await self.hss.user_authorization(uar.impi, uar.impu, uar.visited_network, kind)
        if found.server_name is None:
            first = Result(cx.CxResult.FIRST_REGISTRATION, experimental=True)
            result = cx.SUCCESS if kind is AuthorizationType.REGISTRATION_AND_CAPABILITIES else first
            # An empty group says nothing that none does not say, and looks broken to those who look.
            capabilities = cx.Capabilities(server_names=found.candidates) if found.candidates else None
            return cx.build_uaa(request, cx.Uaa(result, None, capabilities), self.identity)
        subsequent = Result(cx.CxResult.SUBSEQUENT_REGISTRATION, experimental=True)
        result = cx.SUCCESS if kind is AuthorizationType.DE_REGISTRATION else subsequent
        return cx.build_uaa(request, cx.Uaa(result, found.server_name), self.identity)

    async def _location_info(self, request: DiameterMessage, peer: DiameterRemote) -> DiameterMessage:
        """TS 29.228 §6.1.4."""
        del peer
        return cx.build_lia(request, cx.Lia(server_name=await self.hss.location_info(cx.parse_lir(request).impu)), self.identity)

    async def _multimedia_auth(self, request: DiameterMessage, peer: DiameterRemote) -> DiameterMessage:
        """TS 29.228 §6.3."""
        mar = cx.parse_mar(request)
        self._check_server(peer, mar.server_name)
        if mar.scheme not in (cx.AKA_SCHEME, cx.UNKNOWN_SCHEME):
            raise cx.error_for(cx.CxResult.ERROR_AUTH_SCHEME_NOT_SUPPORTED)
        marker = await self._marker(mar.impi, peer)
        resync = Resync(*mar.resynchronisation) if mar.resynchronisation is not None else None
        items: list[cx.AuthItem] = []
        for _ in range(min(max(mar.items, 1), MAX_ITEMS)):
            vector = await self.hss.multimedia_auth(mar.impi, mar.impu, mar.server_name, resync, masked=bool(marker))
            data = marker if len(vector.xres) >= MIN_MASKED_RES else b""
            if data and self.gave is not None:
                await self._keep(self.gave(mar.impi, vector, data), mar.impi)
            items.append(cx.AuthItem(vector, data))
            resync = None  # it has moved SEQ
        self._remember(mar.server_name, peer)
        return cx.build_maa(request, cx.Maa(mar.impi, mar.impu, tuple(items)), self.identity)

    async def _keep(self, keeping: Awaitable[None], impi: Impi) -> None:
        """Keep a vector for rspauth; a store that does not take it costs the 200 that, and nobody the registration."""
        try:
            await keeping
        except StoreError as problem:
            self.log.warning("rspauth-not-kept", impi=impi, problem=str(problem))

    async def _marker(self, impi: Impi, peer: DiameterRemote) -> bytes:
        """Return what goes behind AUTN: there the Contact decides nothing, what is provisioned does (DESIGN §10)."""
        if peer.origin_host not in self.policy.marker_for:
            return b""
        release = await self.directory.release(impi)
        if release is None or release < FIRST_RELEASE:
            return b""
        return build_marker(Marker(FIRST_RELEASE, access_keys=True, as_keys=True, rspauth=self.policy.rspauth))

    async def _server_assignment(self, request: DiameterMessage, peer: DiameterRemote) -> DiameterMessage:
        """TS 29.228 §6.1.2."""
        sar = cx.parse_sar(request)
        self._check_server(peer, sar.server_name)
        assignment = _ASSIGNMENTS.get(sar.assignment)
        if assignment is None:
            raise cx.error_for(cx.CxResult.ERROR_IN_ASSIGNMENT_TYPE)
        if assignment in _OF_ONE and len(sar.impus) > 1:
            second = make_avp(PUBLIC_IDENTITY, VENDOR_3GPP, sar.impus[1])
            raise AvpFault(ResultCode.AVP_OCCURS_TOO_MANY_TIMES, "a registration is of one Public-Identity", second)
        if assignment not in _OF_ONE and self.stood_still():
            raise cx.error_for(ResultCode.TOO_BUSY)  # the user may be back by now; who still means it asks again
        if sar.impi is not None and len(sar.impus) == 1:
            impi, impu = sar.impi, sar.impus[0]  # the usual case, which the HSS itself looks up
        else:
            impi, impu = await self.directory.identities(sar.impi, sar.impus)
        try:
            user_data = await self.hss.server_assignment(impi, impu, sar.server_name, assignment, order=order_of(request, peer))
        except StoreError as problem:
            if assignment in _OF_ONE:
                raise
            self.log.warning("cx-request-failed", command="SAR", peer=peer.origin_host, problem=str(problem))
            raise cx.error_for(ResultCode.TOO_BUSY) from problem  # an end that is refused is never told again
        self._remember(sar.server_name, peer)
        result = _STORED if sar.assignment in _NOT_STORED else cx.SUCCESS
        return cx.build_saa(request, cx.Saa(impi, b"" if sar.user_data_available else user_data, result), self.identity)

    def _check_server(self, peer: DiameterRemote, server_name: str) -> None:
        """Refuse who is no S-CSCF by its certificate, and who gives itself the name of another: it would get the users' keys."""
        try:
            host = _host_of(server_name)
        except ParseError as problem:
            failed = make_avp(SERVER_NAME, VENDOR_3GPP, server_name)
            raise AvpFault(ResultCode.INVALID_AVP_VALUE, "Server-Name is no SIP URI", failed) from problem
        if peer.role in ("", "scscf") and (host == peer.origin_host or not self.policy.own_names):
            return
        self.log.warning("cx-peer-not-authorised", peer=peer.origin_host, role=peer.role, server=server_name)
        raise cx.error_for(ResultCode.AUTHORIZATION_REJECTED)

    def _remember(self, server_name: str, peer: DiameterRemote) -> None:
        self._servers[server_name] = peer.origin_host
        self._servers.move_to_end(server_name)
        if len(self._servers) > MAX_SERVERS:
            self._servers.popitem(last=False)


@dataclass(frozen=True, slots=True)
class DiameterServings:
    """Find S-CSCFs that are connected (ports.CxServings)."""

    asker: DiameterAsker
    connected: Callable[[], Mapping[str, str]]  # Origin-Hosts that can be asked, and their Origin-Realms
    origin_of: Callable[[str], str]  # Server-Name → Origin-Host; raises ParseError
    identity: DiameterIdentity
    sessions: Sessions
    log: Log
    counter: Counter
    timeout: float = 5.0  # seconds

    def at(self, server_name: str) -> DiameterServing | None:
        """Return the S-CSCF of a Server-Name, None if it is not connected."""
        try:
            host = self.origin_of(server_name)
        except ParseError:
            return None
        realm = self.connected().get(host)
        return None if realm is None else DiameterServing(self, host, realm)


@dataclass(frozen=True, slots=True)
class DiameterServing:
    """Ask one S-CSCF over Diameter (ports.CxServing)."""

    servings: DiameterServings
    host: str
    realm: str

    async def registration_termination(self, impi: Impi, impus: Sequence[Impu], reason: DeregistrationReason, info: str) -> None:
        """RTR (TS 29.228 §6.1.3). Raises CxError."""
        rtr = cx.Rtr(impi, tuple(impus), cx.ReasonCode(reason), info)
        await self._ask("RTR", cx.build_rtr(rtr, self._route()), cx.parse_rta)

    async def push_profile(self, impi: Impi, user_data: bytes) -> None:
        """PPR (TS 29.228 §6.2.1). Raises CxError."""
        await self._ask("PPR", cx.build_ppr(cx.Ppr(impi, user_data), self._route()), cx.parse_ppa)

    def _route(self) -> cx.Route:
        servings = self.servings
        return cx.Route(servings.identity, servings.sessions.next(), self.realm, self.host)

    async def _ask(self, command: str, request: DiameterMessage, read: Callable[[DiameterMessage], object]) -> None:
        servings = self.servings
        sending = servings.asker.send_to(self.host, request, timeout=servings.timeout)
        await exchanged(sending, read, command, servings.log, servings.counter)


@lru_cache(MAX_SERVERS)
def _host_of(server_name: str) -> str:
    return parse_sip_uri(server_name).host.lower().rstrip(".")


_Handler: TypeAlias = Callable[[CxServer, DiameterMessage, DiameterRemote], Awaitable[DiameterMessage]]
_COMMANDS: Final[Mapping[int, _Handler]] = {
    cx.USER_AUTHORIZATION: CxServer._user_authorization,
    cx.LOCATION_INFO: CxServer._location_info,
    cx.MULTIMEDIA_AUTH: CxServer._multimedia_auth,
    cx.SERVER_ASSIGNMENT: CxServer._server_assignment,
}
