# SPDX-License-Identifier: Apache-2.0
"""The user profile that the HSS sends over Cx: XML of TS 29.228 annexes B and E, Release 17."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from keyferry.errors import ParseError, TooMuchData
from keyferry.protocol import xmlsafe
from keyferry.protocol.identity import AsId, Impi, Impu, parse_as_id, parse_impi, parse_impu
from keyferry.protocol.ims.ifc import (
    ApplicationServer,
    Condition,
    InitialFilterCriteria,
    OnMethod,
    OnRequestUri,
    OnSessionCase,
    OnSessionDescription,
    OnSipHeader,
    ServicePointTrigger,
    TriggerPoint,
    check_patterns,
)

MAX_USER_DATA = 262_144
"""Octets; 100 IMPUs with 50 criteria have 100,000."""
MAX_PROFILES = 100
"""Service profiles of a subscription, at most one an IMPU."""
MAX_IMPUS = 100
"""Public identities of one service profile."""
MAX_CRITERIA = 100
"""Filter criteria of one service profile; operators have under 20."""
MAX_TRIGGERS = 100
"""Service point triggers of one trigger point."""
MAX_GROUPS = 16
"""Groups that one trigger may belong to."""
MAX_NAFS = 16
"""AS_IDs named by one ServiceInfo."""
MAX_SHAPES = 64
"""Documents remembered that differ in more than their identities: an operator has some tens of subscription types."""
MAX_SHAPE = 32_768
"""Octets of one that is remembered; 20 criteria have 10,000."""

T = TypeVar("T")

_WHAT = "user profile"
_WILDCARDED = frozenset({"2", "3"})  # IdentityType: wildcarded PSI, wildcarded IMPU: patterns, not identities
_NUMBER = re.compile(r"[0-9]{1,9}")
_NAMED = re.compile(rb"<(PrivateID|Identity)>([^<>&\x00-\x1f\x7f]*+)</\1>")  # in plain text: nothing that reading XML would change
_PLACE = b"placeholder.invalid"  # nobody's host (RFC 2606)
_PLACED = re.compile(r"(?:sip:)?([0-9]{1,6})@placeholder\.invalid")
_NAF = re.compile(r"(?:^|[\s;,])naf=([^\s;,]{1,253})")


@dataclass(frozen=True, slots=True)
class ServiceProfile:
    """Public identities and the criteria that hold for them."""

    impus: tuple[tuple[Impu, bool], ...]  # with its barring indication
    criteria: tuple[InitialFilterCriteria, ...] = ()
    shared_ifc_sets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class UserProfile:
    """One implicit registration set; its first IMPU that is not barred is the default one (TS 24.229 §5.4.1.2.2F)."""

    impi: Impi
    profiles: tuple[ServiceProfile, ...]
    ignored: int = 0  # criteria and identities left out because they cannot be understood: for an alarm

    @property
    def impus(self) -> tuple[Impu, ...]:
        """Return the IMPUs that are not barred, the default first."""
        return tuple(dict.fromkeys(impu for profile in self.profiles for impu, barred in profile.impus if not barred))

    def profile_of(self, impu: Impu) -> ServiceProfile | None:
        """Return the service profile of an IMPU, barred or not."""
        return next((profile for profile in self.profiles if any(impu == one for one, _ in profile.impus)), None)


def criteria_of(profile: ServiceProfile, shared: Mapping[int, Sequence[InitialFilterCriteria]]) -> list[InitialFilterCriteria]:
    """Return a profile's own criteria and those of its shared sets, in the order of their priority (TS 29.228 §6.1.2.1 note).

    A set that is not in `shared` is left out: the S-CSCF was not given it.
    """
    every = [*profile.criteria, *(one for number in profile.shared_ifc_sets for one in shared.get(number, ()))]
    return sorted(every, key=lambda one: one.priority)


def impus_for(
    user: UserProfile, shared: Mapping[int, Sequence[InitialFilterCriteria]], chosen: Callable[[InitialFilterCriteria], bool]
) -> tuple[Impu, ...]:
    """Return the IMPUs, not barred, whose service profile has a criterion that is `chosen`: those an AS is told of (DESIGN §6)."""
    profiles = [profile for profile in user.profiles if any(chosen(one) for one in criteria_of(profile, shared))]
    return tuple(dict.fromkeys(impu for profile in profiles for impu, barred in profile.impus if not barred))


def naf_of(service_info: str | None) -> tuple[AsId, ...]:
    """Return the AS_IDs that `naf=HOST` words of a ServiceInfo name (*ours*); others of its words are not ours to judge."""
    found: dict[AsId, None] = {}
    for match in _NAF.finditer(service_info or ""):
        try:
            found[parse_as_id(match[1])] = None
        except ParseError:
            continue
        if len(found) == MAX_NAFS:
            break
    return tuple(found)


# ---- reading


def parse_user_profile(data: bytes) -> UserProfile:
    """Parse User-Data of an SAA or PPR.

    A criterion that cannot be understood is left out and counted, so that it costs a service and not the registration. Users share the
    shape of the document and differ in their identities, so each shape is parsed once and remembered. Raises ParseError, TooMuchData.
    """
    # Comments and CDATA hide elements; references, IDNA and upper case could spell a placeholder that is not ours.
    if len(data) > MAX_SHAPE or not data.isascii() or b"<!" in data or b"&#" in data or _PLACE in data.lower():
        return _parse(data)
    names: list[str] = []

    def place(found: re.Match[bytes]) -> bytes:
        tag, name = found.groups()
        names.append(name.decode("ascii"))
        return b"<%b>%b%d@%b</%b>" % (tag, b"sip:" if tag == b"Identity" else b"", len(names) - 1, _PLACE, tag)

    try:
        return _with_identities(_remembered_shape(_NAMED.sub(place, data)), names)
    except ParseError:
        return _parse(data)  # what is wrong is judged by the document itself


def _with_identities(shape: UserProfile, names: Sequence[str]) -> UserProfile:
    """Put the identities of one user where those of its shape stand. Raises ParseError."""

    def real(placed: str) -> str:
        found = _PLACED.fullmatch(placed)
        return names[int(found[1])] if found else placed

    def impus(profile: ServiceProfile) -> tuple[tuple[Impu, bool], ...]:
        return tuple([(parse_impu(real(impu).strip()), barred) for impu, barred in profile.impus])

    profiles = [replace(profile, impus=impus(profile)) for profile in shape.profiles]
    return UserProfile(parse_impi(real(shape.impi)), tuple(profiles), shape.ignored)


def _parse(data: bytes) -> UserProfile:
    if len(data) > MAX_USER_DATA:
        raise TooMuchData(_WHAT, f"is over {MAX_USER_DATA} octets")
    root = xmlsafe.parse(data, what=_WHAT, max_octets=MAX_USER_DATA)
    if root.tag != "IMSSubscription":
        raise ParseError(_WHAT, "is another document")
    ignored = [0]
    profiles = tuple([_profile(element, ignored) for element in _several(root, "ServiceProfile", MAX_PROFILES)])
    if not profiles:
        raise ParseError(_WHAT, "has no ServiceProfile")
    return UserProfile(parse_impi(_required(root, "PrivateID")), profiles, ignored[0])


cached_user_profile = lru_cache(maxsize=4096)(parse_user_profile)
"""`parse_user_profile`, remembered: a registration and each of its refreshes bring the same octets."""


def identities_of(user_data: bytes) -> tuple[Impu, ...]:
    """Return every identity of User-Data, barred or not; none where it cannot be read."""
    try:
        profile = cached_user_profile(user_data)
    except ParseError:
        return ()
    return tuple(dict.fromkeys(impu for service in profile.profiles for impu, _ in service.impus))


def _profile(element: xmlsafe.Element, ignored: list[int]) -> ServiceProfile:
    impus = _all_understood(_several(element, "PublicIdentity", MAX_IMPUS), _identity, ignored)
    criteria = _all_understood(_several(element, "InitialFilterCriteria", MAX_CRITERIA), _criterion, ignored)
    extension = xmlsafe.child(element, "Extension", _WHAT)
    sets = _several(extension, "SharedIFCSetID", MAX_CRITERIA) if extension is not None else []
    criteria.sort(key=lambda one: one.priority)
    return ServiceProfile(tuple(impus), tuple(criteria), tuple([_number(xmlsafe.text(one, _WHAT)) for one in sets]))


def _all_understood(elements: Sequence[xmlsafe.Element], read: Callable[[xmlsafe.Element], T], ignored: list[int]) -> list[T]:
    found = []
    for element in elements:
        try:
            found.append(read(element))
        except ParseError:
            ignored[0] += 1
    return found


def _identity(element: xmlsafe.Element) -> tuple[Impu, bool]:
    extension = xmlsafe.child(element, "Extension", _WHAT)
    if extension is not None and xmlsafe.child_text(extension, "IdentityType", _WHAT) in _WILDCARDED:
        raise ParseError(_WHAT, "has a wildcarded identity")
    return parse_impu(_required(element, "Identity").strip()), _flag(element, "BarringIndication")


def _criterion(element: xmlsafe.Element) -> InitialFilterCriteria:
    server = _one(element, "ApplicationServer")
    extension = xmlsafe.child(server, "Extension", _WHAT)
    point = xmlsafe.child(element, "TriggerPoint", _WHAT)
    part = xmlsafe.child_text(element, "ProfilePartIndicator", _WHAT)
    return InitialFilterCriteria(
        priority=_number(_required(element, "Priority")),
        trigger=None if point is None else _trigger_point(point),
        application_server=ApplicationServer(
            server_name=_required(server, "ServerName").strip(),
            default_handling=_number(xmlsafe.child_text(server, "DefaultHandling", _WHAT) or "0", most=1),
            service_info=xmlsafe.child_text(server, "ServiceInfo", _WHAT),
            include_register_request=extension is not None and bool(xmlsafe.children(extension, "IncludeRegisterRequest")),
            include_register_response=extension is not None and bool(xmlsafe.children(extension, "IncludeRegisterResponse")),
        ),
        profile_part=None if part is None else _number(part, most=1),
    )


def _trigger_point(element: xmlsafe.Element) -> TriggerPoint:
    triggers = tuple([_trigger(one) for one in _several(element, "SPT", MAX_TRIGGERS)])
    if not triggers:  # an AND of nothing would send every request
        raise ParseError(_WHAT, "has a trigger point without a trigger")
    return TriggerPoint(_boolean(_required(element, "ConditionTypeCNF")), triggers)


def _trigger(element: xmlsafe.Element) -> ServicePointTrigger:
    found = [child for child in element if child.tag in _CONDITIONS]
    if len(found) != 1:
        raise ParseError(_WHAT, "has a trigger without a condition, or with several")
    condition = _CONDITIONS[found[0].tag](found[0], element)
    check_patterns(condition)
    groups = tuple([_number(xmlsafe.text(one, _WHAT)) for one in _several(element, "Group", MAX_GROUPS)])
    return ServicePointTrigger(condition, groups or (0,), _flag(element, "ConditionNegated"))


def _method(element: xmlsafe.Element, trigger: xmlsafe.Element) -> OnMethod:
    extension = xmlsafe.child(trigger, "Extension", _WHAT)
    types = _several(extension, "RegistrationType", 3) if extension is not None else []  # the schema has 2, 3 have been seen
    return OnMethod(xmlsafe.text(element, _WHAT).strip(), tuple([_number(xmlsafe.text(one, _WHAT), most=2) for one in types]))


_CONDITIONS: dict[str, Callable[[xmlsafe.Element, xmlsafe.Element], Condition]] = {
    "RequestURI": lambda element, _: OnRequestUri(xmlsafe.text(element, _WHAT)),
    "Method": _method,
    "SIPHeader": lambda element, _: OnSipHeader(_required(element, "Header"), xmlsafe.child_text(element, "Content", _WHAT)),
    "SessionCase": lambda element, _: OnSessionCase(_number(xmlsafe.text(element, _WHAT))),
    "SessionDescription": lambda element, _: OnSessionDescription(
        _required(element, "Line"), xmlsafe.child_text(element, "Content", _WHAT)
    ),
}


def _several(element: xmlsafe.Element, tag: str, limit: int) -> list[xmlsafe.Element]:
    found = xmlsafe.children(element, tag)
    if len(found) > limit:
        raise TooMuchData(_WHAT, f"has more than {limit} {tag}")
    return found


def _one(element: xmlsafe.Element, tag: str) -> xmlsafe.Element:
    found = xmlsafe.child(element, tag, _WHAT)
    if found is None:
        raise ParseError(_WHAT, f"has no {tag}")
    return found


def _required(element: xmlsafe.Element, tag: str) -> str:
    return xmlsafe.text(_one(element, tag), _WHAT)


def _number(text: str, *, most: int = 999_999_999) -> int:
    digits = text.strip()
    if not _NUMBER.fullmatch(digits) or int(digits) > most:
        raise ParseError(_WHAT, "has a number that is none, or too high")
    return int(digits)


def _flag(element: xmlsafe.Element, tag: str) -> bool:
    text = xmlsafe.child_text(element, tag, _WHAT)
    return text is not None and _boolean(text)


def _boolean(text: str) -> bool:
    try:
        return {"0": False, "1": True, "false": False, "true": True}[text.strip()]
    except KeyError:
        raise ParseError(_WHAT, "has a truth value of another form") from None


_remembered_shape = functools.lru_cache(MAX_SHAPES)(_parse)


# ---- writing


def build_user_profile(user: UserProfile) -> bytes:
    """Return User-Data, reverse of `parse_user_profile`."""
    profiles = "".join([_profile_text(profile) for profile in user.profiles])
    document = f"<IMSSubscription>{_text('PrivateID', user.impi)}{profiles}</IMSSubscription>"
    return f'<?xml version="1.0" encoding="UTF-8"?>{document}'.encode()


def _text(tag: str, value: str | int | bool | None) -> str:
    if value is None:
        return ""
    return f"<{tag}>{xmlsafe.escape(value) if isinstance(value, str) else int(value)}</{tag}>"


def _profile_text(profile: ServiceProfile) -> str:
    impus = "".join(
        [
            f"<PublicIdentity>{_text('BarringIndication', barred)}{_text('Identity', impu)}</PublicIdentity>"
            for impu, barred in profile.impus
        ]
    )
    sets = "".join([_text("SharedIFCSetID", number) for number in profile.shared_ifc_sets])
    extension = f"<Extension>{sets}</Extension>" if sets else ""
    return f"<ServiceProfile>{impus}{''.join([_remembered_text(one) for one in profile.criteria])}{extension}</ServiceProfile>"


def _criterion_text(criteria: InitialFilterCriteria) -> str:
    server = criteria.application_server
    request = "<IncludeRegisterRequest/>" if server.include_register_request else ""
    response = "<IncludeRegisterResponse/>" if server.include_register_response else ""
    extension = f"<Extension>{request}{response}</Extension>" if request or response else ""
    point = "" if criteria.trigger is None else _trigger_point_text(criteria.trigger)
    return (
        f"<InitialFilterCriteria>{_text('Priority', criteria.priority)}{point}<ApplicationServer>{_text('ServerName', server.server_name)}"
        f"{_text('DefaultHandling', server.default_handling)}{_text('ServiceInfo', server.service_info)}{extension}</ApplicationServer>"
        f"{_text('ProfilePartIndicator', criteria.profile_part)}</InitialFilterCriteria>"
    )


_remembered_text = functools.lru_cache(MAX_CRITERIA)(_criterion_text)  # one network's profiles share them


def _trigger_point_text(point: TriggerPoint) -> str:
    return f"<TriggerPoint>{_text('ConditionTypeCNF', point.cnf)}{''.join([_trigger_text(one) for one in point.triggers])}</TriggerPoint>"


def _trigger_text(trigger: ServicePointTrigger) -> str:
    groups = "".join([_text("Group", number) for number in trigger.groups])
    return f"<SPT>{_text('ConditionNegated', trigger.negated)}{groups}{_condition_text(trigger.condition)}</SPT>"


def _condition_text(condition: Condition) -> str:
    match condition:
        case OnRequestUri(content):
            return _text("RequestURI", content)
        case OnMethod(name, types):
            registration = "".join([_text("RegistrationType", number) for number in types])
            return _text("Method", name) + (f"<Extension>{registration}</Extension>" if registration else "")
        case OnSipHeader(header, pattern):
            return f"<SIPHeader>{_text('Header', header)}{_text('Content', pattern)}</SIPHeader>"
        case OnSessionCase(case):
            return _text("SessionCase", case)
        case OnSessionDescription(line, pattern):
            return f"<SessionDescription>{_text('Line', line)}{_text('Content', pattern)}</SessionDescription>"
