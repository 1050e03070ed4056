# SPDX-License-Identifier: Apache-2.0
"""Our I-CSCF and S-CSCF as Cx clients over Diameter: the port that an HSS in the process offers too (TS 29.228 §6, Release 17)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from keyferry.errors import CxError, KeyferryError, ParseError
from keyferry.ports import Clock, Counter, CxServing, DeregistrationReason, Log, RandomSource, Resync, ServerAssignment
from keyferry.ports.diameter import DiameterRemote, DiameterSender
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.diameter import cx
from keyferry.protocol.diameter.base import SESSION_ID, DiameterIdentity, ResultCode
from keyferry.protocol.diameter.message import AvpFault, DiameterMessage
from keyferry.protocol.identity import Impi, Impu
from keyferry.protocol.ims.selection import AuthorizationType, UserAuthorization
from keyferry.protocol.ims.user_profile import parse_user_profile
from keyferry.protocol.sip.uri import parse_sip_uri
from keyferry.roles.cx_exchange import NAMES, SUCCEEDED, Sessions, count_request, exchanged, outcome_of

T = TypeVar("T")
Late: TypeAlias = Callable[[Impi, Impu], None]

TIMEOUT: Final = 5.0
"""Seconds that an answer may take: a REGISTER is sent again meanwhile, and given up after 32."""
MAX_ENDS: Final = 10_000
"""Ends of registrations whose late answers are known; 3 MB."""
_WITH_PROFILE: Final = (ServerAssignment.NO_ASSIGNMENT, ServerAssignment.REGISTRATION, ServerAssignment.RE_REGISTRATION)
_UNPROVEN: Final = (ServerAssignment.AUTHENTICATION_FAILURE, ServerAssignment.AUTHENTICATION_TIMEOUT)


@dataclass(slots=True)
class DiameterCx:
    """Implement ports.CxClient over a Diameter node.

    An answer that does not come is a CxError of UNABLE_TO_DELIVER, one that cannot be read, or is another user's, of UNABLE_TO_COMPLY.
    """

    sender: DiameterSender
    identity: DiameterIdentity
    realm: str  # Destination-Realm; no Destination-Host, so that any HSS of the realm may answer
    clock: Clock
    random: RandomSource
    log: Log
    counter: Counter
    timeout: float = TIMEOUT
    start: int = 0  # higher at every start (Sessions); 0: the clock's seconds
    done_late: Late | None = None
    """Told of whom an HSS has done something after we waited for it no more: it may have undone what came since."""
    _sessions: Sessions = field(init=False)
    _ends: OrderedDict[bytes, tuple[Impi, Impu]] = field(default_factory=OrderedDict)  # by Session-Id

    def __post_init__(self) -> None:
        """Prepare."""
        self._sessions = Sessions(self.identity.origin_host, self.clock, self.random, self.start)

    async def user_authorization(
        self, impi: Impi, impu: Impu, visited_network: str, kind: AuthorizationType = AuthorizationType.REGISTRATION
    ) -> UserAuthorization:
        """UAR (§6.1.1). Capabilities by number are not compared: a HSS that names no server leaves the choice to the configuration."""
        uar = cx.Uar(impi, impu, visited_network, cx.UserAuthorizationType(kind))
        return await self._ask("UAR", cx.build_uar(uar, self._route()), lambda answer: _authorization(cx.parse_uaa(answer), kind))

    async def location_info(self, impu: Impu) -> str:
        """LIR (§6.1.4). A user whom a S-CSCF could be chosen for is one who is not registered: there are no services for those."""
        return await self._ask("LIR", cx.build_lir(cx.Lir(impu), self._route()), lambda answer: _location(cx.parse_lia(answer)))

    async def multimedia_auth(
        self, impi: Impi, impu: Impu, server_name: str, resync: Resync | None = None, *, masked: bool = False
    ) -> AuthVector:
        """MAR (§6.3). `masked` is not said: Cx has no AVP for it, and the HSS sets AMF's bit for whom it has provisioned only."""
        del masked
        again = cx.Resynchronisation(*resync) if resync is not None else None
        mar = cx.Mar(impi, impu, server_name, resynchronisation=again)
        return await self._ask("MAR", cx.build_mar(mar, self._route()), lambda answer: _vector(cx.parse_maa(answer), impi))

    async def server_assignment(self, impi: Impi, impu: Impu, server_name: str, assignment: ServerAssignment) -> bytes:
        """SAR (§6.1.2)."""
        sar = cx.Sar(impi, (impu,), server_name, cx.ServerAssignmentType(assignment))
        request = cx.build_sar(sar, self._route())
        if assignment not in (*_WITH_PROFILE, *_UNPROVEN):
            self._remember_end(request, impi, impu)
        return await self._ask("SAR", request, lambda answer: _profile(cx.parse_saa(answer), impi, assignment))

    def late(self, answer: DiameterMessage) -> None:
        """Take an answer that nobody waits for any more (transports' `late_answer`).

        A user whom an end has unseated may be registered again since; one who was registered may have left.
        """
        session = answer.first(SESSION_ID)
        ended = self._ends.pop(session.data, None) if session is not None else None
        registered = _registered_by(answer) if answer.code == cx.SERVER_ASSIGNMENT else None
        if self.done_late is None or registered is None:
            return
        if ended is not None:
            self.log.warning("cx-ended-late", impi=ended[0])
            self.done_late(*ended)
        elif registered:
            self.log.warning("cx-registered-late", impi=registered[0])
            self.done_late(*registered)

    def _remember_end(self, request: DiameterMessage, impi: Impi, impu: Impu) -> None:
        session = request.first(SESSION_ID)
        if session is not None:
            self._ends[session.data] = impi, impu
        if len(self._ends) > MAX_ENDS:
            self._ends.popitem(last=False)

    def _route(self) -> cx.Route:
        return cx.Route(self.identity, self._sessions.next(), self.realm)

    async def _ask(self, command: str, request: DiameterMessage, read: Callable[[DiameterMessage], T]) -> T:
        return await exchanged(self.sender.send(request, timeout=self.timeout), read, command, self.log, self.counter)


