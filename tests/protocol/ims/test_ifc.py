# SPDX-License-Identifier: Apache-2.0
"""Initial filter criteria."""

from __future__ import annotations

import itertools

import pytest

from keyferry.errors import ParseError
from keyferry.protocol.ims.ifc import (
    ApplicationServer,
    Condition,
    InitialFilterCriteria,
    OnMethod,
    OnRequestUri,
    OnSessionCase,
    OnSessionDescription,
    OnSipHeader,
    RegistrationType,
    ServicePointTrigger,
    SessionCase,
    TriggerPoint,
    check_patterns,
    matches,
    matching,
)
from keyferry.protocol.sip.message import Request

AS = ApplicationServer("sip:as1.home1.net")
REGISTER = Request(
    "REGISTER",
    "sip:home1.net",
    (
        ("To", "<sip:user1_public1@home1.net>"),
        ("Contact", '<sip:[5555::aaa]>;+g.3gpp.icsi-ref="urn%3Aurn-7%3A3gpp-service.ims.icsi.mmtel"'),
        ("P-Access-Network-Info", "3GPP-UTRAN-TDD;utran-cell-id-3gpp=00000000"),
        ("P-Access-Network-Info", "IEEE-802.11"),
    ),
)
SDP = b"v=0\r\no=- 1 1 IN IP6 5555::aaa\r\nm=audio 3456 RTP/AVP 97\r\na=rtpmap:97 AMR\r\nbroken\r\nm=video 3400 RTP/AVP 98\r\n"
INVITE = Request("INVITE", "sip:+491720000001@home1.net;user=phone", (("Content-Type", "application/SDP;charset=x"),), SDP)


def holds(
    condition: Condition,
    request: Request = REGISTER,
    *,
    kind: int = RegistrationType.INITIAL_REGISTRATION,
    case: int = SessionCase.ORIGINATING,
) -> bool:
    """Match one condition, and check that its negation is the opposite."""
    outcome = [
        matches(
            InitialFilterCriteria(0, TriggerPoint(True, (ServicePointTrigger(condition, negated=negated),)), AS),
            request,
            session_case=case,
            registration_type=kind,
            registered=True,
        )
        for negated in (False, True)
    ]
    assert outcome[0] is not outcome[1]
    return outcome[0]


def test_a_method_matches_literally() -> None:
    """TS 29.228 annex F."""
    assert holds(OnMethod("REGISTER"))
    assert not holds(OnMethod("register"))
    assert not holds(OnMethod("REGISTER"), INVITE)
    assert not holds(OnMethod("REG.*"))


def test_a_registration_type_counts_for_a_register_only() -> None:
    """TS 29.228 annex F."""
    for kind in RegistrationType:
        assert holds(OnMethod("REGISTER"), kind=kind)
        assert holds(OnMethod("REGISTER", (0, 2)), kind=kind) is (kind != RegistrationType.RE_REGISTRATION)
        assert holds(OnMethod("INVITE", (2,)), INVITE, kind=kind)


def test_a_request_uri_matches_a_pattern() -> None:
    """TS 29.228 annex F."""
    assert holds(OnRequestUri(r"^sip:home1\.net$"))
    assert not holds(OnRequestUri(r"^home1"))
    assert holds(OnRequestUri(r"user=phone"), INVITE)


def test_a_header_matches_if_any_of_its_rows_does() -> None:
    """TS 29.228 annex F: a header without content asks only whether it is there."""
    assert holds(OnSipHeader("contact"))
    assert not holds(OnSipHeader("Accept"))
    assert not holds(OnSipHeader("Network"))
    assert holds(OnSipHeader("P-Access.*", "^IEEE-802"))
    assert holds(OnSipHeader("P-Access-Network-Info", "3GPP"))
    assert not holds(OnSipHeader("P-Access-Network-Info", "^802"))
    assert holds(OnSipHeader("Contact", "mmtel"))
    assert not holds(OnSipHeader("To", "mmtel"))
    assert holds(OnSipHeader("To", ""))


def test_a_session_case_is_equal() -> None:
    """TS 29.228 annex F."""
    for one, other in itertools.product(SessionCase, repeat=2):
        assert holds(OnSessionCase(one), case=other) is (one is other)


