# SPDX-License-Identifier: Apache-2.0
"""The base protocol: capabilities, watchdog, disconnection, answers and result codes (RFC 6733 §5, §6.2, §7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final, NamedTuple

from keyferry.errors import ParseError
from keyferry.protocol.diameter.message import VENDOR_3GPP, VENDOR_ETSI, Avp, AvpFault, DiameterMessage, constant, make_avp

BASE: Final = 0
"""Application of the base protocol's own commands (§2.4)."""
RELAY: Final = 0xFFFF_FFFF
"""Application that a relay advertises: it has each in common with us (§2.4)."""
CX: Final = 16_777_216

CAPABILITIES_EXCHANGE: Final = 257
DEVICE_WATCHDOG: Final = 280
DISCONNECT_PEER: Final = 282

USER_NAME: Final = 1
HOST_IP_ADDRESS: Final = 257
AUTH_APPLICATION_ID: Final = 258
ACCT_APPLICATION_ID: Final = 259
VENDOR_SPECIFIC_APPLICATION_ID: Final = 260
SESSION_ID: Final = 263
ORIGIN_HOST: Final = 264
SUPPORTED_VENDOR_ID: Final = 265
VENDOR_ID: Final = 266
FIRMWARE_REVISION: Final = 267
RESULT_CODE: Final = 268
PRODUCT_NAME: Final = 269
DISCONNECT_CAUSE: Final = 273
AUTH_SESSION_STATE: Final = 277
ORIGIN_STATE_ID: Final = 278
FAILED_AVP: Final = 279
PROXY_HOST: Final = 280
ERROR_MESSAGE: Final = 281
ROUTE_RECORD: Final = 282
DESTINATION_REALM: Final = 283
PROXY_INFO: Final = 284
REDIRECT_HOST: Final = 292
DESTINATION_HOST: Final = 293
ORIGIN_REALM: Final = 296
EXPERIMENTAL_RESULT: Final = 297
EXPERIMENTAL_RESULT_CODE: Final = 298

MAX_IDENTITY: Final = 255
"""Octets of a DiameterIdentity, which is a FQDN or a realm (§4.3.1)."""
MAX_REPEATED: Final = 65_536
"""Octets of Session-Id and Proxy-Info that an answer repeats, and of a Failed-AVP: whatever a request was, its answer has to fit."""
_REPEATED: Final = frozenset({SESSION_ID, PROXY_INFO})
MAX_ADVERTISED: Final = 64
"""Applications, vendors and addresses that are read of one peer; the rest is ignored."""


class ResultCode(IntEnum):
    """Result-Code (§7.1)."""

    SUCCESS = 2001
    LIMITED_SUCCESS = 2002
    COMMAND_UNSUPPORTED = 3001
    UNABLE_TO_DELIVER = 3002
    REALM_NOT_SERVED = 3003
    TOO_BUSY = 3004
    LOOP_DETECTED = 3005
    REDIRECT_INDICATION = 3006
    APPLICATION_UNSUPPORTED = 3007
    INVALID_HDR_BITS = 3008
    INVALID_AVP_BITS = 3009
    UNKNOWN_PEER = 3010
    AUTHENTICATION_REJECTED = 4001
    OUT_OF_SPACE = 4002
    ELECTION_LOST = 4003
    AVP_UNSUPPORTED = 5001
    UNKNOWN_SESSION_ID = 5002
    AUTHORIZATION_REJECTED = 5003
    INVALID_AVP_VALUE = 5004
    MISSING_AVP = 5005
    RESOURCES_EXCEEDED = 5006
    CONTRADICTING_AVPS = 5007
    AVP_NOT_ALLOWED = 5008
    AVP_OCCURS_TOO_MANY_TIMES = 5009
    NO_COMMON_APPLICATION = 5010
    UNSUPPORTED_VERSION = 5011
    UNABLE_TO_COMPLY = 5012
    INVALID_BIT_IN_HEADER = 5013
    INVALID_AVP_LENGTH = 5014
    INVALID_MESSAGE_LENGTH = 5015
    INVALID_AVP_BIT_COMBO = 5016
    NO_COMMON_SECURITY = 5017


