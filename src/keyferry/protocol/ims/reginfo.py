# SPDX-License-Identifier: Apache-2.0
"""Registration information documents (RFC 3680 §4, §5; as the S-CSCF fills them: TS 24.229 §5.4.2.1.2, Release 17)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar, cast, get_args

from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol import xmlsafe
from keyferry.protocol.sip.grammar import MAX_PARAMETERS, MAX_URI, MAX_VALUE

NAMESPACE = "urn:ietf:params:xml:ns:reginfo"
REGINFO_BODY = "application/reginfo+xml"

MAX_REGISTRATIONS = 1_000
"""Of one document; an implicit registration set has under 20 identities, a user profile at most 10,000."""
MAX_CONTACTS = 500
"""Of one registration: devices; 64 kB have no room for twice as many."""
MAX_NUMBER = 2**32 - 1
"""Versions and seconds; the schema's unsignedLong has no use for more."""
MAX_ID = 255
"""Characters of an `id`; ours have 12."""

DocumentState = Literal["full", "partial"]
AorState = Literal["init", "active", "terminated"]
ContactState = Literal["active", "terminated"]
ContactEvent = Literal[
    "registered", "created", "refreshed", "shortened", "expired", "deactivated", "probation", "unregistered", "rejected"
]  # fmt: skip
ACTIVE_EVENTS: frozenset[ContactEvent] = frozenset({"registered", "created", "refreshed", "shortened"})
"""Those that leave a contact active; every other one ends it (RFC 3680 §5.1, figure 2)."""

_WHAT = "reginfo"
_DOCUMENT_STATES = frozenset(get_args(DocumentState))
_AOR_STATES = frozenset(get_args(AorState))
_CONTACT_STATES = frozenset(get_args(ContactState))
_CONTACT_EVENTS = frozenset(get_args(ContactEvent))
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

Item = TypeVar("Item", "RegisteredAor", "RegisteredContact")


@dataclass(frozen=True, slots=True)
class RegisteredContact:
    """One address bound to an identity, and what last happened to it (RFC 3680 §5.3.2)."""

    id: str
    state: ContactState
    event: ContactEvent
    uri: str
    expires: int | None = None  # seconds left; must be there for `shortened`
    retry_after: int | None = None  # seconds, with `probation`
    display_name: str | None = None
    unknown_params: tuple[tuple[str, str], ...] = ()  # the Contact's other parameters, values as written, "" for a flag


@dataclass(frozen=True, slots=True)
class RegisteredAor:
    """One public identity with its contacts (RFC 3680 §5.3.1)."""

    aor: str
    id: str
    state: AorState
    contacts: tuple[RegisteredContact, ...] = ()


@dataclass(frozen=True, slots=True)
class RegInfo:
    """One document; the order of registrations and contacts says nothing."""

    version: int
    state: DocumentState
    registrations: tuple[RegisteredAor, ...] = ()


class ContactChange(NamedTuple):
    """A contact that a document tells something new of."""

    aor: str
    contact: RegisteredContact


def carried(text: str) -> str:
    """Return what XML can carry of a text: what a UE wrote may hold control characters, or octets that are not UTF-8."""
    return _NOT_XML.sub("\ufffd", text) if _NOT_XML.search(text) else text


# ---- what documents say


def ended(contact: RegisteredContact, event: ContactEvent = "expired", retry_after: int | None = None) -> RegisteredContact:
    """Return a contact as terminated; `expired` is what it is called where nobody said why."""
    return replace(contact, state="terminated", event=event, expires=None, retry_after=retry_after)


def settled(info: RegInfo) -> RegInfo:
    """Return the full document of what holds: nothing terminated, everything by id, so that equal states are equal values."""
    kept = [
        replace(aor, contacts=tuple(sorted((each for each in aor.contacts if each.state == "active"), key=lambda each: each.id)))
        for aor in info.registrations
        if aor.state != "terminated"
    ]
    return RegInfo(info.version, "full", tuple(sorted(kept, key=lambda each: each.id)))


def shifted(info: RegInfo, seconds: int) -> RegInfo:
    """Return the document with every `expires` moved: from seconds left to a point in time, or back; never below 0."""
    moved = [replace(aor, contacts=tuple([_shifted(contact, seconds) for contact in aor.contacts])) for aor in info.registrations]
    return replace(info, registrations=tuple(moved))


