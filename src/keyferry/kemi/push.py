# SPDX-License-Identifier: Apache-2.0
"""The key block in a third-party REGISTER that Kamailio's ims_isc makes (TS 24.229 §5.4.1.7, Release 17; DESIGN §6)."""

from __future__ import annotations

from typing import Final, NamedTuple

from keyferry.errors import ParseError
from keyferry.kemi.requests import transaction_of
from keyferry.protocol.crypto.aes import Siv
from keyferry.protocol.crypto.secret import Secret
from keyferry.protocol.identity import AsId, Impi, Impu, Reg, parse_impu
from keyferry.protocol.ims.keypush import Push, PushedKey, seal_push
from keyferry.protocol.ims.keys import as_key, key_id
from keyferry.protocol.ims.registration import key_not_after
from keyferry.protocol.ims.third_party import IMS_BODY, build_ims_body, parse_third_party_register
from keyferry.protocol.ims.user_profile import naf_of
from keyferry.protocol.sip.message import Request, parse_message

CONTENT_TYPE: Final = IMS_BODY


class ThirdParty(NamedTuple):
    """A third-party REGISTER as ims_isc made it."""

    server: str  # its Request-URI: the ServerName of the filter criterion
    impu: Impu
    expires: int  # seconds; 0: de-registration
    service_info: str | None  # the HSS's own
    transaction: str = ""  # its key, the same in its responses


class Owner(NamedTuple):
    """Whose key is pushed, and how long it lives."""

    impi: Impi
    reg: Reg
    impus: tuple[Impu, ...]
    realm: str
    aka_time: float  # seconds since the epoch
    expires_at: float  # of the registration


class Seal(NamedTuple):
    """What the block is sealed with."""

    scscf: str
    kid: str
    key: Siv


def read_third_party(data: bytes) -> ThirdParty:
    """Read the request as it would leave. Raises ParseError."""
    request = parse_message(data)
    if not isinstance(request, Request):
        raise ParseError("third-party REGISTER", "is a response")
    found = parse_third_party_register(request)
    return ThirdParty(request.uri, parse_impu(found.impu), found.expires, found.service_info, transaction_of(request))


def chosen(as_ids: tuple[AsId, ...], service_info: str | None) -> tuple[AsId, ...]:
    """Return which AS_IDs of a ServerName a criterion means: those that `naf=` in its ServiceInfo names, or all."""
    wanted = naf_of(service_info) if service_info else ()
    return tuple(as_id for as_id in as_ids if not wanted or as_id in wanted)


def key_body(owner: Owner, k_m: Secret, as_id: AsId, seq: int, service_info: str | None, seal: Seal, key_max_age: float) -> bytes:
    """Return the body that gives the AS its key, with the HSS's own `service_info`. Raises LocalProtocolError."""
    k_as = as_key(k_m, as_id)
    not_after = key_not_after(expires_at=owner.expires_at, aka_time=owner.aka_time, key_max_age=key_max_age)
    key = PushedKey(key_id(k_as, owner.realm), k_as, int(owner.aka_time), not_after)
    return _body(Push(seq, owner.impi, as_id, owner.reg, (key,), owner.impus, service_info), seal)


def erase_body(owner: Owner, as_id: AsId, seq: int, seal: Seal) -> bytes:
    """Return the body that takes the AS its keys of this device. Raises LocalProtocolError."""
    return _body(Push(seq, owner.impi, as_id, owner.reg), seal)


def _body(push: Push, seal: Seal) -> bytes:
    return build_ims_body(seal_push(push, transport_key=seal.key, scscf=seal.scscf, kid=seal.kid))
