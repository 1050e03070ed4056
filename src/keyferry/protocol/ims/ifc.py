# SPDX-License-Identifier: Apache-2.0
"""Initial filter criteria: when a request goes to which application server (TS 29.228 annexes B and F, Release 17)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from keyferry.protocol.ims.ere import MAX_TEXT, compile_ere
from keyferry.protocol.sip.message import Request

MAX_SDP_LINES = 1_000
"""Lines of a session description that are looked at; a call has under 100."""


class SessionCase(IntEnum):
    """Direction and registration state of the served user (TS 29.228 annex F)."""

    ORIGINATING = 0
    TERMINATING_REGISTERED = 1
    TERMINATING_UNREGISTERED = 2
    ORIGINATING_UNREGISTERED = 3
    ORIGINATING_CDIV = 4


class RegistrationType(IntEnum):
    """What a REGISTER does (TS 29.228 annex F)."""

    INITIAL_REGISTRATION = 0
    RE_REGISTRATION = 1
    DE_REGISTRATION = 2


class DefaultHandling(IntEnum):
    """What happens when the AS does not answer (TS 29.228 annex F)."""

    SESSION_CONTINUED = 0
    SESSION_TERMINATED = 1


# ---- conditions: one frozen class each, patterns are extended regular expressions


@dataclass(frozen=True, slots=True)
class OnRequestUri:
    """The Request-URI matches a pattern."""

    content: str


@dataclass(frozen=True, slots=True)
class OnMethod:
    """The method is `name`; for a REGISTER also its type, none given meaning all."""

    name: str
    registration_types: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OnSipHeader:
    """A header whose whole name matches `header` is there and, if `content` is given, matches it."""

    header: str
    content: str | None = None


@dataclass(frozen=True, slots=True)
class OnSessionCase:
    """The session case is this one."""

    case: int


@dataclass(frozen=True, slots=True)
class OnSessionDescription:
    """A line of the SDP body has a type that matches `line` and, if `content` is given, a value that matches it."""

    line: str
    content: str | None = None


Condition: TypeAlias = OnRequestUri | OnMethod | OnSipHeader | OnSessionCase | OnSessionDescription


@dataclass(frozen=True, slots=True)
class ServicePointTrigger:
    """One condition and the groups that it belongs to."""

    condition: Condition
    groups: tuple[int, ...] = (0,)
    negated: bool = False


@dataclass(frozen=True, slots=True)
class TriggerPoint:
    """Triggers in groups: CNF is an AND of groups of ORs, DNF an OR of groups of ANDs."""

    cnf: bool
    triggers: tuple[ServicePointTrigger, ...]


@dataclass(frozen=True, slots=True)
class ApplicationServer:
    """Where to, and what a third-party REGISTER takes along."""

    server_name: str  # a SIP URI
    default_handling: int = DefaultHandling.SESSION_CONTINUED
    service_info: str | None = field(default=None, repr=False)  # an HSS of another make may put anything into it
    include_register_request: bool = False
    include_register_response: bool = False


@dataclass(frozen=True, slots=True)
class InitialFilterCriteria:
    """One criterion; the lowest priority number is looked at first."""

    priority: int
    trigger: TriggerPoint | None  # None: always
    application_server: ApplicationServer
    profile_part: int | None = None  # 0: for a registered user only, 1: for an unregistered one only


class _Event(NamedTuple):
    request: Request
    session_case: int
    registration_type: int


def matches(criteria: InitialFilterCriteria, request: Request, *, session_case: int, registration_type: int, registered: bool) -> bool:
    """Tell whether the request goes to the criterion's AS; `registration_type` counts for a REGISTER only."""
    if criteria.profile_part is not None and (criteria.profile_part == 0) is not registered:
        return False
    if criteria.trigger is None:
        return True
    event = _Event(request, session_case, registration_type)
    groups: dict[int, list[ServicePointTrigger]] = {}
    for trigger in criteria.trigger.triggers:
        for group in trigger.groups:
            groups.setdefault(group, []).append(trigger)
    outer, inner = (all, any) if criteria.trigger.cnf else (any, all)
    return outer(inner(_holds(trigger, event) for trigger in group) for group in groups.values())


def matching(
    criteria: Iterable[InitialFilterCriteria], request: Request, *, session_case: int, registration_type: int, registered: bool
) -> list[InitialFilterCriteria]:
    """Return those that match, in the order of their priority."""
    return [
        one
        for one in sorted(criteria, key=lambda one: one.priority)
        if matches(one, request, session_case=session_case, registration_type=registration_type, registered=registered)
    ]


def check_patterns(condition: Condition) -> None:
    """Check that every regular expression of a condition compiles.

    Raises ParseError.
    """
    for pattern in _PATTERNS[type(condition)](condition):
        if pattern is not None:
            compile_ere(pattern)


def _holds(trigger: ServicePointTrigger, event: _Event) -> bool:
    return _TESTS[type(trigger.condition)](trigger.condition, event) is not trigger.negated


def _on_request_uri(condition: OnRequestUri, event: _Event) -> bool:
    return compile_ere(condition.content).search(event.request.uri)


def _on_method(condition: OnMethod, event: _Event) -> bool:
    if condition.name != event.request.method:
        return False
    return condition.name != "REGISTER" or not condition.registration_types or event.registration_type in condition.registration_types


def _on_sip_header(condition: OnSipHeader, event: _Event) -> bool:
    name_of = compile_ere(condition.header)
    content = None if condition.content is None else compile_ere(condition.content)
    return any(name_of.fullmatch(name) and (content is None or content.search(value)) for name, value in event.request.headers)


def _on_session_case(condition: OnSessionCase, event: _Event) -> bool:
    return condition.case == event.session_case


def _on_session_description(condition: OnSessionDescription, event: _Event) -> bool:
    media_type = (event.request.get("Content-Type") or "").partition(";")[0].strip().lower()
    if media_type != "application/sdp":
        return False
    type_of = compile_ere(condition.line)
    content = None if condition.content is None else compile_ere(condition.content)
    for line in event.request.body.split(b"\n", MAX_SDP_LINES)[:MAX_SDP_LINES]:
        kind, equals, value = line[:MAX_TEXT].decode("utf-8", "replace").rstrip("\r").partition("=")
        if equals and type_of.fullmatch(kind) and (content is None or content.search(value)):
            return True
    return False


# keyed by the class of the condition, so the argument has that class: a fact that the type system cannot follow
_TESTS: dict[type, Callable[[Any, _Event], bool]] = {
    OnRequestUri: _on_request_uri,
    OnMethod: _on_method,
    OnSipHeader: _on_sip_header,
    OnSessionCase: _on_session_case,
    OnSessionDescription: _on_session_description,
}
_PATTERNS: dict[type, Callable[[Any], tuple[str | None, ...]]] = {
    OnRequestUri: lambda condition: (condition.content,),
    OnMethod: lambda _: (),
    OnSipHeader: lambda condition: (condition.header, condition.content),
    OnSessionCase: lambda _: (),
    OnSessionDescription: lambda condition: (condition.line, condition.content),
}
