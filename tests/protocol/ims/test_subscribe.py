# SPDX-License-Identifier: Apache-2.0
"""RFC 6665 §3, §8; TS 24.229 §5.1.1.3, §5.2.3, §5.4.2.1: SUBSCRIBE and NOTIFY."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import ParseError, RemoteProtocolError
from keyferry.protocol.ims.subscribe import (
    SubscriptionState,
    accept_subscription,
    accepted_by,
    build_accepted,
    build_notify,
    build_subscribe,
    build_subscription_state,
    noticed_by,
    parse_event,
    parse_notify,
    parse_subscribe,
    parse_subscription_state,
    refreshed_by,
)
from keyferry.protocol.ims.subscription import State, Subscription
from keyferry.protocol.sip.message import Request, Response, build_message, check_request, parse_message

ALICE = "sip:alice@home1.net"
BLANK = Subscription(
    state=State.NOTIFY_WAIT, call_id="b89r@ue.net", local_uri=ALICE, local_tag="31415", remote_uri=ALICE, remote_tag="",
    remote_target=ALICE, route_set=("<sip:pcscf1.visited1.net;lr>", "<sip:orig@scscf1.home1.net;lr>"), cseq=61, remote_cseq=-1,
    event_id=None, expires_at=0.0, version=-1,
)  # fmt: skip
TOKENS = st.text("abcXYZ019-.!%*_+`'~", min_size=1, max_size=12)


def wire(request: Request) -> Request:
    message = parse_message(build_message(request.prepending("Via", "SIP/2.0/UDP ue.net;branch=z9hG4bK1")))
    assert isinstance(message, Request)
    check_request(message)
    return message


def subscribe(subscription: Subscription = BLANK, expires: int = 600_000) -> Request:
    identity = ("P-Preferred-Identity", f"<{ALICE}>")
    return wire(build_subscribe(subscription, contact="sip:alice@ue.net", expires=expires, identity=identity))


def notify(subscription: Subscription, state: str = "active;expires=3600", body: bytes | None = b"<reginfo/>") -> Request:
    return wire(
        build_notify(replace(subscription, cseq=5), contact="sip:scscf1.home1.net", state=parse_subscription_state(state), body=body)
    )  # fmt: skip


def accepted(**headers: str) -> Response:
    return build_accepted(
        subscribe().with_headers((*subscribe().headers, *((name.replace("_", "-"), value) for name, value in headers.items()))),
        local_tag="151", contact="sip:scscf1.home1.net", expires=3600,
    )  # fmt: skip


def changed(request: Request, name: str, *values: str) -> Request:
    return request.replacing(name, *values)


class TestSubscribe:
    """TS 24.229 §5.1.1.3; RFC 6665 §4.1.2.1."""

    def test_the_first_one_names_the_resource_and_has_no_dialog(self) -> None:
        request = subscribe()
        assert (request.method, request.uri, request.get("To"), request.get("CSeq")) == ("SUBSCRIBE", ALICE, f"<{ALICE}>", "61 SUBSCRIBE")
        assert request.all("Route") == ["<sip:pcscf1.visited1.net;lr>", "<sip:orig@scscf1.home1.net;lr>"]
        assert (request.get("Event"), request.get("Accept"), request.get("Expires")) == ("reg", "application/reginfo+xml", "600000")
        assert request.get("P-Preferred-Identity") == f"<{ALICE}>"

    def test_what_was_built_is_read(self) -> None:
        view = parse_subscribe(subscribe())
        assert (view.resource, view.event, view.event_id, view.expires) == (ALICE, "reg", None, 600_000)
        assert (view.contact, view.call_id, view.from_tag, view.to_tag, view.cseq) == ("sip:alice@ue.net", "b89r@ue.net", "31415", "", 61)
        assert (view.accept, view.asserted) == (("application/reginfo+xml",), ())

    def test_without_expires_and_accept_the_package_says_what_holds(self) -> None:
        """RFC 3680 §4.4, §4.5."""
        view = parse_subscribe(subscribe().without("Expires").without("Accept"))
        assert (view.expires, view.accept) == (3761, ())

    def test_other_media_types_and_asserted_identities_are_read(self) -> None:
        request = changed(subscribe(), "Accept", "Text/Plain;q=0.1, application/*", "*/*")
        view = parse_subscribe(changed(request, "P-Asserted-Identity", f'"A" <{ALICE}>, <tel:+15550510>'))
        assert view.accept == ("text/plain", "application/*", "*/*")
        assert view.asserted == (ALICE, "tel:+15550510")

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("Event", ()), ("Event", ("reg", "reg")), ("Event", ('reg;id="a b"',)), ("Event", (";",)), ("Event", ("reg x",)),
            ("Contact", ()), ("Contact", ("<sip:a>", "<sip:b>")), ("Contact", ("<sip:a>, <sip:b>",)), ("Contact", ("<tel:+1>",)),
            ("Expires", ("soon",)), ("From", (f"<{ALICE}>",)), ("From", (f'<{ALICE}>;tag="a b"',)), ("Accept", ("text",)),
            ("Accept", (",".join(33 * ["a/b"]),)), ("Record-Route", 11 * ("<sip:a;lr>",)), ("Record-Route", ("<tel:+1>",)),
            ("P-Asserted-Identity", 3 * (f"<{ALICE}>",)),
        ],
    )  # fmt: skip
    def test_what_the_grammar_forbids_is_refused(self, name: str, values: tuple[str, ...]) -> None:
        with pytest.raises(ParseError):
            parse_subscribe(changed(subscribe(), name, *values))

    @given(st.sampled_from(("Event", "Contact", "Accept", "Record-Route", "P-Asserted-Identity", "From", "To", "Expires")), st.text())
    def test_any_value_is_read_or_a_parse_error(self, name: str, value: str) -> None:
        with contextlib.suppress(ParseError):
            parse_subscribe(changed(subscribe(), name, value))
        with contextlib.suppress(ParseError):
            parse_notify(changed(notify(replace(BLANK, remote_tag="1")), name, value))


class TestNotifiersDialog:
    """RFC 3261 §12.1.1; RFC 6665 §4.2.1."""

    def held(self) -> Subscription:
        request = subscribe().prepending("Record-Route", "<sip:scscf1.home1.net;lr>, <sip:pcscf1.visited1.net;lr>")
        return accept_subscription(parse_subscribe(request), local_tag="151", expires_at=3600.0)

    def test_the_200_carries_what_makes_the_dialog(self) -> None:
        response = accepted(Record_Route="<sip:pcscf1.visited1.net;lr>")
        assert (response.status, response.get("To")) == (200, f"<{ALICE}>;tag=151")
        assert (response.get("Expires"), response.get("Contact")) == ("3600", "<sip:scscf1.home1.net>")
        assert response.all("Record-Route") == ["<sip:pcscf1.visited1.net;lr>"]

    def test_a_notify_goes_back_through_the_proxies(self) -> None:
        request = notify(self.held())
        assert (request.method, request.uri, request.get("CSeq")) == ("NOTIFY", "sip:alice@ue.net", "5 NOTIFY")
        assert request.all("Route") == ["<sip:scscf1.home1.net;lr>", "<sip:pcscf1.visited1.net;lr>"]
        assert (request.get("From"), request.get("To")) == (f"<{ALICE}>;tag=151", f"<{ALICE}>;tag=31415")
        assert (request.get("Subscription-State"), request.get("Content-Type")) == ("active;expires=3600", "application/reginfo+xml")
        assert request.body == b"<reginfo/>"

    def test_one_without_a_body_states_no_type_and_the_event_keeps_its_id(self) -> None:
        request = notify(replace(self.held(), event_id="7"), "terminated;reason=timeout", None)
        assert (request.get("Content-Type"), request.get("Event")) == (None, "reg;id=7")

    def test_a_refresh_moves_the_end_and_the_contact_but_not_the_route(self) -> None:
        view = parse_subscribe(subscribe(replace(BLANK, cseq=62, remote_tag="151")))
        after = refreshed_by(self.held(), view._replace(contact="sip:alice@elsewhere.net"), expires_at=9000.0)
        assert (after.expires_at, after.remote_target, after.remote_cseq) == (9000.0, "sip:alice@elsewhere.net", 62)
        assert after.route_set == self.held().route_set
        with pytest.raises(RemoteProtocolError):
            refreshed_by(after, view._replace(cseq=61), expires_at=1.0)


class TestSubscribersDialog:
    """RFC 3261 §12.1.2; RFC 6665 §4.1.2.1, §4.4.1."""

    def first(self) -> Request:
        notifier = accept_subscription(parse_subscribe(subscribe()), local_tag="151", expires_at=0.0)
        return notify(notifier).prepending("Record-Route", "<sip:pcscf1.visited1.net;lr>")

    def test_it_comes_from_the_200(self) -> None:
        response = accepted(Record_Route="<sip:scscf1.home1.net;lr>, <sip:pcscf1.visited1.net;lr>")
        after = accepted_by(BLANK, response, now=100.0, asked=600_000)
        assert (after.remote_tag, after.remote_target, after.expires_at) == ("151", "sip:scscf1.home1.net", 3700.0)
        assert after.route_set == ("<sip:pcscf1.visited1.net;lr>", "<sip:scscf1.home1.net;lr>")

    def test_or_from_a_notify_that_is_faster(self) -> None:
        after = noticed_by(BLANK, parse_notify(self.first()), now=100.0)
        assert (after.remote_tag, after.remote_target, after.remote_cseq) == ("151", "sip:scscf1.home1.net", 5)
        assert (after.route_set, after.expires_at) == (("<sip:pcscf1.visited1.net;lr>",), 3700.0)
        later = accepted_by(after, accepted(Record_Route="<sip:other;lr>"), now=100.0, asked=60)
        assert (later.route_set, later.expires_at) == (after.route_set, 160.0)

    def test_a_200_of_another_notifier_changes_no_dialog(self) -> None:
        other = replace(BLANK, remote_tag="999", remote_target="sip:other")
        assert accepted_by(other, accepted().without("Expires"), now=0.0, asked=60) == replace(other, expires_at=60.0)
        untagged = accepted().replacing("To", f"<{ALICE}>").without("Contact")
        assert accepted_by(BLANK, untagged, now=0.0, asked=60).remote_tag == ""

    def test_a_later_notify_moves_contact_and_end_only(self) -> None:
        known = replace(BLANK, remote_tag="151", route_set=("<sip:p;lr>",), expires_at=9.0)
        view = parse_notify(self.first())
        after = noticed_by(known, view._replace(contact=None, state=SubscriptionState("active")), now=100.0)
        assert (after.remote_target, after.expires_at, after.route_set) == (known.remote_target, 9.0, ("<sip:p;lr>",))


class TestSubscriptionState:
    """RFC 6665 §8.2.3, §8.4."""

    def test_it_is_read(self) -> None:
        assert parse_subscription_state("active;expires=600") == SubscriptionState("active", 600)
        assert parse_subscription_state("Terminated ; reason=Probation ;retry-after=30") == SubscriptionState(
            "terminated", None, "probation", 30
        )

    @pytest.mark.parametrize("text", ["", ";", "active x", "active;expires=soon", "active;expires", "terminated;retry-after=-1"])
    def test_what_the_grammar_forbids_is_refused(self, text: str) -> None:
        with pytest.raises(ParseError):
            parse_subscription_state(text)

    @given(
        st.builds(
            SubscriptionState,
            TOKENS.map(str.lower),
            st.none() | st.integers(0, 2**32 - 1),
            st.none() | TOKENS.map(str.lower),
            st.none() | st.integers(0, 2**32 - 1),
        )
    )
    def test_what_was_written_is_read_back(self, value: SubscriptionState) -> None:
        assert parse_subscription_state(build_subscription_state(value)) == value

    @given(st.text())
    def test_any_text_is_read_or_a_parse_error(self, text: str) -> None:
        with contextlib.suppress(ParseError):
            parse_subscription_state(text)
        with contextlib.suppress(ParseError):
            parse_event(text)


def test_a_notify_needs_its_state_and_its_tags() -> None:
    """RFC 6665 §8.2.3."""
    request = notify(replace(BLANK, remote_tag="1"))
    for broken in (request.without("Subscription-State"), request.replacing("To", f"<{ALICE}>"), request.replacing("Content-Type", "x")):
        with pytest.raises(ParseError):
            parse_notify(broken)
    assert parse_notify(request.without("Content-Type").without("Contact")).media_type is None
