# SPDX-License-Identifier: Apache-2.0
"""RFC 3680 §4, §5: registration information documents."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import costs_under
from keyferry.errors import LocalProtocolError, ParseError
from keyferry.protocol.ims.reginfo import (
    ACTIVE_EVENTS,
    MAX_CONTACTS,
    MAX_NUMBER,
    NAMESPACE,
    ContactChange,
    ContactEvent,
    RegInfo,
    RegisteredAor,
    RegisteredContact,
    apply,
    build_reginfo,
    carried,
    changes,
    diff,
    ended,
    parse_reginfo,
    settled,
    shifted,
)

# TS 24.228 §6.5, shortened: two identities with one contact, and one that is terminated; the id of a contact is not unique there
DOCUMENT = f"""<?xml version="1.0"?>
<reginfo xmlns="{NAMESPACE}" xmlns:gr="urn:ietf:params:xml:ns:gruuinfo" version="0" state="full">
  <!-- as an S-CSCF writes it -->
  <registration aor="sip:user1_public1@home1.net" id="as9" state="active">
    <contact id="76" state="active" event="registered" expires="600000" duration-registered="7" q="0.8">
      <uri> sip:[5555::aaa:bbb:ccc:ddd] </uri>
      <display-name xml:lang="en">User &amp; One</display-name>
      <unknown-param name="+sip.instance">"&lt;urn:uuid:1&gt;"</unknown-param>
      <unknown-param name="audio"></unknown-param>
      <gr:pub-gruu uri="sip:user1_public1@home1.net;gr=1"/>
    </contact>
  </registration>
  <registration aor="tel:+358504821437" id="as10" state="active">
    <contact id="76" state="active" event="created"><uri>sip:[5555::aaa:bbb:ccc:ddd]</uri></contact>
  </registration>
  <registration aor="sip:user1_public2@home1.net" id="as11" state="terminated">
    <contact id="77" state="terminated" event="probation" retry-after="30"><uri>sip:[5555::aaa:bbb:ccc:ddd]</uri></contact>
  </registration>
