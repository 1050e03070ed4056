# SPDX-License-Identifier: Apache-2.0
"""Cx: codes, enumerations, what each command says, and what all commands have in common (TS 29.229 §6, Release 17)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple, TypeVar

from keyferry.errors import CxError, ParseError
from keyferry.protocol.aka import AuthVector
from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import Application, DiameterIdentity, Result, ResultCode
from keyferry.protocol.diameter.message import VENDOR_3GPP, Avp, AvpFault, DiameterMessage, constant, make_avp
from keyferry.protocol.identity import Impi, Impu, parse_impi, parse_impu

_E = TypeVar("_E", bound=IntEnum)

USER_AUTHORIZATION: Final = 300
SERVER_ASSIGNMENT: Final = 301
LOCATION_INFO: Final = 302
MULTIMEDIA_AUTH: Final = 303
REGISTRATION_TERMINATION: Final = 304
PUSH_PROFILE: Final = 305

VISITED_NETWORK_IDENTIFIER: Final = 600
PUBLIC_IDENTITY: Final = 601
SERVER_NAME: Final = 602
SERVER_CAPABILITIES: Final = 603
MANDATORY_CAPABILITY: Final = 604
OPTIONAL_CAPABILITY: Final = 605
USER_DATA: Final = 606
SIP_NUMBER_AUTH_ITEMS: Final = 607
SIP_AUTHENTICATION_SCHEME: Final = 608
SIP_AUTHENTICATE: Final = 609
SIP_AUTHORIZATION: Final = 610
SIP_AUTH_DATA_ITEM: Final = 612
SIP_ITEM_NUMBER: Final = 613
SERVER_ASSIGNMENT_TYPE: Final = 614
DEREGISTRATION_REASON: Final = 615
REASON_CODE: Final = 616
REASON_INFO: Final = 617
USER_AUTHORIZATION_TYPE: Final = 623
USER_DATA_ALREADY_AVAILABLE: Final = 624
CONFIDENTIALITY_KEY: Final = 625
INTEGRITY_KEY: Final = 626
ASSOCIATED_IDENTITIES: Final = 632

AKA_SCHEME: Final = "Digest-AKAv1-MD5"
UNKNOWN_SCHEME: Final = "Unknown"
"""SIP-Authentication-Scheme of a S-CSCF that leaves the choice to the HSS (TS 29.228 §6.3)."""

KEY_OCTETS: Final = 16
MIN_RES, MAX_RES = 4, 16
MAX_SERVER_DATA: Final = 64
"""Octets after RAND and AUTN that are taken: as many as a nonce of ours may have."""
MAX_ITEMS: Final = 16
"""Vectors of one MAA that are read."""
MAX_IDENTITIES: Final = 100
"""Identities of one message that are read; a subscription has some."""

_CX_CODES = range(600, 700)  # TS 29.229 §6.3: all of this range are known to us by name at least, and may be passed over
_BASE_CODES: Final = frozenset(
    {
        base.USER_NAME, base.AUTH_APPLICATION_ID, base.ACCT_APPLICATION_ID, base.VENDOR_SPECIFIC_APPLICATION_ID, base.SESSION_ID,
        base.ORIGIN_HOST, base.VENDOR_ID, base.AUTH_SESSION_STATE, base.ORIGIN_STATE_ID, base.ROUTE_RECORD, base.DESTINATION_REALM,
        base.PROXY_INFO, base.DESTINATION_HOST, base.ORIGIN_REALM,
    }
)  # fmt: skip


class UserAuthorizationType(IntEnum):
    """User-Authorization-Type (TS 29.229 §6.3.24)."""

    REGISTRATION = 0
    DE_REGISTRATION = 1
    REGISTRATION_AND_CAPABILITIES = 2


class ServerAssignmentType(IntEnum):
    """Server-Assignment-Type (TS 29.229 §6.3.15); 12 and 13 are of SWx."""

    NO_ASSIGNMENT = 0
    REGISTRATION = 1
    RE_REGISTRATION = 2
    UNREGISTERED_USER = 3
    TIMEOUT_DEREGISTRATION = 4
    USER_DEREGISTRATION = 5
    TIMEOUT_DEREGISTRATION_STORE_SERVER_NAME = 6
    USER_DEREGISTRATION_STORE_SERVER_NAME = 7
    ADMINISTRATIVE_DEREGISTRATION = 8
    AUTHENTICATION_FAILURE = 9
    AUTHENTICATION_TIMEOUT = 10
    DEREGISTRATION_TOO_MUCH_DATA = 11
    AAA_USER_DATA_REQUEST = 12
    PGW_UPDATE = 13
    RESTORATION = 14


class ReasonCode(IntEnum):
    """Reason-Code of a RTR (TS 29.229 §6.3.17)."""

    PERMANENT_TERMINATION = 0
    NEW_SERVER_ASSIGNED = 1
    SERVER_CHANGE = 2
    REMOVE_S_CSCF = 3


class CxResult(IntEnum):
    """Experimental-Result-Code (TS 29.229 §6.2); "DIAMETER_" and the name is what the document calls it."""

    FIRST_REGISTRATION = 2001
    SUBSEQUENT_REGISTRATION = 2002
    UNREGISTERED_SERVICE = 2003
    SUCCESS_SERVER_NAME_NOT_STORED = 2004
    SERVER_SELECTION = 2005  # deprecated
    ERROR_USER_UNKNOWN = 5001
    ERROR_IDENTITIES_DONT_MATCH = 5002
    ERROR_IDENTITY_NOT_REGISTERED = 5003
    ERROR_ROAMING_NOT_ALLOWED = 5004
    ERROR_IDENTITY_ALREADY_REGISTERED = 5005
    ERROR_AUTH_SCHEME_NOT_SUPPORTED = 5006
    ERROR_IN_ASSIGNMENT_TYPE = 5007
    ERROR_TOO_MUCH_DATA = 5008
    ERROR_NOT_SUPPORTED_USER_DATA = 5009
    ERROR_FEATURE_UNSUPPORTED = 5011
    ERROR_SERVING_NODE_FEATURE_UNSUPPORTED = 5012


SUCCESS: Final = Result(ResultCode.SUCCESS, experimental=False)


class Route(NamedTuple):
    """From whom and to whom a request goes."""

    identity: DiameterIdentity
    session_id: str
    realm: str  # Destination-Realm
    host: str = ""  # Destination-Host; "": any of the realm


class Uar(NamedTuple):
    """User-Authorization-Request."""

    impi: Impi
    impu: Impu
    visited_network: str
    kind: UserAuthorizationType = UserAuthorizationType.REGISTRATION


class Capabilities(NamedTuple):
    """Server-Capabilities (§6.3.4)."""

    mandatory: tuple[int, ...] = ()
    optional: tuple[int, ...] = ()
    server_names: tuple[str, ...] = ()


class Uaa(NamedTuple):
    """User-Authorization-Answer: the S-CSCF assigned, or what to choose one by."""

    result: Result
    server_name: str | None = None
    capabilities: Capabilities | None = None


class Lir(NamedTuple):
    """Location-Info-Request."""

    impu: Impu


class Lia(NamedTuple):
    """Location-Info-Answer."""

    result: Result = SUCCESS
    server_name: str | None = None
    capabilities: Capabilities | None = None


class Resynchronisation(NamedTuple):
    """SIP-Authorization of a MAR after a synchronisation failure."""

    rand: bytes  # 16 octets
    auts: bytes  # 14 octets


class Mar(NamedTuple):
    """Multimedia-Auth-Request."""

    impi: Impi
    impu: Impu
    server_name: str
    scheme: str = AKA_SCHEME
    items: int = 1  # vectors wanted
    resynchronisation: Resynchronisation | None = None


class AuthItem(NamedTuple):
    """One vector; `server_data` goes behind RAND and AUTN, and so into the nonce of a S-CSCF that knows nothing of it."""

    vector: AuthVector
    server_data: bytes = b""


class Maa(NamedTuple):
    """Multimedia-Auth-Answer; vectors in the order of their use."""

    impi: Impi | None
    impu: Impu | None
    items: tuple[AuthItem, ...]


class Sar(NamedTuple):
    """Server-Assignment-Request; either identity may be left out, not both."""

    impi: Impi | None
    impus: tuple[Impu, ...]
    server_name: str
    assignment: ServerAssignmentType
    user_data_available: bool = False


class Saa(NamedTuple):
    """Server-Assignment-Answer; `user_data` is the Cx XML."""

    impi: Impi | None = None
    user_data: bytes = b""
    result: Result = SUCCESS
    associated: tuple[Impi, ...] = ()  # the IMPIs of the same subscription


class Rtr(NamedTuple):
    """Registration-Termination-Request; no IMPUs: all."""

    impi: Impi
    impus: tuple[Impu, ...]
    reason: ReasonCode
    info: str = ""
    associated: tuple[Impi, ...] = ()


class Rta(NamedTuple):
    """Registration-Termination-Answer."""

    associated: tuple[Impi, ...] = ()


class Ppr(NamedTuple):
    """Push-Profile-Request."""

    impi: Impi
    user_data: bytes


# ---- what every command has


def error_for(code: CxResult | ResultCode) -> CxError:
    """Return the exception of a result."""
    return CxError(int(code), f"DIAMETER_{code.name}")


def cx_error_of(message: DiameterMessage) -> CxError | None:
    """Return the exception that an answer means, None if it is a success (TS 29.229 §6.2; RFC 6733 §7.1).

    Raises ParseError: it has no result.
    """
    result = base.result_of(message)
    return None if result.success else _error_of(result)


def _error_of(result: Result) -> CxError:
    known: type[IntEnum] = CxResult if result.experimental else ResultCode
    try:
        return CxError(result.code, f"DIAMETER_{known(result.code).name}")
    except ValueError:
        return CxError(result.code, f"DIAMETER_{'ERROR' if result.experimental else 'RESULT'}_{result.code}")


def build_error(request: DiameterMessage, problem: CxError | AvpFault, identity: DiameterIdentity) -> DiameterMessage:
    """Return the answer that refuses a Cx request: Experimental-Result for codes of Cx, Result-Code and Failed-AVP for the others."""
    if isinstance(problem, CxError):
        named = (make_avp(SERVER_NAME, VENDOR_3GPP, problem.server_name),) if problem.server_name else ()
        return build_answer(request, Result(problem.code, problem.experimental), identity, named)
    after = () if problem.failed is None else (base.failed_avp(problem.failed),)
    return build_answer(request, Result(problem.code, experimental=False), identity, after)


def build_request(code: int, route: Route, avps: Sequence[Avp]) -> DiameterMessage:
    """Return a request with what each has, and these AVPs."""
    host = (make_avp(base.DESTINATION_HOST, 0, route.host),) if route.host else ()
    realm = make_avp(base.DESTINATION_REALM, 0, route.realm)
    session = make_avp(base.SESSION_ID, 0, route.session_id)
    head = (session, _APPLICATION, _NO_STATE, *route.identity.origin, *host, realm)
    return DiameterMessage(code, base.CX, True, (*head, *avps), proxiable=True)


def build_answer(request: DiameterMessage, result: Result, identity: DiameterIdentity, avps: Sequence[Avp] = ()) -> DiameterMessage:
    """Return an answer with what each has, and these AVPs; one of a protocol error has the E bit (RFC 6733 §7.1.3)."""
    error = not result.experimental and 3000 <= result.code < 4000
    return base.answer_to(request, (_APPLICATION, _result(result), _NO_STATE, *identity.origin, *avps), error=error)


def _result(result: Result) -> Avp:
    if result == SUCCESS:
        return _SUCCESS
    if not result.experimental:
        return make_avp(base.RESULT_CODE, 0, result.code)
    return make_avp(base.EXPERIMENTAL_RESULT, 0, (_VENDOR, make_avp(base.EXPERIMENTAL_RESULT_CODE, 0, result.code)))


class Fields:
    """The AVPs of a request by their code, after the checks that RFC 6733 §4.1 and §7.1.5 demand of who gets one."""

    __slots__ = ("_by_code", "_twice")

    def __init__(self, message: DiameterMessage, code: int) -> None:
        _check_command(message, code, request=True)
        self._by_code: dict[int, Avp] = {}
        self._twice: dict[int, Avp] = {}
        for avp in message.avps:
            if avp.code in (_CX_CODES if avp.vendor == VENDOR_3GPP else _BASE_CODES) and avp.vendor in (0, VENDOR_3GPP):
                if self._by_code.setdefault(avp.code, avp) is not avp:
                    self._twice.setdefault(avp.code, avp)
            elif avp.mandatory:
                raise AvpFault(ResultCode.AVP_UNSUPPORTED, "a mandatory AVP that is not understood", avp)

    def get(self, code: int) -> Avp | None:
        """Return an AVP that may be there once."""
        if code in self._twice:
            raise AvpFault(ResultCode.AVP_OCCURS_TOO_MANY_TIMES, f"{self._twice[code].name} twice", self._twice[code])
        return self._by_code.get(code)

    def need(self, code: int, vendor: int = VENDOR_3GPP) -> Avp:
        """Return an AVP that must be there once."""
        avp = self.get(code)
        if avp is None:
            example = Avp(code, vendor, b"", 0)
            missing = make_avp(code, vendor, () if code in (SIP_AUTH_DATA_ITEM, DEREGISTRATION_REASON) else _nothing(code))
            raise AvpFault(ResultCode.MISSING_AVP, f"{example.name} is missing", missing)
        return avp

    def impi(self) -> Impi:
        """Return User-Name."""
        return read_impi(self.need(base.USER_NAME, 0))

    def impu(self) -> Impu:
        """Return Public-Identity."""
        return read_impu(self.need(PUBLIC_IDENTITY))


def _nothing(code: int) -> int | bytes | str:
    """Return a value for an AVP that is only there to say what was missing (RFC 6733 §7.5)."""
    numbers = (SIP_NUMBER_AUTH_ITEMS, SERVER_ASSIGNMENT_TYPE, REASON_CODE, USER_DATA_ALREADY_AVAILABLE)
    return 0 if code in numbers else b"" if code in (VISITED_NETWORK_IDENTIFIER, USER_DATA) else ""


def _check_command(message: DiameterMessage, code: int, *, request: bool) -> None:
    if message.code != code or message.request is not request:
        raise ParseError("Diameter command", f"not {code} as {'a request' if request else 'an answer'}")


def check_success(message: DiameterMessage, code: int) -> Result:
    """Return how an answer to a command succeeded.

    Raises CxError, ParseError.
    """
    _check_command(message, code, request=False)
    result = base.result_of(message)
    if not result.success:
        raise _error_of(result)
    return result


def read_impi(avp: Avp) -> Impi:
    """Return a private identity; what cannot be one is nobody's (TS 29.228 §6).

    Raises AvpFault, CxError.
    """
    text = avp.text
    try:
        return parse_impi(text)
    except ParseError:
        raise error_for(CxResult.ERROR_USER_UNKNOWN) from None


def read_impu(avp: Avp) -> Impu:
    """Return a public identity in its canonical form. Raises AvpFault, CxError."""
    text = avp.text
    try:
        return parse_impu(text)
    except ParseError:
        raise error_for(CxResult.ERROR_USER_UNKNOWN) from None


def answered_impi(message: DiameterMessage) -> Impi | None:
    """Return User-Name of an answer, None if there is none that can be one: nobody needs it there."""
    avp = message.first(base.USER_NAME)
    try:
        return read_impi(avp) if avp else None
    except (CxError, ParseError):
        return None


def answered_impu(message: DiameterMessage) -> Impu | None:
    """Return Public-Identity of an answer, None if there is none that can be one."""
    avp = message.first(PUBLIC_IDENTITY, VENDOR_3GPP)
    try:
        return read_impu(avp) if avp else None
    except (CxError, ParseError):
        return None


def user_name(impi: Impi | None) -> tuple[Avp, ...]:
    """Return User-Name."""
    return () if impi is None else (make_avp(base.USER_NAME, 0, impi),)


def public_identities(impus: Sequence[Impu]) -> tuple[Avp, ...]:
    """Return a Public-Identity each."""
    return tuple([make_avp(PUBLIC_IDENTITY, VENDOR_3GPP, impu) for impu in impus])


def read_public_identities(message: DiameterMessage) -> tuple[Impu, ...]:
    """Return every Public-Identity. Raises AvpFault, CxError."""
    found = message.all(PUBLIC_IDENTITY, VENDOR_3GPP)
    if len(found) > MAX_IDENTITIES:
        raise AvpFault(ResultCode.AVP_OCCURS_TOO_MANY_TIMES, f"more than {MAX_IDENTITIES} Public-Identities", found[-1])
    return tuple([read_impu(avp) for avp in found])


def associated_identities(impis: Sequence[Impi]) -> tuple[Avp, ...]:
    """Return Associated-Identities, none if there are none."""
    group = [make_avp(base.USER_NAME, 0, impi) for impi in impis]
    return (make_avp(ASSOCIATED_IDENTITIES, VENDOR_3GPP, group, mandatory=False),) if group else ()


def read_associated_identities(message: DiameterMessage) -> tuple[Impi, ...]:
    """Return whom Associated-Identities names, as far as they can be IMPIs."""
    group = message.first(ASSOCIATED_IDENTITIES, VENDOR_3GPP)
    named = [avp for avp in group.group if avp.code == base.USER_NAME and not avp.vendor][:MAX_IDENTITIES] if group else []
    found = []
    for avp in named:
        try:
            found.append(read_impi(avp))
        except (CxError, ParseError):
            continue
    return tuple(found)


def read_enumerated(kind: type[_E], avp: Avp) -> _E:
    """Return the value of an Enumerated AVP. Raises AvpFault."""
    try:
        return kind(avp.number)
    except ValueError:
        raise AvpFault(ResultCode.INVALID_AVP_VALUE, f"{avp.name} has no such value", avp) from None


# What never changes is made once.
_VENDOR = constant(make_avp(base.VENDOR_ID, 0, VENDOR_3GPP))
_APPLICATION = constant(base.vendor_specific(Application(base.CX, VENDOR_3GPP)))
_NO_STATE = constant(make_avp(base.AUTH_SESSION_STATE, 0, 1))  # NO_STATE_MAINTAINED (TS 29.229 §5)
_SUCCESS = constant(make_avp(base.RESULT_CODE, 0, ResultCode.SUCCESS))
