# SPDX-License-Identifier: Apache-2.0
"""RFC 6665 §4: the machines; TS 24.229 §5.4.2.1.1: who may subscribe."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import LocalProtocolError, RemoteProtocolError
from keyferry.protocol.identity import Impu
from keyferry.protocol.ims.subscription import (
    ENDING_STATUSES,
    NOTIFIER,
    SUBSCRIBER,
    Input,
    State,
    Subscription,
    Watcher,
    advance,
    authorised,
    check_order,
    may_come_back,
    notify_outcome,
    refresh_after,
    refresh_outcome,
    resubscribe_after,
)

ONE = Subscription(
    state=State.ACTIVE, call_id="c", local_uri="sip:a@home1.net", local_tag="l", remote_uri="sip:a@home1.net", remote_tag="r",
    remote_target="sip:ue.net", route_set=(), cseq=1, remote_cseq=7, event_id=None, expires_at=100.0, version=0,
)  # fmt: skip


class TestMachines:
    """§4.1, figure 1; §4.2, figure 2."""

    def test_the_notifiers_life(self) -> None:
        taken = advance(NOTIFIER, advance(NOTIFIER, ONE, Input.NOTIFY_TAKEN), Input.REFRESHED)
        assert taken is ONE
        over = advance(NOTIFIER, taken, Input.EXPIRED)
        assert advance(NOTIFIER, over, Input.NOTIFY_TAKEN).state is State.TERMINATED

    def test_the_subscribers_life(self) -> None:
        waiting = replace(ONE, state=State.NOTIFY_WAIT)
        assert advance(SUBSCRIBER, waiting, Input.REFRESHED).state is State.NOTIFY_WAIT
        pending = advance(SUBSCRIBER, waiting, Input.NOTIFIED_PENDING)
        active = advance(SUBSCRIBER, pending, Input.NOTIFIED_ACTIVE)
        assert (pending.state, active.state) == (State.PENDING, State.ACTIVE)
        assert advance(SUBSCRIBER, active, Input.NOTIFIED_TERMINATED).state is State.TERMINATED

    def test_timer_n_is_for_the_first_notify(self) -> None:
        assert advance(SUBSCRIBER, replace(ONE, state=State.NOTIFY_WAIT), Input.TIMER_N).state is State.TERMINATED
        with pytest.raises(LocalProtocolError):
            advance(SUBSCRIBER, ONE, Input.TIMER_N)

    @pytest.mark.parametrize("table", [NOTIFIER, SUBSCRIBER])
    @given(inputs=st.lists(st.sampled_from(Input), max_size=12))
    def test_nothing_leads_back_from_the_end(self, table: dict[tuple[State, Input], State], inputs: list[Input]) -> None:
        subscription, over = ONE, False
        for each in inputs:
            with contextlib.suppress(LocalProtocolError):
                subscription = advance(table, subscription, each)
            over = over or subscription.state is State.TERMINATED
            assert not over or subscription.state is State.TERMINATED


class TestDialog:
    """RFC 3261 §12.2."""

    def test_a_request_goes_to_the_first_route_or_to_the_contact(self) -> None:
        assert ONE.next_hop == "sip:ue.net"
        assert replace(ONE, route_set=("<sip:pcscf1.visited1.net;lr>", "<sip:x;lr>")).next_hop == "sip:pcscf1.visited1.net;lr"

    def test_what_was_overtaken_is_refused_and_a_repetition_is_none(self) -> None:
        assert check_order(ONE, 8)
        assert not check_order(ONE, 7)
        with pytest.raises(RemoteProtocolError) as refused:
            check_order(ONE, 6)
        assert refused.value.status == 500


class TestAnswers:
    """RFC 6665 §4.1.2.2, §4.1.3, §4.2.2; RFC 5057 §5.1."""

    def test_to_a_notify(self) -> None:
        assert [notify_outcome(status).name for status in (200, 202, 408, 481, 489, 500, 503, 400)] == [
            "NOTIFY_TAKEN", "NOTIFY_TAKEN", "NOTIFY_TIMEOUT", "NOTIFY_REFUSED", "NOTIFY_REFUSED", "NOTIFY_FAILED", "NOTIFY_FAILED",
            "NOTIFY_FAILED",
        ]  # fmt: skip

    def test_to_a_refresh(self) -> None:
        assert refresh_outcome(200) is Input.REFRESHED
        assert {refresh_outcome(status) for status in ENDING_STATUSES} == {Input.SUBSCRIBE_REFUSED}
        assert refresh_outcome(503) is Input.SUBSCRIBE_FAILED
        assert [may_come_back(status) for status in (481, 408, 503, 403, 480, 489)] == [True, True, True, False, False, False]

    def test_what_a_reason_says_of_a_new_try(self) -> None:
        assert {resubscribe_after(reason, 5) for reason in ("rejected", "noresource", "invariant")} == {None}
        assert {resubscribe_after(reason, 5) for reason in ("deactivated", "timeout")} == {0.0}
        assert [resubscribe_after(reason, 5) for reason in ("probation", "giveup", None)] == [5.0, 5.0, 5.0]
        assert resubscribe_after("probation", None) == 60.0

    def test_when_to_refresh(self) -> None:
        """TS 24.229 §5.1.1.3."""
        assert [refresh_after(granted) for granted in (600_000, 1201, 1200, 60)] == [599_400, 601, 600, 30]


class TestWhoMaySubscribe:
    """TS 24.229 §5.4.2.1.1 step 1."""

    IMPUS = (Impu("sip:alice@home1.net"), Impu("tel:+15550510"))
    PATHS = ('"P" <sip:token@pcscf1.visited1.net:5070;lr>, <sip:ibcf.home1.net;lr>',)
    SERVERS = ("sip:as1.home1.net;transport=tcp", "not a uri")

    def ask(self, *asserted: str) -> Watcher | None:
        return authorised(asserted, impus=self.IMPUS, paths=(*self.PATHS, "no path"), servers=self.SERVERS)

    def test_the_user_for_each_identity_that_is_not_barred(self) -> None:
        assert self.ask("sip:Alice@HOME1.net;x=1") is None  # the user part has case
        assert self.ask("sip:alice@HOME1.net;x=1") == Watcher("user", "")
        assert self.ask("sip:other@home1.net", "tel:+1-555-0510") == Watcher("user", "")

    def test_the_elements_of_the_path(self) -> None:
        hop = "sip:token@pcscf1.visited1.net:5070;lr"
        assert self.ask("sip:pcscf1.visited1.net") == Watcher("pcscf", hop)
        assert self.ask("sip:pcscf1.visited1.net:5070") == Watcher("pcscf", hop)
        assert self.ask("sip:token@pcscf1.visited1.net") == Watcher("pcscf", hop)
        assert self.ask("sip:ibcf.home1.net") == Watcher("pcscf", "sip:ibcf.home1.net;lr")

    def test_the_application_servers_of_the_filter_criteria(self) -> None:
        assert self.ask("sip:as1.home1.net") == Watcher("as", "sip:as1.home1.net;transport=tcp")

    @pytest.mark.parametrize(
        "stranger",
        ["sip:bob@home1.net", "sip:pcscf2.visited1.net", "sip:pcscf1.visited1.net:5060", "sip:bob@pcscf1.visited1.net", "sip:as2.home1.net",
         "sip:bob@as1.home1.net", "tel:+15550511", "mailto:x", ""],
    )  # fmt: skip
    def test_nobody_else(self, stranger: str) -> None:
        assert self.ask(stranger) is None
        assert self.ask() is None

    @given(st.lists(st.text(max_size=40), max_size=3), st.text(max_size=40))
    def test_any_text_is_judged(self, asserted: list[str], path: str) -> None:
        authorised(asserted, impus=self.IMPUS, paths=(path,), servers=(path,))