def _authorization(uaa: cx.Uaa, kind: AuthorizationType) -> UserAuthorization:
    candidates = tuple([_checked(name) for name in uaa.capabilities.server_names]) if uaa.capabilities is not None else ()
    if uaa.server_name is None or kind is AuthorizationType.REGISTRATION_AND_CAPABILITIES:
        return UserAuthorization(None, candidates)
    return UserAuthorization(_checked(uaa.server_name))


def _location(lia: cx.Lia) -> str:
    if lia.server_name is None:
        raise cx.error_for(cx.CxResult.ERROR_IDENTITY_NOT_REGISTERED)
    return _checked(lia.server_name)


def _vector(maa: cx.Maa, impi: Impi) -> AuthVector:
    _check_user(maa.impi, impi)
    return maa.items[0].vector


def _profile(saa: cx.Saa, impi: Impi, assignment: ServerAssignment) -> bytes:
    _check_user(saa.impi, impi)
    if assignment not in _WITH_PROFILE:
        return b""
    if not saa.user_data:
        raise ParseError("SAA", "has no User-Data")
    return saa.user_data


def _registered_by(answer: DiameterMessage) -> tuple[Impi, Impu] | tuple[()] | None:
    """Return whom a SAA has the profile of, () if nobody's; None for one that refuses, or cannot be read."""
    try:
        saa = cx.parse_saa(answer)
        profile = parse_user_profile(saa.user_data) if saa.user_data else None
    except (CxError, ParseError):
        return None
    return () if profile is None or not profile.impus else (profile.impi, profile.impus[0])


def _check_user(answered: Impi | None, asked: Impi) -> None:
    """Refuse what is of another user, whose keys those would be; many an HSS says nobody's name."""
    if answered is not None and answered != asked:
        raise ParseError("Cx answer", "is of another user than was asked for")


def _checked(server_name: str) -> str:
    """Return a Server-Name that requests can be sent to. Raises ParseError."""
    parse_sip_uri(server_name)
    return server_name


@dataclass(slots=True)
class CxListener:
    """Answer what the HSS asks of an S-CSCF: RTR and PPR."""

    identity: DiameterIdentity
    log: Log
    counter: Counter
    serving: CxServing | None = None  # None: a function that serves nobody, such as an I-CSCF, or not yet
    done_late: Late | None = None  # of the registrar

    def late(self, impi: Impi, impu: Impu) -> None:
        """Pass on of whom the HSS is to be told once more."""
        if self.done_late is not None:
            self.done_late(impi, impu)

    async def handle(self, request: DiameterMessage, peer: DiameterRemote) -> DiameterMessage:
        """Answer one request (transports' handler)."""
        command = NAMES.get(request.code, "other")
        try:
            answer, outcome = await self._carry_out(request), SUCCEEDED
        except (CxError, AvpFault) as problem:
            answer, outcome = cx.build_error(request, problem, self.identity), outcome_of(problem)
        except KeyferryError as problem:  # a store that fails, or a profile that cannot be read
            self.log.warning("cx-request-failed", command=command, peer=peer.origin_host, problem=str(problem))
            failed = cx.error_for(ResultCode.UNABLE_TO_COMPLY)
            answer, outcome = cx.build_error(request, failed, self.identity), outcome_of(failed)
        count_request(self.counter, command, outcome)
        return answer

    async def _carry_out(self, request: DiameterMessage) -> DiameterMessage:
        if self.serving is None or request.code not in (cx.REGISTRATION_TERMINATION, cx.PUSH_PROFILE):
            raise cx.error_for(ResultCode.COMMAND_UNSUPPORTED)
        if request.code == cx.PUSH_PROFILE:
            ppr = cx.parse_ppr(request)
            if ppr.user_data:  # else it changes what we do not have, such as charging addresses
                await self.serving.push_profile(ppr.impi, ppr.user_data)
            return cx.build_ppa(request, self.identity)
        rtr = cx.parse_rtr(request)
        for impi in dict.fromkeys((rtr.impi, *rtr.associated)):  # TS 29.228 §6.1.3: every private identity that is named
            await self.serving.registration_termination(impi, rtr.impus, DeregistrationReason(rtr.reason), rtr.info)
        return cx.build_rta(request, cx.Rta(), self.identity)