class DisconnectCause(IntEnum):
    """Disconnect-Cause (§5.4.3)."""

    REBOOTING = 0
    BUSY = 1
    DO_NOT_WANT_TO_TALK_TO_YOU = 2


class Application(NamedTuple):
    """An authorization application, of a vendor unless that is 0."""

    auth_id: int
    vendor: int


PRODUCT: Final = "keyferry"
"""Our Product-Name."""


@dataclass(frozen=True)
class DiameterIdentity:
    """Who we are to every peer."""

    origin_host: str  # a FQDN
    origin_realm: str
    product: str = PRODUCT
    # In this order: the cdp of Kamailio 5.6 keeps as many applications as there are vendors here, and reads ours first.
    vendor_ids: tuple[int, ...] = (VENDOR_3GPP, VENDOR_ETSI)
    applications: tuple[Application, ...] = (Application(CX, VENDOR_3GPP),)
    origin_state: int | None = None  # grows with each start that lost its state (§8.16)

    @cached_property
    def origin(self) -> tuple[Avp, Avp]:
        """Origin-Host and Origin-Realm, which each message has."""
        return constant(make_avp(ORIGIN_HOST, 0, self.origin_host)), constant(make_avp(ORIGIN_REALM, 0, self.origin_realm))

    @cached_property
    def capabilities(self) -> tuple[Avp, ...]:
        """What CER and CEA say of us beside addresses, after Origin-Host and Origin-Realm."""
        state = () if self.origin_state is None else (make_avp(ORIGIN_STATE_ID, 0, self.origin_state),)
        vendors = tuple(make_avp(SUPPORTED_VENDOR_ID, 0, vendor) for vendor in self.vendor_ids)
        plain = tuple(make_avp(AUTH_APPLICATION_ID, 0, one.auth_id) for one in self.applications if not one.vendor)
        specific = tuple(vendor_specific(one) for one in self.applications if one.vendor)
        # Vendor-Id is that of who made the product: 0 says nothing (§5.3.3), and we have no number.
        return make_avp(VENDOR_ID, 0, 0), make_avp(PRODUCT_NAME, 0, self.product, mandatory=False), *state, *vendors, *plain, *specific


class PeerCapabilities(NamedTuple):
    """What a CER or CEA says of the peer."""

    origin_host: str
    origin_realm: str
    product: str = ""
    applications: frozenset[int] = frozenset()  # Auth-Application-Ids, those of vendors too
    vendor_ids: tuple[int, ...] = ()
    origin_state: int | None = None


class Result(NamedTuple):
    """How an answer ends; an experimental code is of a vendor (§7.6), and its numbers are not those of RFC 6733."""

    code: int
    experimental: bool

    @property
    def success(self) -> bool:
        """Whether it is 2xxx."""
        return 2000 <= self.code < 3000


class Identifiers:
    """Hop-by-hop and end-to-end identifiers of one connection (§3); chance gives where they begin."""

    __slots__ = ("_end_to_end", "_hop_by_hop")

    def __init__(self, hop_by_hop: int, end_to_end: int) -> None:
        self._hop_by_hop = hop_by_hop
        self._end_to_end = end_to_end

    def hop_by_hop(self) -> int:
        """Return the next one: unique on this connection."""
        self._hop_by_hop = self._hop_by_hop + 1 & 0xFFFF_FFFF
        return self._hop_by_hop

    def end_to_end(self) -> int:
        """Return the next one: unique for four minutes, restarts too, so it begins with twelve bits of the time (§3)."""
        self._end_to_end = self._end_to_end + 1 & 0xFFFF_FFFF
        return self._end_to_end


def first_end_to_end(now: float, chance: int) -> int:
    """Return where end-to-end identifiers begin: low twelve bits of the time, twenty of chance (§3)."""
    return (int(now) & 0xFFF) << 20 | chance & 0xF_FFFF