def apply(document: RegInfo, before: RegInfo | None) -> RegInfo:
    """Return what holds after a document (RFC 3680 §4.7): a full one replaces what was known, a partial one changes it.

    Whether the version is the next one is for the caller to judge.
    """
    known = {} if before is None or document.state == "full" else _by_id(settled(before).registrations)
    for aor in document.registrations:
        contacts = _by_id(known[aor.id].contacts) if aor.id in known else {}
        contacts.update(_by_id(aor.contacts))
        known[aor.id] = replace(aor, contacts=tuple(contacts.values()))
    return settled(RegInfo(document.version, "full", tuple(known.values())))


def diff(before: RegInfo, after: RegInfo) -> RegInfo:
    """Return the partial document that takes a subscriber from one state to the other, with the version of `after`.

    What `after` lists as terminated is told as it says; what it does not list any more is told as expired.
    """
    known = _by_id(settled(before).registrations)
    changed = []
    for aor in after.registrations:
        old = known.pop(aor.id, None)
        if old is None:
            changed.append(aor)
            continue
        contacts = _changed_contacts(old, aor)
        if contacts or (aor.aor, aor.state) != (old.aor, old.state):
            changed.append(replace(aor, contacts=contacts))
    changed += [_ended_aor(old) for old in known.values()]
    return RegInfo(after.version, "partial", tuple(changed))


def changes(before: RegInfo | None, document: RegInfo, *, tolerance: int = 0) -> tuple[ContactChange, ...]:
    """Return what a document says that was not known, ended contacts included, with those a full document passes over in silence.

    `tolerance` is in seconds: an `expires` that moved by no more is no news.
    """
    known = {} if before is None else _by_id(settled(before).registrations)
    found = []
    for aor in document.registrations:
        old = known.pop(aor.id, None)
        contacts = {} if old is None else _by_id(old.contacts)
        for contact in aor.contacts:
            gone = contact.state == "terminated" or aor.state == "terminated"
            if gone or not _same(contacts.get(contact.id), contact, tolerance):
                found.append(ContactChange(aor.aor, ended(contact) if gone and contact.state == "active" else contact))
            contacts.pop(contact.id, None)
        if document.state == "full" or aor.state == "terminated":
            found += [ContactChange(aor.aor, ended(contact)) for contact in contacts.values()]
    if document.state == "full":
        found += [ContactChange(old.aor, ended(contact)) for old in known.values() for contact in old.contacts]
    return tuple(found)


def _by_id(items: Sequence[Item]) -> dict[str, Item]:
    return {item.id: item for item in items}


def _shifted(contact: RegisteredContact, seconds: int) -> RegisteredContact:
    return contact if contact.expires is None else replace(contact, expires=max(0, contact.expires + seconds))


def _changed_contacts(old: RegisteredAor, new: RegisteredAor) -> tuple[RegisteredContact, ...]:
    contacts = _by_id(old.contacts)
    changed = [contact for contact in new.contacts if contacts.pop(contact.id, None) != contact]
    return (*changed, *(ended(contact) for contact in contacts.values()))


def _ended_aor(aor: RegisteredAor) -> RegisteredAor:
    return replace(aor, state="terminated", contacts=tuple([ended(contact) for contact in aor.contacts]))


def _same(known: RegisteredContact | None, contact: RegisteredContact, tolerance: int) -> bool:
    if known is None or replace(known, expires=contact.expires) != contact:
        return False
    if known.expires is None or contact.expires is None:
        return known.expires is contact.expires
    return abs(known.expires - contact.expires) <= tolerance


# ---- reading


def parse_reginfo(data: bytes) -> RegInfo:
    """Read a document; elements and attributes of other vocabularies are passed over (RFC 3680 §5.3, xs:any).

    An id that appears twice is refused: two readers could choose two. Raises ParseError.
    """
    root = xmlsafe.parse(data, what=_WHAT)
    if root.tag != f"{{{NAMESPACE}}}reginfo":
        raise ParseError(_WHAT, "is another document")
    registrations = [_aor(element) for element in _several(root, "registration", MAX_REGISTRATIONS)]
    _check_ids(registrations)
    return RegInfo(_number(_required(root, "version")), cast("DocumentState", _word(root, "state", _DOCUMENT_STATES)), tuple(registrations))


def _aor(element: xmlsafe.Element) -> RegisteredAor:
    contacts = [_contact(each) for each in _several(element, "contact", MAX_CONTACTS)]
    _check_ids(contacts)
    return RegisteredAor(
        aor=_bounded(_required(element, "aor"), MAX_URI),
        id=_bounded(_required(element, "id"), MAX_ID),
        state=cast("AorState", _word(element, "state", _AOR_STATES)),
        contacts=tuple(contacts),
    )


