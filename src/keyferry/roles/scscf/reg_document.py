# SPDX-License-Identifier: Apache-2.0
"""S-CSCF: what a user's registrations look like as reginfo (TS 24.229 §5.4.2.1.2, Release 17; RFC 3680 §5).

Here `expires` is a point in time, seconds since the epoch, so that two documents compare; `at` makes it seconds left.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from keyferry.errors import LocalProtocolError
from keyferry.ports import Registration
from keyferry.protocol.identity import Impu, Reg
from keyferry.protocol.ims.reginfo import (
    ACTIVE_EVENTS,
    ContactEvent,
    RegInfo,
    RegisteredAor,
    RegisteredContact,
    build_reginfo,
    carried,
    ended,
    shifted,
)
from keyferry.protocol.ims.user_profile import UserProfile
from keyferry.protocol.sip.headers import parse_name_addr_list

MAX_BODY = 60_000
"""Octets of a document: with the header it fits in one SIP message."""

_NOT_UNKNOWN = frozenset({"expires", "q"})  # RFC 3261 §20.10 knows them

ProfileOf: TypeAlias = Callable[[bytes], UserProfile]
News: TypeAlias = dict[tuple[str, str], tuple[str, RegisteredContact]]
"""Contacts that ended, by the ids of identity and contact, with the identity."""


class ContactNews(NamedTuple):
    """What happened to a device's contact, as the registrar knows it."""

    event: ContactEvent
    retry_after: int | None = None  # seconds, with `probation`


def event_of(previous: Registration | None, registration: Registration) -> ContactEvent:
    """Return what a REGISTER did to a contact: it is new, or its time was moved (RFC 3680 §5.1)."""
    if previous is None or previous.contact != registration.contact:
        return "registered"
    return "shortened" if registration.expires_at < previous.expires_at else "refreshed"


def impus_of(registrations: Sequence[Registration], profile_of: ProfileOf) -> tuple[Impu, ...]:
    """Return the identities of the implicit registration set that are not barred, as the newest profile has them."""
    if not registrations:
        return ()
    return profile_of(max(registrations, key=lambda each: each.aka_time).user_data).impus


def document_of(registrations: Sequence[Registration], events: Mapping[Reg, ContactEvent], profile_of: ProfileOf) -> RegInfo:
    """Return the full document: every identity with every device's contact.

    `events` say what last happened to each device; `registered` where they do not, after a restart.
    """
    aors = []
    for impu in impus_of(registrations, profile_of):
        contacts = tuple([_contact(impu, each, events.get(each.reg, "registered")) for each in registrations])
        aors.append(RegisteredAor(impu, _id(impu), "active", contacts))
    return RegInfo(0, "full", tuple(aors))


def news_of(
    before: Sequence[Registration], after: Sequence[Registration], told: Mapping[Reg, ContactNews], profile_of: ProfileOf, now: float
) -> News:
    """Return the contacts that ended between two states of one user, each with its event.

    `told` overrides what the two states suggest: `expired` or `unregistered` for a device that went, by its time; `unregistered` for
    the old address of one that moved; `deactivated` for an identity that the user lost.
    """
    still = {(aor.id, contact.id) for aor in document_of(after, {}, profile_of).registrations for contact in aor.contacts}
    kept = {registration.reg: registration for registration in after}
    found: News = {}
    for registration in before:
        news = _end_of(registration, kept.get(registration.reg), told.get(registration.reg), now)
        for impu in impus_of(before, profile_of):
            contact = _contact(impu, registration, "registered")
            if (_id(impu), contact.id) not in still:
                found[_id(impu), contact.id] = (impu, ended(contact, *news))
    return found


def with_news(info: RegInfo, news: News) -> RegInfo:
    """Return the document with the contacts that ended; one that is active again is no news."""
    aors = {aor.id: aor for aor in info.registrations}
    for (aor_id, contact_id), (impu, contact) in news.items():
        aor = aors.setdefault(aor_id, RegisteredAor(impu, aor_id, "terminated"))
        if all(known.id != contact_id for known in aor.contacts):
            aors[aor_id] = replace(aor, contacts=(*aor.contacts, contact))
    return replace(info, registrations=tuple(aors.values()))


def body_of(document: RegInfo, now: float) -> bytes | None:
    """Return the document as it is sent, with seconds left; None if it is too large even without the contacts' parameters."""
    sent = shifted(document, -int(now))
    body = build_reginfo(sent)
    if len(body) <= MAX_BODY:
        return body
    body = build_reginfo(replace(sent, registrations=tuple([_bare(aor) for aor in sent.registrations])))
    return body if len(body) <= MAX_BODY else None


def _end_of(registration: Registration, kept: Registration | None, told: ContactNews | None, now: float) -> ContactNews:
    if kept is None:
        if told is not None and told.event in ACTIVE_EVENTS:
            raise LocalProtocolError("a device that is gone cannot be told of as registered")
        return told or ContactNews("expired" if registration.expires_at <= now else "unregistered")
    return ContactNews("unregistered" if kept.contact != registration.contact else "deactivated")


def _contact(impu: Impu, registration: Registration, event: ContactEvent) -> RegisteredContact:
    address = parse_name_addr_list(registration.contact)[0]
    # §5.4.2.1.2 tells `registered` of the identity that the UE named, `created` of those that came with it [M]
    implicit = event == "registered" and registration.impu != impu
    return RegisteredContact(
        id=_id(impu, registration.reg, address.uri),
        state="active",
        event="created" if implicit else event,
        uri=carried(address.uri),
        expires=int(registration.expires_at),
        display_name=carried(address.display) if address.display else None,
        unknown_params=tuple([(name, carried(value or "")) for name, value in address.parameters if name not in _NOT_UNKNOWN]),
    )


def _id(*parts: str) -> str:
    """RFC 3680 §5.3: an id is the same in every document to a subscriber, and no other element's."""
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).digest()
    return base64.urlsafe_b64encode(digest[:9]).decode("ascii")


def _bare(aor: RegisteredAor) -> RegisteredAor:
    return replace(aor, contacts=tuple([replace(contact, display_name=None, unknown_params=()) for contact in aor.contacts]))
