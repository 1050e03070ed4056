# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: the bindings of one user, as a 200 lists them (RFC 3261 §10.3 steps 7, 8; TS 24.229 §5.4.1.2, Release 17)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from keyferry.errors import RemoteProtocolError
from keyferry.ports import Registration
from keyferry.protocol.identity import Impu, Reg
from keyferry.protocol.ims.registration import RegisterView, granted_contact
from keyferry.protocol.ims.user_profile import identities_of
from keyferry.protocol.sip.headers import parse_name_addr
from keyferry.protocol.sip.message import Response, is_too_large


def held_of(devices: Iterable[Registration], reg: Reg) -> Registration | None:
    """Return a device's registration out of its user's."""
    return next((each for each in devices if each.reg == reg), None)


def is_of(registration: Registration, impus: Collection[Impu]) -> bool:
    """Tell whether a registration is that of one of these identities, or of its implicit registration set; of () every one is."""
    return not impus or not {registration.impu, *identities_of(registration.user_data)}.isdisjoint(impus)


def with_device(devices: Sequence[Registration], registration: Registration) -> list[Registration]:
    """Return a user's registrations after one was committed, in the order of the store."""
    return sorted([*(each for each in devices if each.reg != registration.reg), registration], key=lambda each: each.reg)


def check_order(held: Registration | None, view: RegisterView) -> None:
    """Refuse a REGISTER that was sent before the one that made the binding (RFC 3261 §10.3 step 7; 500 as in §12.2.2).

    Raises RemoteProtocolError.
    """
    if held is not None and held.call_id == view.call_id and view.cseq <= held.cseq:
        raise RemoteProtocolError("CSeq is not higher than that of the binding", status=500)


def contacts_of(devices: Sequence[Registration], now: float, first: Reg | None = None) -> tuple[tuple[str, str], ...]:
    """Return one Contact for each current binding with the seconds it has left (§10.3 step 8); that of `first` in front."""
    current = [each for each in devices if each.expires_at > now]
    current.sort(key=lambda each: each.reg != first)  # stable: a client that reads one value reads its own
    return tuple(("Contact", granted_contact(each.contact, max(1, round(each.expires_at - now)))) for each in current)


def fitting(response: Response) -> Response:
    """Return a 200 that fits one message, with all that its REGISTER has it repeat and list. Raises RemoteProtocolError."""
    if is_too_large(response):
        raise RemoteProtocolError("the 200 would be too large: shorten Via, Path or Contact", status=413)
    return response


def may_stay(held: Registration | None, view: RegisterView, now: float, *, reauth_age: float) -> bool:
    """Tell whether a REGISTER that came protected belongs to the AKA run of a registration, so that no challenge is needed (§5.4.1.2.2).

    The associations that protected it were made by that run, between that address and that P-CSCF: whatever came another way, or asks
    for another release than the keys were made for, is challenged.
    """
    return (
        held is not None
        and not view.every_contact
        and now < held.expires_at
        and now < held.aka_time + reauth_age
        and (view.impu, view.path, view.release) == (held.impu, held.path, held.release)
        and view.contact_uri == parse_name_addr(held.contact).uri
    )