def _contact(element: xmlsafe.Element) -> RegisteredContact:
    uri = xmlsafe.child_text(element, f"{{{NAMESPACE}}}uri", _WHAT)
    display_name = xmlsafe.child_text(element, f"{{{NAMESPACE}}}display-name", _WHAT)
    expires, retry_after = element.get("expires"), element.get("retry-after")
    return RegisteredContact(
        id=_bounded(_required(element, "id"), MAX_ID),
        state=cast("ContactState", _word(element, "state", _CONTACT_STATES)),
        event=cast("ContactEvent", _word(element, "event", _CONTACT_EVENTS)),
        uri=_bounded(uri or "", MAX_URI),
        expires=None if expires is None else _number(expires),
        retry_after=None if retry_after is None else _number(retry_after),
        display_name=None if display_name is None else _short(display_name),
        unknown_params=tuple([_unknown_param(each) for each in _several(element, "unknown-param", MAX_PARAMETERS)]),
    )


def _unknown_param(element: xmlsafe.Element) -> tuple[str, str]:
    return _short(_required(element, "name")), _short(xmlsafe.text(element, _WHAT))


def _several(element: xmlsafe.Element, name: str, limit: int) -> list[xmlsafe.Element]:
    found = xmlsafe.children(element, f"{{{NAMESPACE}}}{name}")
    if len(found) > limit:
        raise ParseError(_WHAT, f"has more than {limit} {name}", status=413)
    return found


def _check_ids(items: Sequence[RegisteredAor] | Sequence[RegisteredContact]) -> None:
    if len({item.id for item in items}) != len(items):
        raise ParseError(_WHAT, "has an id twice")


def _required(element: xmlsafe.Element, name: str) -> str:
    value = element.get(name)
    if value is None:
        raise ParseError(_WHAT, f"has an element without {name}")
    return value


def _word(element: xmlsafe.Element, name: str, words: frozenset[str]) -> str:
    value = _required(element, name).strip()
    if value not in words:
        raise ParseError(_WHAT, f"has a {name} that RFC 3680 does not know")
    return value


def _bounded(text: str, limit: int) -> str:
    value = text.strip(" \t\r\n")  # the schema's anyURI is white space collapsed
    if not value or len(value) > limit:
        raise ParseError(_WHAT, f"has an identifier that is empty or longer than {limit} characters")
    return value


def _short(text: str) -> str:
    if len(text) > MAX_VALUE:
        raise ParseError(_WHAT, f"has a value longer than {MAX_VALUE} characters")
    return text


def _number(text: str) -> int:
    digits = text.strip()
    if not _NUMBER.fullmatch(digits) or int(digits) > MAX_NUMBER:
        raise ParseError(_WHAT, "has a number that is none, or too high")
    return int(digits)


# ---- writing


def build_reginfo(info: RegInfo) -> bytes:
    """Return the document: the reverse of `parse_reginfo`.

    Raises LocalProtocolError for what XML cannot carry, and for `shortened` without `expires` (RFC 3680 §5.3.2: MUST).
    """
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<reginfo xmlns="{NAMESPACE}" version="{info.version}" state="{info.state}">'
        f"{''.join([_aor_text(aor) for aor in info.registrations])}</reginfo>"
    ).encode()


def _aor_text(aor: RegisteredAor) -> str:
    contacts = "".join([_contact_text(contact) for contact in aor.contacts])
    return (
        f'<registration aor="{xmlsafe.escape(aor.aor)}" id="{xmlsafe.escape(aor.id)}" state="{aor.state}">{contacts}</registration>'
    )  # fmt: skip


def _contact_text(contact: RegisteredContact) -> str:
    if contact.event == "shortened" and contact.expires is None:
        raise LocalProtocolError("a shortened contact without the seconds it has left")
    expires = "" if contact.expires is None else f' expires="{contact.expires}"'
    retry_after = "" if contact.retry_after is None else f' retry-after="{contact.retry_after}"'
    display = "" if contact.display_name is None else f"<display-name>{xmlsafe.escape(contact.display_name)}</display-name>"
    parameters = [
        f'<unknown-param name="{xmlsafe.escape(name)}">{xmlsafe.escape(value)}</unknown-param>' for name, value in contact.unknown_params
    ]
    return (
        f'<contact id="{xmlsafe.escape(contact.id)}" state="{contact.state}" event="{contact.event}"{expires}{retry_after}>'
        f"<uri>{xmlsafe.escape(contact.uri)}</uri>{display}{''.join(parameters)}</contact>"
    )