def session_id(origin_host: str, high: int, low: int, optional: str = "") -> str:
    """Return a Session-Id (§8.8): `high` is of the time of the start, `low` counts, and together they never come again.

    `optional` is a part of our own choice.
    """
    text = f"{origin_host};{high & 0xFFFF_FFFF};{low & 0xFFFF_FFFF}"
    return f"{text};{optional}" if optional else text


def vendor_specific(application: Application) -> Avp:
    """Return Vendor-Specific-Application-Id (§6.11)."""
    inside = make_avp(VENDOR_ID, 0, application.vendor), make_avp(AUTH_APPLICATION_ID, 0, application.auth_id)
    return make_avp(VENDOR_SPECIFIC_APPLICATION_ID, 0, inside)


def octets_repeated(request: DiameterMessage) -> int:
    """Return how long what the answer to a request repeats would be; over MAX_REPEATED it has none of it, and no use."""
    return sum([len(avp.data) for avp in request.avps if avp.code in _REPEATED and not avp.vendor])


def answer_to(request: DiameterMessage, avps: Sequence[Avp], *, error: bool = False) -> DiameterMessage:
    """Return the answer to a request (§6.2): its identifiers, P flag, Session-Id first, Proxy-Info as it came, and these AVPs."""
    session, proxies = request.all(SESSION_ID)[:1], request.all(PROXY_INFO)
    if octets_repeated(request) > MAX_REPEATED:
        session, proxies = (), ()
    return DiameterMessage(
        request.code, request.application, False, (*session, *avps, *proxies), request.proxiable, error, False,
        request.hop_by_hop, request.end_to_end,
    )  # fmt: skip


def error_answer(
    request: DiameterMessage, code: int, identity: DiameterIdentity, *, failed: Avp | None = None, message: str = ""
) -> DiameterMessage:
    """Return an answer that refuses a request; protocol errors, 3xxx, have the E bit (§7.1.3, §7.2)."""
    avps = [*identity.origin, make_avp(RESULT_CODE, 0, code)]
    if message:
        avps.append(make_avp(ERROR_MESSAGE, 0, message, mandatory=False))
    if failed is not None:
        avps.append(failed_avp(failed))
    return answer_to(request, avps, error=3000 <= code < 4000)


def failed_avp(failed: Avp) -> Avp:
    """Return Failed-AVP (§7.5) with what was wrong; of one that is very long without its data."""
    shown = failed if len(failed.data) <= MAX_REPEATED else Avp(failed.code, failed.vendor, b"", failed.flags)
    return make_avp(FAILED_AVP, 0, (shown,))


def result_of(message: DiameterMessage) -> Result:
    """Return how an answer ends, an experimental result before a base one, as it says more.

    Raises ParseError: there is none.
    """
    experimental = message.first(EXPERIMENTAL_RESULT)
    if experimental is not None and (code := experimental.first(EXPERIMENTAL_RESULT_CODE)) is not None:
        return Result(code.number, experimental=True)
    plain = message.first(RESULT_CODE)
    if plain is None:
        raise ParseError("Diameter answer", "has no result")
    return Result(plain.number, experimental=False)


def build_cer(identity: DiameterIdentity, addresses: Sequence[str]) -> DiameterMessage:
    """Return a Capabilities-Exchange-Request (§5.3.1); `addresses` are those of our end of the connection.

    Raises LocalProtocolError.
    """
    return DiameterMessage(CAPABILITIES_EXCHANGE, BASE, True, _capabilities(identity, addresses))


def build_cea(request: DiameterMessage, identity: DiameterIdentity, addresses: Sequence[str], code: int = 2001) -> DiameterMessage:
    """Return a Capabilities-Exchange-Answer (§5.3.2)."""
    result = make_avp(RESULT_CODE, 0, code)
    return answer_to(request, (result, *_capabilities(identity, addresses)), error=3000 <= code < 4000)


