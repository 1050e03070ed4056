# SPDX-License-Identifier: Apache-2.0
"""Cx and Dx: the six commands, both directions each (TS 29.228 §6, TS 29.229 §6, Release 17).

`build_mar` and `parse_mar` are the reverse of each other, and so on. What a parser raises says what to do: of a request AvpFault or
CxError, which `build_error` makes an answer of; of an answer CxError, if it refuses, and ParseError, if it cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.aka import AUTN_OCTETS, AUTS_OCTETS, AuthVector
from keyferry.protocol.crypto.functions import RAND_OCTETS
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.diameter import base
from keyferry.protocol.diameter.base import DiameterIdentity, ResultCode
from keyferry.protocol.diameter.cx_fields import (
    AKA_SCHEME,
    CONFIDENTIALITY_KEY,
    DEREGISTRATION_REASON,
    INTEGRITY_KEY,
    KEY_OCTETS,
    LOCATION_INFO,
    MANDATORY_CAPABILITY,
    MAX_ITEMS,
    MAX_RES,
    MAX_SERVER_DATA,
    MIN_RES,
    MULTIMEDIA_AUTH,
    OPTIONAL_CAPABILITY,
    PUBLIC_IDENTITY,
    PUSH_PROFILE,
    REASON_CODE,
    REASON_INFO,
    REGISTRATION_TERMINATION,
    SERVER_ASSIGNMENT,
    SERVER_ASSIGNMENT_TYPE,
    SERVER_CAPABILITIES,
    SERVER_NAME,
    SIP_AUTH_DATA_ITEM,
    SIP_AUTHENTICATE,
    SIP_AUTHENTICATION_SCHEME,
    SIP_AUTHORIZATION,
    SIP_ITEM_NUMBER,
    SIP_NUMBER_AUTH_ITEMS,
    SUCCESS,
    UNKNOWN_SCHEME,
    USER_AUTHORIZATION,
    USER_AUTHORIZATION_TYPE,
    USER_DATA,
    USER_DATA_ALREADY_AVAILABLE,
    VISITED_NETWORK_IDENTIFIER,
    AuthItem,
    Capabilities,
    CxResult,
    Fields,
    Lia,
    Lir,
    Maa,
    Mar,
    Ppr,
    ReasonCode,
    Resynchronisation,
    Route,
    Rta,
    Rtr,
    Saa,
    Sar,
    ServerAssignmentType,
    Uaa,
    Uar,
    UserAuthorizationType,
    answered_impi,
    answered_impu,
    associated_identities,
    build_answer,
    build_error,
    build_request,
    check_success,
    cx_error_of,
    error_for,
    public_identities,
    read_associated_identities,
    read_enumerated,
    read_impi,
    read_public_identities,
    user_name,
)
from keyferry.protocol.diameter.message import VENDOR_3GPP, Avp, AvpFault, DiameterMessage, constant, first, make_avp

__all__ = [
    "AKA_SCHEME",
    "LOCATION_INFO",
    "MULTIMEDIA_AUTH",
    "PUSH_PROFILE",
    "REGISTRATION_TERMINATION",
    "SERVER_ASSIGNMENT",
    "SUCCESS",
    "UNKNOWN_SCHEME",
    "USER_AUTHORIZATION",
    "AuthItem",
    "Capabilities",
    "CxResult",
    "Lia",
    "Lir",
    "Maa",
    "Mar",
    "Ppr",
    "ReasonCode",
    "Resynchronisation",
    "Route",
    "Rta",
    "Rtr",
    "Saa",
    "Sar",
    "ServerAssignmentType",
    "Uaa",
    "Uar",
    "UserAuthorizationType",
    "build_error",
    "build_lia",
    "build_lir",
    "build_maa",
    "build_mar",
    "build_ppa",
    "build_ppr",
    "build_rta",
    "build_rtr",
    "build_saa",
    "build_sar",
    "build_uaa",
    "build_uar",
    "cx_error_of",
    "error_for",
    "parse_lia",
    "parse_lir",
    "parse_maa",
    "parse_mar",
    "parse_ppa",
    "parse_ppr",
    "parse_rta",
    "parse_rtr",
    "parse_saa",
    "parse_sar",
    "parse_uaa",
    "parse_uar",
]

_AKA = constant(make_avp(SIP_AUTHENTICATION_SCHEME, VENDOR_3GPP, AKA_SCHEME))


# ---- UAR, LIR: which S-CSCF


def build_uar(uar: Uar, route: Route) -> DiameterMessage:
    """Return a UAR (TS 29.229 §6.1.1)."""
    visited = make_avp(VISITED_NETWORK_IDENTIFIER, VENDOR_3GPP, uar.visited_network)
    kind = make_avp(USER_AUTHORIZATION_TYPE, VENDOR_3GPP, uar.kind)
    return build_request(USER_AUTHORIZATION, route, (*user_name(uar.impi), *public_identities((uar.impu,)), visited, kind))


def parse_uar(message: DiameterMessage) -> Uar:
    """Read a UAR. Raises AvpFault, CxError."""
    fields = Fields(message, USER_AUTHORIZATION)
    visited, kind = fields.need(VISITED_NETWORK_IDENTIFIER), fields.get(USER_AUTHORIZATION_TYPE)
    # Without a type it is a registration (TS 29.228 §6.1.1).
    return Uar(
        fields.impi(), fields.impu(), visited.text, read_enumerated(UserAuthorizationType, kind) if kind else UserAuthorizationType(0)
    )


def build_uaa(request: DiameterMessage, uaa: Uaa, identity: DiameterIdentity) -> DiameterMessage:
    """Return a UAA (TS 29.229 §6.1.2)."""
    return build_answer(request, uaa.result, identity, _server(uaa.server_name, uaa.capabilities))


def parse_uaa(message: DiameterMessage) -> Uaa:
    """Read a UAA. Raises CxError, ParseError."""
    return Uaa(check_success(message, USER_AUTHORIZATION), *_read_server(message))


def build_lir(lir: Lir, route: Route) -> DiameterMessage:
    """Return a LIR (TS 29.229 §6.1.5)."""
    return build_request(LOCATION_INFO, route, public_identities((lir.impu,)))


def parse_lir(message: DiameterMessage) -> Lir:
    """Read a LIR. Raises AvpFault, CxError."""
    return Lir(Fields(message, LOCATION_INFO).impu())


def build_lia(request: DiameterMessage, lia: Lia, identity: DiameterIdentity) -> DiameterMessage:
    """Return a LIA (TS 29.229 §6.1.6)."""
    return build_answer(request, lia.result, identity, _server(lia.server_name, lia.capabilities))


def parse_lia(message: DiameterMessage) -> Lia:
    """Read a LIA. Raises CxError, ParseError."""
    return Lia(check_success(message, LOCATION_INFO), *_read_server(message))


def _server(name: str | None, capabilities: Capabilities | None) -> tuple[Avp, ...]:
    found = () if name is None else (make_avp(SERVER_NAME, VENDOR_3GPP, name),)
    if capabilities is None:
        return found
    group = [make_avp(MANDATORY_CAPABILITY, VENDOR_3GPP, number) for number in capabilities.mandatory]
    group += [make_avp(OPTIONAL_CAPABILITY, VENDOR_3GPP, number) for number in capabilities.optional]
    group += [make_avp(SERVER_NAME, VENDOR_3GPP, each) for each in capabilities.server_names]
    return *found, make_avp(SERVER_CAPABILITIES, VENDOR_3GPP, group)


def _read_server(message: DiameterMessage) -> tuple[str | None, Capabilities | None]:
    name, group = message.first(SERVER_NAME, VENDOR_3GPP), message.first(SERVER_CAPABILITIES, VENDOR_3GPP)
    if group is None:
        return name.text if name else None, None
    held = [avp for avp in group.group if avp.vendor == VENDOR_3GPP]
    capabilities = Capabilities(
        tuple(avp.number for avp in held if avp.code == MANDATORY_CAPABILITY),
        tuple(avp.number for avp in held if avp.code == OPTIONAL_CAPABILITY),
        tuple(avp.text for avp in held if avp.code == SERVER_NAME),
    )
    return name.text if name else None, capabilities


# ---- MAR: vectors


def build_mar(mar: Mar, route: Route) -> DiameterMessage:
    """Return a MAR (TS 29.229 §6.1.7).

    Raises LocalProtocolError.
    """
    item = [make_avp(SIP_AUTHENTICATION_SCHEME, VENDOR_3GPP, mar.scheme)]
    if mar.resynchronisation is not None:
        rand, auts = mar.resynchronisation
        if len(rand) != RAND_OCTETS or len(auts) != AUTS_OCTETS:
            raise LocalProtocolError("RAND has 16 octets, AUTS 14")
        item.append(make_avp(SIP_AUTHORIZATION, VENDOR_3GPP, rand + auts))
    avps = (
        *user_name(mar.impi),
        *public_identities((mar.impu,)),
        make_avp(SIP_NUMBER_AUTH_ITEMS, VENDOR_3GPP, mar.items),
        make_avp(SIP_AUTH_DATA_ITEM, VENDOR_3GPP, item),
        make_avp(SERVER_NAME, VENDOR_3GPP, mar.server_name),
    )
    return build_request(MULTIMEDIA_AUTH, route, avps)


def parse_mar(message: DiameterMessage) -> Mar:
    """Read a MAR. Raises AvpFault, CxError."""
    fields = Fields(message, MULTIMEDIA_AUTH)
    item = fields.need(SIP_AUTH_DATA_ITEM)
    scheme = item.first(SIP_AUTHENTICATION_SCHEME, VENDOR_3GPP)
    if scheme is None:
        raise AvpFault(ResultCode.MISSING_AVP, "SIP-Authentication-Scheme is missing", make_avp(SIP_AUTHENTICATION_SCHEME, VENDOR_3GPP, ""))
    authorization, items = item.first(SIP_AUTHORIZATION, VENDOR_3GPP), fields.get(SIP_NUMBER_AUTH_ITEMS)
    return Mar(
        fields.impi(),
        fields.impu(),
        fields.need(SERVER_NAME).text,
        scheme.text,
        items.number if items else 1,
        _resynchronisation(authorization) if authorization is not None and authorization.data else None,
    )


def _resynchronisation(avp: Avp) -> Resynchronisation:
    """Return RAND, which is first, and AUTS, which is last: some S-CSCFs leave the rest of the nonce between them."""
    longest = RAND_OCTETS + AUTN_OCTETS + MAX_SERVER_DATA + AUTS_OCTETS
    if not RAND_OCTETS + AUTS_OCTETS <= len(avp.data) <= longest:
        raise AvpFault(ResultCode.INVALID_AVP_VALUE, "SIP-Authorization is not RAND and AUTS", avp)
    return Resynchronisation(avp.data[:RAND_OCTETS], avp.data[-AUTS_OCTETS:])


def build_maa(request: DiameterMessage, maa: Maa, identity: DiameterIdentity) -> DiameterMessage:
    """Return a MAA (TS 29.229 §6.1.8): here, and nowhere else, vectors leave."""
    items = [_item(number, item) for number, item in enumerate(maa.items, 1)]
    count = make_avp(SIP_NUMBER_AUTH_ITEMS, VENDOR_3GPP, len(items))
    impus = () if maa.impu is None else public_identities((maa.impu,))
    return build_answer(request, SUCCESS, identity, (*user_name(maa.impi), *impus, count, *items))


def _item(number: int, item: AuthItem) -> Avp:
    vector = item.vector
    group = (
        make_avp(SIP_ITEM_NUMBER, VENDOR_3GPP, number),
        _AKA,
        make_avp(SIP_AUTHENTICATE, VENDOR_3GPP, vector.rand + vector.autn + item.server_data),
        make_avp(SIP_AUTHORIZATION, VENDOR_3GPP, vector.xres.reveal()),
        make_avp(CONFIDENTIALITY_KEY, VENDOR_3GPP, vector.ck.reveal()),
        make_avp(INTEGRITY_KEY, VENDOR_3GPP, vector.ik.reveal()),
    )
    return make_avp(SIP_AUTH_DATA_ITEM, VENDOR_3GPP, group)


def parse_maa(message: DiameterMessage) -> Maa:
    """Read a MAA; what is of another scheme than AKA is passed over.

    Raises CxError, where that is all there is too, and ParseError.
    """
    check_success(message, MULTIMEDIA_AUTH)
    groups = message.all(SIP_AUTH_DATA_ITEM, VENDOR_3GPP)[:MAX_ITEMS]
    if not groups:
        raise ParseError("MAA", "has no SIP-Auth-Data-Item")
    numbered = [(_item_number(group.group, place), _read_item(group.group)) for place, group in enumerate(groups, 1)]
    # Sorted by number alone: where peers number none, or all alike, the order stays.
    items = tuple([item for _, item in sorted(numbered, key=lambda pair: pair[0]) if item is not None])
    if not items:
        raise error_for(CxResult.ERROR_AUTH_SCHEME_NOT_SUPPORTED)
    return Maa(answered_impi(message), answered_impu(message), items)


def _item_number(group: Sequence[Avp], place: int) -> int:
    number = first(group, SIP_ITEM_NUMBER, VENDOR_3GPP)
    return number.number if number else place


def _read_item(group: Sequence[Avp]) -> AuthItem | None:
    """Return a vector, None if it is of another scheme."""
    scheme = first(group, SIP_AUTHENTICATION_SCHEME, VENDOR_3GPP)
    if scheme is not None and scheme.data != _AKA.data:
        return None
    authenticate = _octets(group, SIP_AUTHENTICATE, RAND_OCTETS + AUTN_OCTETS, RAND_OCTETS + AUTN_OCTETS + MAX_SERVER_DATA)
    vector = AuthVector(
        rand=authenticate[:RAND_OCTETS],
        autn=authenticate[RAND_OCTETS : RAND_OCTETS + AUTN_OCTETS],
        xres=Secret(_octets(group, SIP_AUTHORIZATION, MIN_RES, MAX_RES)),
        ck=Secret(_octets(group, CONFIDENTIALITY_KEY, KEY_OCTETS, KEY_OCTETS)),
        ik=Secret(_octets(group, INTEGRITY_KEY, KEY_OCTETS, KEY_OCTETS)),
    )
    return AuthItem(vector, authenticate[RAND_OCTETS + AUTN_OCTETS :])


def _octets(group: Sequence[Avp], code: int, least: int, most: int) -> bytes:
    avp = first(group, code, VENDOR_3GPP)
    if avp is None or not least <= len(avp.data) <= most:
        raise ParseError("MAA", f"{Avp(code, VENDOR_3GPP, b'', 0).name} is missing, or has not {least} to {most} octets")
    return avp.data


# ---- SAR: assignment and profile


def build_sar(sar: Sar, route: Route) -> DiameterMessage:
    """Return a SAR (TS 29.229 §6.1.3)."""
    avps = (
        *user_name(sar.impi),
        *public_identities(sar.impus),
        make_avp(SERVER_NAME, VENDOR_3GPP, sar.server_name),
        make_avp(SERVER_ASSIGNMENT_TYPE, VENDOR_3GPP, sar.assignment),
        make_avp(USER_DATA_ALREADY_AVAILABLE, VENDOR_3GPP, sar.user_data_available),
    )
    return build_request(SERVER_ASSIGNMENT, route, avps)


def parse_sar(message: DiameterMessage) -> Sar:
    """Read a SAR. Raises AvpFault, CxError."""
    fields = Fields(message, SERVER_ASSIGNMENT)
    user_name, available = fields.get(base.USER_NAME), fields.get(USER_DATA_ALREADY_AVAILABLE)
    impus = read_public_identities(message)
    if user_name is None and not impus:
        raise AvpFault(ResultCode.MISSING_AVP, "a SAR names a user", make_avp(PUBLIC_IDENTITY, VENDOR_3GPP, ""))
    return Sar(
        read_impi(user_name) if user_name else None,
        impus,
        fields.need(SERVER_NAME).text,
        read_enumerated(ServerAssignmentType, fields.need(SERVER_ASSIGNMENT_TYPE)),
        available is not None and available.number == 1,
    )


def build_saa(request: DiameterMessage, saa: Saa, identity: DiameterIdentity) -> DiameterMessage:
    """Return a SAA (TS 29.229 §6.1.4)."""
    data = (make_avp(USER_DATA, VENDOR_3GPP, saa.user_data),) if saa.user_data else ()
    return build_answer(request, saa.result, identity, (*user_name(saa.impi), *data, *associated_identities(saa.associated)))


def parse_saa(message: DiameterMessage) -> Saa:
    """Read a SAA. Raises CxError, ParseError."""
    result = check_success(message, SERVER_ASSIGNMENT)
    data = message.first(USER_DATA, VENDOR_3GPP)
    return Saa(answered_impi(message), data.data if data else b"", result, read_associated_identities(message))


# ---- RTR, PPR: what the HSS asks of the S-CSCF


def build_rtr(rtr: Rtr, route: Route) -> DiameterMessage:
    """Return a RTR (TS 29.229 §6.1.9); `route` names the S-CSCF's host."""
    group = [make_avp(REASON_CODE, VENDOR_3GPP, rtr.reason)]
    if rtr.info:
        group.append(make_avp(REASON_INFO, VENDOR_3GPP, rtr.info))
    reason = make_avp(DEREGISTRATION_REASON, VENDOR_3GPP, group)
    avps = (*user_name(rtr.impi), *associated_identities(rtr.associated), *public_identities(rtr.impus), reason)
    return build_request(REGISTRATION_TERMINATION, route, avps)


