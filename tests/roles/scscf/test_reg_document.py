# SPDX-License-Identifier: Apache-2.0
"""TS 24.229 §5.4.2.1.2: what the S-CSCF says of a user's registrations."""

from __future__ import annotations

import pytest

from keyferry.errors import LocalProtocolError
from keyferry.ports import Registration
from keyferry.protocol.identity import Impu, Reg
from keyferry.protocol.ims.reginfo import ContactEvent, RegInfo, parse_reginfo
from keyferry.protocol.ims.user_profile import parse_user_profile
from keyferry.roles.scscf.reg_document import (
    MAX_BODY,
    ContactNews,
    body_of,
    document_of,
    event_of,
    impus_of,
    news_of,
    with_news,
)
from roles.regkit import BARRED, SIP, TEL, profile, registration

NOW = 1_800_000_000.0
ONE, TWO = registration("one", NOW), registration("two", NOW)


def document(*registrations: Registration, **events: ContactEvent) -> RegInfo:
    return document_of(registrations, {Reg(reg): event for reg, event in events.items()}, parse_user_profile)


def ended(before: list[Registration], after: list[Registration], now: float = NOW, **told: ContactNews) -> list[tuple[str, str, str]]:
    news = news_of(before, after, {Reg(reg): each for reg, each in told.items()}, parse_user_profile, now)
    return [(impu, contact.uri, contact.event) for impu, contact in news.values()]


class TestDocument:
    """§5.4.2.1.2; RFC 3680 §5.3."""

    def test_every_identity_that_is_not_barred_has_every_device(self) -> None:
        made = document(ONE, TWO)
        assert [aor.aor for aor in made.registrations] == [SIP, TEL]
        assert [[contact.uri for contact in aor.contacts] for aor in made.registrations] == 2 * [["sip:alice@one.net", "sip:alice@two.net"]]
        assert BARRED not in impus_of([ONE], parse_user_profile)

    def test_ids_are_unique_and_stay(self) -> None:
        made = document(ONE, TWO)
        ids = [contact.id for aor in made.registrations for contact in aor.contacts] + [aor.id for aor in made.registrations]
        assert len(set(ids)) == 6
        assert document(ONE._replace(expires_at=NOW + 9, cseq=5)).registrations[0].contacts[0].id == made.registrations[0].contacts[0].id

    def test_what_came_along_is_created_and_what_was_asked_for_registered(self) -> None:
        assert [aor.contacts[0].event for aor in document(ONE).registrations] == ["registered", "created"]
        assert [aor.contacts[0].event for aor in document(ONE, one="refreshed").registrations] == ["refreshed", "refreshed"]

    def test_parameters_of_the_contact_go_along(self) -> None:
        contact = document(ONE).registrations[0].contacts[0]
        assert contact.unknown_params == (("+sip.instance", '"<urn:one>"'), ("audio", ""))
        assert (contact.display_name, contact.expires) == (None, int(NOW) + 3600)

    def test_what_xml_cannot_carry_does_no_harm(self) -> None:
        odd = ONE._replace(contact='"\\\x01\udcff" <sip:alice@one.net>;x="\\\x02"')
        body = body_of(document(odd), NOW)
        assert body is not None
        assert parse_reginfo(body).registrations[0].contacts[0].display_name == "\ufffd\ufffd"

    def test_nobody_is_registered(self) -> None:
        assert document().registrations == ()

    def test_the_newest_profile_counts(self) -> None:
        newer = TWO._replace(aka_time=NOW + 1, user_data=profile(impus=((SIP, False),)))
        assert [aor.aor for aor in document(ONE, newer).registrations] == [SIP]


class TestEvents:
    """RFC 3680 §5.1."""

    def test_of_a_register(self) -> None:
        assert event_of(None, ONE) == "registered"
        assert event_of(ONE, ONE._replace(contact="<sip:new>")) == "registered"
        assert event_of(ONE, ONE._replace(expires_at=ONE.expires_at + 1)) == "refreshed"
        assert event_of(ONE, ONE._replace(expires_at=ONE.expires_at - 1)) == "shortened"

    def test_of_a_device_that_went(self) -> None:
        assert ended([ONE, TWO], [TWO]) == [(SIP, "sip:alice@one.net", "unregistered"), (TEL, "sip:alice@one.net", "unregistered")]
        assert {event for _, _, event in ended([ONE], [], ONE.expires_at)} == {"expired"}
        assert {event for _, _, event in ended([ONE], [], one=ContactNews("rejected"))} == {"rejected"}

    def test_of_an_address_that_was_left_and_an_identity_that_was_lost(self) -> None:
        moved = ONE._replace(contact="<sip:alice@new.net>")
        assert {(uri, event) for _, uri, event in ended([ONE], [moved])} == {("sip:alice@one.net", "unregistered")}
        assert ended([ONE], [ONE._replace(user_data=profile(impus=((SIP, False),)))]) == [(TEL, "sip:alice@one.net", "deactivated")]
        assert ended([ONE], [ONE._replace(expires_at=1.0)]) == []

    def test_a_device_that_is_gone_is_not_refreshed(self) -> None:
        with pytest.raises(LocalProtocolError):
            ended([ONE], [], one=ContactNews("refreshed"))

    def test_probation_states_when(self) -> None:
        news = news_of([ONE], [], {ONE.reg: ContactNews("probation", 30)}, parse_user_profile, NOW)
        told = with_news(document(), news)
        assert [(aor.aor, aor.state) for aor in told.registrations] == [(SIP, "terminated"), (TEL, "terminated")]
        assert {(contact.event, contact.retry_after) for aor in told.registrations for contact in aor.contacts} == {("probation", 30)}

    def test_what_is_active_again_is_no_news(self) -> None:
        news = news_of([ONE, TWO], [], {}, parse_user_profile, NOW)
        told = with_news(document(ONE), news)
        assert [contact.state for contact in told.registrations[0].contacts] == ["active", "terminated"]


class TestBody:
    """RFC 3680 §5.5; what one SIP message holds."""

    def test_expires_counts_down(self) -> None:
        body = body_of(document(ONE), NOW + 600)
        assert body is not None
        assert parse_reginfo(body).registrations[0].contacts[0].expires == 3000
        assert b'expires="0"' in (body_of(document(ONE), NOW + 9999) or b"")

    def test_one_that_is_too_large_goes_without_parameters_or_not_at_all(self) -> None:
        long = [registration(f"d{number}", NOW, contact=f"<sip:d{number}@x.net>;a={3000 * 'x'}") for number in range(12)]
        body = body_of(document(*long), NOW)
        assert body is not None
        assert len(body) < MAX_BODY
        assert parse_reginfo(body).registrations[0].contacts[0].unknown_params == ()
        many = profile(impus=tuple((Impu(f"sip:{number}@home1.net"), False) for number in range(100)))
        assert body_of(document(*(each._replace(user_data=many) for each in long)), NOW) is None