def parse_capabilities(message: DiameterMessage) -> PeerCapabilities:
    """Read a CER or CEA; what RFC 6733 demands and nobody needs, such as Host-IP-Address, may be missing.

    Raises AvpFault.
    """
    applications: set[int] = set()
    for avp in message.avps:
        if avp.code in (AUTH_APPLICATION_ID, ACCT_APPLICATION_ID) and not avp.vendor:
            applications.add(avp.number)
        elif avp.code == VENDOR_SPECIFIC_APPLICATION_ID and not avp.vendor:
            applications.update(
                inner.number for inner in avp.group if inner.code in (AUTH_APPLICATION_ID, ACCT_APPLICATION_ID) and not inner.vendor
            )
        if len(applications) >= MAX_ADVERTISED:
            break
    product, state = message.first(PRODUCT_NAME), message.first(ORIGIN_STATE_ID)
    return PeerCapabilities(
        identity_of(message, ORIGIN_HOST),
        identity_of(message, ORIGIN_REALM),
        product.text[:MAX_IDENTITY] if product else "",
        frozenset(applications),
        tuple(avp.number for avp in message.all(SUPPORTED_VENDOR_ID)[:MAX_ADVERTISED]),
        state.number if state else None,
    )


def identity_of(message: DiameterMessage, code: int) -> str:
    """Return a DiameterIdentity of a message, such as its Origin-Host, in lower case: it is a name of the DNS.

    Raises AvpFault: missing, empty, too long or no text.
    """
    avp = message.first(code)
    if avp is None:
        raise AvpFault(ResultCode.MISSING_AVP, f"{Avp(code, 0, b'', 0).name} is missing", make_avp(code, 0, b""))
    if not 0 < len(avp.data) <= MAX_IDENTITY:
        raise AvpFault(ResultCode.INVALID_AVP_VALUE, f"{avp.name} is empty or over {MAX_IDENTITY} octets", avp)
    return avp.text.lower()


def common_applications(identity: DiameterIdentity, peer: PeerCapabilities) -> frozenset[int]:
    """Return which of our applications the peer has too; all, if it is a relay (§5.3)."""
    ours = frozenset(one.auth_id for one in identity.applications)
    return ours if RELAY in peer.applications else ours & peer.applications


def build_dwr(identity: DiameterIdentity) -> DiameterMessage:
    """Return a Device-Watchdog-Request (§5.5.1)."""
    return DiameterMessage(DEVICE_WATCHDOG, BASE, True, (*identity.origin, *_state(identity)))


def build_dwa(request: DiameterMessage, identity: DiameterIdentity) -> DiameterMessage:
    """Return a Device-Watchdog-Answer (§5.5.2)."""
    return answer_to(request, (_SUCCESS, *identity.origin, *_state(identity)))


def build_dpr(identity: DiameterIdentity, cause: DisconnectCause) -> DiameterMessage:
    """Return a Disconnect-Peer-Request (§5.4.1)."""
    return DiameterMessage(DISCONNECT_PEER, BASE, True, (*identity.origin, make_avp(DISCONNECT_CAUSE, 0, cause)))


def build_dpa(request: DiameterMessage, identity: DiameterIdentity) -> DiameterMessage:
    """Return a Disconnect-Peer-Answer (§5.4.2)."""
    return answer_to(request, (_SUCCESS, *identity.origin))


def parse_dpr(message: DiameterMessage) -> DisconnectCause:
    """Return why the peer leaves; REBOOTING where it does not say or says what nobody knows, as it means the least."""
    avp = message.first(DISCONNECT_CAUSE)
    try:
        return DisconnectCause(avp.number) if avp else DisconnectCause.REBOOTING
    except (ValueError, AvpFault):
        return DisconnectCause.REBOOTING


def _capabilities(identity: DiameterIdentity, addresses: Sequence[str]) -> tuple[Avp, ...]:
    return *identity.origin, *(make_avp(HOST_IP_ADDRESS, 0, address) for address in addresses), *identity.capabilities


def _state(identity: DiameterIdentity) -> tuple[Avp, ...]:
    return () if identity.origin_state is None else (make_avp(ORIGIN_STATE_ID, 0, identity.origin_state),)


_SUCCESS = constant(make_avp(RESULT_CODE, 0, ResultCode.SUCCESS))