</reginfo>""".encode()

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn")), max_size=12)
NAME = st.text("abcxyz019+.-_:@<>&\"'", min_size=1, max_size=12)
NUMBER = st.integers(0, MAX_NUMBER)
ACTIVE = tuple(sorted(ACTIVE_EVENTS))
GONE: tuple[ContactEvent, ...] = ("expired", "deactivated", "probation", "unregistered", "rejected")


def contacts(ids: st.SearchStrategy[str] = NAME) -> st.SearchStrategy[RegisteredContact]:
    active = st.builds(
        RegisteredContact, id=ids, state=st.just("active"), event=st.sampled_from(ACTIVE), uri=NAME, expires=NUMBER, retry_after=st.none(),
        display_name=st.none() | TEXT, unknown_params=st.lists(st.tuples(NAME, TEXT), max_size=3).map(tuple),
    )  # fmt: skip
    over = st.builds(
        RegisteredContact, id=ids, state=st.just("terminated"), event=st.sampled_from(GONE), uri=NAME, expires=st.none(),
        retry_after=st.none() | NUMBER,
    )  # fmt: skip
    return active | over


def documents(ids: st.SearchStrategy[str] = NAME) -> st.SearchStrategy[RegInfo]:
    def by_id(items: list[Any]) -> tuple[Any, ...]:
        return tuple({item.id: item for item in items}.values())

    aors = st.builds(
        RegisteredAor, aor=NAME, id=ids, state=st.sampled_from(["init", "active", "terminated"]),
        contacts=st.lists(contacts(ids), max_size=4).map(by_id),
    )  # fmt: skip
    return st.builds(
        RegInfo, version=NUMBER, state=st.sampled_from(["full", "partial"]), registrations=st.lists(aors, max_size=4).map(by_id)
    )  # fmt: skip


FEW = st.sampled_from("abc")


def contact(name: str = "c", event: ContactEvent = "registered", **more: object) -> RegisteredContact:
    state = "active" if event in ACTIVE_EVENTS else "terminated"
    return RegisteredContact(name, state, event, f"sip:{name}@h", **more)  # type: ignore[arg-type]


def info(*held: RegisteredContact, version: int = 0, state: str = "full", aor_state: str = "active") -> RegInfo:
    return RegInfo(version, state, (RegisteredAor("sip:a@h", "a", aor_state, held),))  # type: ignore[arg-type]


class TestReading:
    """§5.3, §5.4."""

    def test_a_document_of_another_network(self) -> None:
        read = parse_reginfo(DOCUMENT)
        one, two, three = read.registrations
        assert (read.version, read.state) == (0, "full")
        assert one == RegisteredAor(
            "sip:user1_public1@home1.net", "as9", "active",
            (RegisteredContact("76", "active", "registered", "sip:[5555::aaa:bbb:ccc:ddd]", 600_000, None, "User & One",
                               (("+sip.instance", '"<urn:uuid:1>"'), ("audio", ""))),),
        )  # fmt: skip
        assert two.contacts[0].event == "created"
        assert (three.state, three.contacts[0].retry_after) == ("terminated", 30)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'version="0"', b""),
            (b'version="0"', b'version="-1"'),
            (b'version="0"', b'version="4294967296"'),
            (b'version="0"', b'version="\xd9\xa1"'),
            (b'state="full"', b'state="half"'),
            (b'id="as9"', b'id="as10"'),
            (b'id="as9"', b'id=" "'),
            (b'id="as9"', b""),
            (b'aor="sip:user1_public1@home1.net"', b'aor=""'),
            (b'event="registered"', b'event="vanished"'),
            (b'event="registered"', b""),
            (b'expires="600000"', b'expires="soon"'),
            (b'retry-after="30"', b'retry-after="3.5"'),
            (b"<uri>sip:[5555::aaa:bbb:ccc:ddd]</uri>", b""),
            (b'name="audio"', b""),
            (b'name="audio"', b'name="' + 8193 * b"x" + b'"'),
            (b"</contact>", b'</contact><contact id="76" state="active" event="created"><uri>sip:x</uri></contact>'),
            (NAMESPACE.encode(), b"urn:another"),
            (b"<!-- as", b'<!DOCTYPE a [<!ENTITY b "c">]><!-- as'),
        ],
    )
    def test_what_the_schema_forbids_is_refused(self, old: bytes, new: bytes) -> None:
        assert old in DOCUMENT
        with pytest.raises(ParseError):
            parse_reginfo(DOCUMENT.replace(old, new, 1))

    def test_more_contacts_than_a_user_can_have_are_refused(self) -> None:
        many = tuple(RegisteredContact(str(number), "active", "created", "sip:x") for number in range(MAX_CONTACTS + 1))
        document = build_reginfo(info(*many))
        with pytest.raises(ParseError):
            parse_reginfo(document)

    @given(
        st.binary(max_size=300) | st.builds(lambda at, octets: DOCUMENT[:at] + octets + DOCUMENT[at:], st.integers(0, 1500), st.binary())
    )
    def test_any_octets_are_a_document_or_a_parse_error(self, data: bytes) -> None:
        with contextlib.suppress(ParseError):
            parse_reginfo(data)

    def test_a_hostile_document_costs_little_time(self) -> None:
        one = b'<contact id="1" state="active" event="created"><uri>x</uri></contact>'
        hostile = DOCUMENT.replace(b"</reginfo>", b"") + b'<registration aor="x" id="x" state="init">' + 800 * one
        with costs_under(0.5), pytest.raises(ParseError):
            parse_reginfo(hostile[:65_000])


class TestWriting:
    """§5.5."""

    @given(documents())
    def test_what_was_written_is_read_back(self, document: RegInfo) -> None:
        assert parse_reginfo(build_reginfo(document)) == document

    def test_a_shortened_contact_states_its_time(self) -> None:
        """§5.3.2: expires MUST be present if the event is shortened."""
        with pytest.raises(LocalProtocolError):
            build_reginfo(info(contact(event="shortened")))

    def test_what_xml_cannot_carry_is_replaced_or_refused(self) -> None:
        assert carried("plain <&>") == "plain <&>"
        assert carried("a\x01\udcffb") == "a\ufffd\ufffdb"
        assert parse_reginfo(build_reginfo(info(contact(display_name=carried("\x00\x1b"))))).version == 0
        with pytest.raises(LocalProtocolError):
            build_reginfo(info(contact(display_name="\x00")))


class TestPartialState:
    """§4.7, §5.2."""

    @given(documents(FEW), documents(FEW))
    def test_the_difference_leads_from_one_state_to_the_other(self, before: RegInfo, after: RegInfo) -> None:
        assert apply(diff(before, after), before) == settled(after)

    @given(documents(FEW))
    def test_between_equal_states_there_is_only_what_is_terminated(self, document: RegInfo) -> None:
        assert diff(settled(document), settled(document)).registrations == ()
        assert apply(document, None) == settled(document)

    @given(documents(FEW), documents(FEW))
    def test_a_full_document_replaces_what_was_known(self, before: RegInfo, after: RegInfo) -> None:
        assert apply(replace(after, state="full"), before) == settled(after)

    @given(documents(FEW), documents(FEW))
    def test_full_and_partial_documents_tell_the_same_news(self, before: RegInfo, after: RegInfo) -> None:
        told = changes(before, diff(before, after))
        whole = changes(before, settled(after))
        assert {key(change) for change in whole} <= {key(change) for change in told}

    def test_what_is_not_listed_any_more_is_told_as_expired(self) -> None:
        both = info(contact("c"), contact("d"))
        told = diff(both, info(contact("c"), version=5))
        assert told == RegInfo(5, "partial", (RegisteredAor("sip:a@h", "a", "active", (ended(contact("d")),)),))
        gone = diff(both, RegInfo(6, "full"))
        assert [aor.state for aor in gone.registrations] == ["terminated"]
        assert {each.event for each in gone.registrations[0].contacts} == {"expired"}

    def test_an_event_that_is_told_is_kept(self) -> None:
        rejected = contact("c", "rejected")
        assert diff(info(contact("c")), info(rejected)).registrations[0].contacts == (rejected,)


def key(change: ContactChange) -> tuple[str, str]:
    return change.contact.id, change.contact.state


class TestChanges:
    """§4.7: what a subscriber learns."""

    def test_a_new_a_changed_and_a_lost_contact(self) -> None:
        before = info(contact("c", expires=100), contact("d"), contact("e"))
        now = info(contact("c", "refreshed", expires=100), contact("d"), contact("f"))
        told = [(change.contact.id, change.contact.event) for change in changes(before, now)]
        assert told == [("c", "refreshed"), ("f", "registered"), ("e", "expired")]

    def test_time_that_passes_is_no_news(self) -> None:
        before, later, unknown = (info(contact(expires=seconds)) for seconds in (1000, 990, None))
        assert changes(before, later, tolerance=10) == ()
        assert len(changes(before, later, tolerance=9)) == 1
        assert len(changes(before, unknown, tolerance=9)) == 1
        assert changes(unknown, unknown) == ()

    def test_a_partial_document_says_nothing_of_the_others(self) -> None:
        before = info(contact("c"), contact("d"))
        assert changes(before, info(contact("c"), state="partial")) == ()

    def test_a_terminated_identity_takes_its_contacts_along(self) -> None:
        before = info(contact("c"), contact("d"))
        told = changes(before, info(contact("d"), state="partial", aor_state="terminated"))
        assert [(change.contact.id, change.contact.state) for change in told] == [("d", "terminated"), ("c", "terminated")]

    def test_an_end_is_told_even_of_a_contact_nobody_knew(self) -> None:
        assert [change.contact.event for change in changes(None, info(contact("c", "deactivated")))] == ["deactivated"]


def test_expires_moves_between_points_in_time_and_seconds_left() -> None:
    document = info(contact("c", expires=50), contact("d"))
    assert shifted(shifted(document, 1000), -1000) == document
    assert [each.expires for each in shifted(document, -70).registrations[0].contacts] == [0, None]