def parse_rtr(message: DiameterMessage) -> Rtr:
    """Read a RTR. Raises AvpFault, CxError."""
    fields = Fields(message, REGISTRATION_TERMINATION)
    group = fields.need(DEREGISTRATION_REASON)
    code, info = group.first(REASON_CODE, VENDOR_3GPP), group.first(REASON_INFO, VENDOR_3GPP)
    if code is None:
        raise AvpFault(ResultCode.MISSING_AVP, "Reason-Code is missing", make_avp(REASON_CODE, VENDOR_3GPP, 0))
    impus = read_public_identities(message)
    return Rtr(fields.impi(), impus, read_enumerated(ReasonCode, code), info.text if info else "", read_associated_identities(message))


def build_rta(request: DiameterMessage, rta: Rta, identity: DiameterIdentity) -> DiameterMessage:
    """Return a RTA that says it is done (TS 29.229 §6.1.10)."""
    return build_answer(request, SUCCESS, identity, associated_identities(rta.associated))


def parse_rta(message: DiameterMessage) -> Rta:
    """Read a RTA. Raises CxError, ParseError."""
    check_success(message, REGISTRATION_TERMINATION)
    return Rta(read_associated_identities(message))


def build_ppr(ppr: Ppr, route: Route) -> DiameterMessage:
    """Return a PPR with a profile (TS 29.229 §6.1.11); `route` names the S-CSCF's host."""
    return build_request(PUSH_PROFILE, route, (*user_name(ppr.impi), make_avp(USER_DATA, VENDOR_3GPP, ppr.user_data)))


def parse_ppr(message: DiameterMessage) -> Ppr:
    """Read a PPR; one without User-Data, which changes charging addresses only, has an empty one. Raises AvpFault, CxError."""
    fields = Fields(message, PUSH_PROFILE)
    data = fields.get(USER_DATA)
    return Ppr(fields.impi(), data.data if data else b"")


def build_ppa(request: DiameterMessage, identity: DiameterIdentity) -> DiameterMessage:
    """Return a PPA that says it is done (TS 29.229 §6.1.12)."""
    return build_answer(request, SUCCESS, identity)


def parse_ppa(message: DiameterMessage) -> None:
    """Check a PPA. Raises CxError, ParseError."""
    check_success(message, PUSH_PROFILE)