def test_a_session_description_matches_line_by_line() -> None:
    """TS 29.228 annex F."""
    assert holds(OnSessionDescription("m"), INVITE)
    assert holds(OnSessionDescription("m", "^video"), INVITE)
    assert holds(OnSessionDescription("[ma]", "AMR$"), INVITE)
    assert not holds(OnSessionDescription("a", "video"), INVITE)
    assert not holds(OnSessionDescription("s"), INVITE)
    assert not holds(OnSessionDescription("broken"), INVITE)
    assert not holds(OnSessionDescription("m"), INVITE.replacing("Content-Type", "text/plain"))
    assert not holds(OnSessionDescription("m"))
    assert holds(OnSessionDescription("m", "\ufffd"), Request("INVITE", "sip:x", INVITE.headers, b"m=\xff"))


YES, NO = OnMethod("REGISTER"), OnMethod("INVITE")


def trigger(outcome: bool, *groups: int) -> ServicePointTrigger:
    return ServicePointTrigger(YES if outcome else NO, groups or (0,))


@pytest.mark.parametrize("outcomes", list(itertools.product([False, True], repeat=4)))
def test_groups_join_as_the_form_says(outcomes: tuple[bool, bool, bool, bool]) -> None:
    """TS 29.228 annex B.2.3: CNF is an AND of ORs, DNF an OR of ANDs; triggers of a group need not stand together."""
    a, b, c, d = outcomes
    triggers = (trigger(a, 1), trigger(b, 7), trigger(c, 1), trigger(d, 7))
    for cnf, expected in ((True, (a or c) and (b or d)), (False, (a and c) or (b and d))):
        criteria = InitialFilterCriteria(0, TriggerPoint(cnf, triggers), AS)
        assert matches(criteria, REGISTER, session_case=0, registration_type=0, registered=True) is expected


@pytest.mark.parametrize("outcomes", list(itertools.product([False, True], repeat=3)))
def test_a_trigger_may_belong_to_several_groups(outcomes: tuple[bool, bool, bool]) -> None:
    """TS 29.228 annex B.2.3."""
    a, b, c = outcomes
    triggers = (trigger(a, 0, 1), trigger(b, 0), trigger(c, 1))
    for cnf, expected in ((True, (a or b) and (a or c)), (False, (a and b) or (a and c))):
        criteria = InitialFilterCriteria(0, TriggerPoint(cnf, triggers), AS)
        assert matches(criteria, REGISTER, session_case=0, registration_type=0, registered=True) is expected


@pytest.mark.parametrize(
    ("part", "registered", "expected"),
    [(None, True, True), (None, False, True), (0, True, True), (0, False, False), (1, True, False), (1, False, True)],
)
def test_a_profile_part_chooses_by_registration(part: int | None, registered: bool, expected: bool) -> None:
    """TS 29.228 annex B.2.2; no trigger point matches every request."""
    criteria = InitialFilterCriteria(0, None, AS, part)
    assert matches(criteria, INVITE, session_case=0, registration_type=0, registered=registered) is expected


def test_the_lowest_number_goes_first() -> None:
    """TS 29.228 annex B.2.2."""
    some = [InitialFilterCriteria(n, None if n != 3 else TriggerPoint(True, (trigger(False),)), AS) for n in (9, 3, 0, 4)]
    found = matching(some, REGISTER, session_case=0, registration_type=0, registered=True)
    assert [one.priority for one in found] == [0, 4, 9]


def test_patterns_are_checked_before_they_are_used() -> None:
    """TS 29.228 annex F."""
    for good in (YES, OnSessionCase(0), OnRequestUri("x"), OnSipHeader("x"), OnSessionDescription("x", "y")):
        check_patterns(good)
    for bad in (OnRequestUri("("), OnSipHeader("["), OnSipHeader("x", "*"), OnSessionDescription("{"), OnSessionDescription("m", "[")):
        with pytest.raises(ParseError):
            check_patterns(bad)


def test_service_info_is_not_printed() -> None:
    """STYLE §3 rule 19: Kamailio installations put keys there."""
    assert "secret" not in repr(ApplicationServer("sip:a", service_info="secret"))
